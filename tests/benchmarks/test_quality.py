"""The quality benchmark: its students and rows, what is kept of them, and how tables come from that."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks import upsampler
from benchmarks.quality import rows
from benchmarks.quality.__main__ import TIMING
from benchmarks.quality.rows import Store
from benchmarks.quality.students import (
    AREA,
    BOTH,
    CONFIG,
    COST,
    FULL,
    OPTION_COST,
    ROOT,
    WORLDS,
    Run,
    settings,
    weights_key,
)
from benchmarks.quality.tables import BEGIN, END, NAMES, Tables, draw, report, update_page
from benchmarks.results import read_results
from demo import files
from rmd_core.boundary import learned_name
from rmd_core.errors import RMDError
from rmd_core.files import read_tensors
from rmd_core.upsampler import LatentUpsampler
from training.config import load_config
from training.memory import update_cost
from training.setup import outline_run

FIGURES = dict.fromkeys((*NAMES, "style", "background"), 0.5)


def cost_of_an_update(student):
    config = student.config(0)
    _, backbone, plan, _, outline, _ = outline_run(config)

    @cache
    def flops(height, width):
        return backbone.flops(outline, height, width, 1, 3)

    height, width = plan.final_hw
    return update_cost(
        plan, lambda h, w: flops(h, w) / flops(height, width), cfg=config.loss.cfg, fake_steps=config.train.fake_steps,
        shared=config.train.share_forward,
    ).total  # fmt: skip


def test_every_student_and_row_is_there_once():
    made = [row for group in rows.all_groups() for row in group]
    for values in ([row.name for row in made], [rows.key_of(row) for row in made]):
        assert len(set(values)) == len(values)
    students = [
        (s, seed)
        for world in WORLDS
        for s in (*world.main, *world.few, *world.lora, *world.options)
        for seed in s.seeds
    ]
    assert len({weights_key(*run) for run in students}) == len(students)


def test_tables_show_every_row_and_none_that_is_never_made(tmp_path):
    shown = set()

    class Noted(Store):
        def figures(self, row):
            shown.add(row.name)

    for text in Tables(Noted(tmp_path)).all().values():
        text()
    marks = {row.name for group in rows.all_groups() for row in group}
    assert shown == marks


def test_students_cost_as_much_training_as_rmd():
    rmd = cost_of_an_update(FULL.rmd_area)
    for student in (FULL.single, FULL.two_steps, *FULL.few, *FULL.lora, *FULL.options):
        # Any other change leaves the cost of an update as it is.
        if any(change.startswith(("plan.", "train.", "loss.cfg")) for change in student.changes):
            assert student.marks[-1] * cost_of_an_update(student) == pytest.approx(student.cost * rmd, rel=0.01)
        else:
            assert student.marks[-1] == student.cost
    assert {student.cost for student in FULL.main} == {COST}


def test_rmd_is_one_configuration_written_out():
    """BASE holds what the demo's configuration and the default preset say today, or the tables say otherwise."""
    assert settings(FULL.rmd_area.config(0)) == settings(load_config(CONFIG).resolved())


def test_the_key_changes_with_what_matters_and_with_nothing_else():
    rmd = FULL.rmd_area
    key = weights_key(rmd, 0)
    assert weights_key(rmd, 1) != key
    assert weights_key(BOTH.rmd_area, 0) != key
    assert weights_key(replace(rmd, start=FULL.single), 0) != key
    assert weights_key(replace(rmd, changes=(AREA, "optimiser.student_lr=2e-4")), 0) != key
    assert weights_key(replace(rmd, changes=(AREA, "loss.fake_weighting=v")), 0) != key
    assert weights_key(replace(rmd, title="another", marks=(5,), changes=(AREA, "output.keep=3")), 0) == key
    row = rows.student_row(rmd, 0)
    assert rows.key_of(replace(row, title="another")) == rows.key_of(row)
    for other in (
        replace(row, eta=0.25),
        replace(row, guidance=2.0),
        replace(row, network=Run(rmd, 0, 80)),
        replace(row, boundary=replace(row.boundary, upsampler="bicubic")),
        replace(row, network=FULL.teacher),
    ):
        assert rows.key_of(other) != rows.key_of(row)


def test_a_tuned_student_starts_from_the_few_step_one(tmp_path, monkeypatch):
    """Two updates of the one and one of the other: the weights are near the start's and not near the teacher's."""
    monkeypatch.setattr("benchmarks.quality.students.OUTPUTS", tmp_path)
    single = replace(FULL.single, marks=(2,), changes=(*FULL.single.changes, "optimiser.student_lr=1e-2"))
    run = Run(replace(FULL.tuned_area, start=single, marks=(1,)), 0, 1)
    run.train()
    tuned, start, teacher = (read_tensors(path)[0] for path in (run.file, Run(single, 0, 2).file, files.TEACHER))
    moved = [sum((tuned[k].float() - other[k].float()).abs().sum() for k in tuned) for other in (start, teacher)]
    assert moved[0] < 0.2 * moved[1]


def test_a_mark_before_one_that_is_there_is_not_trained(tmp_path, monkeypatch):
    """The trainer would go on from the later checkpoint and export it under the earlier name."""
    monkeypatch.setattr("benchmarks.quality.students.OUTPUTS", tmp_path)
    run = Run(FULL.rmd_area, 0, 80)
    run.folder.mkdir(parents=True)
    replace(run, mark=160).file.touch()
    with pytest.raises(RMDError, match="after_160.safetensors but not after_20.safetensors; delete the folder"):
        run.train()
    replace(run, mark=160).train()  # what is there is not trained again


def test_the_trainers_command_gives_the_configuration_that_the_key_is_of(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.quality.students.OUTPUTS", tmp_path)
    words = Run(FULL.single, 1, 64).command()
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config = load_config(words[words.index("--config") + 1], sets).resolved()
    assert settings(config) == settings(FULL.single.config(1))
    assert (config.train.updates, config.plan.sizes, "--resume" in words) == (64, ((16, 16),), False)


def test_a_kept_row_is_found_by_its_key_and_a_damaged_file_is_an_error(tmp_path):
    store, (row, other) = Store(tmp_path), rows.floor_rows()[:2]
    assert store.figures(row) is None
    store.keep(row, FIGURES)
    assert Store(tmp_path).figures(row) == FIGURES
    assert store.figures(other) is None
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["content"] == {"real": row.seed, "damage": None}
    for text in ("{", "{}"):
        path.write_text(text)
        with pytest.raises(RMDError, match="delete it"):
            store.figures(row)


def test_tables_come_from_kept_rows_and_name_what_is_missing(tmp_path):
    store = Store(tmp_path)
    for number, row in enumerate(rows.student_rows(FULL.rmd_area)[:2]):
        store.keep(row, FIGURES | {"fd": 0.2 + 0.1 * number})
    times = {"ms": {"2x8x8+2x16x16": {"1": 30.25, "32": 12.0}}}
    text = Tables(store, times).main(FULL)
    (line,) = [line for line in text.splitlines() if line.startswith("RMD, area mapping, 240 updates (2 of 5 seeds)")]
    assert "0.250 (0.200..0.300)" in line and "30.2" in line.split() and "12.0" in line.split()
    assert FULL.rmd_none.title in text.partition("not run yet: ")[2].replace("\n", " ")
    assert "ms at 1" in text and "ms at 1" not in Tables(store).main(FULL)


def test_the_page_holds_what_the_command_prints(tmp_path):
    """docs/method/quality.md is written by ``python -m benchmarks.quality --table --page docs/method/quality.md``."""
    page, copy = ROOT / "docs" / "method" / "quality.md", tmp_path / "page.md"
    copy.write_bytes(page.read_bytes())
    update_page(copy, report(Store(), read_results(TIMING)))
    assert copy.read_bytes() == page.read_bytes()


def test_tables_are_put_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    update_page(page, "a \\1 b")
    assert page.read_text() == f"before\n{BEGIN}\n```\na \\1 b\n```\n{END}\nafter\n"
    page.write_text("a page")
    with pytest.raises(RMDError, match="no place for the tables"):
        update_page(page, "new")


def test_figures_are_drawn_from_kept_rows(tmp_path):
    store = Store(tmp_path / "rows")
    for row in (*rows.student_rows(FULL.rmd_area), *rows.teacher_rows(FULL), *rows.floor_rows()):
        store.keep(row, FIGURES)
    draw(store, tmp_path / "drawn")
    for name in ("quality_against_cost", "quality_during_training"):
        assert (tmp_path / "drawn" / f"{name}.png").stat().st_size > 10_000


# benchmarks.upsampler, whose rows are those of benchmarks.quality but for the upsampler


def test_rows_with_a_learned_upsampler_differ_from_those_with_nearest_by_the_upsampler_alone(tmp_path, monkeypatch):
    path = LatentUpsampler(channels=16, width=4, blocks=1, latents="wan").save(tmp_path / "up.safetensors")
    monkeypatch.setattr(upsampler, "train", lambda: path)
    upsampler.learned.cache_clear()
    network, _ = upsampler.learned()
    no_gap, untouched, rmd = upsampler.learned_rows(1)
    upsampler.learned.cache_clear()
    nearest = {row.name: row for row in rows.untouched_rows(FULL, 1)}["full_untouched_2+2_area_seed_1"]
    nothing = {row.name: row for row in rows.untouched_rows(BOTH, 1)}["both_untouched_2+2_none_seed_1"]
    trained = rows.student_row(FULL.rmd_area, 1, OPTION_COST)
    named = learned_name("up.safetensors", network.digest())
    for row, other in ((no_gap, nothing), (untouched, nearest), (rmd, trained)):
        assert row.plan == other.plan and row.eta == other.eta and row.boundary.upsampler == named
        assert row.boundary.learned(torch.zeros(1, 16, 1, 2, 2), (3, 4)).shape == (1, 16, 1, 3, 4)
    assert untouched.network == nearest.network and no_gap.network == nothing.network
    student, base = rmd.network.student, trained.network.student
    configs = [one.config(1).model_dump(exclude={"output"}) for one in (student, base)]
    methods = [config.pop("method") for config in configs]
    changed = {key for key in methods[0] if methods[0][key] != methods[1][key]}
    assert changed == {"upsampler", "upsampler_sha256"}
    configs[0]["train"]["updates"] = configs[1]["train"]["updates"]
    assert configs[0] == configs[1] and weights_key(student, 1) != weights_key(base, 1)


def test_the_tables_of_the_upsampler_show_what_was_kept(capsys):
    assert upsampler.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{title}, {way}" in shown for title in upsampler.TITLES.values() for way in upsampler.WAYS)
