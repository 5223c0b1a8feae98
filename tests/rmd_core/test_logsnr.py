"""Noise curves against closed forms, the reference values of the method page, and ComfyUI's own schedules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmd_core.errors import RMDError
from rmd_core.schedule import FlowCurve, VPCurve, curve_from_dict

unhurried = settings(deadline=None, max_examples=60)

SDXL = VPCurve.scaled_linear(0.00085, 0.012)
PIXART = VPCurve.linear(1e-4, 0.02)
CURVES = {"flow1": FlowCurve(1.0), "flow3": FlowCurve(3.0), "flow5": FlowCurve(5.0), "sdxl": SDXL, "pixart": PIXART}
INDICES = {
    4: (999, 749, 499, 249),
    6: (999, 832, 665, 499, 332, 165),
    8: (999, 874, 749, 624, 499, 374, 249, 124),
}

shifts = st.floats(0.2, 20.0)
sigmas = st.floats(1e-4, 1.0)
curves = st.one_of(shifts.map(FlowCurve), st.sampled_from([SDXL, PIXART]))


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


@unhurried
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


@unhurried
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


@pytest.mark.parametrize(
    "name, logsnr, index",
    [
        ("sdxl", -5, 968.3),
        ("sdxl", -2.5, 711.3),
        ("sdxl", -1.25, 542.5),
        ("pixart", -5, 701.8),
        ("pixart", -2.5, 502.5),
        ("flow1", -5, 923.1),
        ("flow1", -2.5, 776.3),
        ("flow1", -1.25, 650.4),
        ("flow3", -5, 801.4),
        ("flow3", -2.5, 536.8),
        ("flow3", -1.25, 382.8),
        ("flow5", -5, 708.0),
        ("flow5", -2.5, 410.1),
        ("flow5", -1.25, 271.0),
    ],
)
def test_where_the_thresholds_fall(name, logsnr, index):
    curve = CURVES[name]
    assert curve.table_index(curve.sigma_from_logsnr(logsnr)) == pytest.approx(index, abs=0.06)


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
    assert flow.sigma_from_logsnr(-math.inf) == 1.0 and flow.sigma_from_logsnr(math.inf) == 0.0


@unhurried
@given(curve=curves, sigma=sigmas)
def test_logsnr_and_back(curve, sigma):
    assert curve.sigma_from_logsnr(curve.logsnr(sigma)) == pytest.approx(sigma, rel=1e-9)


@unhurried
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


def test_a_vp_table_entry_is_told_as_its_whole_timestep_in_float32():
    every = torch.arange(1000, dtype=torch.float64)
    for curve in (SDXL, PIXART):
        assert torch.equal(curve.timestep(curve.table_sigma(every)).float(), every.float())


def test_vp_levels_beyond_the_table_are_held_at_its_ends():
    assert SDXL.timestep(1.0) == SDXL.timestep(0.9999) == 999.0
    assert SDXL.timestep(0.0) == 0.0
    assert SDXL.sigma_from_timestep(2000.0) == SDXL.sigma_max


@pytest.mark.parametrize("steps", INDICES)
def test_grid_is_at_the_published_indices(curve, steps):
    assert curve.grid(steps) == tuple(curve.table_sigma(index) for index in INDICES[steps])


@unhurried
@given(curve=curves, steps=st.integers(1, 1000))
def test_invariant_6_grid_falls_strictly_from_the_noisiest_level(curve, steps):
    grid = curve.grid(steps)
    assert len(grid) == steps and grid[0] == curve.sigma_max and grid[-1] > 0
    assert all(before > after for before, after in zip(grid, grid[1:]))


def test_grid_at_given_timesteps():
    grid = SDXL.grid_at((899, 674, 449, 224))
    assert [SDXL.timestep(sigma) for sigma in grid] == pytest.approx([899, 674, 449, 224])
    assert FlowCurve(3.0).grid_at((1000, 900, 750)) == (1.0, 0.9, 0.75)


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
