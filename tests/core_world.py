"""What the tests of rmd_core share: noise curves, sizes, hypothesis strategies over plans, and seeded tensors."""

import torch
from hypothesis import strategies as st

from rmd_core.schedule import AreaMap, FixedRatioMap, FlowCurve, NoMap, ShiftPairMap, VPCurve

FLOW1, FLOW3, FLOW5 = FlowCurve(1.0), FlowCurve(3.0), FlowCurve(5.0)
SDXL = VPCurve.scaled_linear(0.00085, 0.012)
PIXART = VPCurve.linear(1e-4, 0.02)
MAPS = [NoMap(), AreaMap(), FixedRatioMap(1.7), ShiftPairMap(3.0, 5.0)]
IMAGE = ((64, 64), (128, 128))
WAN = ((60, 104), (90, 160))

curves = st.sampled_from([FLOW3, FLOW1, FLOW5, SDXL, PIXART])
maps = st.sampled_from(MAPS)
splits = st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any)


def grid_at(curve, timesteps):
    """The levels of given network timesteps."""
    return tuple(curve.sigma_from_timestep(float(timestep)) for timestep in timesteps)


def randn(*shape, seed=0, dtype=torch.float64):
    """Standard normal numbers, the same ones for a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flow(sigma):
    """(alpha, sigma) of a rectified flow."""
    return 1 - sigma, sigma


def vp(sigma):
    """(alpha, sigma) of a variance-preserving model."""
    return (1 - sigma**2) ** 0.5, sigma
