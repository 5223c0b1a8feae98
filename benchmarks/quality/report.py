"""All tables as one text, and the page that holds it."""

import re
from pathlib import Path

from rmd_core.errors import RMDError
from rmd_core.files import write_text

from .scoring import PROMPTS, REPEATS
from .tables import Tables

TABLES = (
    ("Real pictures, teacher, cascade without distillation, students", "main"),
    ("Upsampler of the clean estimate and mapping of the levels", "cells"),
    ("Differences between students of the same training seed", "paired"),
    ("One change at a time, at two thirds of the training", "changes"),
    ("During training", "curves"),
    ("Low-resolution share of a short teacher training", "shares"),
    ("The metric on damaged real pictures", "check"),
)
BEGIN, END = "<!-- printed by python -m benchmarks.quality -->", "<!-- end -->"


def report(store, timing):
    """The tables with their titles, and how the rows were made."""
    tables = Tables(store, timing)
    parts = [f"{title}\n\n{getattr(tables, name)()}\n" for title, name in TABLES]
    parts.append(f"{len(PROMPTS) * REPEATS} pictures a row; {'; '.join(store.made()) or 'no row is there'}")
    if timing:
        parts.append("ms: CPU time of a picture on one thread, {cpu}, torch {torch}, {date}".format(**timing["made"]))
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines())


def between_marks(text, page):
    """The page's text with ``text`` as its code block. Raises RMDError where the page has no marks."""
    inside = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not inside.search(page):
        raise RMDError(f"the page has no place for the tables; write {BEGIN} and {END} into it")
    return inside.sub(lambda _: f"{BEGIN}\n```\n{text}\n```\n{END}", page)


def update_page(path, text):
    """Put the tables into a page."""
    write_text(path, between_marks(text, Path(path).read_text(encoding="utf-8")))
