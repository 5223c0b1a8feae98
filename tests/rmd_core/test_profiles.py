"""The profiles of few-step models against the published numbers, worked out by hand, and against their page."""

import math
from pathlib import Path

import pytest

from rmd_core.errors import RMDError
from rmd_core.profiles import NOT_DISTILLED, PROFILES, profile
from rmd_core.schedule import NoMap, VPCurve

PAGE = Path(__file__).parents[2] / "docs" / "profiles.md"
FAMILIES = {"SDXL", "PixArt", "SD3", "WAN21", "Flux", "Lumina2", "QwenImage"}  # in ComfyUI's comfy/model_base.py
FOLDERS = {"checkpoints", "diffusion_models", "loras"}
TWO = ((64, 64), (128, 128))
THREE = ((32, 32), (64, 64), (128, 128))

FOUR, EIGHT = (999, 749, 499, 249), (999, 874, 749, 624, 499, 374, 249, 124)
# key: what the network is told, or the sigmas as fractions of the published lists; CFG; LoRA strength; eta
TIMESTEPS = {
    "sdxl-dmd2-lora": (FOUR, 1.0, 1.0, 0.0),
    "sdxl-dmd2-unet": (FOUR, 1.0, None, 0.0),
    "sdxl-lightning-4-checkpoint": (FOUR, 1.0, None, 1.0),
    "sdxl-lightning-4-lora": (FOUR, 1.0, 1.0, 1.0),
    "sdxl-lightning-8-lora": (EIGHT, 1.0, 1.0, 1.0),
    "sdxl-hyper-4-lora": (FOUR, 1.0, 1.0, 1.0),
    "sdxl-hyper-8-lora": (EIGHT, 1.0, 1.0, 1.0),
    "sdxl-lcm-lora": ((999, 759, 499, 259), 1.0, 1.0, 0.0),
    "pixart-lcm": ((999, 759, 519, 279), 1.0, None, 0.0),
}
SHIFT3_OF_8 = (1, 21 / 22, 9 / 10, 5 / 6, 3 / 4, 9 / 14, 1 / 2, 3 / 10)  # 3 u / (1 + 2 u) at u = 8/8 .. 1/8
SIGMAS = {
    # u = 1, .750748.., .501497.., .252245..: a quarter of the way each from 1 to the cleanest level, 3 / 1002
    "sd35-large-turbo": ((1.0, 0.9003590664, 0.7511210762, 0.5029850746), 1.0, None, 1.0),
    "sd35-tdm-lora": ((2.997 / 2.998, 2.24775 / 2.4985, 1.4985 / 1.999, 0.74925 / 1.4995), 1.0, 2.0, 1.0),
    "sd3-tdm-lora": ((5.994 / 5.995, 4.4955 / 4.74625, 2.997 / 3.4975, 1.4985 / 2.24875), 1.0, 0.125, 1.0),
    "wan21-lightx2v-lora": ((1, 15 / 16, 5 / 6, 5 / 8), 1.0, 1.0, 0.0),  # 5 u / (1 + 4 u) at u = 1, 3/4, 1/2, 1/4
    "wan21-causvid-lora": ((0.999, 0.934, 0.862, 0.756, 0.603, 0.41, 0.25, 0.14, 0.074), 1.0, 1.0, 0.0),
    "flux1-schnell": ((1, 3 / 4, 1 / 2, 1 / 4), 1.0, None, 1.0),
    "z-image-turbo": (SHIFT3_OF_8, 1.0, None, 1.0),
    "qwen-image-lightning-4-lora": (SHIFT3_OF_8[::2], 1.0, 1.0, 1.0),
    "qwen-image-lightning-8-lora": (SHIFT3_OF_8, 1.0, 1.0, 1.0),
}


def alpha_bar(start, end, timestep, *, root):
    """The product of 1 - beta up to a timestep, term by term."""
    product = 1.0
    for i in range(timestep + 1):
        beta = (start**0.5 + (end**0.5 - start**0.5) * i / 999) ** 2 if root else start + (end - start) * i / 999
        product *= 1.0 - beta
    return product


def test_there_are_no_others():
    assert set(PROFILES) == set(TIMESTEPS) | set(SIGMAS)


@pytest.mark.parametrize("key", TIMESTEPS)
def test_table_models_have_the_published_timesteps(key):
    one, (timesteps, cfg, strength, eta) = PROFILES[key], TIMESTEPS[key]
    assert one.timesteps == timesteps and (one.cfg, one.lora_strength, one.eta) == (cfg, strength, eta)
    betas = (
        dict(start=1e-4, end=0.02, root=False) if one.family == "PixArt" else dict(start=0.00085, end=0.012, root=True)
    )
    for sigma, timestep in zip(one.sigmas, timesteps, strict=True):
        assert sigma == pytest.approx(math.sqrt(1.0 - alpha_bar(timestep=timestep, **betas)), rel=1e-9)


@pytest.mark.parametrize("key", SIGMAS)
def test_flow_models_have_the_published_sigmas(key):
    one, (sigmas, cfg, strength, eta) = PROFILES[key], SIGMAS[key]
    assert one.sigmas == pytest.approx(sigmas, abs=1e-9) and (one.cfg, one.lora_strength, one.eta) == (
        cfg,
        strength,
        eta,
    )


@pytest.mark.parametrize("one", PROFILES.values(), ids=lambda one: one.key)
class TestEach:
    def test_says_what_it_is(self, one):
        assert one.key.isascii() and one.key == one.key.lower() and " " not in one.key
        assert one.title.isascii() and one.title.endswith(("(LoRA)", "(checkpoint)", "(diffusion model)"))
        assert f", {len(one.sigmas)} steps " in one.title
        assert one.family in FAMILIES and one.folder in FOLDERS and one.files
        assert (one.kind == "lora") == (one.folder == "loras") == one.title.endswith("(LoRA)")
        assert all(name.endswith((".safetensors", ".bin")) and "/" not in name for name in one.files)

    def test_names_its_sources(self, one):
        assert one.sources
        for source in one.sources:
            url, says = source.split(" - ", 1)
            assert url.startswith("https://") and " " not in url and says and source.isascii()
            assert f"({url})" in PAGE.read_text(encoding="utf-8")
        assert all(note.isascii() and note for note in one.notes)

    def test_the_page_has_its_row(self, one):
        rows = [line for line in PAGE.read_text(encoding="utf-8").split("\n") if line.startswith(f"| `{one.key}` |")]
        assert len(rows) == 1
        table = one.curve.kind == "vp"
        cells = [
            f"`{one.key}`",
            ", ".join(f"`{name}`" for name in one.files),
            one.folder,
            str(len(one.sigmas)),
            ", ".join(f"{level:.0f}" for level in one.timesteps)
            if table
            else ", ".join(f"{level:.4g}" for level in one.sigmas),
            "-" if table else f"{one.curve.shift:g}",
            f"{one.cfg:g}",
            "-" if one.lora_strength is None else f"{one.lora_strength:g}",
            "+".join(map(str, one.split)),
            f"{one.eta:g}",
            "fresh" if one.boundary.switch_noise == "fresh" else f"exact {one.boundary.eta_switch:g}",
        ]
        assert [cell.strip() for cell in rows[0].strip("|").split("|")] == cells

    def test_its_noise_at_a_switch_fits_its_sampler(self, one):
        assert one.boundary.switch_noise == ("fresh" if one.eta == 0.0 else "exact")
        assert one.boundary.uses_prediction == (one.eta == 1.0)

    def test_the_split_is_the_threshold_but_at_most_half(self, one):
        below = sum(one.curve.logsnr(sigma) < -2.5 for sigma in one.sigmas)
        assert one.split == (min(below, len(one.sigmas) // 2), len(one.sigmas) - one.split[0])

    def test_two_stages(self, one):
        plan = one.plan(TWO)
        assert plan.calls_per_stage == one.split and plan.final_hw == (128, 128)
        assert [step.sigma for step in plan.steps] == pytest.approx(one.sigmas, abs=1e-12)
        assert plan.notes == () and plan.mapping == NoMap() == one.mapping
        if isinstance(one.curve, VPCurve):
            assert [step.timestep for step in plan.steps] == list(one.timesteps)  # table entries, none of them moved
            assert max(step.timestep for step in plan.steps[1:]) <= 998
        for stage in plan.stages:
            assert all(after < before for before, after in zip(stage.sigmas, stage.sigmas[1:]))

    def test_three_stages(self, one):
        steps = len(one.sigmas)
        plan = one.plan(THREE, (1, 1, steps - 2))
        assert plan.calls_per_stage == (1, 1, steps - 2)
        assert [step.sigma for step in plan.steps] == pytest.approx(one.sigmas, abs=1e-12)
        assert one.plan(THREE, f"1+1+{steps - 2}") == plan

    def test_its_own_split_over_other_numbers_of_sizes(self, one):
        assert one.split_over(1) == (len(one.sigmas),) and one.split_over(2) == one.split
        assert one.plan(TWO[1:]).calls_per_stage == one.split_over(1)
        for stages in range(3, one.split[0] + 2):
            counts = one.split_over(stages)
            assert len(counts) == stages and sum(counts) == len(one.sigmas) and counts[-1] == one.split[1]
            assert min(counts) >= 1 and sorted(counts[:-1], reverse=True) == list(counts[:-1])
            assert counts[0] - counts[-2] <= 1
        with pytest.raises(RMDError, match=f"use 1 to {one.split[0] + 1} sizes"):
            one.split_over(one.split[0] + 2)

    def test_another_number_of_steps_is_refused(self, one):
        steps = len(one.sigmas)
        for split in ((1, steps), f"1+{steps}"):
            with pytest.raises(RMDError) as refused:
                one.plan(TWO, split)
            assert str(refused.value) == (
                f"the split 1+{steps} has {steps + 1} steps but {one.title} has {steps}; give parts that sum to {steps}"
            )


def test_titles_are_unique():
    assert len({one.title for one in PROFILES.values()}) == len(PROFILES)


def test_an_uneven_split_gives_the_smaller_sizes_more():
    assert profile("wan21-causvid-lora").split_over(3) == (2, 1, 6)
    assert profile("sdxl-lightning-8-lora").split_over(4) == (1, 1, 1, 5)


def test_no_sizes_and_senseless_splits_are_refused():
    one = profile("sdxl-dmd2-lora")
    for sizes, split in [((), None), (TWO, "2+x"), (TWO, (2, 1.5)), (TWO, (4,)), (TWO, "")]:
        with pytest.raises(RMDError):
            one.plan(sizes, split)


def test_the_page_says_what_it_must():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert NOT_DISTILLED == "not distilled for the cascade"
    assert "None of these models was distilled for the cascade" in text and "was *not* checked" in text


def test_profiles_cannot_be_changed():
    with pytest.raises(TypeError):
        PROFILES["sdxl-dmd2-lora"] = None
    with pytest.raises(AttributeError):
        profile("sdxl-dmd2-lora").cfg = 7.0


def test_unknown_keys_are_refused_with_the_known_ones():
    with pytest.raises(RMDError, match="'turbo' is unknown; use one of sdxl-dmd2-lora, "):
        profile("turbo")
