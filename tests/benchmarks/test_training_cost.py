"""What an update costs: the plain loop has the trainer's own gradients, commands run on tiny networks."""

import itertools
import json

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import training_overhead as overhead
from benchmarks.plain_loop import PlainLoop
from benchmarks.results import read_results, stored_block
from benchmarks.training_cost import alike, main, plain_cost
from benchmarks.training_memory import SETS, figures, store
from benchmarks.training_memory import main as memory_main
from benchmarks.training_runs import FULL, MODES, TINY, make_trainer
from rmd_core.plan import plan_from_split
from rmd_core.schedule import AreaMap, FlowCurve
from training.parallel import Processes
from training.trainer import Trainer
from training_world import make_setup


@pytest.fixture
def trainer(tmp_path):
    """A function that makes the trainer of a tiny world."""

    def make(*overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        setup = make_setup(tmp_path, "train.warmup_updates=0", "model.rank=3", *overrides)
        return Trainer(setup, Processes(setup.config))

    return make


def gradients_of(trainer, role):
    found = {n: p.grad.clone() for n, p in trainer.networks.trained[role].named_parameters() if p.grad is not None}
    trainer.networks.optimisers[role].zero_grad()
    return found


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys() and ours
    size = max(gradient.norm() for gradient in theirs.values())
    assert size > 0 and all((ours[name] - gradient).norm() <= 1e-4 * size for name, gradient in theirs.items())


@pytest.mark.parametrize("mode", MODES)
def test_the_plain_loop_has_the_trainers_gradients_for_its_batches(trainer, mode):
    run = trainer(f"model.mode={mode}")
    plain, stages = PlainLoop(run), set()
    run.update(1)  # adapters start without effect
    for number in range(2, 12):
        first, second = plain.batches(number)
        if (first.stage, second.stage) in stages:
            continue
        stages.add((first.stage, second.stage))
        assert first.prompts == second.prompts
        conditioning = run.objective.embed(first.prompts)
        states = plain.states(first, conditioning)
        assert len(states) == len(run.setup.plan.steps)
        (loss,), _ = run.objective.fake_phase([first], share=False)
        ours = gradients_of(run, "fake")
        assert plain.fake_phase(first, plain.received(states, first), conditioning) == pytest.approx(
            loss.item(), rel=1e-4
        )
        assert_close(ours, gradients_of(run, "fake"))
        loss, _ = run.objective.student_phase([second])
        ours = gradients_of(run, "student")
        x_in = plain.received(states, second)
        assert plain.student_phase(second, x_in, conditioning) == pytest.approx(loss.item(), rel=1e-4)
        assert_close(ours, gradients_of(run, "student"))
    assert len(stages) > 2


@pytest.mark.parametrize("mode", MODES)
def test_a_plain_update_moves_what_an_update_moves(trainer, mode):
    run = trainer(f"model.mode={mode}")
    trained = run.networks.trained
    before = {role: {n: t.clone() for n, t in trained[role].state_dict().items()} for role in trained}
    plain = PlainLoop(run)
    plain.update(1)
    plain.update(2)
    for role, old in before.items():
        new = trained[role].state_dict()
        assert any(not torch.equal(new[name], tensor) for name, tensor in old.items()), role


@pytest.mark.parametrize(("batch", "kinds"), [(1, 4), (3, 2)])
def test_a_block_meets_every_kind_once_in_each_phase_and_costs_what_is_counted(trainer, batch, kinds):
    run = trainer(f"train.batch={batch}", "model.mode=three networks")
    plain = PlainLoop(run)
    for block in itertools.islice(alike(plain), 3):
        batches = [plain.batches(number) for number in block]
        for phase in zip(*batches):
            met = [int(one.steps[0]) if batch == 1 else one.stage for one in phase]
            assert sorted(met) == list(range(kinds))
    rows = {"student": 0.0, "fake": 0.0, "teacher": 0.0}

    def cost(height, width):
        return {4: 0.25, 8: 1.0}[height]

    def count(role):
        def hook(module, arguments):
            rows[role] += len(arguments[0]) * cost(*arguments[0].shape[-2:])

        return hook

    for role in rows:
        getattr(run.objective, role).register_forward_pre_hook(count(role))
    for number in block:
        plain.update(number)
    expected = plain_cost(run.setup.plan, cost, cfg=2.0)
    per_sample = {role: found / len(block) / batch for role, found in rows.items()}
    # A backward pass counts as two forwards; a fake score is called once in each phase.
    forwards = expected.student / 4 * 2  # one without a graph, one with: the latter's backward is not a call
    assert per_sample["student"] == pytest.approx(expected.trajectory + forwards)
    assert per_sample["teacher"] == pytest.approx(2.0) and per_sample["fake"] == pytest.approx(2.0)


def test_a_quantised_base_is_made_of_weights_in_the_precision_of_the_calls():
    pytest.importorskip("bitsandbytes")
    for kind in ("int8", "nf4"):
        config = TINY[1].config("model.mode=adapters", f"model.base_dtype={kind}", "train.device=cpu")
        parameters = make_trainer(TINY[1], config).setup.teacher.parameters()
        assert {p.dtype for p in parameters if p.is_floating_point()} == {torch.float32}


def test_the_command_measures_a_case_in_tiny_and_says_what_is_missing(tmp_path, capsys):
    results, name = tmp_path / "results.json", TINY[1].name
    main(["--device", "cpu", "--tiny", "--cases", name, "--blocks", "1"], results=results)
    stored = json.loads(results.read_text())["rows"]
    assert stored.keys() == {f"{name}, {mode}" for mode in MODES}
    for row in stored.values():
        assert row["made"]["blocks"] == 1 and row["ratio"] > 0 and 1.0 < row["counted"] < 2.0
    printed = capsys.readouterr().out
    for case in FULL:
        assert f'--device cuda --cases "{case.name}"' in printed
    with pytest.raises(SystemExit, match="no case is called none"):
        main(["--device", "cpu", "--cases", "none"], results=results)


def test_the_memory_command_counts_and_says_what_was_not_measured(tmp_path, capsys):
    memory_main(["--tiny", "--only", "wan-1.3b"], results=tmp_path / "results.json")
    printed = capsys.readouterr().out
    assert not list(tmp_path.iterdir()) and printed.count("missing") == len(SETS)
    found = figures(TINY[1], SETS["adapters"], measure=False)
    assert found["device"] == sum(found["parts"].values()) > 0 and f"{found['device'] / 2**20:.1f} MiB" in printed


def test_the_memory_command_keeps_what_was_measured(tmp_path):
    results = tmp_path / "results.json"
    counted, measured = {"device": 2, "made": "here"}, {"device": 1, "made": "there", "measured": 3}
    assert store(results, "a", "x", counted) == counted
    assert store(results, "a", "x", measured) == measured
    assert store(results, "a", "x", counted) == measured | {"device": 2}
    assert store(results, "a", "x", measured | {"measured": None})["measured"] is None
    store(results, "b", "x", counted)
    rows = json.loads(results.read_text())["rows"]
    assert rows == {"a": {"x": measured | {"measured": None}}, "b": {"x": counted}}


@pytest.mark.parametrize(
    ("sizes", "steps", "low", "forwards"), [((60, 90), 3, 0.257, 13.9), ((64, 128), 2, 0.235, 12.6)]
)
def test_the_authors_cost_is_that_of_the_method_page(sizes, steps, low, forwards):
    """The authors' loop with recomputed activations (docs/method/method.md, cost of one update)."""
    plan = plan_from_split(
        FlowCurve(3.0), f"{steps}+{steps}", sizes=[(side, side) for side in sizes], mapping=AreaMap(), steps=2 * steps
    )

    def relative(height, width):
        return 1.0 if height == sizes[-1] else low

    assert plain_cost(plan, relative, cfg=5.0, checkpointing=True).total == pytest.approx(forwards, abs=0.05)


def test_the_page_shows_the_stored_overhead():
    assert stored_block(overhead.PAGE, overhead.MARK) == overhead.block(read_results(overhead.RESULTS))


def test_an_update_is_measured_on_a_tiny_network(monkeypatch):
    monkeypatch.setattr(overhead, "UPDATES", 3)
    found = overhead.measure(TINY[0])
    # One student call for the estimate, one of the fake score for each loss, one of the guided teacher; trajectories.
    assert found["calls"] >= 4 and 0 < found["call_ms"] < found["update_ms"]
