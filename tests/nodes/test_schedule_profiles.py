"""RMD Schedule from the profiles of few-step models, on tiny models of their families."""

import pytest

from schedule_rig import Schedules, by_profile, pixel_sizes


@pytest.fixture
def plan(pack, tiny):
    return Schedules(pack, tiny).plan


@pytest.fixture
def refused(pack, tiny):
    return Schedules(pack, tiny).refused


def test_every_profile_makes_its_plan_on_its_family(pack, plan):
    sizes = {"SDXL": "sdxl", "SD3": "sd3", "WAN21": "wan"}
    profiles = [one for one in pack.rmd_core.profiles.PROFILES.values() if one.family in sizes]
    assert {one.family for one in profiles} == set(sizes)
    for profile in profiles:
        made = plan(sizes[profile.family], (256, 256), by_profile(profile))
        assert pixel_sizes(made) == [(128, 128), (256, 256)]
        assert made.stages == profile.plan([(16, 16), (32, 32)])
        assert made.stages.base_sigmas == pytest.approx(profile.sigmas, rel=1e-12)
        assert (made.eta, made.cfg, made.boundary) == (profile.eta, profile.cfg, profile.boundary)
        assert made.origin == f"profile {profile.title}, not distilled for the cascade"
        assert set(profile.notes) < set(made.notes) and any(profile.files[0] in note for note in made.notes)


def test_profile_splits(pack, plan, refused):
    profiles = pack.rmd_core.profiles.PROFILES.values()
    profile = next(one for one in profiles if one.family == "SDXL" and one.split == (2, 2))
    assert plan("sdxl", (512, 512), by_profile(profile, earlier_sizes="")).stages.split == "4"
    assert plan("sdxl", (512, 512), by_profile(profile, "1+3")).stages.split == "1+3"
    assert plan("sdxl", (512, 512), by_profile(profile, "1+1+2", "0.25,0.5")).stages.split == "1+1+2"
    assert "give parts that sum to 4" in refused("sdxl", (512, 512), by_profile(profile, "2+3"))
    assert "the split 4 needs 0 earlier_sizes, 1 came" in refused("sdxl", (512, 512), by_profile(profile, "4"))


def test_a_profile_of_another_family_lists_those_that_fit(pack, refused):
    profiles = pack.rmd_core.profiles.PROFILES.values()
    wan = next(one for one in profiles if one.family == "WAN21")
    text = refused("sdxl", (512, 512), by_profile(wan))
    assert text.startswith(f"the profile {wan.title!r} is not for this model, SDXL (SDXL latents, scaled-linear betas)")
    assert all(one.title in text for one in profiles if one.family == "SDXL")
    # PixArt Sigma has SDXL's latents and another table of noise: none of SDXL's profiles is for it
    sdxl = next(one for one in profiles if one.family == "SDXL")
    assert sdxl.title not in refused("pixart", (1024, 1024), by_profile(sdxl)).split("those that fit it")[1]
