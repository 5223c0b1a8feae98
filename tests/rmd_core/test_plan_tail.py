"""The tail of a plan: the last steps alone, at the very levels they had in the whole plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd_core.errors import RMDError
from rmd_core.plan import plan_from_split, plan_tail
from rmd_core.schedule import AreaMap, FlowCurve, ShiftPairMap, VPCurve

SDXL = VPCurve.scaled_linear(0.00085, 0.012)


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
    expected, got = levels(plan)[-kept:], levels(tail)
    if curve is SDXL and plan.steps[-kept].timestep == 998:
        expected, got = expected[1:], got[1:]  # held below the last entry in the plan; a first step may stand on it
    assert got == expected


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
    with pytest.raises(RMDError, match=f"the last {kept} of 6 steps are no plan; keep 1 to 6"):
        plan_tail(plan, kept)
