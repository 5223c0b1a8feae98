"""The profiles of few-step models: published numbers, their page, RMD Schedule on them, files of the user's own."""

import dataclasses
import functools
import itertools
import logging
import math
import re

import pytest
import yaml
from torch.nn import functional

import profiles_page
import zoo
from cascade_rig import Recorder, alpha_sigma, fresh_noise, relative
from rmd_core.plan import plan_from_split, stage_sizes
from rmd_core.schedule import AreaMap, NoMap
from schedule_rig import Schedules, by_profile

PROFILES = profiles_page.shipped()
STUDENTS = {key: one for key, one in PROFILES.items() if one.sizes}
NETWORKS = {  # family, ComfyUI's class of comfy/model_base.py -> the class of comfy/supported_models.py that makes one
    "SDXL": "SDXL",
    "PixArt": "PixArtAlpha",
    "SD3": "SD3",
    "WAN21": "WAN21_T2V",
    "Flux": "Flux",
    "Lumina2": "ZImage",
    "QwenImage": "QwenImage",
    "WAN22": "WAN22_T2V",
    "Flux2": "Flux2",
    "Krea2": "Krea2",
    "Anima": "Anima",
    "HunyuanVideo15": "HunyuanVideo15",
    "LTXAV": "LTXAV",
    "MiniMaxH3": "MiniMaxH3",
}

FOUR, EIGHT = (999, 749, 499, 249), (999, 874, 749, 624, 499, 374, 249, 124)
# key: what the network is given, or the sigmas as fractions of the published lists; CFG; LoRA strength; eta
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
    "swd-sdxl-4-lora": ((999, 800, 600, 400), 1.0, 1.0, 0.0),
}
SWD = (1.0, 0.8959, 0.7371, 0.6022)
SHIFT3_OF_8 = (1, 21 / 22, 9 / 10, 5 / 6, 3 / 4, 9 / 14, 1 / 2, 3 / 10)  # 3 u / (1 + 2 u) at u = 8/8 .. 1/8
SHIFT5_OF_4 = (1, 15 / 16, 5 / 6, 5 / 8)  # 5 u / (1 + 4 u) at u = 1, 3/4, 1/2, 1/4
SHIFT7_OF_8 = (1, 49 / 50, 21 / 22, 35 / 38, 7 / 8, 21 / 26, 7 / 10, 1 / 2)
SHIFT10_OF_8 = (1, 70 / 71, 30 / 31, 50 / 53, 10 / 11, 6 / 7, 10 / 13, 10 / 17)
SHIFT12_OF_8 = (1, 84 / 85, 36 / 37, 20 / 21, 12 / 13, 36 / 41, 4 / 5, 12 / 19)
EXP_115 = tuple(math.exp(1.15) * k / (8 + (math.exp(1.15) - 1) * k) for k in range(8, 0, -1))
TRIG = tuple(math.sin(t) / (math.sin(t) + math.cos(t)) for t in (math.atan(80), 1.5, 1.4, 1.0))
SIGMAS = {
    # u = 1, .750748.., .501497.., .252245..: a quarter of the way each from 1 to the cleanest level, 3 / 1002
    "sd35-large-turbo": ((1.0, 0.9003590664, 0.7511210762, 0.5029850746), 1.0, None, 1.0),
    "sd35-tdm-lora": ((2.997 / 2.998, 2.24775 / 2.4985, 1.4985 / 1.999, 0.74925 / 1.4995), 1.0, 2.0, 1.0),
    "sd3-tdm-lora": ((5.994 / 5.995, 4.4955 / 4.74625, 2.997 / 3.4975, 1.4985 / 2.24875), 1.0, 0.125, 1.0),
    "wan21-lightx2v-lora": (SHIFT5_OF_4, 1.0, 1.0, 0.0),
    "wan21-causvid-lora": ((0.999, 0.934, 0.862, 0.756, 0.603, 0.41, 0.25, 0.14, 0.074), 1.0, 1.0, 0.0),
    "flux1-schnell": ((1, 3 / 4, 1 / 2, 1 / 4), 1.0, None, 1.0),
    "z-image-turbo": (SHIFT3_OF_8, 1.0, None, 1.0),
    "qwen-image-lightning-4-lora": (SHIFT3_OF_8[::2], 1.0, 1.0, 1.0),
    "qwen-image-lightning-8-lora": (SHIFT3_OF_8, 1.0, 1.0, 1.0),
    "swd-sd35-medium-6-lora": ((1.0, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022), 1.0, 1.0, 0.0),
    "swd-sd35-medium-4-lora": (SWD, 1.0, 1.0, 0.0),
    "swd-sd35-large-4-lora": (SWD, 1.0, 1.0, 0.0),
    "swd-flux1-dev-4-lora": (SWD, 1.0, 1.0, 0.0),
    "wan21-rcm-lora": (TRIG, 1.0, 1.0, 0.0),
    "wan22-t2v-lightx2v-lora": (SHIFT5_OF_4, 1.0, 1.0, 1.0),
    "wan22-i2v-lightx2v-lora": (SHIFT5_OF_4, 1.0, 1.0, 1.0),
    "wan22-5b-fastwan": ((1, 3.785 / 4.028, 2.61 / 3.088), 1.0, None, 0.0),
    "flux2-dev-turbo-lora": ((1, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031), 1.0, 1.0, 1.0),
    "qwen-image-2512-lightning-4-lora": (SHIFT3_OF_8[::2], 1.0, 1.0, 1.0),
    "qwen-image-edit-lightning-4-lora": (SHIFT3_OF_8[::2], 1.0, 1.0, 1.0),
    "qwen-image-edit-lightning-8-lora": (SHIFT3_OF_8, 1.0, 1.0, 1.0),
    "krea2-turbo": (EXP_115, 1.0, None, 1.0),
    "anima-turbo-lora": (SHIFT3_OF_8, 1.0, 1.0, 1.0),
    "hunyuan15-t2v-lightx2v": (SHIFT5_OF_4, 1.0, None, 1.0),
    "hunyuan15-i2v-step-distilled": (SHIFT7_OF_8, 1.0, None, 1.0),
    "ltx2-distilled": ((1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875), 1.0, None, 1.0),
    "ltx23-distilled-lora": ((1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875), 1.0, 0.5, 1.0),
    "minimax-h3-turbo-768p-lora": ((1, 18 / 19, 6 / 7, 2 / 3), 1.0, 1.0, 1.0),
    "minimax-h3-turbo-544p-lora": (SHIFT12_OF_8[::2], 1.0, 1.0, 1.0),
    "minimax-h3-turbo-8-lora": (SHIFT12_OF_8, 1.0, 1.0, 1.0),
    "minimax-h3-fasth3": (SHIFT10_OF_8, 1.0, None, 1.0),
}
BY_SIZE = {"flux2-klein"}  # levels that follow from the size
OWN_SPLIT = {"ltx2-distilled": (5, 3), "ltx23-distilled-lora": (5, 3)}  # their larger size starts at the sixth level


def alpha_bar(start, end, timestep, *, root):
    """The product of 1 - beta up to a timestep, term by term."""
    product = 1.0
    for i in range(timestep + 1):
        beta = (start**0.5 + (end**0.5 - start**0.5) * i / 999) ** 2 if root else start + (end - start) * i / 999
        product *= 1.0 - beta
    return product


def test_there_are_no_others():
    assert PROFILES.keys() == TIMESTEPS.keys() | SIGMAS.keys() | BY_SIZE


@pytest.mark.parametrize("key", TIMESTEPS)
def test_table_models_have_the_published_timesteps(key):
    one, (timesteps, cfg, strength, eta) = PROFILES[key], TIMESTEPS[key]
    assert profiles_page.timesteps(one) == timesteps and (one.cfg, one.lora_strength, one.eta) == (cfg, strength, eta)
    sdxl, pixart = dict(start=0.00085, end=0.012, root=True), dict(start=1e-4, end=0.02, root=False)
    betas = pixart if one.family == "PixArt" else sdxl
    for sigma, timestep in zip(one.sigmas, timesteps, strict=True):
        assert sigma == pytest.approx(math.sqrt(1.0 - alpha_bar(timestep=timestep, **betas)), rel=1e-9)


@pytest.mark.parametrize("key", SIGMAS)
def test_flow_models_have_the_published_sigmas(key):
    one, (sigmas, *rules) = PROFILES[key], SIGMAS[key]
    assert one.sigmas == pytest.approx(sigmas, abs=1e-9) and [one.cfg, one.lora_strength, one.eta] == rules


@pytest.mark.parametrize("one", PROFILES.values(), ids=PROFILES)
class TestEach:
    def test_says_what_it_is(self, one):
        assert one.key.isascii() and one.key == one.key.lower() and one.family in NETWORKS
        kind = {"loras": "(LoRA)", "checkpoints": "(checkpoint)", "diffusion_models": "(diffusion model)"}[one.folder]
        assert one.title.isascii() and one.title.endswith(f", {len(one.sigmas)} steps {kind}")
        assert all(name.endswith((".safetensors", ".bin")) and "/" not in name for name in one.files)
        assert one.sources and all(re.fullmatch("https://[^ ]+ - .+", source) for source in one.sources)

    def test_its_noise_at_a_switch_fits_its_sampler(self, one):
        assert one.boundary.switch_noise == ("fresh" if one.eta == 0.0 else "exact")
        assert one.boundary.uses_prediction == (one.eta == 1.0)

    def test_the_split_is_the_threshold_but_at_most_half(self, one):
        if one.sizes:
            assert one.split == (1,) * len(one.sizes)
            return
        if one.key in OWN_SPLIT:
            assert one.split == OWN_SPLIT[one.key]
            return
        below = sum(one.curve.logsnr(sigma) < -2.5 for sigma in one.sigmas)
        assert one.split == (min(below, len(one.sigmas) // 2), len(one.sigmas) - one.split[0])

    def test_its_own_split_over_other_numbers_of_sizes(self, one):
        assert one.split_over(1) == (len(one.sigmas),) and one.split_over(len(one.split)) == one.split
        early = len(one.sigmas) - one.split[-1]
        for stages in range(3, early + 2):
            counts = one.split_over(stages)
            assert len(counts) == stages and sum(counts) == len(one.sigmas) and counts[-1] == one.split[-1]
            assert min(counts) >= 1 and sorted(counts[:-1], reverse=True) == list(counts[:-1])
            assert counts[0] - counts[-2] <= 1
        for stages in (0, early + 2):
            with pytest.raises(ValueError, match=f"use 1 to {early + 1} sizes"):
                one.split_over(stages)


def test_an_uneven_split_gives_the_smaller_sizes_more():
    assert PROFILES["wan21-causvid-lora"].split_over(3) == (2, 1, 6)
    assert PROFILES["sdxl-lightning-8-lora"].split_over(4) == (1, 1, 1, 5)


def test_profiles_cannot_be_changed():
    with pytest.raises(AttributeError):
        PROFILES["sdxl-dmd2-lora"].cfg = 7.0


def test_the_page_is_made_from_the_data():
    text = profiles_page.PAGE.read_text(encoding="utf-8")
    assert text == profiles_page.page(text, PROFILES.values()), "run python tests/profiles_page.py"


@pytest.fixture
def plan(pack, tiny):
    return Schedules(pack, tiny).plan


@pytest.fixture
def refused(pack, tiny):
    return Schedules(pack, tiny).refused


@pytest.fixture(scope="session")
def network(comfy):
    """A function that gives the TinyModel of a family, always the same, and an empty latent for it."""
    return functools.cache(lambda family: (zoo.tiny_model(NETWORKS[family]), zoo.empty_latent(NETWORKS[family])))


def planned(pack, model, latent, profile, **others):
    """(RMD_PLAN of a profile on a TinyModel at the size of a latent, the model's ModelView)."""
    bridge = pack.nodes.bridge
    view = bridge.model.ModelView.of(model.patcher)
    size = tuple(bridge.latents.final_latent(model.patcher, latent)["samples"].shape[-2:])
    return bridge.plans.sampling_plan(view, size, by_profile(profile, **others)), view


@pytest.mark.parametrize("key", PROFILES)
def test_its_levels_reach_a_network_of_its_family(pack, nodes, network, key):
    profile, (model, latent) = PROFILES[key], network(PROFILES[key].family)
    animal = zoo.ZOO[NETWORKS[profile.family]]
    if animal.refused:
        pytest.skip(f"the nodes refuse {profile.family}: {animal.refused}")
    plan, view = planned(pack, model, latent, profile)
    stages, final = plan.stage_plan.stages, plan.stage_plan.final_hw
    shares = profile.sizes or (0.5, 1.0)
    assert [stage.size for stage in stages] == list(stage_sizes(final, shares, multiple=view.multiple))
    assert plan.stage_plan.calls_per_stage == profile.split
    expected = profile.at(*plan.final_px)
    mapping = AreaMap() if profile.mapping == "area" else NoMap()
    made = plan_from_split(
        expected.curve, profile.split, sizes=[stage.size for stage in stages], mapping=mapping, steps=expected.sigmas
    )
    assert str(plan.stage_plan) == str(made)
    assert plan.stage_plan.base_sigmas == pytest.approx(expected.sigmas, rel=1e-12)
    assert (plan.eta, plan.cfg) == (profile.eta, profile.cfg) and str(plan.boundary) == str(profile.boundary)
    assert set(profile.notes) < set(plan.notes) and any(profile.files[0] in note for note in plan.notes)
    recorder = Recorder()
    positive = model.conditioning(1, tokens=animal.tokens, **animal.extra)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=positive, latent=latent)
    assert recorder.sizes == [step.size for step in plan.stage_plan.steps]
    levels = [call.sigma for call in recorder.calls]
    if profile.mapping == "none":
        assert levels == pytest.approx(list(map(expected.curve.comfy_sigma, expected.sigmas)), rel=1e-6)
    assert levels == pytest.approx([made.curve.comfy_sigma(step.sigma) for step in made.steps], rel=1e-6)


@pytest.mark.parametrize("key", PROFILES)
def test_only_students_of_a_cascade_are_said_to_be_distilled_for_one(pack, network, key):
    profile, (model, latent) = PROFILES[key], network(PROFILES[key].family)
    if zoo.ZOO[NETWORKS[profile.family]].refused:
        pytest.skip(f"the nodes refuse {profile.family}")
    plan, _ = planned(pack, model, latent, profile)
    text = f"{plan.origin} {' '.join(plan.notes)}"
    assert ("not distilled" in text) == (not profile.sizes)
    if profile.sizes:
        assert plan.origin == f"profile {profile.title}, distilled for these sizes"
        assert plan.student
        count = len(profile.sigmas)
        own, _ = planned(pack, model, latent, profile, split=f"{count - 1}+1")
        assert own.stage_plan.calls_per_stage == (count - 1, 1) and "distilled for other sizes" in own.origin


@pytest.mark.parametrize("size", [(1024, 1024), (512, 512), (832, 1216), (1536, 2048)])
def test_levels_that_follow_from_the_size_are_those_of_cores_scheduler(pack, comfy, network, size):
    from comfy_extras.nodes_flux import Flux2Scheduler

    bridge, profile = pack.nodes.bridge, PROFILES["flux2-klein"]
    view = bridge.model.ModelView.of(network("Flux2")[0].patcher)
    plan = bridge.plans.sampling_plan(view, tuple(side // 16 for side in size), by_profile(profile))
    steps = sum(profile.split)
    core = Flux2Scheduler.execute(steps, size[1], size[0]).args[0]
    assert plan.stage_plan.base_sigmas == pytest.approx(core.tolist()[:-1], abs=2e-7)
    assert profile.sigmas == pytest.approx(Flux2Scheduler.execute(steps, 1024, 1024).args[0].tolist()[:-1], abs=2e-7)


def test_each_of_two_models_has_its_own_size(pack, network):
    """Levels at the boundary and above are the first model's; a note says where the second begins."""
    both = {one.key: one for one in PROFILES.values() if one.second_model_sigma is not None}
    assert {key: one.second_model_sigma for key, one in both.items()} == {
        "wan22-t2v-lightx2v-lora": 0.875,
        "wan22-i2v-lightx2v-lora": 0.9,
    }
    for one in both.values():
        assert sum(sigma >= one.second_model_sigma for sigma in one.sigmas) == one.split[0]
        plan, _ = planned(pack, *network(one.family), one)
        assert f"two models: the second takes over below second_model_sigma {one.second_model_sigma:g}" in plan.notes


@pytest.mark.parametrize("key", STUDENTS)
def test_a_student_runs_at_its_own_cells(pack, comfy, key):
    """The published sizes at 1024 px; the same shares, in whole patches, at another size."""
    profile, bridge = PROFILES[key], pack.nodes.bridge
    cells = [32, 48, 64, 80, 96, 128][-len(profile.sizes) :] if len(profile.sizes) == 6 else [64, 80, 96, 128]
    model = zoo.tiny_model(NETWORKS[profile.family])
    view = dataclasses.replace(bridge.model.ModelView.of(model.patcher), network=None)
    plan = bridge.plans.sampling_plan(view, (128, 128), by_profile(profile))
    assert [stage.size for stage in plan.stage_plan.stages] == [(side, side) for side in cells]
    wide = bridge.plans.sampling_plan(view, (96, 168), by_profile(profile))
    for stage, share in zip(wide.stage_plan.stages, profile.sizes, strict=True):
        assert all(abs(side - share * last) <= view.multiple / 2 for side, last in zip(stage.size, (96, 168)))
    expected = "final" if profile.family == "SDXL" else "none"
    assert plan.size_conditioning == expected and plan.boundary == pack.rmd_core.boundary.Boundary(
        "bicubic", "fresh", 0
    )


@pytest.mark.parametrize("key", STUDENTS)
def test_a_student_is_sampled_as_by_its_own_sampler(pack, nodes, network, key):
    """At each change of size: the clean estimate, torch's bicubic, new noise at the next level, and nothing else."""
    profile, (model, latent) = PROFILES[key], network(PROFILES[key].family)
    plan, _ = planned(pack, model, latent, profile)
    recorder = Recorder()
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), latent=latent)
    assert len(recorder.calls) == len(profile.sizes)
    for stage, (before, after) in enumerate(itertools.pairwise(recorder.calls), 1):
        alpha, sigma = alpha_sigma(plan, after.sigma)
        enlarged = functional.interpolate(before.x0.double(), size=after.x.shape[-2:], mode="bicubic")
        noise = fresh_noise(after.x.shape, stage, "switch")
        assert relative(after.x, alpha * enlarged + sigma * noise) < 1e-5


@pytest.mark.parametrize(
    ("sizes", "boundaries"), [((32, 48, 64, 80, 96, 128), (0, 4, 7, 12, 14, 18)), ((64, 80, 96, 128), (0, 7, 14, 18))]
)
def test_swd_sigmas_are_those_of_its_training_timesteps(sizes, boundaries):
    """diffusers' 28 flow timesteps at shift 3: evenly from 1 to the shifted 0.001, then shifted again."""

    def shifted(u):
        return 3.0 * u / (1.0 + 2.0 * u)

    levels = [shifted(1.0 - index * (1.0 - shifted(0.001)) / 27) for index in boundaries]
    (one, *_) = (one for one in STUDENTS.values() if one.family == "SD3" and len(one.sizes) == len(sizes))
    assert one.sigmas == pytest.approx(levels, abs=5.1e-5) and one.sizes == tuple(side / 128 for side in sizes)


def test_profile_splits(pack, plan, refused):
    profiles = pack.nodes.profiles.load_profiles().values()
    profile = next(one for one in profiles if one.family == "SDXL" and one.split == (2, 2))
    assert plan("sdxl", (512, 512), by_profile(profile, earlier_sizes="")).stage_plan.split == "4"
    assert plan("sdxl", (512, 512), by_profile(profile, "1+3")).stage_plan.split == "1+3"
    assert plan("sdxl", (512, 512), by_profile(profile, "1+1+2", "0.25,0.5")).stage_plan.split == "1+1+2"
    assert "the split 2+3 has 5 steps but there are 4 levels" in refused("sdxl", (512, 512), by_profile(profile, "2+3"))
    assert "the split 4 has 1 parts for 2 sizes" in refused("sdxl", (512, 512), by_profile(profile, "4"))


def test_a_profile_of_another_family_lists_those_that_fit(pack, refused):
    profiles = pack.nodes.profiles.load_profiles().values()
    wan = next(one for one in profiles if one.family == "WAN21")
    text = refused("sdxl", (512, 512), by_profile(wan))
    assert text.startswith(f"the profile {wan.title!r} is not for this model, SDXL (SDXL latents, scaled-linear betas)")
    assert all(one.title in text for one in profiles if one.family == "SDXL")
    # PixArt Sigma has SDXL's latents and another table of noise: none of SDXL's profiles is for it
    sdxl = next(one for one in profiles if one.family == "SDXL")
    assert sdxl.title not in refused("pixart", (1024, 1024), by_profile(sdxl)).split("those that fit it")[1]


@pytest.fixture
def own(tmp_path):
    """A folder of a user's files; `own(text)` writes one and gives all profiles as they then are, by title."""
    load = profiles_page.profiles_module().load_profiles

    def write(content, name="mine.yaml"):
        text = content if isinstance(content, (str, bytes)) else yaml.safe_dump(content)
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(tmp_path)

    return write


def entry(drop=(), **changes):
    """An entry of a file, as docs/use/profiles.md shows it."""
    text = profiles_page.PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    return {key: value for key, value in (yaml.safe_load(text)[0] | changes).items() if key not in drop}


def test_a_users_file_comes_after_the_shipped_ones(own, caplog):
    found = list(own([entry(), entry(key="other", title="Other", noise="flow", shift=3)]).values())
    assert [one.title for one in found[len(PROFILES) :]] == ["My model, 4 steps (LoRA)", "Other"] and not caplog.text
    assert found[-2].sigmas == PROFILES["sdxl-dmd2-lora"].sigmas and found[-2].split == (2, 2)
    assert found[-1].curve.shift == 3.0 and found[-1].sigmas == pytest.approx((0.999, 0.749, 0.499, 0.249))


def test_a_file_is_read_again_when_it_changes(own):
    assert "Other name" not in own([entry()])
    assert "Other name" in own([entry(title="Other name")])


@pytest.mark.parametrize(
    "content, words",
    [
        ("- key: [1", "this is not a YAML file"),
        (b"\xff\xfe\x00", "this is not a YAML file"),
        ("- !!python/object/apply:os.system [ls]", "this is not a YAML file"),
        ("", "holds None; use a list of profiles"),
        ("key: value", "holds {'key': 'value'}; use a list of profiles"),
        ("- text", "entry 1 is 'text'; use keys with values"),
        ("[" * 900 + "]" * 900, "entry 1 is [[["),
        (
            "- &a [x, x]\n" + "".join(f"- &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdefghij", "bcdefghijk")),
            "entry 1 is",
        ),
        ([entry(), entry(stepz=4, key="b", title="b")], "entry 2: the key 'stepz' is unknown; use key, title, "),
        ([entry(drop=["cfg"])], "cfg is missing; give a number from 0 to 100"),
        ([entry(drop=["lora_strength"])], "lora_strength is missing"),
        ([entry(folder="lora")], "folder is 'lora'; use one of checkpoints, diffusion_models, loras"),
        ([entry(folder="checkpoints")], "lora_strength is 1; leave it out: it is a number, for a LoRA alone"),
        ([entry(files=[])], "files is []; use a list of file names"),
        ([entry(noise="flow")], "shift is missing; give a number above 0"),
        ([entry(noise="cosine")], "noise is 'cosine'; use one of flow, scaled-linear betas, linear betas"),
        ([entry(timesteps=[249, 999])], "timesteps is [249, 999]; use a list of two falling numbers or more"),
        ([entry(timesteps=[999, float("nan")])], "timesteps is [999, nan]; use a list"),
        ([entry(sigmas=[14.0, 1.0])], "it has timesteps and sigmas; give either timesteps or sigmas"),
        ([entry(drop=["timesteps"])], "it has no levels"),
        ([entry(drop=["timesteps"], levels="flux2")], "levels is flux2, a rule for noise: flow; give timesteps"),
        ([entry(drop=["timesteps"], noise="flow", levels="karras")], "levels is 'karras'; use one of flux2"),
        ([entry(drop=["timesteps"], noise="flow", levels="flux2", shift=3)], "shift is 3; leave it out"),
        ([entry(sizes=[0.5, 0.75, 1])], "split is 2+2 for 3 sizes; give steps for each of them"),
        ([entry(sizes=[0.5, 0.75])], "sizes is [0.5, 0.75]; use a list of rising shares of the final sides"),
        ([entry(drop=["base"], sizes=[0.5, 1])], "base is missing; give the Hugging Face id"),
        ([entry(split="1+1+2")], "split is 1+1+2 for 2 sizes"),
        ([entry(second_model_sigma=1)], "second_model_sigma is 1; use a number above 0 and below 1"),
        ([entry(size_conditioning="small")], "size_conditioning is 'small'; use one of none, stage, final"),
        ([entry(split="1+2")], "split is 1+2 for 4 levels; give one step each"),
        ([entry(split=4)], "split is 4; use the steps at two sizes, such as 2+2"),
        ([entry(eta=1.5)], "eta is 1.5; use a number from 0 to 1"),
        ([entry(upsampler="lanczos")], "upsampler is 'lanczos'; use one of nearest, bicubic"),
        ([entry(title="two\nlines")], "title is 'two\\nlines'; use one line of text"),
        ([entry(key="sdxl-dmd2-lora")], "the key 'sdxl-dmd2-lora' or its title is already used; choose another"),
        ([entry(), entry()], "the key 'my-model-4' or its title is already used"),
    ],
)
def test_a_file_with_a_mistake_is_left_out_with_one_line(own, caplog, content, words):
    with caplog.at_level(logging.WARNING):
        assert len(own(content)) == len(PROFILES)
    (record,) = caplog.records
    text = record.getMessage()
    assert words in text and "mine.yaml" in text and "\n" not in text
    assert "Good" in own([entry(title="Good")], "good.yml")  # the next file is read all the same


def test_the_drop_down_has_the_users_profiles(pack, comfy, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    (tmp_path / "rmd_profiles").mkdir()
    (tmp_path / "rmd_profiles" / "mine.yaml").write_text(yaml.safe_dump([entry()]))
    listed = pack.nodes.profiles.load_profiles()
    (choice,) = (one for one in pack.nodes.plan_nodes.RMDSchedule.GET_SCHEMA().inputs if one.id == "source")
    (profile,) = (option.inputs[0] for option in choice.options if option.key == "few-step profile")
    assert profile.options == list(listed) and profile.options[-1] == "My model, 4 steps (LoRA)"


def test_a_plan_of_a_profile_is_made_again_when_a_file_of_profiles_changes(pack, comfy, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    mine = tmp_path / "rmd_profiles" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text(yaml.safe_dump([entry()]))
    stamp = pack.nodes.plan_nodes.RMDSchedule.fingerprint_inputs
    chosen, split = {"source": "few-step profile", "profile": "mine"}, {"source": "split", "split": "2+2"}
    before = stamp(source=chosen, width=64), stamp(source=split, width=64)
    assert before == (stamp(source=chosen, width=128), stamp(source=split)) and stamp() == before[1]
    mine.write_text(yaml.safe_dump([entry(cfg=2.0)]))
    assert stamp(source=chosen) != before[0] and stamp(source=split) == before[1]
