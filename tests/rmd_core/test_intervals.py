"""Timestep intervals against the authors' index tables, and the sampling of stage, step and level."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core_world import FLOW3, FLOW5, IMAGE, SDXL, WAN, curves, grid_at, maps, splits
from rmd_core.errors import RMDError
from rmd_core.intervals import StageSampler, TimestepIntervals
from rmd_core.noising import noise_further
from rmd_core.plan import plan_from_split
from rmd_core.presets import PRESETS
from rmd_core.schedule import AreaMap, FlowCurve, NoMap, ShiftPairMap


def wan(split="3+3", mapping=None):
    return plan_from_split(FLOW3, split, sizes=WAN, mapping=mapping or NoMap())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ranges(plan, **options):
    return [(interval.lower, interval.upper) for interval in TimestepIntervals.from_plan(plan, **options).steps]


def authors_ranges(steps, low, factor, split):
    """The authors' index arithmetic, written out for two stages without a mapping (closed ranges, k = K..1)."""
    found = []
    middle_step = steps - low + 1
    for k in range(steps, 0, -1):
        t_g = 1000 * k // steps - 1
        t_mid = t_g - 1000 // steps + 1
        high = k < middle_step
        top = 1000 * middle_step // steps - 1 if high and split else 980
        scale = max(0.0, factor - 0.15) if high else factor
        found.append((t_mid + int((top - t_mid) * scale), top - 1))
    return found


OFFICIAL = {
    "official-current": [(870, 979), (745, 979), (620, 979), (367, 664), (216, 664), (66, 664)],
    "official-first": [(907, 979), (823, 979), (740, 979), (449, 664), (341, 664), (232, 664)],
    "official-7gpu": [(834, 979), (667, 979), (500, 979), (334, 979), (167, 979), (0, 979)],
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_invariant_24_official_presets_reproduce_the_official_table(name):
    preset = PRESETS[name]
    plan = wan(mapping=ShiftPairMap(3, 5) if preset.mapping == "on" else NoMap())
    assert ranges(plan, offset_factor=preset.offset_factor, split=preset.split) == OFFICIAL[name]


@pytest.mark.parametrize("mapping, curve", [(NoMap(), FLOW3), (ShiftPairMap(3, 5), FLOW5)])
def test_invariant_24_indices_are_levels_of_the_final_sizes_curve(mapping, curve):
    ends = torch.tensor(OFFICIAL["official-current"])
    levels = TimestepIntervals.from_plan(wan(mapping=mapping)).sigma_at(ends)
    assert torch.allclose(levels, curve.table_sigma(ends.double()), rtol=1e-12)


@pytest.mark.parametrize("mapping", [NoMap(), AreaMap(), ShiftPairMap(3, 5)])
@pytest.mark.parametrize("split", ["2+2", "3+3", "3+1", "2+4", "4+2", "4+4"])
@pytest.mark.parametrize("factor, upper_split", [(0.25, True), (0.5, True), (0.25, False), (0.0, False)])
def test_every_two_stage_plan_of_a_flow_has_the_authors_ranges(split, mapping, factor, upper_split):
    low, high = (int(part) for part in split.split("+"))
    assert ranges(wan(split, mapping), offset_factor=factor, split=upper_split) == authors_ranges(
        low + high, low, factor, upper_split
    )


@pytest.mark.parametrize("split", ["2+2", "3+3", "3+1"])
def test_an_unmapped_vp_plan_has_the_authors_ranges(split):
    low, high = (int(part) for part in split.split("+"))
    plan = plan_from_split(SDXL, split, sizes=IMAGE, mapping=NoMap())
    assert ranges(plan) == authors_ranges(low + high, low, 0.25, True)


def test_a_mapped_vp_plan_moves_on_the_one_table():
    """SDXL 2+2: states after the steps at 895.8, 692, 453 and 0; the last level before the switch, 749, is at 895.8."""
    plan = plan_from_split(SDXL, "2+2", sizes=IMAGE, mapping=AreaMap())
    intervals = TimestepIntervals.from_plan(plan)
    after = [SDXL.timestep(interval.s_sigma) for interval in intervals.steps]
    assert after == pytest.approx([895.8, 692, 453, 0], abs=0.05)
    assert ranges(plan, offset_factor=0.0) == [(897, 979), (693, 979), (455, 894), (0, 894)]
    assert ranges(plan) == [(897 + 20, 979), (693 + 71, 979), (455 + 44, 894), (0 + 89, 894)]


@given(
    curve=curves,
    split=splits,
    mapping=maps,
    factor=st.floats(0.0, 0.9),
    upper_split=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_invariant_24_t_is_always_noisier_than_s_and_never_less_noisy_than_the_stage_end(
    curve, split, mapping, factor, upper_split, seed
):
    plan = plan_from_split(curve, split, sizes=sizes_of(split), mapping=mapping)
    intervals = TimestepIntervals.from_plan(plan, offset_factor=factor, split=upper_split)
    indices = torch.arange(len(plan.steps)).repeat_interleave(8)
    t, s = intervals.sample(indices, seeded(seed))
    assert t.dtype == s.dtype == torch.float64 and t.shape == s.shape == indices.shape
    assert (t > s).all() and (t < curve.sigma_max).all()
    following = [*(step.base_sigma for step in plan.steps[1:]), 0.0]
    ends = [plan.at_final_size(stage.end_base_sigma) for stage in plan.stages]
    limited = set()
    for index, t_one, s_one in zip(indices.tolist(), t.tolist(), s.tolist()):
        after = plan.at_final_size(following[index])
        if s_one == after:
            assert t_one > ends[plan.steps[index].stage]
        else:
            assert s_one < after
            limited.add(index)
    assert len(intervals.notes) == len(limited)
    assert curve.kind == "vp" or not limited  # with at most 16 steps, only a table that ends before pure noise is short


def sizes_of(split):
    return tuple((8 + 2 * place, 8 + 3 * place) for place in range(len(split)))


def test_invariant_24_the_level_is_the_one_of_the_state():
    """A unit impulse through the noising shows alpha_t and sigma_t; the timestep is the one of that sigma."""
    for curve, mapping in [(FLOW3, ShiftPairMap(3, 5)), (SDXL, AreaMap())]:
        plan = plan_from_split(curve, "2+2", sizes=IMAGE, mapping=mapping)
        intervals = TimestepIntervals.from_plan(plan)
        t, s = intervals.sample(torch.tensor([0, 1, 2, 3] * 8), seeded())
        one, zero = torch.ones(len(t), 1, dtype=torch.float64), torch.zeros(len(t), 1, dtype=torch.float64)
        levels = dict(alpha_s=curve.alpha(s), sigma_s=s, alpha_t=curve.alpha(t), sigma_t=t)
        alpha_s, sigma_s = curve.alpha(s)[:, None], s[:, None]
        alpha_t = noise_further(alpha_s * one, noise=zero, **levels).x[:, 0]
        carried = noise_further(sigma_s * one, noise=zero, **levels).x[:, 0]
        fresh = noise_further(zero, noise=one, **levels).x[:, 0]
        sigma_t = (carried**2 + fresh**2).sqrt()
        assert torch.allclose(alpha_t, curve.alpha(t), atol=1e-12)
        assert torch.allclose(curve.timestep(sigma_t), curve.timestep(t), atol=1e-6)


def test_the_drawn_vp_levels_are_table_entries():
    plan = plan_from_split(SDXL, "2+2", sizes=IMAGE, mapping=AreaMap())
    t, _ = TimestepIntervals.from_plan(plan).sample(torch.arange(4).repeat(16), seeded())
    timesteps = SDXL.timestep(t).float()
    assert torch.equal(timesteps, timesteps.round())


def test_every_index_of_the_closed_range_is_sampled_evenly():
    plan = wan()
    intervals = TimestepIntervals.from_plan(plan)
    t, _ = intervals.sample(torch.zeros(110 * 200, dtype=torch.long), seeded(3))
    counts = torch.bincount(FLOW3.table_index(t).round().long() - 870, minlength=110)
    assert len(counts) == 110 and counts.min() > 130 and counts.max() < 270


def test_samples_repeat_with_the_generator_and_leave_the_global_one_alone():
    intervals = TimestepIntervals.from_plan(wan())
    before = torch.get_rng_state()
    first, second = (intervals.sample(torch.tensor([0, 3, 5]), seeded(9))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_grid_of_ones_own_takes_the_next_index_above_each_level():
    grid = grid_at(SDXL, (899, 674, 449, 224))
    plan = plan_from_split(SDXL, "2+2", sizes=IMAGE, mapping=NoMap(), steps=grid)
    assert ranges(plan, offset_factor=0.0) == [(675, 979), (450, 979), (225, 673), (0, 673)]


def test_three_stages_look_at_the_final_size():
    plan = plan_from_split(FLOW3, "2+2+2", sizes=((8, 8), (12, 12), (16, 16)), mapping=AreaMap())
    intervals = TimestepIntervals.from_plan(plan)
    assert [(interval.lower, interval.upper) for interval in intervals.steps] == authors_ranges(6, 4, 0.25, True)
    for interval, step in zip(intervals.steps, plan.steps[1:]):
        assert interval.s_sigma == pytest.approx(FlowCurve(6.0).table_sigma(FLOW3.table_index(step.base_sigma)))


def test_the_split_never_raises_the_upper_end():
    """One step below the final size: that step's level is pure noise, so 980 stays the end."""
    assert ranges(wan("1+3"))[1:] == ranges(wan("1+3"), split=False)[1:]
    assert ranges(wan("0+4")) == ranges(wan("0+4"), split=False)
    assert max(upper for _, upper in ranges(wan("1+3"))) == 979


def test_the_last_stages_factor_stops_at_zero():
    assert ranges(wan(), offset_factor=0.1)[3:] == ranges(wan(), offset_factor=0.0)[3:]


THREE = ((32, 32), (64, 64), (128, 128))
SHORT_OF_LEVELS = {
    # the state after the first step is beyond index 978
    "sdxl 1+1+2": (SDXL, "1+1+2", THREE),
    "sdxl 2+0+2": (SDXL, "2+0+2", THREE),
    "sdxl 4+4": (SDXL, "4+4", IMAGE),
    "sdxl 1+7": (SDXL, "1+7", IMAGE),
    "sdxl 0+8": (SDXL, "0+8", IMAGE),
    "flow 49+1": (FLOW3, "49+1", WAN),
    "flow 30+30": (FLOW3, "30+30", WAN),
    "flow 60": (FLOW3, "60", WAN[1:]),
}


@pytest.mark.parametrize("name", SHORT_OF_LEVELS)
@pytest.mark.parametrize("factor, upper_split", [(0.25, True), (0.5, False), (0.0, True)])
def test_plans_that_reach_the_end_of_the_table_train_at_its_last_levels(name, factor, upper_split):
    curve, split, sizes = SHORT_OF_LEVELS[name]
    plan = plan_from_split(curve, split, sizes=sizes, mapping=AreaMap())
    intervals = TimestepIntervals.from_plan(plan, offset_factor=factor, split=upper_split)
    at_978 = float(intervals.sigma_at(torch.tensor(978)))
    for step, interval in zip(plan.steps, intervals.steps):
        after = 0.0 if step.index + 1 == len(plan.steps) else plan.at_final_size(plan.steps[step.index + 1].base_sigma)
        if step.index == 0:
            assert (interval.lower, interval.upper, interval.s_sigma) == (979, 979, at_978)
            assert after > at_978
        else:
            assert interval.s_sigma == after and interval.lower <= interval.upper
    assert [note.split(" of ")[0] for note in intervals.notes] == ["step 1"]
    t, s = intervals.sample(torch.arange(len(plan.steps)).repeat(20), seeded())
    assert (t > s).all()


def test_a_limited_level_has_a_note_of_one_line():
    """SDXL with a fourfold size: the state after the first step is already beyond the table."""
    plan = plan_from_split(SDXL, "2+2", sizes=((32, 32), (128, 128)), mapping=AreaMap())
    (note,) = TimestepIntervals.from_plan(plan).notes
    assert note == (
        "step 1 of 2+2 trains from table index 978 of the final size to 979, "
        "less noisy than the state after it, index 999.0"
    )
    assert TimestepIntervals.from_plan(wan()).notes == ()


@pytest.mark.parametrize("curve", [FLOW3, SDXL])
@pytest.mark.parametrize("split", ["1+3", "2+2", "3+1"])
@pytest.mark.parametrize("indices", [(999, 998, 997, 996), (999, 2, 1, 0), (999, 1.5, 0.9, 0.2)])
def test_steps_close_together_at_either_end_of_the_table_have_levels(curve, split, indices):
    if curve.kind == "vp" and indices[1] == 1.5:
        indices = (999, 3, 1, 0)
    grid = [curve.table_sigma(float(index)) for index in indices]
    plan = plan_from_split(curve, split, sizes=IMAGE, mapping=NoMap(), steps=grid)
    intervals = TimestepIntervals.from_plan(plan)
    t, s = intervals.sample(torch.arange(4).repeat(20), seeded())
    after = torch.tensor([*grid[1:], 0.0], dtype=torch.float64).repeat(20)
    assert (t > s).all() and (s <= after + 1e-9).all()


@pytest.mark.parametrize("factor", [-0.1, 1.0, math.nan, math.inf])
def test_offset_factors_outside_the_range_are_refused(factor):
    with pytest.raises(RMDError, match="0 to below 1"):
        TimestepIntervals.from_plan(wan(), offset_factor=factor)


@given(split=splits, warmup=st.integers(0, 5), seed=st.integers(0, 2**32))
def test_invariant_23_warm_up_samples_every_stage_but_the_last(split, warmup, seed):
    plan = plan_from_split(FLOW3, split, sizes=sizes_of(split), mapping=AreaMap())
    sampler, generator = StageSampler(plan, warmup), seeded(seed)
    stages = len(plan.stages)
    for update in range(warmup):
        assert sampler.sample_stage(update, generator) in range(max(1, stages - 1))
    after = {sampler.sample_stage(update, generator) for update in range(warmup, warmup + 120)}
    assert after == set(range(stages))


@pytest.mark.parametrize("split, update, chances", [("3+3", 15, [0.5, 0.5]), ("3+3", 14, [1.0, 0.0])])
def test_invariant_23_two_stages_are_the_authors_coin(split, update, chances):
    sampler, generator = StageSampler(wan(split), 15), seeded(1)
    sampled = torch.tensor([sampler.sample_stage(update, generator) for _ in range(2000)])
    for stage, chance in enumerate(chances):
        assert abs(float((sampled == stage).double().mean()) - chance) < 0.04


def test_invariant_23_three_stages_are_sampled_evenly_in_and_after_the_warm_up():
    plan = plan_from_split(FLOW3, "1+2+3", sizes=sizes_of("123"), mapping=AreaMap())
    sampler, generator = StageSampler(plan, 10), seeded(2)
    for update, chances in [(0, [1 / 2, 1 / 2, 0]), (10, [1 / 3, 1 / 3, 1 / 3])]:
        sampled = torch.tensor([sampler.sample_stage(update, generator) for _ in range(3000)])
        counts = torch.bincount(sampled, minlength=3) / 3000
        assert counts.tolist() == pytest.approx(chances, abs=0.04)


@given(split=splits, seed=st.integers(0, 2**32))
def test_invariant_23_a_batch_never_mixes_sizes(split, seed):
    plan = plan_from_split(FLOW3, split, sizes=sizes_of(split), mapping=AreaMap())
    sampler, generator = StageSampler(plan, 0), seeded(seed)
    stage = sampler.sample_stage(3, generator)
    steps = sampler.sample_steps(stage, 40, generator)
    assert steps.dtype == torch.int64 and steps.shape == (40,)
    assert {plan.steps[index].stage for index in steps.tolist()} == {stage}


def test_steps_are_uniform_inside_the_stage():
    plan = plan_from_split(FLOW3, "1+2+3", sizes=sizes_of("123"), mapping=AreaMap())
    sampled = StageSampler(plan, 0).sample_steps(2, 3000, seeded(4))
    assert (torch.bincount(sampled, minlength=6) / 3000).tolist() == pytest.approx(
        [0, 0, 0, 1 / 3, 1 / 3, 1 / 3], abs=0.04
    )


def test_invariant_23_equal_generators_choose_the_same_stage_everywhere():
    sampler = StageSampler(wan(), 2)
    one, other = (
        [sampler.sample_stage(update, generator) for update in range(50)] for generator in (seeded(8), seeded(8))
    )
    assert one == other


def test_negative_warm_up_is_refused():
    with pytest.raises(RMDError, match="0 or more"):
        StageSampler(wan(), -1)
