"""Soft noise masks: a cascade mixes source and painting as core does at one size."""

import pytest
import torch

from cascade_rig import SEED

PAINTED, SOURCE = 3.0, -1.0


def painter(comfy, patcher):
    """A MODEL whose network always estimates one clean value."""
    patcher = patcher.clone()
    model = patcher.model
    value = model.process_latent_in(torch.full((1, model.latent_format.latent_channels, 1, 1, 1), PAINTED))
    value = value if model.latent_format.latent_dimensions == 3 else value[:, :, 0]
    patcher.set_model_unet_function_wrapper(lambda apply, arguments: value.expand_as(arguments["input"]).clone())
    return patcher


@pytest.mark.parametrize("name", ["wan", "sdxl"])
@pytest.mark.parametrize("split", ["2+2", "1+1+2"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_constant_soft_mask_mixes_as_core_does(comfy, nodes, tiny, name, split, share):
    model = tiny(name)
    sizes = ((8, 8), (12, 12), (16, 16))[-len(split.split("+")) :]
    latent = model.latent(16, 16, noise_mask=torch.full((1, 128, 128), share))
    latent["samples"] += SOURCE
    plan = nodes.plan(model, sizes=sizes, split=split)
    ours = nodes.sample(model, plan, latent=latent, patcher=painter(comfy, model.patcher))["samples"]
    guider = comfy.samplers.CFGGuider(painter(comfy, model.patcher))
    guider.inner_set_conds({"positive": model.conditioning(1)})
    core = guider.sample(
        torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(SEED)),
        latent["samples"],
        comfy.samplers.sampler_object("euler"),
        torch.tensor(plan.sigmas(plan.stages.stages[-1])),
        denoise_mask=latent["noise_mask"],
        disable_pbar=True,
        seed=SEED,
    )
    expected = share * PAINTED + (1.0 - share) * SOURCE
    assert torch.allclose(core, torch.full_like(core, expected), atol=1e-4)
    assert torch.allclose(ours, core, atol=1e-4)


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_soft_cell_starts_a_stage_from_the_stage_before(nodes, tiny, name):
    """The state there is that of the upsampled estimate, whatever the samples hold; hard cells are left alone."""
    model, bridge = tiny(name), nodes.pack.nodes.bridge
    latent = model.latent(4, 4, noise_mask=torch.tensor([[0.0, 0.5, 0.5, 1.0]]).expand(1, 4, 4).clone())
    latent["samples"] += SOURCE
    source = bridge.latents.SourceImage(latent, model.patcher)
    form = bridge.model.NoiseForm.of(model.patcher)
    draw = torch.Generator().manual_seed(1)
    x0, white = (torch.randn(latent["samples"].shape, generator=draw) for _ in range(2))
    sigma = torch.tensor(0.7)
    samples, noise = source.start(x0, white, form=form, sigma=sigma)
    inside = model.patcher.model.process_latent_in
    kept, wanted = form.state(inside(samples), noise, sigma), form.state(x0, white, sigma)
    assert torch.allclose(kept[..., 1:], wanted[..., 1:], atol=1e-5)
    assert torch.equal(noise[..., 0], white[..., 0]) and torch.equal(noise[..., 3], white[..., 3])
    assert torch.allclose(samples[..., :3], latent["samples"][..., :3], atol=1e-5)
