"""What the tests of the sampler nodes share: plans over tiny models, node calls, and a record of what a network got."""

import inspect
from dataclasses import dataclass, field

import torch

from rmd_core.noise import SeededNoise

SEED = 5
TINY = {  # name in comfy_models -> the sizes in cells of two stages that it can take
    "wan": ((6, 8), (12, 16)),
    "sd3": ((8, 6), (16, 12)),
    "sdxl": ((8, 8), (16, 16)),
    "sdxl_v": ((8, 6), (16, 12)),
    "pixart": ((34, 34), (46, 40)),
}
SHIFT = 3.0


@dataclass(frozen=True)
class Call:
    """One network call: the state and sigma in ComfyUI's terms, and the clean estimate that came back."""

    x: torch.Tensor
    sigma: float
    x0: torch.Tensor
    conditioning: dict


@dataclass
class Recorder:
    """`recorder.watch(patcher)` gives a copy of a MODEL whose calls are kept in `calls`."""

    calls: list = field(default_factory=list)

    def watch(self, patcher):
        watched = patcher.clone()

        def call(apply_model, arguments):
            x, sigma = arguments["input"], arguments["timestep"]
            x0 = apply_model(x, sigma, **arguments["c"])
            self.calls.append(Call(x.clone(), float(sigma[0]), x0.clone(), dict(arguments["c"])))
            return x0

        watched.set_model_unet_function_wrapper(call)
        return watched

    @property
    def sizes(self):
        """Height and width of the state of every call; of several streams, which core packs, those of the video."""
        return [tuple(call.conditioning.get("latent_shapes", [call.x.shape])[0][-2:]) for call in self.calls]


class Nodes:
    """Calls nodes by id as ComfyUI would: `nodes("RMD_Sampler", model=..., ...)` gives the tuple of outputs."""

    def __init__(self, pack, classes):
        self.pack, self.classes = pack, classes

    def __call__(self, node_id, /, **inputs):
        node = self.classes[node_id]
        for entry in node.GET_SCHEMA().inputs:  # ComfyUI fills in what a workflow leaves out
            if not entry.optional and entry.id not in inputs and getattr(entry, "default", None) is not None:
                inputs[entry.id] = entry.default
        output = node.execute(**inputs)
        assert not inspect.iscoroutine(output)
        return output.args

    def plan(self, model, *, sizes, split="2+2", eta=0.5, mapping=None, cfg=1.0, size_conditioning="none", **boundary):
        """An RMD_PLAN for a TinyModel: sizes in cells, boundary fields by name."""
        core, bridge = self.pack.rmd_core, self.pack.nodes.bridge
        view = bridge.model.ModelView.of(model.patcher)
        curve = core.schedule.FlowCurve(SHIFT) if view.curve.kind == "flow" else view.curve
        stages = core.plan.plan_from_split(curve, split, sizes=sizes, mapping=mapping or core.schedule.AreaMap())
        return bridge.plans.SamplingPlan(
            stage_plan=stages,
            kind=view.kind,
            boundary=core.boundary.Boundary(**boundary),
            eta=eta,
            cfg=cfg,
            size_conditioning=size_conditioning,
            cell_px=8,
            origin="test",
        )

    def sample(self, model, plan, *, seed=SEED, latent=None, patcher=None, positive=None, negative=None, cfg=1.0):
        """RMD Sampler's latent for a TinyModel."""
        empty = model.latent(*plan.stage_plan.final_hw)
        (out,) = self(
            "RMD_Sampler",
            model=patcher or model.patcher,
            positive=positive or model.conditioning(1),
            negative=negative,
            latent_image=empty if latent is None else latent,
            plan=plan,
            seed=seed,
            cfg=cfg,
        )
        return out

    def guider(self, model, *, patcher=None, positive=None, **settings):
        """Core's guider of a TinyModel with one positive prompt; its other attributes by name, such as cfg."""
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(patcher or model.patcher)
        guider.inner_set_conds({"positive": positive or model.conditioning(1)})
        for name, value in settings.items():
            setattr(guider, name, value)
        return guider

    def advanced(self, model, plan, *, sampler=None, guider=None, latent=None, seed=SEED, **others):
        """RMD Sampler (Advanced): its latent, and those of the stages; a core sampler by its name, ours without one."""
        import comfy.samplers

        if sampler is None:
            (sampler,) = self("RMD_StepSampler", eta=plan.eta)
        elif isinstance(sampler, str):
            sampler = comfy.samplers.sampler_object(sampler)
        guider = guider or self.guider(model)
        latent = latent or model.latent(*plan.stage_plan.final_hw)
        run = {"guider": guider, "sampler": sampler, "plan": plan, "latent_image": latent, "noise_seed": seed}
        return self("RMD_SamplerAdvanced", **run, **others)

    def by_core(self, noise, guider, sampler, sigmas, latent):
        """Core's SamplerCustomAdvanced: output and denoised_output."""
        from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

        return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args


class HandBuilt:
    """A plan stage by stage: RMD Stage Sigmas, core's SamplerCustomAdvanced and RMD Stage Upscale."""

    def __init__(self, nodes, model, plan):
        self.nodes, self.model, self.plan = nodes, model, plan
        (self.sampler,) = nodes("RMD_StepSampler", eta=0.5, plan=plan)
        self.guider = nodes.guider(model)

    def stage(self, stage, noise, latent=None, **extra):
        """(output, denoised_output) of a stage (from 1), from an empty LATENT of its size with `extra` keys if none."""
        sigmas, width, height = self.nodes("RMD_StageSigmas", plan=self.plan, stage=stage)
        latent = latent or self.model.latent(height // 8, width // 8, **extra)
        return self.nodes.by_core(noise, self.guider, self.sampler, sigmas, latent)

    def upscale(self, stage, output, denoised, noise, **changes):
        """(LATENT, NOISE) for the stage after `stage`; the plan's rule unless a wire is changed."""
        sigmas, *_ = self.nodes("RMD_StageSigmas", plan=self.plan, stage=stage)
        following = self.plan.stage_plan.stages[stage]
        wires = {"output": output, "denoised_output": denoised, "sigmas": sigmas, "noise": noise}
        wires |= {"model": self.model.patcher, "width": 8 * following.width, "height": 8 * following.height}
        rule = self.plan.boundary
        wires |= {"upsampler": rule.upsampler, "switch_noise": rule.switch_noise, "eta_switch": rule.eta_switch}
        return self.nodes("RMD_StageUpscale", **(wires | changes))

    def run(self, **extra):
        """The last stage's output."""
        (noise,) = self.nodes("RMD_Noise", noise_seed=SEED)
        output, denoised = self.stage(1, noise, **extra)
        for stage in range(2, len(self.plan.stage_plan.stages) + 1):
            latent, noise = self.upscale(stage - 1, output, denoised, noise)
            output, denoised = self.stage(stage, noise, latent)
        return output


def is_flow(plan):
    return plan.stage_plan.curve.kind == "flow"


def alpha_sigma(plan, comfy_sigma):
    """(alpha, sigma) of ComfyUI's form of a state at its sigma: VP models there have alpha 1."""
    return (1.0 - comfy_sigma, comfy_sigma) if is_flow(plan) else (1.0, comfy_sigma)


def predicted_noise(plan, call):
    """The noise in a recorded call's state, float64."""
    alpha, sigma = alpha_sigma(plan, call.sigma)
    return (call.x.double() - alpha * call.x0.double()) / sigma


def relative(got, expected):
    """The largest difference over the largest magnitude of what is expected."""
    return ((got.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def fresh_noise(shape, stage, purpose, seed=SEED, items=None):
    """The noise of the method at one address, float64."""
    return SeededNoise(seed, items).sample(stage, purpose, tuple(shape)).double()
