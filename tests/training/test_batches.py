"""What is sampled for an update: stages, steps, levels, prompts, and how little it depends on anything else."""

import dataclasses

import torch

from rmd_core.intervals import StageSampler
from training.backbones import make_backbone
from training.batches import BatchSampler, PromptOrder
from training.config import load_config
from training.plans import build_intervals, build_plan
from training_world import write_world

WAN = ("backbone.shift=3.0", "plan.steps=6", "plan.split=3+3", "plan.sizes=[[60, 104], [90, 160]]")
# docs/method/method.md, timestep intervals: the authors' table for 3+3, table indices sampled for each step.
AUTHORS = [(870, 979), (745, 979), (620, 979), (367, 664), (216, 664), (66, 664)]


def make_sampler(folder, *overrides, batch=32, seed=0, parts=1):
    config = load_config(write_world(folder), overrides).resolved()
    plan = build_plan(config, make_backbone("wan", shift=config.backbone.shift))
    intervals = build_intervals(config, plan)
    stages = StageSampler(plan, config.train.warmup_updates)
    order = PromptOrder([str(i) for i in range(7)], seed)
    return BatchSampler(stages=stages, intervals=intervals, order=order, seed=seed, size=batch, parts=parts), plan


def test_levels_lie_in_the_authors_table_for_the_authors_setting(tmp_path):
    sampler, plan = make_sampler(tmp_path, "train.warmup_updates=0", "method.preset=official-current", *WAN, batch=200)
    indices = {step: [] for step in range(6)}
    for update in range(1, 25):
        batch = sampler.batch(update, "fake-0", round_number=0)
        assert bool((batch.t > batch.s).all())
        for step, t in zip(batch.steps.tolist(), batch.t, strict=True):
            indices[step].append(plan.curve.table_index(t).item())
    for step, (low, high) in enumerate(AUTHORS):
        sampled = torch.tensor(indices[step], dtype=torch.float64)
        assert torch.allclose(sampled, sampled.round(), atol=1e-6)
        assert low - 1e-6 <= sampled.min() <= low + 8 and high - 8 <= sampled.max() <= high + 1e-6


def test_a_batch_is_a_function_of_seed_update_and_phase(tmp_path):
    first, second = make_sampler(tmp_path)[0], make_sampler(tmp_path)[0]
    second.batch(1, "fake-0", round_number=0)  # what came before does not matter
    a, b = (sampler.batch(7, "fake-0", round_number=6) for sampler in (first, second))
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    others = [
        first.batch(8, "fake-0", round_number=6),
        first.batch(7, "student", round_number=6),
        make_sampler(tmp_path, seed=1)[0].batch(7, "fake-0", round_number=6),
    ]
    assert all(not torch.equal(a.t, other.t) and a.seed != other.seed for other in others)
    assert a.prompts == others[1].prompts


def test_parts_of_a_batch_see_the_noise_of_the_whole(tmp_path):
    batch = make_sampler(tmp_path, batch=6)[0].batch(3, "fake-0", round_number=0)
    part = batch.rows(2, 4)
    assert torch.equal(part.t, batch.t[2:4]) and part.prompts == batch.prompts[2:4]
    for purpose in ("trajectory", "loss", "fake", "student"):
        whole = batch.noise(purpose).sample(1, "level", (6, 3, 2, 2))
        assert torch.equal(part.noise(purpose).sample(1, "level", (2, 3, 2, 2)), whole[2:4])
    level = [batch.noise(purpose).sample(1, "level", (6, 3, 2, 2)) for purpose in ("fake", "student")]
    assert not torch.equal(*level)


def test_micro_batches_have_their_own_stage_and_noise_and_the_next_prompts(tmp_path):
    one, three = (make_sampler(tmp_path, "train.warmup_updates=0", batch=2, parts=parts)[0] for parts in (1, 3))
    mixed = 0
    for update in range(1, 9):
        batches = three.batches(update, "fake-0", round_number=update)
        mixed += len({batch.stage for batch in batches}) > 1
        assert (
            sum((batch.prompts for batch in batches), ())
            == make_sampler(tmp_path, batch=6)[0].batch(update, "fake-0", round_number=update).prompts
        )
        assert len({batch.seed for batch in batches}) == 3
        first, same = batches[0], one.batch(update, "fake-0", round_number=update)
        assert (first.stage, first.seed) == (same.stage, same.seed)  # one micro-batch is sampled as ever
        assert torch.equal(first.t, same.t) and torch.equal(first.steps, same.steps)
        later = [three.other_levels(batch, update, "student") for batch in batches]
        assert len({tuple(batch.t.tolist()) for batch in later}) == 3
        only = three.of_stage(1).batches(update, "fake-0", round_number=update)
        assert {batch.stage for batch in only} == {1}
    assert mixed > 1


def test_other_levels_keep_the_samples(tmp_path):
    sampler, _ = make_sampler(tmp_path)
    batch = sampler.batch(3, "fake-0", round_number=0)
    other = sampler.other_levels(batch, 3, "student")
    assert not torch.equal(other.t, batch.t) and torch.equal(other.s, batch.s) and torch.equal(other.steps, batch.steps)
    assert (other.seed, other.prompts, other.items, other.stage) == (
        batch.seed,
        batch.prompts,
        batch.items,
        batch.stage,
    )


def test_sampling_leaves_the_global_generator_alone(tmp_path):
    sampler, _ = make_sampler(tmp_path)
    before = torch.get_rng_state()
    sampler.batch(3, "fake-0", round_number=0).noise("fake").sample(0, "level", (32, 2))
    assert torch.equal(before, torch.get_rng_state())
