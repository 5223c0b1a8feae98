"""Profiles of few-step models that people already own, by key."""

from __future__ import annotations

from types import MappingProxyType

from .errors import RMDError
from .few_step import FewStepProfile
from .profiles_flow import FLOW_PROFILES
from .profiles_vp import VP_PROFILES

PROFILES = MappingProxyType({one.key: one for one in (*VP_PROFILES, *FLOW_PROFILES)})
"""Every profile, by key; none was distilled for the cascade. Source: docs/profiles.md, profiles."""


def profile(key: str) -> FewStepProfile:
    """The profile of a key; raises RMDError for an unknown one."""
    if key not in PROFILES:
        raise RMDError(f"few-step profile {key!r} is unknown; use one of {', '.join(PROFILES)}")
    return PROFILES[key]
