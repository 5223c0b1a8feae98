"""The demo's picture (one row for each way to sample) and its table."""

from PIL import Image, ImageDraw, ImageFont

LABEL_WIDTH, HEAD_HEIGHT, GAP = 210, 44, 4


def comparison_picture(rows, prompts):
    """A PIL image: a row of pictures (N, 3, S, S) in -1..1 for each (title, note, pictures), a column a prompt."""
    side = rows[0][2].shape[-1]
    width = LABEL_WIDTH + len(prompts) * (side + GAP)
    sheet = Image.new("RGB", (width, HEAD_HEIGHT + len(rows) * (side + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    for column, text in enumerate(prompts):
        for line, word in enumerate((text.split()[0], " ".join(text.split()[1:]))):
            draw.text((LABEL_WIDTH + column * (side + GAP) + 4, 6 + 17 * line), word, "black", (large, small)[line])
    for number, (title, note, pictures) in enumerate(rows):
        top = HEAD_HEIGHT + number * (side + GAP)
        draw.text((8, top + side // 2 - 30), title, "black", large)
        draw.multiline_text((8, top + side // 2 - 8), note, "dimgrey", small)
        pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        for column, picture in enumerate(pixels):
            sheet.paste(Image.fromarray(picture), (LABEL_WIDTH + column * (side + GAP), top))
    return sheet


def table(header, rows):
    """Plain text with aligned columns, the first to the left and the others to the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    shown = []
    for first, *others in lines:
        shown.append("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:]))]))
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])
