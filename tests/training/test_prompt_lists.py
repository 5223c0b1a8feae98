"""The prompt lists that come with the trainer: plain, varied lines that read_prompts takes as they are."""

import re
from itertools import combinations
from pathlib import Path

import pytest

from training.prompts import read_prompts

PROMPTS = Path(__file__).parents[2] / "training" / "prompts"
SIZES = {"pictures": 300, "videos": 150}
MOST_SHARED = 0.7  # of the words of the shorter of two lines


@pytest.fixture(params=SIZES)
def lines(request):
    prompts = read_prompts(PROMPTS / f"{request.param}.txt")
    assert len(prompts) == SIZES[request.param]
    return prompts


def words(line):
    return set(re.findall(r"[a-z0-9]+", line.lower()))


def test_a_list_is_plain_text_of_one_prompt_a_line(lines):
    for line in lines:
        assert line.isascii() and line.isprintable() and 20 <= len(line) <= 300, line
        assert line == " ".join(line.split()), line


def test_no_two_prompts_of_a_list_are_nearly_the_same(lines):
    assert len({line.lower() for line in lines}) == len(lines)
    split = {line: words(line) for line in lines}
    near = [
        (a, b)
        for a, b in combinations(lines, 2)
        if len(split[a] & split[b]) > MOST_SHARED * min(len(split[a]), len(split[b]))
    ]
    assert not near


def test_a_list_is_varied(lines):
    vocabulary = set().union(*map(words, lines))
    assert len(vocabulary) > 4 * len(lines)


def test_the_lists_have_no_prompt_in_common():
    pictures, videos = (set(read_prompts(PROMPTS / f"{name}.txt")) for name in SIZES)
    assert not pictures & videos
