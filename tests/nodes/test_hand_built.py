"""What a hand-built graph is told when its wires are wrong, and what a plan on its nodes decides."""

import pytest
import torch

from cascade_rig import SEED

SIZES = ((8, 8), (12, 12), (16, 16))


class Graph:
    """Stage by stage through core's SamplerCustomAdvanced."""

    def __init__(self, nodes, core_nodes, model, plan):
        self.nodes, self.core, self.model, self.plan = nodes, core_nodes, model, plan
        (self.sampler,) = nodes("RMD_StepSampler", eta=0.5, plan=plan)
        self.guider = core_nodes.BasicGuider.execute(model.patcher, model.conditioning(1)).args[0]

    def sigmas(self, stage):
        return self.nodes("RMD_StageSigmas", plan=self.plan, stage=stage)[0]

    def first(self):
        (noise,) = self.nodes("RMD_Noise", noise_seed=SEED)
        return (*self.stage(1, noise, self.model.latent(*SIZES[0])), noise)

    def stage(self, stage, noise, latent):
        return self.core.SamplerCustomAdvanced.execute(
            noise, self.guider, self.sampler, self.sigmas(stage), latent
        ).args

    def upscale(self, stage, output, denoised, noise, **changes):
        wires = {
            "output": output,
            "denoised_output": denoised,
            "sigmas": self.sigmas(stage),
            "model": self.model.patcher,
            "noise": noise,
            "width": 8 * SIZES[stage][1],
            "height": 8 * SIZES[stage][0],
            "upsampler": "bilinear",
            "switch_noise": "fresh",
            "eta_switch": 0.0,
            "plan": self.plan,
        }
        return self.nodes("RMD_StageUpscale", **{**wires, **changes})


@pytest.fixture
def graph(nodes, tiny, comfy):
    from comfy_extras import nodes_custom_sampler

    model = tiny("wan")
    return Graph(nodes, nodes_custom_sampler, model, nodes.plan(model, sizes=SIZES, split="1+2+1", eta=0.2))


def test_a_plan_decides_eta_and_boundary(nodes, graph):
    output, denoised, noise = graph.first()
    latent, noise = graph.upscale(1, output, denoised, noise)
    output, denoised = graph.stage(2, noise, latent)
    latent, noise = graph.upscale(2, output, denoised, noise)
    (result, _) = graph.stage(3, noise, latent)
    expected = nodes.sample(graph.model, graph.plan)["samples"]
    assert torch.allclose(result["samples"], expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_noise_of_another_stage_is_refused(graph, refused):
    output, denoised, noise = graph.first()
    latent, second = graph.upscale(1, output, denoised, noise)
    output, denoised = graph.stage(2, second, latent)
    refused(lambda: graph.upscale(2, output, denoised, noise), "that of stage 1, the output that of stage 2")


def test_wires_that_give_no_noise_are_refused(graph, refused):
    output, denoised, noise = graph.first()
    other = {"sigmas": torch.tensor([0.9, 0.05])}
    refused(lambda: graph.upscale(1, output, denoised, noise, **other), "deviation", "about 1", "sigmas")
    refused(lambda: graph.upscale(1, denoised, denoised, noise), "deviation")


def test_sizes_that_the_model_cannot_take(nodes, tiny, refused):
    model = tiny("sd3")
    noise = nodes("RMD_Noise", noise_seed=SEED)[0]
    latent = model.latent(8, 8)
    wires = dict(output=latent, denoised_output=latent, sigmas=torch.tensor([1.0, 0.5]), model=model.patcher)
    refused(lambda: nodes("RMD_StageUpscale", **wires, noise=noise, width=400, height=400), "position table")
