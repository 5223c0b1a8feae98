"""Stored results (benchmarks/results/*.json), what they were made with, and the Markdown tables on pages."""

import datetime
import json
import platform
import statistics
from pathlib import Path

import torch

from rmd_core.errors import RMDError
from rmd_core.files import make_folder, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).parent / "results"


def read_results(path):
    """The JSON object in a file, None where there is no file. Raises RMDError for a damaged one."""
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RMDError(f"{path} is damaged ({error!r:.80}); delete it to measure again") from None


def write_results(path, contents):
    """Write a JSON object, whole or not at all."""
    make_folder(path.parent)
    write_json(path, contents)


def provenance(**more):
    """What every result is stored with: the date, the version of torch, and more."""
    return {"date": datetime.date.today().isoformat(), "torch": torch.__version__, **more}


def cpu_name():
    """The processor as Linux names it, else as Python does."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def quartiles(values):
    """{"median", "low", "high"} of some figures; all the same for a single one."""
    values = list(values)
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}


def markdown_table(head, rows, *, left=1):
    """A Markdown table, its first ``left`` columns to the left and the others to the right."""
    rule = [*["---"] * left, *["---:"] * (len(head) - left)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, rule, *rows))


def replace_block(path, name, text):
    """Put ``text`` between the marks of that name on a page. Raises RMDError where they are missing."""
    page = path.read_text(encoding="utf-8")
    begin, end = marks(name)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise RMDError(f"{path} needs one line {begin} and one {end}; the table goes between them")
    write_text(path, f"{page.split(begin)[0]}{begin}\n{text}\n{end}{page.split(end)[1]}")


def stored_block(path, name):
    """What is between the marks of a page."""
    begin, end = marks(name)
    return path.read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip("\n")


def marks(name):
    """The two lines around a generated block."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
