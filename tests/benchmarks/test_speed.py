"""The speed benchmark: its arithmetic, its runs through the cascade engine, resuming, and the pages made from it."""

from dataclasses import replace

import pytest
import torch

from benchmarks import cascade_overhead
from benchmarks.models import ARCHITECTURES, outline
from benchmarks.results import marks, quartiles, read_results, replace_block, stored_block
from benchmarks.speed.__main__ import Bench, stored_results
from benchmarks.speed.measure import Subject, largest_batch, measure_way
from benchmarks.speed.models import FULL, TINY, Group, groups, size_name
from benchmarks.speed.page import MARK, PAGE, README, Ratios, Results, headlines, page_block, readme_block
from rmd_core.boundary import Boundary
from rmd_core.errors import RMDError
from rmd_core.noise import SeededNoise
from training.backbones import make_backbone
from training.sample import sample_latents

FULL_BY_NAME = {model.name: model for model in FULL}
TFLOP = {  # known figures of one call, low and high: by hand for SDXL and Wan, coarser for the others
    "SDXL": (2 * 0.794, 2 * 3.381),
    "PixArt Sigma": (1.23, 6.5),  # with 120 tokens of text
    "SD3.5 Medium": (2.45, 11.3),
    "SD3.5 Large": (8.00, 31.1),
    "Wan2.1 1.3B": (283.0, 1250.0),
    "Wan2.1 14B": (1680.0, 6520.0),
}
SIZES = {"low": (4, 4), "high": (8, 8)}


def low_and_high(results, name):
    """The stored FLOP counts of a model at the cascade's two sizes."""
    model = FULL_BY_NAME[name]
    return [results.counts[name]["sizes"][size_name(size)] for size in (model.low, model.high)]


@pytest.fixture(scope="module")
def stored():
    return stored_results()


@pytest.fixture
def small():
    """The tiny SDXL with few steps and small latents."""
    (model,) = (model for model in TINY if model.name == "SDXL, tiny")
    return replace(model, sizes=tuple(SIZES.values()), teacher_steps=3, paper=10.0)


@pytest.mark.parametrize("name", ["PixArt Sigma", "SD3.5 Medium", "Wan2.1 1.3B"])
def test_stored_counts_are_what_is_counted(name, stored):
    assert FULL_BY_NAME[name].count_flops() == stored[-1].counts[name]


@pytest.mark.parametrize("name", TFLOP)
def test_stored_counts_are_the_known_figures(name, stored):
    for results in stored:
        if name in results.counts:
            assert [flops / 1e12 for flops in low_and_high(results, name)] == pytest.approx(TFLOP[name], rel=0.05)


@pytest.mark.parametrize("name", ["Wan2.1 1.3B", "Wan2.1 14B"])
def test_the_formula_for_video_agrees_with_the_count(name, stored):
    model = FULL_BY_NAME[name]
    network = outline(*model.network)
    for size, counted in zip(model.sizes, low_and_high(stored[-1], name)):
        formula = make_backbone("wan").flops(network, *size, model.frames, model.tokens)
        assert formula == pytest.approx(counted, rel=1e-4)


def test_what_the_arithmetic_allows(stored):
    counts = stored[-1].counts
    sdxl, wan = (Ratios(FULL_BY_NAME[name], counts[name]) for name in ("SDXL", "Wan2.1 14B"))
    assert (sdxl.of("rmd"), sdxl.of("few"), wan.of("few")) == pytest.approx((32.4, 20.0, 16.67), abs=0.05)
    assert (wan.of("rmd"), sdxl.of("rmd", decoded=True)) == pytest.approx((26.5, 20.3), abs=0.1)
    assert sdxl.of("few", decoded=True) == pytest.approx(14.7, abs=0.1)
    assert sdxl.decode / 2e12 == pytest.approx(5.24, rel=0.01)  # known of the image decoder


def test_every_architecture_of_the_paper_and_more_is_measured():
    later = {"Wan2.2 5B", "Wan2.2 A14B", "Z-Image", "Qwen-Image", "FLUX.2 klein 4B", "FLUX.2 klein 9B"}
    assert set(ARCHITECTURES) - set(FULL_BY_NAME) == {"PixArt alpha", *later}


def test_a_run_makes_the_plans_calls_through_the_cascade(small):
    subject = Subject(small, device="cpu", dtype=torch.float32, mode="eager")
    for name, sizes in (("rmd", ["low", "low", "high", "high"]), ("few", ["high"] * 4), ("teacher", ["high"] * 3)):
        run = subject.sample(small.ways[name], 2)
        assert [size for size, _ in run.calls] == [SIZES[size] for size in sizes]
        assert 0.0 < run.outside < 1.0


def test_the_timed_network_gives_what_the_bare_one_gives(small):
    subject = Subject(small, device="cpu", dtype=torch.float32, mode="eager")
    plan, backbone = small.ways["rmd"].plan, subject.backbone
    rules = {"conditioning": subject._conditioning(1, seed=1), "noise": SeededNoise(0), "boundary": Boundary()}
    timed, bare = (
        sample_latents(backbone, network, plan, eta=0.5, **rules).x0
        for network in (subject.network, subject.network.network)
    )
    assert torch.equal(timed, bare) and bare.isfinite().all()


@pytest.mark.parametrize("model", TINY, ids=lambda model: model.name)
def test_every_class_runs_in_half_precision_as_on_a_gpu(model):
    """With what diffusers keeps in float32 kept so, as in a loaded checkpoint; images are decoded too."""
    subject = Subject(model, device="cpu", dtype=torch.bfloat16, mode="eager")
    run = subject.sample(model.ways["rmd"].warm_up(), 1)
    assert [size for size, _ in run.calls] == [model.low, model.high]
    if not subject.backbone.temporal:  # video's decoder is slow in half precision on a CPU
        assert subject.decoder()() > 0.0
    dtypes = {parameter.dtype for parameter in subject.network.parameters()}
    assert dtypes == {torch.bfloat16, torch.float32} if model.backbone == "wan" else dtypes == {torch.bfloat16}


def test_a_long_teacher_is_timed_by_some_of_its_steps(small, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.measure.LONG", 0.0)
    monkeypatch.setattr("benchmarks.speed.measure.FEW_STEPS", 2)
    subject = Subject(small, device="cpu", dtype=torch.float32, mode="eager")
    row = measure_way(subject, small.ways["teacher"], 1)
    assert (row["steps_run"], row["runs"]) == (2, 1)
    whole = measure_way(subject, small.ways["rmd"], 1)
    assert (whole["steps_run"], set(whole["calls"])) == (4, {"4x4", "8x8"})


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("tried to allocate 8 bytes")])
def test_the_largest_batch_is_found_by_doubling(error):
    tried = []

    def fits(batch):
        tried.append(batch)
        if batch > 5:
            raise error

    assert largest_batch(fits, 64) == 4 and tried == [1, 2, 4, 8]
    assert largest_batch(fits, 2) == 2


def test_another_error_than_a_full_memory_is_no_batch_size():
    def fails(batch):
        raise RuntimeError(f"broken at {batch}")

    with pytest.raises(RuntimeError, match="broken at 1"):
        largest_batch(fails, 64)


def test_the_headline_models_come_first():
    order = groups(FULL, ("eager", "compile"))
    assert [(group.model.name, group.mode) for group in order[:4]] == [
        ("SDXL", "eager"),
        ("Wan2.1 14B", "eager"),
        ("SDXL", "compile"),
        ("Wan2.1 14B", "compile"),
    ]
    assert not any(group.full for group in order[: len(order) // 2]) and len(order) == 4 * len(FULL)


def test_finished_rows_are_kept_and_a_further_run_goes_on(small, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.measure.RUNS", (2, 2))
    made = {"device": "a", "torch": "1", "date": "today"}
    path = tmp_path / "speed.json"
    assert not Bench(Results.open(path, made), device="cpu", minutes=0.0).run([small])
    assert not path.exists()
    results = Results.open(path, made)
    assert Bench(results, device="cpu").run([small])
    assert results.batches == {small.name: 2}
    one = Group(model=small, mode="eager", full=False)
    taken = results.rows.pop(one.key("rmd"))
    results.save()
    before = dict(results.rows)
    again = Results.open(path, made | {"date": "tomorrow"})
    assert Bench(again, device="cpu").run([small])
    assert again.made == made and {key: again.rows[key] for key in before} == before
    assert again.rows[one.key("rmd")]["flops"] == taken["flops"]
    assert taken["flops"] == small.ways["rmd"].flops(small.count_flops()["sizes"])
    monkeypatch.setattr("benchmarks.speed.page.TINY", (small,))
    assert "the paper 10 x" in headlines(again) and "the paper's figure needs" in headlines(again)
    with pytest.raises(RMDError, match="torch 1, this is 2"):
        Results.open(path, made | {"torch": "2"})


def test_figures_are_medians_with_quartiles():
    assert quartiles([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert quartiles([1.0, 2.0, 3.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_the_pages_hold_what_the_command_makes_of_the_stored_results(stored):
    assert stored_block(PAGE, MARK) == page_block(stored)
    assert stored_block(README, MARK) == readme_block(stored)
    overhead = read_results(cascade_overhead.RESULTS)
    assert stored_block(PAGE, cascade_overhead.MARK) == cascade_overhead.overhead_block(overhead)


def test_the_cascades_own_time_is_measured():
    (model,) = (model for model in TINY if model.name == "SDXL, tiny")
    assert all(seconds > 0.0 for seconds in cascade_overhead.own_seconds(model).values())


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(RMDError, match="speed: begin"):
        replace_block(page, MARK, "x")
    page.write_text("a\n{}\nold\n{}\nb".format(*marks(MARK)))
    replace_block(page, MARK, "new")
    assert stored_block(page, MARK) == "new" and page.read_text().startswith("a\n") and page.read_text().endswith("\nb")
