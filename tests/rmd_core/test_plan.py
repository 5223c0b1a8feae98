"""Stage plans: the published ones, their levels, and every way of asking for one."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from core_world import FLOW3, FLOW5, IMAGE, PIXART, SDXL, WAN, curves, grid_at, maps, splits
from rmd_core.errors import RMDError
from rmd_core.plan import plan_from_split, plan_from_thresholds, plan_tail, stage_sizes
from rmd_core.schedule import AreaMap, FixedRatioMap, FlowCurve, NoMap, ShiftPairMap

FROM_900 = (899, 674, 449, 224)


def growing(count):
    """Sizes that grow by a quarter each, odd ones among them."""
    return tuple((9 + 2 * place, 13 + 3 * place) for place in range(count))


def steps_of(curve, grid):
    return grid_at(curve, FROM_900) if grid == 900 else grid


@pytest.mark.parametrize(
    "curve, grid, by_5, by_2_5, by_1_25, by_two",
    [
        (SDXL, 4, "1+3", "2+2", "2+2", "1+1+2"),
        (SDXL, 900, "0+4", "1+3", "2+2", "0+1+3"),
        (PIXART, 4, "2+2", "2+2", "3+1", "2+0+2"),
        (PIXART, 900, "1+3", "2+2", "3+1", "1+1+2"),
        (FLOW3, 4, "1+3", "2+2", "3+1", "1+1+2"),
        (FLOW3, 6, "2+4", "3+3", "4+2", "2+1+3"),
        (FLOW5, 6, "2+4", "4+2", "5+1", "2+2+2"),
        (FLOW3, 8, "2+6", "4+4", "5+3", "2+2+4"),
    ],
    ids=["sdxl", "sdxl-900", "pixart", "pixart-900", "sd35", "wan-3", "wan-5", "flow3-8"],
)
def test_invariant_5_published_plans_from_thresholds(curve, grid, by_5, by_2_5, by_1_25, by_two):
    three = ((32, 32), *IMAGE)
    cases = [((-5,), by_5), ((-2.5,), by_2_5), ((-1.25,), by_1_25), ((-5, -2.5), by_two)]
    for thresholds, expected in cases:
        sizes = IMAGE if len(thresholds) == 1 else three
        plan = plan_from_thresholds(curve, steps_of(curve, grid), thresholds=thresholds, sizes=sizes, mapping=NoMap())
        assert plan.split == expected


def test_a_step_on_its_threshold_runs_at_the_larger_size():
    threshold = FLOW3.logsnr(FLOW3.grid(4)[2])
    plan = plan_from_thresholds(FLOW3, 4, thresholds=[threshold], sizes=IMAGE, mapping=AreaMap())
    assert plan.split == "2+2"


@given(curve=curves, steps=st.integers(1, 12), thresholds=st.lists(st.floats(-9, 9), max_size=3, unique=True))
def test_invariant_5_each_step_runs_at_the_lowest_size_whose_threshold_it_is_below(curve, steps, thresholds):
    thresholds = sorted(thresholds)
    sizes = growing(len(thresholds) + 1)
    plan = plan_from_thresholds(curve, steps, thresholds=thresholds, sizes=sizes, mapping=NoMap())
    for step in plan.steps:
        allowed = [size for size, threshold in zip(sizes, thresholds) if curve.logsnr(step.base_sigma) < threshold]
        assert (step.height, step.width) == (allowed or [sizes[-1]])[0]


@given(curve=curves, split=splits, mapping=maps)
def test_invariant_6_levels_fall_and_calls_are_as_planned(curve, split, mapping):
    sizes = growing(len(split))
    plan = plan_from_split(curve, split, sizes=sizes, mapping=mapping)
    assert len(plan.steps) == sum(split) == sum(plan.calls_per_stage)
    assert plan.steps_asked == tuple(split)
    assert plan.calls_per_stage == tuple(count for count in split if count)
    assert plan.base_sigmas == curve.grid(sum(split))
    for stage in plan.stages:
        assert all(before > after for before, after in zip(stage.sigmas, stage.sigmas[1:]))
    for step, following in zip(plan.steps, plan.steps[1:]):
        assert step.next_sigma == following.sigma and step.base_sigma > following.base_sigma
        assert following.index == step.index + 1
    assert plan.steps[-1].next_sigma == 0.0


@given(curve=curves, split=splits, mapping=maps)
def test_invariant_7_any_split_runs_and_empty_stages_keep_their_meaning(curve, split, mapping):
    sizes = growing(len(split))
    plan = plan_from_split(curve, split, sizes=sizes, mapping=mapping)
    kept = [size for size, count in zip(sizes, split) if count]
    assert [(stage.height, stage.width) for stage in plan.stages] == kept
    assert [stage.index for stage in plan.stages] == list(range(len(kept)))
    assert plan.final_hw == kept[-1] and plan.sizes == sizes
    for stage, size in zip(plan.stages, kept):
        assert stage.ratio == mapping.ratio(sizes[0], size, sizes[-1])
    for size, count in zip(sizes, split):
        assert (f"no step runs at {size[0]} x {size[1]}" in [note.text() for note in plan.notes]) == (count == 0)


@given(curve=curves, split=splits, mapping=maps)
def test_a_plan_is_rebuilt_from_what_it_says(curve, split, mapping):
    plan = plan_from_split(curve, split, sizes=growing(len(split)), mapping=mapping)
    again = plan_from_split(plan.curve, plan.split, sizes=plan.sizes, mapping=plan.mapping, steps=plan.base_sigmas)
    assert again == plan and hash(again) == hash(plan)


@given(split=splits, mapping=maps, shift=st.floats(0.5, 8.0))
def test_flow_levels_are_the_base_levels_mapped_by_each_stages_ratio(split, mapping, shift):
    curve = FlowCurve(shift)
    plan = plan_from_split(curve, split, sizes=growing(len(split)), mapping=mapping)
    for step in plan.steps:
        assert step.sigma == curve.with_ratio(step.base_sigma, plan.stages[step.stage].ratio)
        assert step.timestep == pytest.approx(1000 * step.sigma)
        assert step.logsnr == curve.logsnr(step.sigma)
    assert all(note.text().startswith("no step runs") for note in plan.notes)


@given(curve=st.sampled_from([SDXL, PIXART]), split=splits, mapping=maps)
def test_vp_levels_are_table_entries_nearest_to_the_mapped_level(curve, split, mapping):
    plan = plan_from_split(curve, split, sizes=growing(len(split)), mapping=mapping)
    for step in plan.steps:
        exact = curve.timestep(curve.with_ratio(step.base_sigma, plan.stages[step.stage].ratio))
        assert step.timestep == int(step.timestep) and step.sigma == curve.table_sigma(step.timestep)
        assert abs(step.timestep - exact) <= 0.5 + 1e-6 or (exact > 998 and step.timestep == 998)
        assert step.index == 0 or step.timestep <= 998


def test_sdxl_2_plus_2_as_published():
    plan = plan_from_split(SDXL, "2+2", sizes=IMAGE, mapping=AreaMap())
    assert [step.timestep for step in plan.steps] == [999, 749, 692, 453]
    assert [note.text() for note in plan.notes] == [
        "step 3 at 128 x 128: the exact level is timestep 691.7; timestep 692 is used",
        "step 4 at 128 x 128: the exact level is timestep 453.3; timestep 453 is used",
    ]


def test_the_authors_own_sampler_grid_can_be_given():
    indices = (999, 833, 667, 501, 335, 169)
    grid = [FLOW3.table_sigma(index) for index in indices]
    by_mode_2 = plan_from_split(FLOW3, "3+3", sizes=WAN, mapping=ShiftPairMap(3, 5), steps=grid)
    expected = [1.0, 0.93778, 0.85788, 0.83444, 0.71672, 0.50595]
    assert [step.sigma for step in by_mode_2.steps] == pytest.approx(expected, abs=2e-5)


def test_0_plus_k_differs_from_1_plus_k_less_1_in_its_first_step_alone():
    """A threshold that slides over the first step moves that step and nothing else."""
    for curve in (FLOW3, SDXL):
        early, none = (plan_from_split(curve, split, sizes=IMAGE, mapping=AreaMap()) for split in ("1+3", "0+4"))
        assert [step.sigma for step in none.steps[1:]] == [step.sigma for step in early.steps[1:]]
        assert none.steps[0].sigma == curve.sigma_max and none.final_hw == early.final_hw


def test_k_plus_0_ends_at_the_smaller_size():
    plan = plan_from_split(SDXL, "4+0", sizes=IMAGE, mapping=AreaMap())
    assert (
        plan.final_hw == (64, 64)
        and plan.steps == plan_from_split(SDXL, [4], sizes=[(64, 64)], mapping=AreaMap()).steps
    )


def test_vp_clamps_later_levels_to_998_and_says_so():
    plan = plan_from_split(SDXL, "1+3", sizes=((16, 16), (128, 128)), mapping=FixedRatioMap(3.6))
    assert [step.timestep for step in plan.steps] == [999, 998, 827, 624]
    words = plan.notes[0].text(lambda size: f"{8 * size[1]}x{8 * size[0]} px")
    assert words == "step 2 at 1024x1024 px: the exact level is beyond the model's table; timestep 998 is used"


def test_vp_refuses_two_levels_on_one_timestep():
    with pytest.raises(RMDError, match="two steps at 128 x 128 fall on timestep 998"):
        plan_from_split(SDXL, "1+3", sizes=((12, 12), (128, 128)), mapping=AreaMap())
    with pytest.raises(RMDError, match="two steps at 64 x 64 fall on timestep 500"):
        plan_from_split(SDXL, "2", sizes=[(64, 64)], mapping=NoMap(), steps=grid_at(SDXL, (500.3, 499.6)))


def test_a_grid_off_the_table_is_snapped_too():
    plan = plan_from_split(SDXL, "2", sizes=[(8, 8)], mapping=NoMap(), steps=grid_at(SDXL, (899.4, 450.2)))
    assert [step.timestep for step in plan.steps] == [899, 450]
    assert plan.notes[0].text() == "step 1 at 8 x 8: the exact level is timestep 899.4; timestep 899 is used"


def test_a_stage_ends_where_the_next_one_starts():
    plan = plan_from_split(FLOW3, "2+1+1", sizes=((8, 8), (12, 12), (16, 16)), mapping=AreaMap())
    ends = [stage.end_base_sigma for stage in plan.stages]
    assert ends == [plan.stages[1].base_sigmas[0], plan.stages[2].base_sigmas[0], 0.0]


@given(curve=curves, split=splits, mapping=maps)
def test_levels_at_the_final_size(curve, split, mapping):
    plan = plan_from_split(curve, split, sizes=growing(len(split)), mapping=mapping)
    last = plan.stages[-1]
    for step in plan.steps:
        mapped = plan.at_final_size(step.base_sigma)
        if step.stage == last.index:
            assert mapped == step.sigma
        else:
            assert mapped == min(curve.with_ratio(step.base_sigma, last.ratio), curve.sigma_max)
    assert plan.at_final_size(0.0) == 0.0


def test_invariant_25_the_timestep_is_the_same_in_float32_alone_and_in_a_batch():
    """The sampler tells one number, the trainer a batch worked out from levels; float32 must not tell them apart."""
    for curve in (FLOW3, SDXL, PIXART):
        plan = plan_from_split(curve, "2+2", sizes=IMAGE, mapping=AreaMap())
        timesteps = torch.tensor([step.timestep for step in plan.steps], dtype=torch.float32)
        levels = torch.tensor([step.sigma for step in plan.steps], dtype=torch.float64)
        assert torch.equal(curve.timestep(levels).to(torch.float32), timesteps)


def test_cost_counts_calls_at_the_final_size():
    plan = plan_from_split(FLOW3, "2+2", sizes=IMAGE, mapping=AreaMap())
    assert sum(plan.step_costs(lambda height, width: height * width)) == 2.5
    assert sum(plan.step_costs(lambda height, width: 7.0)) == 4.0


def test_table_has_a_line_for_each_step():
    plan = plan_from_split(FLOW3, "3+3", sizes=WAN, mapping=ShiftPairMap(3, 5))
    lines = plan.table().split("\n")
    assert len(lines) == 7 and len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["1", "1", "60", "x", "104", "1.00000", "1000.00", "-inf"]
    assert lines[4].split() == ["4", "2", "90", "x", "160", "0.83333", "833.33", "-3.219"]


def test_asking_changes_no_argument():
    split, sizes, grid = [1, 1], [[8, 8], [16, 16]], [1.0, 0.5]
    plan_from_split(FLOW3, split, sizes=sizes, mapping=AreaMap(), steps=grid)
    assert (split, sizes, grid) == ([1, 1], [[8, 8], [16, 16]], [1.0, 0.5])


@pytest.mark.parametrize("split", ["", "a+b", "2+", "2+-1", "0+0", "2.5+1", [], [0], [1.5, 2], [None], 4, None])
def test_splits_that_are_no_plan_are_refused(split):
    with pytest.raises(RMDError, match="is not valid"):
        plan_from_split(FLOW3, split, sizes=IMAGE, mapping=AreaMap())


@pytest.mark.parametrize(
    "sizes", [[], [(0, 4), (8, 8)], [(8,), (8, 8)], [8, 16], [(4.5, 4), (8, 8)], None, ["ab", "cd"]]
)
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(RMDError, match="latent sizes"):
        plan_from_split(FLOW3, "2+2", sizes=sizes, mapping=AreaMap())


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(RMDError, match="2 parts for 1 sizes"):
        plan_from_split(FLOW3, "2+2", sizes=[(8, 8)], mapping=AreaMap())
    with pytest.raises(RMDError, match="4 steps but there are 2 levels; give as many"):
        plan_from_split(FLOW3, "2+2", sizes=IMAGE, mapping=AreaMap(), steps=[1.0, 0.5])
    with pytest.raises(RMDError, match="shrinks from 8 x 16 to 16 x 8"):
        plan_from_split(FLOW3, "2+2", sizes=[(8, 16), (16, 8)], mapping=AreaMap())
    with pytest.raises(RMDError, match="2 entries for 2 sizes; give one fewer"):
        plan_from_thresholds(FLOW3, 4, thresholds=[-5, -2.5], sizes=IMAGE, mapping=AreaMap())
    for thresholds in ([-2.5, -5], [-2.5, -2.5], [math.nan, 0.0]):
        with pytest.raises(RMDError, match="do not rise"):
            plan_from_thresholds(FLOW3, 4, thresholds=thresholds, sizes=growing(3), mapping=AreaMap())


@pytest.mark.parametrize("grid", [[], [0.5, 0.5], [0.4, 0.5], [1.1, 0.5], [0.5, 0.0], [0.5, -0.1], [math.nan, 0.5]])
def test_grids_that_do_not_fall_within_the_curve_are_refused(grid):
    with pytest.raises(RMDError, match="fall strictly"):
        plan_from_thresholds(FLOW3, grid, thresholds=[], sizes=[(8, 8)], mapping=NoMap())


def test_a_vp_grid_may_not_start_beyond_the_table():
    with pytest.raises(RMDError, match="0.997667"):
        plan_from_thresholds(SDXL, [0.9999, 0.5], thresholds=[], sizes=[(8, 8)], mapping=NoMap())


def test_stage_sizes_of_published_models():
    assert stage_sizes((128, 128), (0.5, 1), multiple=2) == IMAGE
    assert stage_sizes((16, 16), (0.5, 0.75, 1), multiple=2) == ((8, 8), (12, 12), (16, 16))
    assert stage_sizes((90, 160), (2 / 3, 1), multiple=2) == ((60, 106), (90, 160))


@given(
    final=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    ratios=st.lists(st.floats(0.05, 0.99), max_size=3, unique=True),
    multiple=st.sampled_from([1, 2, 4]),
)
def test_stage_sizes_are_multiples_that_grow_to_the_final_size(final, ratios, multiple):
    assume(min(final) >= multiple)
    sizes = stage_sizes(final, (*sorted(ratios), 1.0), multiple=multiple)
    assert sizes[-1] == final
    for size, ratio in zip(sizes, sorted(ratios)):
        for length, whole in zip(size, final):
            assert length == whole or length % multiple == 0
            assert multiple <= length <= whole
            assert abs(length - ratio * whole) <= max(multiple / 2, multiple - ratio * whole)
    plan_from_split(FLOW3, [1] * len(sizes), sizes=sizes, mapping=AreaMap())


def test_stage_sizes_take_a_ratio_for_each_axis_and_sizes_above_the_result():
    pairs = ((0.25, 0.5), (0.5, 0.5), (1, 1), (1, 1), (2, 1.3))
    assert stage_sizes((16, 32), pairs, multiple=4) == ((4, 16), (8, 16), (16, 32), (16, 32), (32, 40))
    assert stage_sizes((10, 10), (1, 1.01), multiple=3) == ((10, 10), (10, 10))


REFUSED_RATIOS = [
    (), (0.5,), (1.0, 0.5), (0.0, 1.0), (0.5, 1.5), (math.nan, 1.0), (1.0, math.inf), ((1.0, 0.5), (0.5, 1.0)),
    ((0.5, 1.0),), ((0.5, 0.5, 0.5), 1.0), ("half", 1.0), 0.5,
]  # fmt: skip


@pytest.mark.parametrize("ratios", REFUSED_RATIOS)
def test_size_ratios_that_are_no_stages_are_refused(ratios):
    with pytest.raises(RMDError, match="size ratios .* never fall and include 1"):
        stage_sizes((16, 16), ratios, multiple=2)


def test_stage_sizes_refuse_other_multiples():
    with pytest.raises(RMDError, match="multiples of 0"):
        stage_sizes((16, 16), (0.5, 1), multiple=0)


def levels(plan):
    return [(step.height, step.width, step.sigma, step.base_sigma, step.next_sigma) for step in plan.steps]


@pytest.mark.parametrize("curve", [FlowCurve(3.0), SDXL], ids=["flow", "vp"])
@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any), data=st.data())
def test_kept_steps_are_the_last_ones_of_the_plan(curve, counts, data):
    sizes = [(16 << place, 24 << place) for place in range(len(counts))]
    plan = plan_from_split(curve, counts, sizes=sizes, mapping=AreaMap())
    kept = data.draw(st.integers(1, sum(counts)))
    tail = plan_tail(plan, kept)
    assert tail.sizes == plan.sizes and tail.mapping == plan.mapping
    assert levels(tail) == levels(plan)[-kept:]


def test_a_later_level_is_not_pure_noise_in_the_tail_either():
    """A first step of a tail that the plan holds below the last entry, which ComfyUI takes for pure noise."""
    grid = grid_at(SDXL, (999, 990, 500, 249))
    plan = plan_from_split(SDXL, "1+3", sizes=[(8, 8), (32, 32)], mapping=AreaMap(), steps=grid)
    assert plan.steps[1].timestep == 998
    tail = plan_tail(plan, 3)
    assert levels(tail) == levels(plan)[1:] and levels(plan_tail(tail, 2)) == levels(plan)[2:]
    assert any(note.text().startswith("step 1 at 32 x 32") for note in tail.notes)


def test_dropped_stages_keep_their_place_in_the_split():
    plan = plan_from_split(FlowCurve(3.0), "3+3", sizes=[(60, 104), (90, 160)], mapping=ShiftPairMap(3, 5))
    assert plan_tail(plan, 6) is plan
    assert plan_tail(plan, 4).split == "1+3"
    tail = plan_tail(plan, 2)
    assert tail.split == "0+2" and len(tail.stages) == 1
    assert tail.stages[0].ratio == pytest.approx(5 / 3)
    assert tail.stages[0].sigmas == plan.stages[1].sigmas[1:]
    assert [note.text() for note in tail.notes] == ["no step runs at 60 x 104"]


@pytest.mark.parametrize("kept", [0, 7, -1])
def test_a_tail_longer_than_the_plan_or_empty_is_refused(kept):
    plan = plan_from_split(FlowCurve(3.0), "3+3", sizes=[(60, 104), (90, 160)], mapping=AreaMap())
    with pytest.raises(RMDError, match=f"cannot keep the last {kept} of 6 steps; keep 1 to 6"):
        plan_tail(plan, kept)
