"""The demo's comparison: an image with one row for each way to sample, and a table."""

from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

LABEL_WIDTH, HEAD_HEIGHT, GAP = 210, 44, 4


def comparison_image(rows, prompts):
    """A PIL image: a row of images (N, 3, S, S) in -1..1 for each (title, note, images), a column for each prompt."""
    side = rows[0][2].shape[-1]
    width = LABEL_WIDTH + len(prompts) * (side + GAP)
    sheet = Image.new("RGB", (width, HEAD_HEIGHT + len(rows) * (side + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    for column, text in enumerate(prompts):
        concept, *rest = text.split()
        left = LABEL_WIDTH + column * (side + GAP)
        draw.text((left + 4, 6), concept, "black", large)
        draw.text((left + 4, 23), " ".join(rest), "black", small)
    for number, (title, note, images) in enumerate(rows):
        top = HEAD_HEIGHT + number * (side + GAP)
        draw.text((8, top + side // 2 - 30), title, "black", large)
        draw.multiline_text((8, top + side // 2 - 8), note, "dimgrey", small)
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
        for column, image in enumerate(rearrange(pixels, "n c h w -> n h w c").numpy()):
            sheet.paste(Image.fromarray(image), (LABEL_WIDTH + column * (side + GAP), top))
    return sheet


def table(header, rows):
    """Plain text with aligned columns, the first to the left and the others to the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    shown = []
    for first, *others in lines:
        shown.append("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:]))]))
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])
