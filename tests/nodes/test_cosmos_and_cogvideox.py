"""Cosmos' flow and CogVideoX' v prediction: what the network itself is given at each step, on core's own classes."""

import pytest
import torch

import zoo
from cascade_rig import HandBuilt, Recorder, predicted_noise, relative
from comfy_models import TinyModel, patcher_of
from schedule_rig import by_split


@pytest.fixture
def given():
    """`given(patcher)` gives a list that fills with the (state, timestep) of every call of the network."""
    hooks = []

    def watch(patcher):
        calls = []
        network = patcher.model.diffusion_model

        def hook(_module, arguments, options):
            x, timestep = (arguments[0], arguments[1]) if len(arguments) > 1 else (arguments[0], options["timesteps"])
            calls.append((x.clone(), timestep.flatten()[0].item()))

        hooks.append(network.register_forward_pre_hook(hook, with_kwargs=True))
        return calls

    yield watch
    for hook in hooks:
        hook.remove()


def planned(nodes, name, split="2+2"):
    """A tiny model, its plan of two sizes, and core's empty latent for it."""
    model, bridge = zoo.tiny_model(name), nodes.pack.nodes.bridge
    empty = bridge.latents.final_latent(model.patcher, zoo.empty_latent(name))
    view = bridge.model.ModelView.of(model.patcher)
    source = {"source": "steps per size", "split": split, "scale": 0.5}
    return model, bridge.plans.sampling_plan(view, tuple(empty["samples"].shape[-2:]), source), empty


def sampled(nodes, name, given):
    """The plan of 2+2 steps, what the network was given, and the calls around it in ComfyUI's terms."""
    model, plan, empty = planned(nodes, name)
    recorder, calls = Recorder(), given(model.patcher)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), latent=empty)
    return plan, calls, recorder.calls


@pytest.mark.parametrize("name", ["CosmosT2IPredict2", "CosmosI2VPredict2"])
def test_cosmos_gets_the_share_of_noise(nodes, given, name):
    """The network gets t = k / (1 + k) and the state of a flow at t, which is ComfyUI's divided by 1 + k."""
    plan, calls, around = sampled(nodes, name, given)
    steps = plan.stage_plan.steps
    assert [level for _, level in calls] == pytest.approx([step.sigma for step in steps], rel=1e-6)
    for (x, level), call in zip(calls, around, strict=True):
        assert call.sigma == pytest.approx(level / (1 - level), rel=1e-5)
        assert torch.allclose(x[:, : call.x.shape[1]], call.x * (1 - level), rtol=1e-4, atol=1e-5)
    first, _, third, fourth = (call.sigma for call in around)
    assert first == pytest.approx(80.0) and third / fourth == pytest.approx((80 / 0.002) ** (250 / 999), rel=1e-4)
    assert third == pytest.approx(2 * 0.002 * (80 / 0.002) ** (499 / 999), rel=1e-4)  # r = 2


def test_cogvideox_gets_the_entries_of_its_table(nodes, given):
    """Timesteps 999 and 749, then those below 499 and 249 whose logSNR is lower by 2 ln 2."""
    plan, calls, around = sampled(nodes, "CogVideoX_T2V", given)
    assert [level for _, level in calls] == [step.timestep for step in plan.stage_plan.steps]
    curve = plan.stage_plan.curve
    mapped = [curve.table_index(curve.with_ratio(curve.table_sigma(float(index)), 2.0)) for index in (499, 249)]
    assert [level for _, level in calls] == [999, 749, *(round(index) for index in mapped)]
    for (x, _), call in zip(calls, around, strict=True):
        assert torch.equal(x, call.x)  # ComfyUI hands it the state as it is


@pytest.mark.parametrize("name", ["CosmosT2IPredict2", "CogVideoX_T2V"])
def test_the_next_size_starts_from_the_image_and_noise_of_unit_deviation(nodes, given, name):
    plan, _, around = sampled(nodes, name, given)
    last, first = around[1], around[2]
    enlarged = last.x0.double().repeat_interleave(2, -1).repeat_interleave(2, -2)
    noise = (first.x.double() - enlarged) / first.sigma
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)
    assert predicted_noise(plan, last).std().item() > 0.5


@pytest.mark.parametrize("name", ["CosmosT2IPredict2", "CogVideoX_T2V"])
@pytest.mark.parametrize("split", ["1+3", "2+2"])
def test_stage_by_stage_is_the_same_image(nodes, name, split):
    model, plan, empty = planned(nodes, name, split)
    whole = nodes.sample(model, plan, latent=empty)["samples"]
    frames = {} if empty["samples"].dim() == 4 else {"frames": empty["samples"].shape[2]}
    by_hand = HandBuilt(nodes, model, plan).run(**frames)["samples"]
    assert relative(by_hand, whole) < 1e-3


def test_what_has_no_shift_says_so(nodes, refused):
    view = nodes.pack.nodes.bridge.model.ModelView.of(zoo.tiny_model("CosmosT2IPredict2").patcher)
    make = nodes.pack.nodes.bridge.plans.sampling_plan
    refused(lambda: make(view, (16, 16), by_split(base_shift=3.0)), "CosmosPredict2", "has no flow shift")
    shifts = by_split(mapping="native shifts 3 to 5")
    refused(lambda: make(view, (16, 16), shifts), "needs a flow model with a shift", "use area or auto")


def test_learned_positions_are_for_one_size(nodes, refused):
    """CogVideoX-5b-I2V: ComfyUI would read the first positions of 720x480 px, row by row, at any other size."""
    own = {"use_learned_positional_embeddings": True, "use_rotary_positional_embeddings": False}
    model = TinyModel(patcher_of("CogVideoX_T2V", zoo.ZOO["CogVideoX_T2V"].config | own), 16, zoo.CONTEXT, video=True)
    view = nodes.pack.nodes.bridge.model.ModelView.of(model.patcher)
    make = nodes.pack.nodes.bridge.plans.sampling_plan
    one = by_split("2", earlier_sizes="")
    assert make(view, (60, 90), one).stage_plan.split == "2"
    refused(lambda: make(view, (64, 90), one), "720x512 px", "720x480 px", "learned positions")
    refused(lambda: make(view, (60, 90), by_split()), "learned positions", "rotary positions")
