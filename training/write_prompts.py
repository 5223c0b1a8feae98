"""Write long prompt lists: the short ones of training/prompts, and sentences of the grammar there.

    python -m training.write_prompts

The words of each slot are dealt like cards: all of them come once before one comes again, so the lists are as varied as
the grammar. No prompt comes twice. Exit codes: 0 done, 2 no place to write.
"""

import argparse
import random
import re
import sys
from pathlib import Path

import yaml

from rmd_core.errors import RMDError, one_line
from rmd_core.files import write_text

from .prompts import read_prompts

FOLDER = Path(__file__).resolve().parent / "prompts"
LISTS = {"images": ("pictures.txt", 2000), "videos": ("videos.txt", 1000)}  # name: what it starts with, its length
_SLOT = re.compile(r"\{(\w+)\}")


def write_lists(folder=FOLDER, *, seed=0):
    """Write ``images_2000.txt`` and ``videos_1000.txt``; returns their paths. Raises RMDError where that fails."""
    grammar = yaml.safe_load((FOLDER / "grammar.yaml").read_text(encoding="utf-8"))
    paths = []
    for name, (short, count) in LISTS.items():
        start, generator = read_prompts(FOLDER / short), random.Random(f"{seed} {name}")
        prompts = [*start, *sentences(grammar[name], count - len(start), generator)]
        generator.shuffle(prompts)
        paths.append(Path(folder) / f"{name}_{count}.txt")
        write_text(paths[-1], "\n".join(prompts) + "\n")
    return paths


def sentences(grammar, count, generator):
    """``count`` different sentences of a grammar, group after group; each group has its share of them."""
    total, found, written = sum(group["share"] for group in grammar["groups"]), {}, 0
    for group in grammar["groups"]:
        deck = _Deck(generator, grammar["common"] | group)
        written += count * group["share"] / total
        while len(found) < round(written):
            found.setdefault(deck.sentence())
    return list(found)


class _Deck:
    """The words of a group, each slot sampled without replacement from its own shuffled list."""

    def __init__(self, generator, words):
        self._generator = generator
        self._words = words
        self._packs = {}

    def sentence(self):
        text = _SLOT.sub(lambda match: self._deal(match[1]), self._deal("say"))
        text = re.sub(r"\ba (?!eu|uni|use)(?=[aeiou])", "an ", text)
        return text[0].upper() + text[1:]

    def _deal(self, slot):
        if not self._packs.get(slot):
            self._packs[slot] = self._generator.sample(self._words[slot], len(self._words[slot]))
        return self._packs[slot].pop()


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=FOLDER, metavar="FOLDER", help="output folder; default: training/prompts"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        paths = write_lists(given.out, seed=given.seed)
    except RMDError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
