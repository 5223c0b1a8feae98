"""What each node promises of its outputs, given the inputs it took: the judges of the hard tests."""

import math

import torch

IMAGE = (1, 600, 920, 3)


def contract(node_id):
    """The judge of a node: a function (inputs, outputs) that raises AssertionError where a promise is broken."""
    return globals()["_" + node_id.removeprefix("RMD_").lower()]


def _noise(inputs, outputs):
    (noise,) = outputs
    latent = {"samples": torch.zeros(2, 4, 3, 5)}
    first, again = noise.generate_noise(latent), noise.generate_noise(latent)
    assert first.shape == (2, 4, 3, 5) and torch.equal(first, again) and torch.isfinite(first).all()


def _stepsampler(inputs, outputs):
    plan, eta = inputs.get("plan"), outputs[0].extra_options["eta"]
    assert eta == (inputs["eta"] if plan is None else plan.eta) and 0.0 <= eta <= 1.0


def _upsampler(inputs, outputs):
    assert (outputs[0].upscale_model, outputs[0].vae) == (inputs.get("upscale_model"), inputs.get("vae"))


def _stageoverride(inputs, outputs):
    *before, own = outputs[0]
    assert before == list(inputs.get("overrides") or ()) and own.stage == inputs["stage"] - 1
    assert (own.guider, own.sampler) == (inputs.get("guider"), inputs.get("sampler"))
    assert (own.boundary is not None) == (inputs["boundary"]["boundary"] == "own")


def _stagesigmas(inputs, outputs):
    sigmas, width, height = outputs
    stage = inputs["plan"].stage_plan.stages[inputs["stage"] - 1]
    assert (height, width) == (8 * stage.height, 8 * stage.width)
    assert len(sigmas) == len(stage.sigmas) + 1 and torch.isfinite(sigmas).all() and bool((sigmas.diff() < 0).all())


def _stageupscale(inputs, outputs):
    latent, noise = outputs
    samples = latent["samples"]
    assert samples.shape[-2:] == (inputs["height"] // 8, inputs["width"] // 8)
    made = noise.generate_noise(latent)
    assert made.shape == samples.shape and torch.isfinite(samples).all() and torch.isfinite(made).all()
    assert samples.shape[:2] == (
        *inputs["output"]["samples"].shape[:1],
        inputs["model"].model.latent_format.latent_channels,
    )


def _schedule(inputs, outputs):
    plan, table, image, cfg, width, height, *small = outputs
    check_plan(plan)
    first = plan.stage_plan.stages[0]
    assert small == [first.width * plan.cell_px, first.height * plan.cell_px]
    if inputs.get("latent") is None:
        assert (width, height) == (inputs["width"], inputs["height"])
    assert plan.final_px == (height, width) and cfg == plan.cfg and math.isfinite(cfg)
    assert image.shape == IMAGE and torch.isfinite(image).all() and 0.0 <= image.min() <= image.max() <= 1.0
    assert table.count("\n") > 8 and "nan" not in table.replace("-inf", "")


def check_plan(plan):
    """Levels fall within each stage, sizes grow, everything is finite and of positive size."""
    stages = plan.stage_plan.stages
    assert all(0 <= plan.eta <= 1 and min(stage.height, stage.width) >= 1 for stage in stages)
    for stage in stages:
        sigmas = plan.sigmas(stage)
        assert all(math.isfinite(sigma) for sigma in sigmas) and sigmas[-1] == 0.0
        assert all(before > after for before, after in zip(sigmas, sigmas[1:]))
        assert bool((torch.tensor(sigmas, dtype=torch.float32).diff() < 0).all())
    assert all(one.height <= two.height and one.width <= two.width for one, two in zip(stages, stages[1:]))
    assert sum(plan.stage_plan.calls_per_stage) == len(plan.stage_plan.steps) and stages[-1].end_base_sigma == 0.0


def check_sampled(latent, came, plan, model):
    """A LATENT of the plan's final size, in the model's channels, with the batch and the frames that came."""
    samples, source = latent["samples"], came["samples"]
    assert samples.shape[-2:] == plan.stage_plan.final_hw and samples.is_floating_point()
    assert samples.shape[0] == source.shape[0] and samples.shape[1] == model.model.latent_format.latent_channels
    assert samples.ndim == model.model.latent_format.latent_dimensions + 2
    assert torch.isfinite(samples).all(), "the samples are not finite"


def _sampler(inputs, outputs):
    check_sampled(outputs[0], inputs["latent_image"], inputs["plan"], inputs["model"])


def _sampleradvanced(inputs, outputs):
    plan, (latent, estimates) = inputs["plan"], outputs
    check_sampled(latent, inputs["latent_image"], plan, inputs["guider"].model_patcher)
    sizes = [(stage.height, stage.width) for stage in plan.stage_plan.stages]
    assert [tuple(estimate["samples"].shape[-2:]) for estimate in estimates] == sizes
    assert all(torch.isfinite(estimate["samples"]).all() for estimate in estimates)


def _guider(inputs, outputs):
    cascade, sigmas = outputs
    assert callable(cascade.sample) and cascade.model_patcher is inputs["guider"].model_patcher
    assert len(sigmas) == len(inputs["plan"].stage_plan.steps) + 1 and sigmas[-1] == 0 and torch.isfinite(sigmas).all()


def _loadpromptembeddings(inputs, outputs):
    (((embedding, values),),) = outputs
    assert embedding.ndim == 3 and len(embedding) == 1 and torch.isfinite(embedding).all() and "pooled_output" in values


def _loadstudent(inputs, outputs):
    model, recipe, report = outputs
    assert model.model.diffusion_model is not None and recipe.plan() and "student: " in report
    if inputs["kind"]["kind"] == "LoRA":
        assert model is not inputs["kind"]["model"]
