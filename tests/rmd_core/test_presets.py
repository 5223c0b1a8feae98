"""The method presets; tests/docs/test_method_page.py holds their values against the table of docs/method.md."""

import pytest

from rmd_core.boundary import Boundary
from rmd_core.errors import RMDError
from rmd_core.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_the_boundary_accepts_them(name):
    one = preset(name)
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
