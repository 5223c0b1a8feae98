"""Good and bad values for every input of every node: what a workflow, a link or another pack could send."""

from functools import cached_property
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st

from cascade_rig import TINY
from comfy_models import tiny_wan_vae

TEXTS = (
    *("", " ", "\n", "\0", "2+2", "1+1+2", "4", "0+4", "4+0", "2+2+", "+", "-1+2", "2.5+1", "1e3", "auto", "AUTO "),
    *("0.5", "0.5,0.75", "0.75,0.5", "1", "0", "-0.5", "1.0001", "1e-300", "nan", "inf", "-inf", "1e400", "0.5;", ","),
    *("64x64", "64X48", "64*48", "0x0", "8x8", "16384x16384", "99999999x99999999", "x", "64x", "832x480x2"),
    *("-2.5", "-5,-2.5", "-2.5,-5", "1.0, 0.9, 0.75, 0.5", "14, 5, 2, 1", "1,1,1,1", "1 0.5 0.25 0.1 0", "None"),
    *(
        "9" * 5000,
        "9" * 5000 + "x8",
        "1+" * 3000 + "1",
        "0.5," * 2000,
        "\u0662x\u0662",
        "\u00b2+2",
        "\ud800",
        "{}",
        "2+2\n",
    ),
    *("../../../etc/passwd", "/etc/passwd", "a" * 5000, "C:\\x.safetensors", "con", "x.safetensors\0", "%s%n", "."),
)
NUMBERS = (0, -1, 1, 2, 3, 7, 63, 64, 65, 2**31, 2**63, 2**64 - 1, 2**64, -(2**64), 10**400, 1.5, 1e-300, 1e300)
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"), True, None, "7", "", [], [1], {}, 1j, np.float32("nan"))
FOREIGN = (None, 0, 3.5, "text", "", [], {}, (), object(), torch.zeros(3), [[torch.zeros(1, 5, 24)]], {"samples": None})
ODD_CHURN = "much"
"""An option that ComfyUI's own sampler compares with a number."""


class Named:
    """An object under a name, which is what a report shows of it; `make` returns a new one each time."""

    def __init__(self, name, make):
        self.name, self.make = name, make

    def __repr__(self):
        return self.name


class World:
    """Everything that can be connected, by ComfyUI's type; `usual` has what fits one tiny model."""

    def __init__(self, nodes, tiny, comfy):
        import comfy.samplers
        from comfy_extras import nodes_custom_sampler

        self.nodes, self.tiny = nodes, tiny
        self.samplers, self.custom = comfy.samplers, nodes_custom_sampler
        self.recipe = nodes.pack.rmd_core.recipe

    @cached_property
    def plans(self):
        """(model, split) -> SamplingPlan of the sizes that the model takes."""
        plans = {}
        for name, sizes in TINY.items():
            plans |= {
                (name, split): self.nodes.plan(self.tiny(name), sizes=sizes, split=split) for split in ("2+2", "1+1")
            }
            plans[name, "2"] = self.nodes.plan(self.tiny(name), sizes=sizes[1:], split="2")
            plans[name, "fresh"] = self.nodes.plan(self.tiny(name), sizes=sizes, switch_noise="fresh", eta=0.0)
        return plans

    def usual(self, name):
        """{ComfyUI type: strategy} of values that fit the tiny model of a name, most of the time."""
        model, final = self.tiny(name), TINY[name][1]
        fitting = {"MODEL": [Named(f"{name} model", lambda: model.patcher)]}
        fitting["CONDITIONING"] = [Named(f"{name} prompt", lambda: model.conditioning(1))]
        fitting["LATENT"] = [Named(f"{name} latent", lambda: model.latent(*final))]
        fitting["LATENT"] += [Named(f"{name} latent x2", lambda: model.latent(*final, batch=2))]
        fitting["RMD_PLAN"] = [
            Named(f"{key} plan", lambda plan=plan: plan) for key, plan in self.plans.items() if key[0] == name
        ]
        fitting["GUIDER"] = [Named(f"{name} guider", lambda: self.guider(model))]
        fitting["SAMPLER"] = [Named("rmd", lambda: self.nodes("RMD_StepSampler", eta=0.5)[0])]
        fitting["SAMPLER"] += [Named("euler", lambda: self.samplers.sampler_object("euler"))]
        fitting["NOISE"] = [Named("RMD noise", lambda: self.nodes("RMD_Noise", noise_seed=5)[0])]
        fitting["SIGMAS"] = [Named("sigmas", lambda: torch.tensor([1.0, 0.75, 0.5]))]
        fitting["RMD_RECIPE"] = [Named("demo recipe", self.demo_recipe)]
        fitting["RMD_OVERRIDES"] = [Named("no overrides", tuple), Named("stage 2 alone", lambda: self.override(2))]
        fitting["VAE"] = [Named("Wan VAE", lambda: self.vae)]
        fitting["LATENT_UPSCALE_MODEL"] = [Named("no upscale model", lambda: None)]
        fitting["RMD_UPSAMPLER"] = [Named("no upsampler", lambda: None)]
        if model.video:
            fitting["RMD_UPSAMPLER"] += [Named("VAE upsampler", lambda: self.nodes("RMD_Upsampler", vae=self.vae)[0])]
        return {kind: st.sampled_from(values) for kind, values in fitting.items()}

    def usual_of(self, node_id, name):
        """`usual`, and by the name of an input what only this node needs in it."""
        model, fitting = self.tiny(name), self.usual(name)
        if node_id == "RMD_StageUpscale":
            fitting["output"] = st.just(Named("open output", lambda: self.open_output(model, TINY[name][0])))
            fitting["denoised_output"] = st.just(Named("estimate", lambda: model.latent(*TINY[name][0])))
            fitting["width"], fitting["height"] = (st.just(8 * side) for side in reversed(TINY[name][1]))
        if node_id == "RMD_Schedule":
            fitting["width"], fitting["height"] = (st.just(8 * side) for side in reversed(TINY[name][1]))
        return fitting

    def has_prompt_of_another_width(self, inputs):
        """Whether one of RMD Sampler's prompts is of another text encoder than the tiny model's."""
        widths = {model.context for model in map(self.tiny, TINY) if model.patcher is inputs.get("model")}
        names = ("positive", "negative", "small_positive", "small_negative")
        prompts = [inputs[name] for name in names if inputs.get(name) is not None]
        return any(embedding.shape[-1] not in widths for prompt in prompts for embedding, _ in prompt)

    def is_cores(self, error, inputs):
        """Whether ComfyUI's own code failed at inputs that only it reads: its words pass as they are."""
        if isinstance(error, RuntimeError):
            return "mat1 and mat2" in str(error) and self.has_prompt_of_another_width(inputs)
        options = getattr(inputs.get("sampler"), "extra_options", {})
        return isinstance(error, TypeError) and options.get("s_churn") == ODD_CHURN

    @cached_property
    def vae(self):
        return tiny_wan_vae()

    def open_output(self, model, size_hw):
        """What a sampler node put out at sigma 0.5 beside an empty clean image: noise of deviation 1 is in it."""
        latent = model.latent(*size_hw)
        noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(2))
        inside = model.patcher.model
        empty = inside.process_latent_in(latent["samples"])
        flow = self.plans[self._name(model), "2+2"].stage_plan.curve.kind == "flow"
        state = (0.5 * empty + 0.5 * noise) / 0.5 if flow else empty + 0.5 * noise
        return latent | {"samples": inside.process_latent_out(state)}

    def _name(self, model):
        return next(name for name in TINY if self.tiny(name) is model)

    @cached_property
    def odd(self):
        """{ComfyUI type: strategy} of values of which most fit nothing."""
        kinds = {kind: [] for kind in self.usual("wan")}
        for name in TINY:
            for kind, values in self.usual(name).items():
                kinds[kind] += values.elements
        kinds["MODEL"] += [Named("model without a curve", self.no_curve)]
        kinds["CONDITIONING"] += list(self._prompts())
        kinds["LATENT"] += list(self._latents())
        kinds["GUIDER"] += list(self._guiders())
        kinds["SAMPLER"] += list(self._samplers())
        kinds["SIGMAS"] += [
            Named(repr(values)[:40], lambda values=values: torch.tensor(values))
            for values in (
                [],
                [1.0],
                [0.0, 0.0],
                [1.0, 0.0],
                [float("nan"), 0.5],
                [1.0, float("inf")],
                [[1.0, 0.5]],
                [3, 2],
                [-1.0, -2.0],
                [1.0, 1e-30],
                [0.5, 1.0],
                [1e300, 1e-300],
                [14.6, 3.0],
                0.5,
            )
        ]
        kinds["NOISE"] += list(self._noises())
        kinds["RMD_OVERRIDES"] += [
            Named(f"stage {stage}, twice {twice}", lambda stage=stage, twice=twice: self.override(stage) * (1 + twice))
            for stage in (1, 3, 64)
            for twice in (0, 1)
        ] + [Named("own guider", lambda: self.override(2, guider=self.guider(self.tiny("sdxl"))))]
        kinds["RMD_OVERRIDES"] += [Named("list of text", lambda: ("stage",))]
        foreign = [Named(f"foreign {value!r:.30}", lambda value=value: value) for value in FOREIGN]
        everything = [value for values in kinds.values() for value in values[:1]]
        return {kind: st.sampled_from([*values, *foreign, *everything]) for kind, values in kinds.items()}

    def guider(self, model, *, cfg=1.0, conds=None):
        """A CFGGuider over a tiny model; conds None for one positive prompt."""
        guider = self.samplers.CFGGuider(model.patcher)
        guider.inner_set_conds({"positive": model.conditioning(1)} if conds is None else conds)
        guider.set_cfg(cfg)
        return guider

    def override(self, stage, **settings):
        """RMD Stage Override's output, for a stage without settings of its own unless given."""
        return self.nodes("RMD_StageOverride", stage=stage, boundary={"boundary": "as in the plan"}, **settings)[0]

    def demo_recipe(self):
        """The recipe of the demo's student."""
        from demo import files

        return self.recipe.read_recipe(files.STUDENT)

    def no_curve(self):
        """A MODEL whose noise has no logSNR curve here (EDM)."""
        import comfy.model_sampling

        class Edm(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM):
            pass

        patcher = self.tiny("sdxl").patcher.clone()
        patcher.add_object_patch("model_sampling", Edm(patcher.model.model_config))
        return patcher

    def _prompts(self):
        wan, sdxl = self.tiny("wan"), self.tiny("sdxl")
        nan = torch.full((1, 5, 24), float("nan"))
        yield Named("no prompt", list)
        yield Named("two prompts", lambda: wan.conditioning(1) + wan.conditioning(2))
        yield Named("batch of 3", lambda: wan.conditioning(1, batch=3))
        yield Named("no tokens", lambda: wan.conditioning(1, tokens=0))
        yield Named("nan prompt", lambda: [[nan, {}]])
        yield Named("flat prompt", lambda: [[torch.zeros(5, 24), {}]])
        yield Named("whole-number prompt", lambda: [[torch.zeros(1, 5, 24, dtype=torch.int64), {}]])
        yield Named("half prompt", lambda: [[torch.ones(1, 5, 24).half(), {}]])
        yield Named("text prompt", lambda: [["a cat", {}]])
        yield Named("no pooled", lambda: [[torch.zeros(1, 5, 32), {"pooled_output": None}]])
        yield Named("wide pooled", lambda: [[torch.zeros(1, 5, 32), {"pooled_output": torch.zeros(1, 99)}]])
        yield Named("text pooled", lambda: [[torch.zeros(1, 5, 32), {"pooled_output": "x"}]])
        yield Named("area", lambda: wan.conditioning(1, area=(99, 99, 0, 0), strength=1.0))
        yield Named("flat area", lambda: sdxl.conditioning(1, area=(0, 0, 0, 0), strength=1.0))
        yield Named("empty strength", lambda: sdxl.conditioning(1, strength=float("nan")))
        yield Named("odd size", lambda: sdxl.conditioning(1, width=-5, height=10**9))
        yield Named("odd mask", lambda: sdxl.conditioning(1, mask=torch.zeros(7, 3, 5)))
        yield Named("never", lambda: sdxl.conditioning(1, start_percent=0.9, end_percent=0.1))

    def _latents(self):
        for name in ("wan", "sdxl"):
            model, (height, width) = self.tiny(name), TINY[name][1]
            channels = (1, model.channels, *((1,) if model.video else ()))
            good = torch.zeros(*channels, height, width)
            for label, samples in {
                "nan": good * float("nan"),
                "inf": good + float("inf"),
                "huge": good + 1e30,
                "ones": good + 1.0,
                "half": good.half(),
                "double": good.double(),
                "whole": good.long(),
                "bool": good.bool(),
                "complex": good.to(torch.complex64),
                "flat": good.flatten(),
                "channel more": torch.zeros(1, 5, height, width),
                "one axis more": good[None],
                "batch 0": good[:0],
                "batch 3": good.repeat(3, *[1] * (good.ndim - 1)),
                "no width": good[..., :0],
                "one cell": good[..., :1, :1],
                "long": good.repeat_interleave(2, -1),
                "not contiguous": good.transpose(-1, -2).contiguous().transpose(-1, -2),
                "meta": good.to("meta"),
            }.items():
                yield Named(f"{name} {label} latent", lambda samples=samples: {"samples": samples})
            for label, extra in {
                "mask": {"noise_mask": torch.ones(1, 1, height, width)},
                "half mask": {"noise_mask": torch.full((1, height, width), 0.5)},
                "small mask": {"noise_mask": torch.ones(1, 3, 5)},
                "nan mask": {"noise_mask": torch.full((1, height, width), float("nan"))},
                "text mask": {"noise_mask": "x"},
                "long mask": {"noise_mask": torch.ones(9, 1, height, width)},
                "empty mask": {"noise_mask": torch.ones(0, 1, 4, 4)},
                "flat mask": {"noise_mask": torch.ones(height, width)},
                "beyond mask": {"noise_mask": torch.full((1, height, width), 7.0)},
                "batch index": {"batch_index": [7]},
                "short index": {"batch_index": []},
                "long index": {"batch_index": [1, 2, 3]},
                "text index": {"batch_index": ["a"]},
                "no index": {"batch_index": None},
                "nan index": {"batch_index": [float("nan")]},
                "number index": {"batch_index": 3},
                "odd scale": {"downscale_ratio_spacial": 0},
                "text scale": {"downscale_ratio_spacial": "x"},
                "other scale": {"downscale_ratio_spacial": 16},
                "more keys": {"type": "audio", "x": None},
            }.items():
                yield Named(
                    f"{name} latent with {label}", lambda extra=extra, good=good: {"samples": good + 0.25, **extra}
                )

    def _guiders(self):
        wan, sdxl = self.tiny("wan"), self.tiny("sdxl")
        for cfg in (0.0, 2.5, float("nan"), float("inf"), -3.0, "2", None):
            yield Named(f"cfg {cfg}", lambda cfg=cfg: self.guider(wan, cfg=cfg))
        both = {"positive": wan.conditioning(1), "negative": wan.conditioning(2)}
        yield Named("with negative", lambda: self.guider(wan, cfg=2.5, conds=both))
        yield Named("without prompts", lambda: self.samplers.CFGGuider(wan.patcher))
        yield Named("empty prompts", lambda: self.guider(wan, conds={"positive": []}))
        yield Named("negative alone", lambda: self.guider(wan, conds={"negative": wan.conditioning(1)}))
        yield Named("other model's prompt", lambda: self.guider(sdxl, conds={"positive": wan.conditioning(1)}))
        yield Named(
            "cascade", lambda: self.nodes("RMD_Guider", guider=self.guider(wan), plan=self.plans["wan", "2+2"])[0]
        )
        yield Named("half a guider", lambda: SimpleNamespace(sample=lambda *_, **__: None, model_patcher=None))
        yield Named(
            "guider without work", lambda: SimpleNamespace(sample=lambda *_, **__: None, model_patcher=wan.patcher)
        )
        yield Named("guider class", lambda: self.samplers.CFGGuider)

    def _samplers(self):
        for name in self.samplers.SAMPLER_NAMES:
            yield Named(name, lambda name=name: self.samplers.sampler_object(name))
        yield Named("churn", lambda: self.samplers.ksampler("euler", {"s_churn": 0.5}))
        yield Named("odd option", lambda: self.samplers.ksampler("euler", {"s_churn": ODD_CHURN}))

        def silent(model, x, sigmas, **_):
            return x

        yield Named("silent sampler", lambda: self.samplers.KSAMPLER(silent))
        yield Named("sampler class", lambda: self.samplers.KSAMPLER)

    def _noises(self):
        from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise

        yield Named("no noise", Noise_EmptyNoise)
        for seed in (0, 2**64, -1, "x", None, 1.5):
            yield Named(f"random noise of {seed!r}", lambda seed=seed: Noise_RandomNoise(seed))
        later = self.nodes.pack.nodes.bridge.sampling
        yield Named("later noise", lambda: later.SwitchNoise(torch.zeros(1, 16, 1, 12, 16), later.StageSeed(5, 1)))

    def values(self, entry, usual):
        """A strategy of values for one input of a schema: `usual` {type: strategy} or, with None, odd ones."""
        kind = entry.io_type
        if kind == "COMFY_DYNAMICCOMBO_V3":
            options = [
                st.fixed_dictionaries({entry.id: st.just(option.key)} | self.inputs(option.inputs, usual))
                for option in entry.options
            ]
            odd = [st.sampled_from([None, {}, "split", {entry.id: "unknown"}, {entry.id: 3}, {entry.id: None}])]
            return st.one_of(*options, *(odd if usual is None else ()))
        if kind in ("INT", "FLOAT"):
            return self._numbers(entry, usual)
        if kind == "COMBO":
            return (
                st.sampled_from(list(entry.options) or [""])
                if usual
                else st.sampled_from([*entry.options, *TEXTS, None, 3, []])
            )
        if kind == "STRING":
            return (
                st.just(entry.default)
                if usual and entry.default
                else st.sampled_from(TEXTS) | st.text(max_size=12) | st.sampled_from([None, 3])
            )
        return usual[kind] if usual else self.odd[kind]

    def inputs(self, entries, usual):
        """{name: strategy} of the inputs of a schema."""
        return {entry.id: self.values(entry, usual) for entry in entries}

    def _numbers(self, entry, usual):
        if usual:
            return st.just(entry.default)
        step = 1 if entry.io_type == "INT" else 1e-3
        limits = [
            entry.min,
            entry.max,
            entry.min - step,
            entry.max + step,
            entry.default,
            np.int64(entry.default),
            np.float64(entry.default),
        ]
        inside = st.integers(entry.min, entry.max) if entry.io_type == "INT" else st.floats(entry.min, entry.max)
        return st.sampled_from([*limits, *NUMBERS, *NO_NUMBERS]) | inside


def made(value):
    """The objects that the names in a value stand for."""
    if isinstance(value, Named):
        return value.make()
    return {key: made(inner) for key, inner in value.items()} if isinstance(value, dict) else value
