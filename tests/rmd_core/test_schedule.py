"""Noise curves and resolution maps against closed forms, ComfyUI, and the reference values of the method page."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from core_world import FLOW1, FLOW3, FLOW5, PIXART, SDXL
from rmd_core.errors import RMDError
from rmd_core.schedule import (
    AreaMap,
    FixedRatioMap,
    FlowCurve,
    LogFlowCurve,
    NoMap,
    ShiftPairMap,
    VPCurve,
    curve_from_dict,
    map_from_dict,
)

WAN = [(60, 104), (75, 130), (90, 160)]
MAPS = [AreaMap(), NoMap(), FixedRatioMap(1.6), ShiftPairMap(3.0, 5.0)]
COSMOS = LogFlowCurve()
CURVES = {"flow1": FLOW1, "flow3": FLOW3, "flow5": FLOW5, "sdxl": SDXL, "pixart": PIXART, "cosmos": COSMOS}
INDICES = {
    4: (999, 749, 499, 249),
    6: (999, 832, 665, 499, 332, 165),
    8: (999, 874, 749, 624, 499, 374, 249, 124),
}

shifts = st.floats(0.2, 20.0)
ratios = st.floats(1.0, 8.0)
sides = st.integers(1, 200)
curves = st.one_of(shifts.map(FlowCurve), st.sampled_from([SDXL, PIXART, COSMOS]))


@pytest.fixture(params=CURVES)
def curve(request):
    return CURVES[request.param]


def test_invariant_1_shift_3_and_shift_5_tables():
    indices = [999, 833, 667, 501, 335, 169]
    by_3 = [1.0, 0.93778, 0.85788, 0.75150, 0.60287, 0.38060]
    by_5 = [1.0, 0.96172, 0.90960, 0.83444, 0.71672, 0.50595]
    assert [FlowCurve(3.0).table_sigma(i) for i in indices] == pytest.approx(by_3, abs=2e-5)
    assert [FlowCurve(5.0).table_sigma(i) for i in indices] == pytest.approx(by_5, abs=2e-5)
    assert FlowCurve(3.0).table_sigma(0) == pytest.approx(0.00299, abs=5e-6)
    assert FlowCurve(5.0).table_sigma(0) == pytest.approx(0.00498, abs=5e-6)


@given(u=st.floats(1e-3, 1.0), first=shifts, second=shifts)
def test_invariant_2_shifts_compose_by_multiplication(u, first, second):
    def shifted(value, shift):
        return shift * value / (1 + (shift - 1) * value)

    index = 1000 * u - 1
    twice = shifted(FlowCurve(first).table_sigma(index), second)
    assert twice == pytest.approx(FlowCurve(first * second).table_sigma(index), rel=1e-12)
    assert FlowCurve(first).with_ratio(FlowCurve(1.0).table_sigma(index), second) == pytest.approx(
        FlowCurve(second).table_sigma(index), rel=1e-12
    )


@given(index=st.floats(0.0, 998.0), shift=shifts)
def test_invariant_2_a_shift_is_a_constant_logsnr_offset(index, shift):
    plain, moved = FlowCurve(1.0), FlowCurve(shift)
    drop = plain.logsnr(plain.table_sigma(index)) - moved.logsnr(moved.table_sigma(index))
    assert drop == pytest.approx(2 * math.log(shift), abs=1e-9)


def test_invariant_4_sdxl_reference_values():
    values = {249: 0.733, 449: -0.625, 499: -0.956, 599: -1.645, 674: -2.204, 699: -2.401, 799: -3.254, 849: -3.726}
    values |= {899: -4.233, 949: -4.778, 979: -5.125, 0: 7.069}
    for t, logsnr in values.items():
        assert SDXL.logsnr(SDXL.table_sigma(t)) == pytest.approx(logsnr, abs=6e-4)
    assert SDXL.logsnr(SDXL.sigma_max) == pytest.approx(-5.3640, abs=5e-5)
    assert SDXL.logsnr(SDXL.table_sigma(749)) == pytest.approx(-2.8130, abs=5e-5)
    assert SDXL.alpha(SDXL.sigma_max) ** 2 == pytest.approx(0.004660, abs=5e-7)


def test_pixart_reference_values():
    assert PIXART.logsnr(PIXART.table_sigma(0)) == pytest.approx(9.210, abs=6e-4)
    assert PIXART.logsnr(PIXART.table_sigma(499)) == pytest.approx(-2.462, abs=6e-4)
    assert PIXART.logsnr(PIXART.sigma_max) == pytest.approx(-10.118, abs=6e-4)


def test_vp_table_is_the_cumulative_product_of_the_betas():
    bars = torch.tensor(SDXL.betas, dtype=torch.float64).neg().add(1).cumprod(0)
    assert torch.allclose(SDXL.alpha(SDXL.table_sigma(torch.arange(1000))) ** 2, bars, rtol=1e-10, atol=0)


def test_alpha_and_sigma_are_what_the_family_says():
    assert FlowCurve(3.0).alpha(0.3) == 0.7
    assert SDXL.alpha(0.6) == pytest.approx(0.8, abs=1e-15)


def test_pure_noise_of_a_flow():
    flow = FlowCurve(3.0)
    assert flow.sigma_max == flow.table_sigma(999) == 1.0
    assert flow.logsnr(1.0) == -math.inf and flow.logsnr(0.0) == math.inf


@given(curve=curves, share=st.floats(0.0, 1.0))
def test_table_timestep_and_comfy_sigma_and_back(curve, share):
    index = share * (curve.table_size - 1)
    sigma = curve.table_sigma(index)
    assert curve.table_index(sigma) == pytest.approx(index, abs=1e-7)
    assert curve.sigma_from_timestep(curve.timestep(sigma)) == pytest.approx(sigma, rel=1e-10)
    assert curve.from_comfy_sigma(curve.comfy_sigma(sigma)) == pytest.approx(sigma, rel=1e-10)


def test_tensors_and_floats_agree(curve):
    sigma = curve.table_sigma(torch.tensor([0.0, 13.25, 500.0, 998.0]))
    assert sigma.dtype == torch.float64
    for name in ("alpha", "logsnr", "timestep", "table_index", "comfy_sigma"):
        by_tensor = getattr(curve, name)(sigma)
        assert by_tensor.dtype == torch.float64
        assert by_tensor.tolist() == pytest.approx([getattr(curve, name)(value) for value in sigma.tolist()])
    assert curve.with_ratio(sigma, 2.0).tolist() == [curve.with_ratio(value, 2.0) for value in sigma.tolist()]
    assert curve.alpha(sigma.reshape(2, 2)).shape == (2, 2)


def test_a_vp_table_entry_has_its_whole_timestep_in_float32():
    every = torch.arange(1000, dtype=torch.float64)
    for curve in (SDXL, PIXART):
        assert torch.equal(curve.timestep(curve.table_sigma(every)).float(), every.float())


def test_vp_levels_beyond_the_table_get_its_ends():
    assert SDXL.timestep(1.0) == SDXL.timestep(0.9999) == 999.0
    assert SDXL.timestep(0.0) == 0.0
    assert SDXL.sigma_from_timestep(2000.0) == SDXL.sigma_max


@pytest.mark.parametrize("steps", INDICES)
def test_grid_is_at_the_published_indices(curve, steps):
    assert curve.grid(steps) == tuple(curve.table_sigma(index) for index in INDICES[steps])


@given(curve=curves, steps=st.integers(1, 1000))
def test_invariant_6_grid_falls_strictly_from_the_noisiest_level(curve, steps):
    grid = curve.grid(steps)
    assert len(grid) == steps and grid[0] == curve.sigma_max and grid[-1] > 0
    assert all(before > after for before, after in zip(grid, grid[1:]))


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, "4", True])
def test_grid_refuses_other_step_counts(curve, steps):
    with pytest.raises(RMDError, match="use 1 to 1000"):
        curve.grid(steps)


def test_curves_are_values(curve):
    again = curve_from_dict(curve.as_dict())
    assert again == curve and hash(again) == hash(curve) and again.describe() == curve.describe()
    assert FlowCurve(3) == FlowCurve(3.0) != FlowCurve(5.0)
    assert SDXL != PIXART


def test_own_betas_survive_the_dictionary():
    curve = VPCurve((0.1, 0.2, 0.3))
    assert curve_from_dict(curve.as_dict()) == curve
    assert curve.grid(3) == tuple(curve.table_sigma(index) for index in (2, 1, 0))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "edm"},
        {"kind": "flow"},
        {"kind": "flow", "shift": 3, "more": 1},
        {"kind": "flow", "shift": "three"},
        {"kind": "flow", "shift": 0},
        {"kind": "log flow", "least": 0.1},
        {"kind": "log flow", "least": 80.0, "most": 80.0},
        {"kind": "log flow", "least": 0.0, "most": 80.0},
        {"kind": "vp", "betas": [0.1]},
        {"kind": "vp", "betas": [0.1, 1.0]},
        {"kind": "vp", "betas": ["a", "b"]},
        {"kind": "vp", "betas": 3},
        {"kind": "vp", "schedule": "cosine", "start": 0.1, "end": 0.2, "size": 10},
        {"kind": "vp", "schedule": "linear", "start": 0.1, "end": None, "size": 10},
        {"kind": "vp", "schedule": "linear", "start": 0.1, "end": 0.2, "size": "many"},
    ],
)
def test_curve_from_dict_refuses_what_it_does_not_know(values):
    with pytest.raises(RMDError):
        curve_from_dict(values)


@pytest.mark.parametrize("shift", [0.0, -3.0, math.nan, math.inf, "x", None])
def test_flow_refuses_other_shifts(shift):
    with pytest.raises(RMDError, match="positive number"):
        FlowCurve(shift)


@given(curve=curves, sigma=st.floats(1e-3, 0.999), ratio=ratios)
def test_invariant_3_up_and_down_again_is_the_identity(curve, sigma, ratio):
    back = curve.with_ratio(curve.with_ratio(sigma, ratio), 1.0 / ratio)
    assert curve.comfy_sigma(back) == pytest.approx(curve.comfy_sigma(sigma), rel=1e-9)
    assert back == pytest.approx(sigma, abs=1e-12)


@given(curve=curves, index=st.floats(0.0, 998.0), ratio=st.floats(1.0, 4.0))
def test_invariant_3_logsnr_drops_by_2_ln_r(curve, index, ratio):
    sigma = curve.table_sigma(index)
    drop = curve.logsnr(sigma) - curve.logsnr(curve.with_ratio(sigma, ratio))
    # Near pure noise the level itself, 1 - tiny, holds fewer digits of its logSNR.
    assert drop == pytest.approx(2 * math.log(ratio), abs=1e-12 + 1e-15 / (1.0 - curve.with_ratio(sigma, ratio)))


@given(sigma=st.floats(1e-3, 0.999), ratio=ratios)
def test_closed_forms(sigma, ratio):
    flow = ratio * sigma / (1 + (ratio - 1) * sigma)
    assert FLOW3.with_ratio(sigma, ratio) == pytest.approx(flow, rel=1e-12)
    bar = 1 - sigma**2
    mapped_bar = bar / (bar + ratio**2 * (1 - bar))
    assert SDXL.with_ratio(sigma, ratio) == pytest.approx(math.sqrt(1 - mapped_bar), rel=1e-12)


@given(index=st.floats(0.0, 999.0), ratio=st.floats(1.0, 4.0))
def test_a_flow_keeps_its_index_under_the_mapping(index, ratio):
    """Same index, shift r s: the curve of the larger size."""
    assert FLOW3.with_ratio(FLOW3.table_sigma(index), ratio) == pytest.approx(
        FLOW3.at_ratio(ratio).table_sigma(index), rel=1e-12
    )
    assert FLOW3.at_ratio(5 / 3) == FlowCurve(5.0)
    assert SDXL.at_ratio(ratio) == SDXL


@pytest.mark.parametrize("ratio, limit", [(2.0, 874), (1.5, 929), (4.0, 723)])
def test_invariant_3_vp_saturates_at_the_known_timestep(ratio, limit):
    floor = SDXL.logsnr(SDXL.sigma_max)
    assert SDXL.logsnr(SDXL.with_ratio(SDXL.table_sigma(limit - 1), ratio)) > floor
    assert SDXL.logsnr(SDXL.with_ratio(SDXL.table_sigma(limit + 1), ratio)) < floor


def test_pure_noise_and_a_clean_image_stay():
    for curve in (FLOW3, SDXL):
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


@given(low=st.tuples(sides, sides), grow=st.lists(st.tuples(sides, sides), min_size=2, max_size=2))
def test_ratios_rise_from_one_to_the_whole(low, grow):
    middle = (low[0] + grow[0][0], low[1] + grow[0][1])
    final = (middle[0] + grow[1][0], middle[1] + grow[1][1])
    for mapping in MAPS:
        first, second, third = (mapping.ratio(low, size, final) for size in (low, middle, final))
        assert first == 1.0 and 1.0 <= second <= third + 1e-12


@given(side=sides)
def test_one_size_is_never_mapped(side):
    for mapping in MAPS:
        assert mapping.ratio((side, side), (side, side), (side, side)) == 1.0


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


def test_vp_is_comfyui_discrete_sampling(comfy):
    """The VE form that ComfyUI uses for VP models is a view of the same curve."""
    theirs = comfy.model_sampling.ModelSamplingDiscrete()
    ours = SDXL.comfy_sigma(SDXL.table_sigma(torch.arange(1000)))
    assert torch.allclose(ours, theirs.sigmas.double(), rtol=2e-6, atol=0)
    between = torch.tensor([0.0, 0.25, 7.5, 691.7, 998.5], dtype=torch.float64)
    assert torch.allclose(
        SDXL.comfy_sigma(SDXL.sigma_from_timestep(between)), theirs.sigma(between).double(), rtol=2e-5, atol=0
    )
    assert int(theirs.timestep(torch.tensor(SDXL.comfy_sigma(SDXL.sigma_from_timestep(691.7))))) == 692


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_flow_is_comfyui_flow_sampling(comfy, shift):
    theirs = comfy.model_sampling.ModelSamplingDiscreteFlow()
    theirs.set_parameters(shift=shift, multiplier=1000)
    curve = FlowCurve(shift)
    ours = curve.comfy_sigma(curve.table_sigma(torch.arange(1000)))
    assert torch.allclose(ours, theirs.sigmas.double(), rtol=1e-6, atol=0)
    assert torch.allclose(curve.timestep(ours), theirs.timestep(theirs.sigmas).double(), rtol=1e-6, atol=0)


def test_log_flow_is_comfyui_cosmos_sampling(comfy):
    """ComfyUI names a level k = sigma / alpha, tells the network sigma, and divides the state by 1 + k for it."""
    theirs = comfy.model_sampling.ModelSamplingCosmosRFlow(
        SimpleNamespace(sampling_settings={"sigma_min": 0.002, "sigma_max": 80.0})
    )
    ours = COSMOS.table_sigma(torch.arange(1000))
    assert torch.allclose(COSMOS.comfy_sigma(ours), theirs.sigmas.double(), rtol=2e-6, atol=0)
    assert torch.allclose(COSMOS.timestep(ours), 1000.0 * theirs.timestep(theirs.sigmas).double(), rtol=2e-6, atol=0)
    form, x = comfy.model_sampling.COSMOS_RFLOW(), torch.ones(1000)
    assert torch.allclose(form.calculate_input(theirs.sigmas, x).double(), COSMOS.alpha(ours), rtol=1e-4)
    assert COSMOS.grid(4) == tuple(map(COSMOS.table_sigma, (999.0, 749.0, 499.0, 249.0)))
    assert COSMOS.at_ratio(2.0) == COSMOS and COSMOS.snapped(0.99, last_index=998) == COSMOS.table_sigma(998.0)


def test_a_noise_scale_moves_the_logsnr_and_no_level():
    plain, scaled = FlowCurve(3.0), FlowCurve(3.0, noise_scale=8.0)
    for sigma in (1.0, 0.9, 0.3):
        alpha, noise = 1.0 - sigma, 8.0 * sigma
        expected = 2.0 * math.log(alpha / noise) if alpha else -math.inf
        assert scaled.logsnr(sigma) == pytest.approx(expected)
        assert scaled.with_ratio(sigma, 2.0) == plain.with_ratio(sigma, 2.0)
    assert scaled.grid(4) == plain.grid(4)
    assert curve_from_dict(scaled.as_dict()) == scaled == scaled.at_ratio(2.0).at_ratio(0.5)
    assert plain.as_dict() == {"kind": "flow", "shift": 3.0}  # as in every recipe so far
