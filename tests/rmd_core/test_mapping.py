"""The resolution mapping against its closed forms and the reference values of the method page."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rmd_core.errors import RMDError
from rmd_core.schedule import AreaMap, FixedRatioMap, FlowCurve, NoMap, ShiftPairMap, VPCurve, map_from_dict

unhurried = settings(deadline=None, max_examples=60)

SDXL = VPCurve.scaled_linear(0.00085, 0.012)
PIXART = VPCurve.linear(1e-4, 0.02)
FLOW = FlowCurve(3.0)
WAN = [(60, 104), (75, 130), (90, 160)]
MAPS = [AreaMap(), NoMap(), FixedRatioMap(1.6), ShiftPairMap(3.0, 5.0)]

curves = st.sampled_from([FLOW, FlowCurve(1.0), SDXL, PIXART])
ratios = st.floats(1.0, 8.0)
sides = st.integers(1, 200)


@unhurried
@given(curve=curves, sigma=st.floats(1e-3, 0.999), ratio=ratios)
def test_invariant_3_up_and_down_again_is_the_identity(curve, sigma, ratio):
    back = curve.with_ratio(curve.with_ratio(sigma, ratio), 1.0 / ratio)
    assert curve.comfy_sigma(back) == pytest.approx(curve.comfy_sigma(sigma), rel=1e-9)
    assert back == pytest.approx(sigma, abs=1e-12)


@unhurried
@given(curve=curves, index=st.floats(0.0, 998.0), ratio=st.floats(1.0, 4.0))
def test_invariant_3_logsnr_drops_by_2_ln_r(curve, index, ratio):
    sigma = curve.table_sigma(index)
    drop = curve.logsnr(sigma) - curve.logsnr(curve.with_ratio(sigma, ratio))
    # Near pure noise the level itself, 1 - tiny, holds fewer digits of its logSNR.
    assert drop == pytest.approx(2 * math.log(ratio), abs=1e-12 + 1e-15 / (1.0 - curve.with_ratio(sigma, ratio)))


@unhurried
@given(sigma=st.floats(1e-3, 0.999), ratio=ratios)
def test_closed_forms(sigma, ratio):
    flow = ratio * sigma / (1 + (ratio - 1) * sigma)
    assert FLOW.with_ratio(sigma, ratio) == pytest.approx(flow, rel=1e-12)
    bar = 1 - sigma**2
    mapped_bar = bar / (bar + ratio**2 * (1 - bar))
    assert SDXL.with_ratio(sigma, ratio) == pytest.approx(math.sqrt(1 - mapped_bar), rel=1e-12)


@unhurried
@given(index=st.floats(0.0, 999.0), ratio=st.floats(1.0, 4.0))
def test_a_flow_keeps_its_index_under_the_mapping(index, ratio):
    """Same index, shift r s: the curve of the larger size."""
    assert FLOW.with_ratio(FLOW.table_sigma(index), ratio) == pytest.approx(
        FLOW.at_ratio(ratio).table_sigma(index), rel=1e-12
    )
    assert FLOW.at_ratio(5 / 3) == FlowCurve(5.0)
    assert SDXL.at_ratio(ratio) == SDXL


@pytest.mark.parametrize(
    "curve, t, expected",
    [(SDXL, 499, 691.7), (SDXL, 249, 453.3), (SDXL, 449, 648.9), (SDXL, 224, 424.1), (PIXART, 499, 616.5)]
    + [(PIXART, 249, 386.3)],
)
def test_invariant_4_vp_reference_values(curve, t, expected):
    assert curve.timestep(curve.with_ratio(curve.table_sigma(t), 2.0)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    "sigma, ratio, expected",
    [
        (0.75, 2, 0.8571),
        (0.5, 2, 0.6667),
        (0.7515, 1.5, 0.8194),
        (0.7515, 1.519, 0.8212),
        (0.7515, 5 / 3, 0.8344),
        (0.6029, 5 / 3, 0.7167),
        (0.3806, 5 / 3, 0.5060),
    ],
)
def test_flow_reference_values(sigma, ratio, expected):
    assert FLOW.with_ratio(sigma, ratio) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("ratio, limit", [(2.0, 874), (1.5, 929), (4.0, 723)])
def test_invariant_3_vp_saturates_at_the_known_timestep(ratio, limit):
    floor = SDXL.logsnr(SDXL.sigma_max)
    assert SDXL.logsnr(SDXL.with_ratio(SDXL.table_sigma(limit - 1), ratio)) > floor
    assert SDXL.logsnr(SDXL.with_ratio(SDXL.table_sigma(limit + 1), ratio)) < floor


def test_invariant_3_the_limit_of_sdxl_at_ratio_2():
    floor = SDXL.with_ratio(SDXL.sigma_max, 0.5)
    assert SDXL.timestep(floor) == pytest.approx(874.27, abs=5e-3)


def test_tensors_map_like_floats():
    sigma = torch.tensor([0.2, 0.9], dtype=torch.float64)
    assert SDXL.with_ratio(sigma, 2.0).tolist() == [SDXL.with_ratio(value, 2.0) for value in sigma.tolist()]


def test_pure_noise_and_a_clean_picture_stay():
    for curve in (FLOW, SDXL):
        assert curve.with_ratio(0.0, 2.0) == 0.0
        assert curve.with_ratio(1.0, 2.0) == 1.0


def test_area_ratio_of_wan():
    assert AreaMap().ratio(WAN[0], WAN[2], WAN[2]) == pytest.approx(1.519, abs=5e-4)
    assert AreaMap().ratio((64, 64), (128, 128), (128, 128)) == 2.0


def test_shift_pair_and_fixed_ratio_hold_at_the_final_size():
    assert ShiftPairMap(3, 5).ratio(WAN[0], WAN[2], WAN[2]) == 5.0 / 3.0
    assert FixedRatioMap(1.7).ratio(WAN[0], WAN[2], WAN[2]) == 1.7
    assert NoMap().ratio(WAN[0], WAN[2], WAN[2]) == 1.0


def test_a_stage_between_gets_its_share_by_log_area():
    """At 16 -> 32 -> 64 the middle stage is half way: the ratios of both jumps are equal."""
    low, middle, final = (16, 16), (32, 32), (64, 64)
    for whole in (FixedRatioMap(4.0), ShiftPairMap(1.0, 4.0)):
        assert whole.ratio(low, middle, final) == pytest.approx(2.0, rel=1e-12)


@unhurried
@given(low=st.tuples(sides, sides), grow=st.lists(st.tuples(sides, sides), min_size=2, max_size=2))
def test_ratios_rise_from_one_to_the_whole(low, grow):
    middle = (low[0] + grow[0][0], low[1] + grow[0][1])
    final = (middle[0] + grow[1][0], middle[1] + grow[1][1])
    for mapping in MAPS:
        first, second, third = (mapping.ratio(low, size, final) for size in (low, middle, final))
        assert first == 1.0 and 1.0 <= second <= third + 1e-12


@unhurried
@given(side=sides)
def test_one_size_is_never_mapped(side):
    for mapping in MAPS:
        assert mapping.ratio((side, side), (side, side), (side, side)) == 1.0


@unhurried
@given(total=st.floats(1.0, 6.0), low=st.tuples(sides, sides), high=st.tuples(sides, sides))
def test_fixed_ratio_from_the_areas_is_the_area_map(total, low, high):
    assume(high[0] * high[1] > low[0] * low[1])
    whole = AreaMap().ratio(low, high, high)
    assert FixedRatioMap(whole).ratio(low, high, high) == pytest.approx(whole)


@pytest.mark.parametrize("mapping", MAPS)
def test_maps_are_values(mapping):
    again = map_from_dict(mapping.as_dict())
    assert again == mapping and hash(again) == hash(mapping)


@pytest.mark.parametrize(
    "values",
    [{}, {"kind": "learned"}, {"kind": "area", "total": 2}, {"kind": "ratio"}, {"kind": "shift", "low": 3}]
    + [{"kind": "ratio", "total": 0.5}, {"kind": "shift", "low": 5, "high": 3}, {"kind": "ratio", "total": "x"}],
)
def test_map_from_dict_refuses_what_it_does_not_know(values):
    with pytest.raises(RMDError):
        map_from_dict(values)


@pytest.mark.parametrize("low, high", [(0, 1), (-1, 2), (5, 3), (3, math.inf), (math.nan, 3), ("a", 3), (None, None)])
def test_shift_pair_refuses_other_shifts(low, high):
    with pytest.raises(RMDError, match="0 < low <= high"):
        ShiftPairMap(low, high)


def test_maps_describe_themselves():
    maps = (AreaMap(), FixedRatioMap(1.5), ShiftPairMap(3, 5), NoMap())
    assert [one.describe().split(",")[0] for one in maps] == ["area", "fixed ratio 1.5", "native shifts 3 to 5", "none"]
