"""Gather a prompt list from caption files: one prompt a line, without repeats, short and long ones left out.

    python -m training.gather_prompts captions.csv data/*.parquet --column caption --out prompts.txt --count 20000
    python -m training.gather_prompts OWNER/NAME --files "data/train-*.parquet" --out prompts.txt

A source is a file (.txt, .jsonl, .json, .csv, .tsv, .parquet), a folder of such files, or the id of a data set on the
hub. You choose the sources, so mind their licences. Exit codes: 0 done, 2 bad input or no place to write.
"""

import argparse
import csv
import json
import random
import re
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

from rmd_core.errors import RMDError, one_line
from rmd_core.files import write_text

COLUMNS = ("prompt", "caption", "text", "description")  # what a column of captions may be called, in any case
KINDS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


def gather(sources, *, column=None, files="*", words=(3, 120), count=None, seed=0):
    """(the prompts of ``sources`` as a list, how many were read and why others were left out as a Counter).

    ``words``: the least and the most of a prompt. ``count``: take so many at random, in their order. Prompts that
    differ in case, spaces and punctuation alone count as one. Raises RMDError for a source that cannot be read.
    """
    found, figures = {}, Counter()
    for path in (path for source in sources for path in _files_of(source, files)):
        for text in _captions(path, column):
            figures["read"] += 1
            prompt = " ".join(text.split())
            length, key = len(prompt.split()), re.sub(r"\W+", " ", prompt.casefold()).strip()
            if not words[0] <= length <= words[1]:
                figures["too short" if length < words[0] else "too long"] += 1
            elif not prompt.isprintable() or not key:
                figures["not text"] += 1
            elif key in found:
                figures["repeated"] += 1
            else:
                found[key] = prompt
    prompts = list(found.values())
    if count is not None and count < len(prompts):
        figures["beyond --count"] = len(prompts) - count
        prompts = [prompts[i] for i in sorted(random.Random(seed).sample(range(len(prompts)), count))]
    return prompts, figures


def _files_of(source, pattern):
    """The caption files of a file's name, a folder or a data set on the hub."""
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if _fits(p.relative_to(path).as_posix(), pattern))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        found = _download(str(source), pattern)
    else:
        raise RMDError(f"{source}: no file, folder, or OWNER/NAME of a data set on the hub")
    if not found:
        raise RMDError(f"{source}: no file there ends in {', '.join(KINDS)} and fits --files '{pattern}'")
    return found


def _fits(name, pattern):
    return name.lower().endswith(KINDS) and fnmatch(name, pattern)


def _download(name, pattern):
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        names = HfApi().list_repo_files(name, repo_type="dataset")
        wanted = sorted(file for file in names if _fits(file, pattern))
        return [Path(hf_hub_download(name, file, repo_type="dataset")) for file in wanted]
    except (OSError, HfHubHTTPError.__bases__[0]) as error:  # the latter is that of the library that it asks with
        raise RMDError(f"{name}: no such file or folder, and no such data set on the hub ({one_line(error)})") from None


def _captions(path, column):
    """The captions of a file, one after the other."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _parquet(path, column)
            return
        with open(path, encoding="utf-8-sig", newline="") as file:
            if kind == ".txt":
                yield from file
            elif kind == ".jsonl":
                yield from _column(_json_lines(file, path), column, path)
            elif kind == ".json":
                rows = json.load(file)
                if not isinstance(rows, list):
                    raise RMDError(f"{path}: it must be a list of texts or of objects; take the list out of it")
                yield from _column(rows, column, path)
            elif kind in (".csv", ".tsv"):
                yield from _column(csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ","), column, path)
            else:
                raise RMDError(f"{path}: a caption file must end in {', '.join(KINDS)}")
    except RMDError:  # a ValueError too
        raise
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise RMDError(f"{path}: cannot be read ({one_line(error)})") from None


def _json_lines(file, path):
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RMDError(f"{path}, line {number}: it is not JSON ({one_line(error, 120)}); repair it") from None


def _parquet(path, column):
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise RMDError(f"{path}: pyarrow is not installed; pip install pyarrow, or the captions extra") from None
    try:
        file = ParquetFile(path)
        name = _name_of(column, file.schema_arrow.names, path)
        for batch in file.iter_batches(columns=[name]):
            yield from (value for value in batch.column(0).to_pylist() if isinstance(value, str))
    except ArrowException as error:
        raise RMDError(f"{path}: cannot be read ({one_line(error)})") from None


def _column(rows, column, path):
    """The texts of a column of rows, which are dictionaries, or texts themselves."""
    name = None
    for row in rows:
        if isinstance(row, str):
            yield row
        elif isinstance(row, dict):
            name = name or _name_of(column, row, path)
            if isinstance(row.get(name), str):
                yield row[name]


def _name_of(column, names, path):
    found = column or next((name for want in COLUMNS for name in names if name and name.lower() == want), None)
    if found not in names:
        what = f"no column '{column}'" if column else f"no column called {', '.join(COLUMNS)}"
        raise RMDError(f"{path}: {what}; name one with --column, there are {', '.join(map(str, names))}")
    return found


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a file, a folder, or OWNER/NAME on the hub")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the prompt list, a .txt file")
    parser.add_argument(
        "--column", metavar="NAME", help=f"column of the captions; found without it: {', '.join(COLUMNS)}"
    )
    parser.add_argument("--files", default="*", metavar="PATTERN", help="which files of a folder or data set")
    parser.add_argument(
        "--words",
        type=int,
        nargs=2,
        default=(3, 120),
        metavar=("MIN", "MAX"),
        help="shortest and longest prompt in words",
    )
    parser.add_argument("--count", type=int, metavar="N", help="keep N prompts, chosen at random")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        if given.out.suffix != ".txt":
            raise RMDError(f"--out {given.out}: a prompt list must end in .txt")
        if (given.count is not None and given.count < 1) or not 1 <= given.words[0] <= given.words[1]:
            raise RMDError("--count must be at least 1, and so must MIN of --words, which MAX must not be below")
        options = {"column": given.column, "files": given.files, "words": given.words}
        prompts, figures = gather(given.sources, **options, count=given.count, seed=given.seed)
        if not prompts:
            raise RMDError(f"none of {figures['read']} prompts is left; check --column and --words")
        write_text(given.out, "\n".join(prompts) + "\n")
    except RMDError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    left = ", ".join(f"{number:,} {why}" for why, number in figures.items() if why != "read")
    print(f"{given.out}: {len(prompts):,} prompts of {figures['read']:,}" + (f"; left out: {left}" if left else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
