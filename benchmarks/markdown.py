"""Tables in Markdown, and the pages that hold generated ones between two marks."""

from rmd_core.errors import RMDError
from rmd_core.files import write_text


def markdown_table(head, rows, *, left=1):
    """A Markdown table, its first ``left`` columns to the left and the others to the right."""
    rule = [*["---"] * left, *["---:"] * (len(head) - left)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def marks(name):
    """The two lines around a generated block."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_block(path, name, text):
    """Put ``text`` between the marks of that name on a page. Raises RMDError where they are missing."""
    page = path.read_text(encoding="utf-8")
    begin, end = marks(name)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise RMDError(f"{path} needs one line {begin} and one {end}; the table goes between them")
    write_text(path, f"{page.split(begin)[0]}{begin}\n{text}\n{end}{page.split(end)[1]}")


def stored_block(path, name):
    """What stands between the marks of a page."""
    begin, end = marks(name)
    return path.read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip("\n")
