"""RMD Schedule on tiny models of real ComfyUI classes: every plan source, its sizes, and what it refuses."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cascade_rig import Recorder
from schedule_rig import Schedules, by_split, by_steps, by_thresholds, pixel_sizes

STUDENT = Path(__file__).parents[2] / "demo" / "models" / "diffusion_models" / "rmd_tiny_wan_student.safetensors"


@pytest.fixture
def run(pack, tiny):
    return Schedules(pack, tiny).run


@pytest.fixture
def plan(pack, tiny):
    return Schedules(pack, tiny).plan


@pytest.fixture
def refused(pack, tiny):
    return Schedules(pack, tiny).refused


@pytest.fixture
def recipe(pack):
    return pack.rmd_core.recipe.read_recipe(STUDENT)


# The published plans, levels from docs/method/method.md, the resolution mapping.
PUBLISHED = {
    "sdxl": ("sdxl", (1024, 1024), by_thresholds(), [999, 749, 692, 453], "2+2"),
    "pixart": ("pixart", (1024, 1024), by_thresholds(), [999, 749, 616, 386], "2+2"),
    "sd3": ("sd3", (256, 256), by_thresholds(base_shift=3.0), [1000, 900, 6000 / 7, 2000 / 3], "2+2"),
    "wan": (
        "wan",
        (1280, 720),
        by_thresholds(6, earlier_sizes="832x480"),
        [1000, 937.36, 856.78, 2500 / 3, 713.98, 498.80],
        "3+3",
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_plans(plan, case):
    name, size, source, timesteps, split = PUBLISHED[case]
    made = plan(name, size, source)
    assert made.stage_plan.split == split
    assert [step.timestep for step in made.stage_plan.steps] == pytest.approx(timesteps, abs=0.01)
    assert made.final_px == (size[1], size[0]) and made.eta == 0.5 and made.cfg == 1.0
    assert (made.boundary.upsampler, made.boundary.switch_noise, made.boundary.eta_switch) == ("nearest", "exact", 0.5)


def test_comfyui_names_the_levels_as_the_plan_means_them(plan, tiny):
    """The sigmas of a plan, given to the model's own model_sampling, are the plan's timesteps again."""
    for name, size, source, *_ in PUBLISHED.values():
        made = plan(name, size, source)
        sampling = tiny(name).patcher.get_model_object("model_sampling")
        for stage in made.stage_plan.stages:
            sigmas = torch.tensor(made.sigmas(stage)[:-1], dtype=torch.float32)
            steps = [step.timestep for step in made.stage_plan.steps if step.stage == stage.index]
            assert sampling.timestep(sigmas).tolist() == pytest.approx(steps, rel=1e-5)


@pytest.mark.parametrize(("split", "thresholds"), [("1+3", "-5"), ("2+2", "-2.5"), ("3+1", "-0.5")])
def test_a_threshold_is_a_split(plan, split, thresholds):
    sources = (by_thresholds(thresholds=thresholds), by_split(split))
    one, other = (plan("sdxl", (512, 512), source) for source in sources)
    assert one.stage_plan == other.stage_plan and one.origin != other.origin


def test_steps_per_size_is_the_split_with_every_default(plan):
    for split, scale, sizes in (
        ("2+2", 0.5, "0.5"),
        ("3+1", 0.75, "0.75"),
        ("1+1+2", 0.25, "0.25, 0.5"),
        ("4", 0.5, ""),
    ):
        one = plan("wan", (512, 384), by_steps(split, scale))
        assert one == plan("wan", (512, 384), by_split(split, earlier_sizes=sizes))


def test_the_first_choice_gives_two_steps_at_each_size_on_every_model(pack, plan, tiny):
    """Also at the largest shifts: LTXV's loader gives 10.7."""
    source = pack.nodes.plan_nodes.source_input().options[0]
    first = {"source": source.key, **{one.id: one.default for one in source.inputs}}
    for name in ("wan", "wan22", "qwen", "sdxl", "sdxl_v"):
        assert plan(name, (1024, 1024), first).stage_plan.calls_per_stage == (2, 2)
    view = pack.nodes.bridge.model.ModelView.of(tiny("qwen").patcher)
    for shift in (1.0, 3.0, 7.0, 10.7, 12.0):
        curve = replace(view.curve, shift=shift)
        made = pack.nodes.bridge.plans.sampling_plan(replace(view, curve=curve), (128, 128), first)
        assert made.stage_plan.calls_per_stage == (2, 2)
        assert made.stage_plan.stages[-1].sigmas[-1] == pytest.approx(shift / (shift + 3.0))


def test_three_stages_and_one(plan):
    three = plan("sdxl", (1024, 1024), by_split("1+1+2", earlier_sizes="0.25, 0.5"))
    assert pixel_sizes(three) == [(256, 256), (512, 512), (1024, 1024)]
    assert [stage.ratio for stage in three.stage_plan.stages] == [1, 2, 4]
    one = plan("sdxl", (1024, 512), by_split("4", earlier_sizes=""))
    assert pixel_sizes(one) == [(1024, 512)]
    assert (
        one.stage_plan.stages
        == plan("sdxl", (1024, 512), by_thresholds(thresholds="", earlier_sizes="")).stage_plan.stages
    )


# base shift


def shift_line(table):
    (line,) = [line for line in table.splitlines() if line.startswith("shift ")]
    return line


def test_wan_starts_at_its_own_480p_shift_whatever_the_loader_says(run, tiny):
    assert tiny("wan").patcher.get_model_object("model_sampling").shift == 8
    made, table = run("wan", (1280, 720), by_split(earlier_sizes="832x480")).args[:2]
    assert made.stage_plan.curve.shift == 3
    note = "base shift 3 (RMD's for WAN21), the loader's is 8; RMD sets its own sigmas, so the loader's is not used"
    assert note in made.notes and note in table
    assert "3 at 832x480 px, 5 at 1280x720 px (RMD's for WAN21, for the first size)" in shift_line(table)


@pytest.mark.parametrize(("name", "own"), [("sd3", 3.0), ("qwen", math.exp(1.15)), ("wan22", 8.0)])
def test_a_models_own_shift_is_that_of_the_final_size(run, name, own):
    """SD3, Qwen-Image, Flux and Wan2.2 5B are trained at their full resolution with it."""
    made, table = run(name, (256, 256), by_split()).args[:2]
    final = made.stage_plan.stages[-1]
    assert made.stage_plan.curve.shift == pytest.approx(own / 2)
    assert final.sigmas == pytest.approx([own * u / (1 + (own - 1) * u) for u in (0.5, 0.25)])
    ends = f"{own / 2:.4g} at 128x128 px, {own:.4g} at 256x256 px (the model's own, for the final size)"
    assert shift_line(table).endswith(ends)
    unmapped = run(name, (256, 256), by_split(mapping="none")).args[0]
    assert unmapped.stage_plan.curve.shift == pytest.approx(own)


@pytest.mark.parametrize("name", ["wan", "sd3"])
def test_a_shift_node_is_honoured_and_base_shift_wins(pack, tiny, name):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    (patched,) = ModelSamplingSD3().patch(tiny(name).patcher, 6.0)
    view = pack.nodes.bridge.model.ModelView.of(patched)
    make = pack.nodes.bridge.plans.sampling_plan
    made, given = (make(view, (32, 32), by_split(base_shift=shift)) for shift in (0.0, 5.0))
    assert made.stage_plan.curve.shift == 3 and made.shift_of == "set by a node before, for the final size"
    assert given.stage_plan.curve.shift == 5 and given.shift_of == "base_shift of the node, for the first size"
    assert view.kind == pack.nodes.bridge.model.ModelView.of(tiny(name).patcher).kind


def test_only_wan21_has_a_shift_of_rmds(pack, tiny):
    """Wan2.2 5B derives from its class, and has latents and resolutions of its own."""
    view_of = pack.nodes.bridge.model.ModelView.of
    assert view_of(tiny("wan").patcher).rmd_shift == 3.0
    assert [view_of(tiny(name).patcher).rmd_shift for name in ("wan22", "sd3", "sdxl")] == [None] * 3


def test_a_shift_on_a_model_without_one_is_refused(refused):
    text = refused("sdxl", (512, 512), by_split(base_shift=3.0))
    assert text.startswith("base_shift is 3, but SDXL") and text.endswith("set base_shift to 0")
    text = refused("sdxl", (512, 512), by_split(mapping="native shifts 3 to 5"))
    assert "needs a flow model" in text and "use area or auto" in text


@pytest.mark.parametrize("noise", ["x0", "stable cascade"])
def test_noise_without_a_curve_is_named(pack, tiny, noise):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingStableCascade

    model = tiny("sdxl").patcher
    made = {
        "x0": lambda: ModelSamplingDiscrete().patch(model, "x0", False),
        "stable cascade": lambda: ModelSamplingStableCascade().patch(model, 2.0),
    }
    (patched,) = made[noise]()
    named = {"x0": "X0", "stable cascade": "StableCascadeSampling"}
    with pytest.raises(pack.rmd_core.errors.RMDError, match=f"the noise of SDXL is .*{named[noise]}.*no logSNR curve"):
        pack.nodes.bridge.model.ModelView.of(patched)


# mapping and method


@pytest.mark.parametrize(
    ("earlier", "mapping", "method", "ratio"),
    [
        ("832x480", "auto", "default", 5 / 3),
        ("640x352", "auto", "default", math.sqrt(1280 * 720 / (640 * 352))),
        ("832x480", "area", "default", math.sqrt(90 * 160 / (60 * 104))),
        ("640x352", "native shifts 3 to 5", "default", 5 / 3),
        ("832x480", "none", "default", 1),
        ("832x480", "auto", "official-current", 1),
        ("832x480", "area", "official-current", math.sqrt(90 * 160 / (60 * 104))),
    ],
)
def test_mapping_choices(plan, earlier, mapping, method, ratio):
    made = plan("wan", (1280, 720), by_split("3+3", earlier_sizes=earlier, mapping=mapping, method=method))
    assert made.stage_plan.stages[1].ratio == pytest.approx(ratio, rel=1e-12)


def test_every_method_gives_its_rules(pack, plan):
    for name, preset in pack.rmd_core.presets.PRESETS.items():
        made = plan("wan", (256, 256), by_split(method=name))
        rule = made.boundary
        assert (rule.upsampler, rule.switch_noise, rule.eta_switch) == (
            preset.upsampler,
            preset.switch_noise,
            preset.eta,
        )
        assert made.eta == preset.eta and f"method {name}" in made.origin


# sizes


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("0.5", (640, 368)),  # 45 latent rows become 46, a multiple of the patch
        ("1", (1280, 720)),
        ("832x480", (832, 480)),
        (" 832 X 480 ,", (832, 480)),
        (".25", (320, 176)),
        ("0.001", (16, 16)),
    ],
)
def test_earlier_sizes(plan, entry, expected):
    assert pixel_sizes(plan("wan", (1280, 720), by_split(earlier_sizes=entry)))[0] == expected


@pytest.mark.parametrize(
    ("earlier", "message"),
    [
        ("0", "'0' in earlier_sizes is not a size"),
        ("1.5", "'1.5' in earlier_sizes is not a size"),
        ("half", "'half' in earlier_sizes is not a size"),
        ("nan", "'nan' in earlier_sizes is not a size"),
        ("832x", "'832x' in earlier_sizes is not a size"),
        ("830x480", "sides are multiples of 8 px here: use 832x480"),
        ("0x480", "use 8x480"),
        ("2048x1024", "the size shrinks from 2048x1024 to 1280x720 px"),
        ("0.75, 0.5", "the size shrinks from 960x544 to 640x368 px"),
        ("", "the split 2+2 has 2 parts for 1 sizes"),
    ],
)
def test_earlier_sizes_that_are_refused(refused, earlier, message):
    split = "1+1+2" if earlier.count(",") else "2+2"
    assert message in refused("wan", (1280, 720), by_split(split, earlier_sizes=earlier))


def test_final_size_must_be_whole_cells(refused):
    assert "use 1000x712" in refused("sdxl", (1003, 714), by_split())


def test_a_latent_gives_the_size_and_its_frames_count(run, tiny):
    video = tiny("wan").latent(16, 24, frames=5)
    made, table, _, _, width, height, *small = run("wan", (1024, 1024), by_split(), latent=video).args
    assert (width, height) == (192, 128) and pixel_sizes(made) == [tuple(small), (192, 128)] and small == [96, 64]
    low, high = (5 * rows * columns for rows, columns in ((4, 6), (8, 12)))
    share = low * (6 * 48 + low) / (high * (6 * 48 + high))
    assert f"{2 + 2 * share:.2f} full-size calls for 4 steps" in table
    assert "one latent frame" not in table and "one latent frame" in run("wan", (192, 128), by_split())[1]
    assert torch.count_nonzero(video["samples"]) == 0 and video["samples"].shape == (1, 16, 5, 16, 24)


def test_sizes_a_network_cannot_run_are_refused(refused):
    assert "PixArt cannot run a stage of 256x256 px" in refused("pixart", (512, 512), by_split())
    assert "beyond this model's position table; use at most 256 px a side" in refused("sd3", (512, 512), by_split())


# splits, thresholds and levels


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (by_split("2+x"), "the split '2+x' is not valid"),
        (by_split("2+-1"), "the split '2+-1' is not valid"),
        (by_split("0+0"), "the split '0+0' is not valid"),
        (by_split(""), "the split '' is not valid"),
        (by_split("1+1+2"), "the split 1+1+2 has 3 parts for 2 sizes"),
        (by_split("4+0"), "no step runs at the final size 512x512 px (split 4+0)"),
        (by_thresholds(thresholds="9"), "no step runs at the final size 512x512 px (split 4+0)"),
        (by_thresholds(thresholds="low"), "thresholds is 'low'; use numbers"),
        (by_thresholds(thresholds="-5, -2.5"), "thresholds has 2 entries for 2 sizes"),
        (by_thresholds(thresholds="nan"), "thresholds is 'nan'; use numbers"),
        (by_thresholds(thresholds="-inf"), "thresholds is '-inf'; use numbers"),
        (by_thresholds(thresholds="-2, -3", earlier_sizes="0.25, 0.5"), "the thresholds -2, -3 do not rise"),
        (by_thresholds(steps=1001), "steps is 1001; RMD Schedule takes a whole number from 1 to 1000"),
        (by_split(sigmas="14, 5, 2"), "sigmas is '14, 5, 2' for 4 steps; give 4 numbers above 0 that fall"),
        (by_split(sigmas="14, 5, 5, 2"), "numbers above 0 that fall"),
        (by_split(sigmas="14, 5, 2, 0"), "numbers above 0 that fall"),
        (by_split(sigmas="20, 5, 2, 1"), "the first sigma is 20, above this model's largest, 14.6146"),
        (by_split(sigmas="a"), "sigmas is 'a'; use numbers"),
    ],
)
def test_what_makes_no_plan_is_refused(refused, source, message):
    assert message in refused("sdxl", (512, 512), source)


def test_given_sigmas_are_the_levels_of_the_first_size(plan):
    for sigmas in ("1, .9, .75, .5", "1.0 0.9 0.75 0.5 0.0"):
        made = plan("wan", (256, 256), by_split(sigmas=sigmas))
        assert made.stage_plan.base_sigmas == pytest.approx((1, 0.9, 0.75, 0.5), rel=1e-12)
        assert made.stage_plan.stages[1].sigmas == pytest.approx((6 / 7, 2 / 3), rel=1e-12)
    # ComfyUI shows SDXL's largest sigma as 14.6146...; rounded up it is still that level
    assert plan("sdxl", (512, 512), by_split(sigmas="14.615, 5, 2, 1")).stage_plan.steps[0].timestep == 999


@pytest.mark.parametrize(("sigma", "warned"), [(0.95, True), (0.8, False)])
def test_a_switch_that_keeps_almost_nothing_is_noted(plan, caplog, sigma, warned):
    """r = 2 makes 38 parts of noise to 1 of the image out of 0.95, and 8 to 1 out of 0.8."""
    made = plan("wan", (256, 256), by_split("1+1", sigmas=f"1, {sigma}"))
    assert any("the smaller steps do little" in note for note in made.notes) == warned
    assert ("the smaller steps do little" in caplog.text) == warned  # what is logged is also shown on the node


def test_a_later_stage_at_pure_noise_is_refused(refused):
    text = refused("wan", (256, 256), by_split("1+1", sigmas="1, 0.999998"))
    assert text.startswith("stage 2 would start at sigma 0.999999, which ComfyUI treats as pure noise (sigma_max 1)")


# recipe


def test_recipe_gives_everything(run, plan, recipe):
    source = {"source": "student recipe", "recipe": recipe}
    made, _, _, cfg, width, height, *_ = run("wan", (128, 128), source).args
    assert replace(made, notes=()) == replace(plan("wan", (128, 128), source), notes=())
    assert made.stage_plan == recipe.plan() and made.boundary == recipe.boundary()
    assert (made.eta, made.cfg, cfg, width, height) == (recipe.eta, recipe.cfg, 1.0, 128, 128)
    assert "base shift 3 (the recipe's), the loader's is 8" in " ".join(made.notes)
    assert "rmd_tiny_wan_teacher" in made.origin and not any("was trained for" in note for note in made.notes)


def test_recipe_at_another_size_says_so(plan, recipe):
    made = plan("wan", (256, 192), {"source": "student recipe", "recipe": recipe})
    assert pixel_sizes(made) == [(128, 96), (256, 192)]
    assert "the student was trained for 128x128 px; at 256x192 px its size ratios and levels are kept" in made.notes


def test_recipe_whose_last_size_has_no_step_ends_at_the_one_before(pack, plan, recipe):
    small = replace(recipe, split=(4, 0), ratios=((1.0, 1.0), (2.0, 2.0)))
    made = plan("wan", (128, 128), {"source": "student recipe", "recipe": small})
    assert pixel_sizes(made) == [(128, 128)] and made.stage_plan.split == "4+0"


def test_recipe_of_another_model_type_is_refused(refused, recipe):
    for name in ("sdxl", "sd3"):
        text = refused(name, (128, 128), {"source": "student recipe", "recipe": recipe})
        assert text.startswith("this recipe was made for another model type: wan2.1 (flow, shift 3, 8 px a cell)")
    other = replace(recipe, pixels_per_cell=16)
    assert "16 px a cell" in refused("wan", (128, 128), {"source": "student recipe", "recipe": other})


# denoise


@pytest.mark.parametrize(("denoise", "split"), [(1.0, "2+2"), (0.9, "2+2"), (0.75, "1+2"), (0.5, "0+2"), (0.01, "0+1")])
def test_denoise_keeps_the_last_steps(plan, denoise, split):
    whole, made = (plan("sdxl", (512, 512), by_split(), denoise=share) for share in (1.0, denoise))
    assert made.stage_plan.split == split
    kept = len(made.stage_plan.steps)
    assert [s.sigma for s in made.stage_plan.steps] == [s.sigma for s in whole.stage_plan.steps[-kept:]]
    assert any(f"the last {kept} of 4 steps run" in note for note in made.notes) == (kept < 4)


def test_a_plan_is_what_the_sampler_runs(nodes, tiny, plan):
    """The calls that RMD Sampler makes for a part of a plan: at its sizes and sigmas, from an image."""
    for name, source in (("wan", by_split("1+1+2", earlier_sizes="0.25,0.5")), ("sdxl", by_thresholds())):
        recorder, model = Recorder(), tiny(name)
        made = plan(name, (256, 192), source, denoise=0.75)
        latent = model.latent(24, 32)
        latent["samples"] += 0.5
        nodes.sample(model, made, latent=latent, patcher=recorder.watch(model.patcher))
        assert (
            recorder.sizes == [(step.height, step.width) for step in made.stage_plan.steps] and len(recorder.sizes) == 3
        )
        sigmas = [made.stage_plan.curve.comfy_sigma(step.sigma) for step in made.stage_plan.steps]
        assert [call.sigma for call in recorder.calls] == pytest.approx(sigmas, rel=1e-6)


def test_denoise_outside_its_range_is_refused(refused):
    for denoise in (-0.1, 0.0, 1.5, math.nan):
        assert "takes a number from 0.01 to 1" in refused("sdxl", (512, 512), by_split(), denoise=denoise)


# the node


def test_schema(pack):
    node = pack.nodes.plan_nodes.RMDSchedule
    schema = node.GET_SCHEMA()
    assert schema.node_id == "RMD_Schedule" and schema.is_output_node
    assert [one.id for one in schema.inputs] == ["model", "width", "height", "source", "denoise", "latent"]
    outputs = ["plan", "table", "plan_image", "cfg", "width", "height", "small_width", "small_height"]
    assert [one.display_name for one in schema.outputs] == outputs
    options = {option.key: [one.id for one in option.inputs] for option in schema.inputs[3].options}
    method = ["earlier_sizes", "mapping", "base_shift", "method"]
    assert options == {
        "steps per size": ["split", "scale"],
        "student recipe": ["recipe"],
        "thresholds": ["steps", "thresholds", *method],
        "split": ["split", "sigmas", *method],
        "scheduler sigmas": ["scheduler_sigmas", "split", "thresholds", "earlier_sizes", "mapping"],
        "few-step profile": ["profile", "split", "earlier_sizes"],
    }
    nested = [one for option in schema.inputs[3].options for one in option.inputs]
    assert all(one.tooltip for one in (*schema.inputs, *schema.outputs, *nested))


def test_nothing_else_changes(run, tiny):
    """The global generator is left alone, and so is the model; the same inputs give the same outputs."""
    state, sigmas = torch.get_rng_state(), tiny("wan").patcher.get_model_object("model_sampling").sigmas.clone()
    first, second = (run("wan", (256, 256), by_thresholds()).args for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(tiny("wan").patcher.get_model_object("model_sampling").sigmas, sigmas)
    assert first[0] == second[0] and first[1] == second[1] and torch.equal(first[2], second[2])


def test_the_preview_is_the_image(run, comfy):
    import folder_paths
    import numpy as np
    from PIL import Image

    output = run("sdxl", (512, 512), by_split())
    (saved,) = output.ui.as_dict()["images"]
    shown = Image.open(Path(folder_paths.get_temp_directory(), saved["subfolder"], saved["filename"]))
    assert np.abs(np.asarray(shown) / 255.0 - output[2][0].numpy()).max() <= 1 / 255
