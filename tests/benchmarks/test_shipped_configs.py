"""The table of what the shipped configurations take: every row is there, one is computed again, all fit their cards."""

import re

from benchmarks.results import stored_block
from benchmarks.shipped_configs import CASES, MARK, PAGE, table
from benchmarks.training_runs import CONFIGS

ROWS = {line.split("`")[1].removesuffix(".yaml"): line for line in stored_block(PAGE, MARK).split("\n")[2:]}


def test_every_shipped_configuration_has_its_row():
    assert list(ROWS) == list(CASES) and {*CASES, "demo"} == {path.stem for path in CONFIGS.glob("*.yaml")}


def test_a_row_is_what_the_command_makes_of_the_configuration():
    assert table(["pixart_alpha"]).split("\n")[2] == ROWS["pixart_alpha"]


def test_each_fits_the_card_that_its_first_lines_name():
    for name, row in ROWS.items():
        card = int(re.search(r"(\d+) GB\s+(?:# )?card", (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))[1])
        assert float(row.split("|")[2].removesuffix(" GiB ")) * 2**30 < card * 1e9


def test_each_names_its_teacher_and_card_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    for name in ROWS:
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        base, card = re.search(r"^  base: (\S+)", text, re.M)[1], re.search(r"(\d+) GB\s+(?:# )?card", text)[1]
        row = rf"^\| .*`{re.escape(name)}\.yaml`.* \| {re.escape(base)} \| .* \| {card} GB \|$"
        assert re.search(row, page, re.MULTILINE), name


def test_each_states_its_hours():
    for name, row in ROWS.items():
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        stated = re.search(r"^# About (\S+) hours at 400 TFLOP a second", text, re.M)[1]
        assert stated == row.split("|")[-2].strip(), name
