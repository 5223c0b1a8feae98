"""The method presets against the table of the method page."""

import pytest

from rmd_core.boundary import Boundary
from rmd_core.errors import RMDError
from rmd_core.presets import PRESETS, preset

TABLE = {
    # name: mapping in training, of plans by hand, switch noise, noise in the losses, eta in training, at inference,
    #       offset factor, split, upsampler
    "default": ("none", "on", "exact", "exact", 0.5, 0.5, 0.25, True, "nearest"),
    "paper-literal": ("on", "on", "mix", "mix", 0.5, 0.5, 0.25, True, "bilinear"),
    "official-current": ("none", "none", "fresh", "mix", 0.5, 0.9, 0.25, True, "bilinear"),
    "official-first": ("none", "none", "mix", "mix", 0.9, 0.9, 0.5, True, "bilinear"),
    "official-7gpu": ("none", "none", "fresh", "fresh", 0.0, 0.0, 0.0, False, "bilinear"),
}


def test_there_are_no_others():
    assert set(PRESETS) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_values(name):
    one = preset(name)
    assert one.name == name and one is PRESETS[name]
    assert TABLE[name] == (
        one.mapping_train,
        one.mapping,
        one.switch_noise,
        one.loss_noise,
        one.eta_train,
        one.eta,
        one.offset_factor,
        one.split,
        one.upsampler,
    )


@pytest.mark.parametrize("name", TABLE)
def test_the_boundary_accepts_them(name):
    one = PRESETS[name]
    Boundary(one.upsampler, one.switch_noise, one.eta)
    Boundary(one.upsampler, one.loss_noise, one.eta_train)


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["default"] = None
    with pytest.raises(AttributeError):
        PRESETS["default"].eta = 0.1


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(RMDError, match="'official' is unknown; use one of default, paper-literal"):
        preset("official")
