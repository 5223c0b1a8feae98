"""Which of ComfyUI's samplers show the state that the network received: nodes/bridge/checks.py, measured."""

import pytest
import torch

from comfy_models import tiny_sdxl, tiny_sdxl_v, tiny_wan


def recording_guider(comfy, model):
    """A CFGGuider that keeps the state, the sigma and the clean estimate of each network call."""

    class Recording(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            x0 = super().predict_noise(x, timestep, model_options or {}, seed)
            self.calls.append((x.clone(), float(timestep.flatten()[0]), x0.clone()))
            return x0

    guider = Recording(model.patcher)
    guider.calls = []
    guider.inner_set_conds({"positive": model.conditioning(1)})
    return guider


def shows_its_last_state(comfy, model, name, sigmas):
    """Whether there is one callback a step, and the last one shows the last network call at the last sigma."""
    guider, shown = recording_guider(comfy, model), []
    latent = model.latent(8, 8)["samples"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    guider.sample(
        noise,
        latent,
        comfy.samplers.sampler_object(name),
        sigmas,
        callback=lambda step, x0, x, steps: shown.append((step, x0.clone(), x.clone())),
        disable_pbar=True,
        seed=4,
    )
    last = float(sigmas[-2])
    at_last = [(x, x0) for x, sigma, x0 in guider.calls if abs(sigma - last) < 1e-4 * last]
    if [step for step, _, _ in shown] != list(range(len(sigmas) - 1)) or not at_last:
        return False
    (x, x0), (_, shown_x0, shown_x) = at_last[-1], shown[-1]
    same_x0 = torch.allclose(shown_x0, x0, rtol=1e-4, atol=1e-4 * x0.abs().max().item())
    return same_x0 and torch.allclose(shown_x, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_wan, tiny_sdxl, tiny_sdxl_v])
def test_recoverable_samplers_are_those_that_show_their_state(comfy, pack, make):
    model = make()
    view = pack.nodes.bridge.model.ModelView.of(model.patcher)
    comfy_sigmas = [view.curve.comfy_sigma(sigma) for sigma in view.curve.grid(3)]
    sigmas = torch.tensor([*comfy_sigmas, 0.0], dtype=torch.float32)
    checks = pack.nodes.bridge.sampling
    names = set(comfy.samplers.SAMPLER_NAMES) - set(checks.OWN_STEPS)
    measured = {name for name in names if shows_its_last_state(comfy, model, name, sigmas)}
    assert measured == (checks.RECOVERABLE & names) and checks.RECOVERABLE - names == {"rmd"}


def test_every_sampler_is_known_by_the_name_that_comfyui_lists(comfy, pack):
    """A ddim SAMPLER is euler's; dpm_fast and dpm_adaptive are wrapped; all others carry their name."""
    names = {
        name: pack.nodes.bridge.sampling.sampler_name(comfy.samplers.sampler_object(name))
        for name in (comfy.samplers.SAMPLER_NAMES)
    }
    assert {name: found for name, found in names.items() if name != found} == {"ddim": "euler"}
