"""What links may bring that no widget would let in, taken as the schema says or refused; and the schemas."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cascade_rig import SEED

SIZES = ((8, 8), (16, 16))


def test_numbers_of_other_libraries_are_numbers(nodes):
    (sampler,) = nodes("RMD_StepSampler", eta=np.float64(0.25))
    assert type(sampler.extra_options["eta"]) is float and sampler.extra_options["eta"] == 0.25
    (noise,) = nodes("RMD_Noise", noise_seed=np.int64(5))
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    (same,) = nodes("RMD_Noise", noise_seed=5)
    assert torch.equal(noise.generate_noise(latent), same.generate_noise(latent))
    assert nodes("RMD_StepSampler", eta=1)[0].extra_options["eta"] == 1.0


@pytest.mark.parametrize("seed", [-1, 2**64, 10**400, 1.5, math.nan, True, "7", [7]])
def test_a_seed_is_a_whole_number_within_its_widget(nodes, refused, seed):
    refused(lambda: nodes("RMD_Noise", noise_seed=seed), "noise_seed is ", "a whole number from 0 to 1.84467e+19")


def test_nothing_over_a_link_that_is_needed(nodes, refused):
    classes = nodes.classes
    refused(lambda: classes["RMD_Noise"].execute(noise_seed=None), "noise_seed of RMD Noise is empty")
    assert classes["RMD_StepSampler"].execute(eta=0.5, plan=None).args  # what may be left out may be nothing


@pytest.mark.parametrize("value", ["plan", 3, object(), {}, torch.zeros(2)])
def test_every_socket_of_a_node_knows_its_kind(nodes, tiny, refused, value):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    good = {
        "model": model.patcher,
        "positive": model.conditioning(1),
        "latent_image": model.latent(16, 16),
        "plan": plan,
    }
    for name in good:
        run = {**good, name: value, "seed": SEED, "cfg": 1.0}
        refused(lambda run=run: nodes("RMD_Sampler", **run), f"{name} is ", "RMD Sampler cannot take", "connect")
    refused(lambda: nodes("RMD_Guider", guider=value, plan=plan), "guider is ", "GUIDER")
    refused(
        lambda: nodes("RMD_StageOverride", stage=2, boundary={"boundary": "as in the plan"}, sampler=value), "SAMPLER"
    )


def test_choices_that_are_none(nodes, tiny, refused):
    own = {"boundary": "own", "upsampler": "area", "switch_noise": "fresh"}
    refused(lambda: nodes("RMD_StageOverride", stage=2, boundary=own), "'own'", "eta_switch")
    refused(lambda: nodes("RMD_StageOverride", stage=2, boundary={"boundary": "x"}), "'x'", "'as in the plan'")
    refused(lambda: nodes("RMD_StageOverride", stage=2, boundary="own"), "'own'", "use one of")
    source = {
        "source": "split",
        "split": "2+2",
        "sigmas": "",
        "earlier_sizes": "0.5",
        "base_shift": 0.0,
        "method": "default",
    }
    run = {"model": tiny("wan").patcher, "width": 128, "height": 128}
    refused(lambda: nodes("RMD_Schedule", **run, source={**source, "mapping": "areas"}), "mapping 'areas'", "area")
    refused(
        lambda: nodes("RMD_Schedule", **run, source={**source, "mapping": "auto", "split": "1" * 5000}), "the split"
    )
    student = {"kind": "full model", "student": "rmd_tiny_wan_student.safetensors", "weight_dtype": "int3"}
    refused(lambda: nodes("RMD_LoadStudent", kind=student), "weight_dtype is 'int3'", "fp8_e4m3fn")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_and_prompts_hold_numbers(nodes, tiny, refused, value):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    latent = model.latent(16, 16)
    latent["samples"][0, 0, 0, 3, 3] = value
    refused(lambda: nodes.sample(model, plan, latent=latent), "not finite", "encode it again")
    whole = {"samples": torch.zeros(1, 16, 1, 16, 16, dtype=torch.int64)}
    refused(lambda: nodes.sample(model, plan, latent=whole), "holds int64 values", "floating-point")
    prompt = model.conditioning(1)
    prompt[0][0][0, 2, 5] = value
    refused(lambda: nodes.sample(model, plan, positive=prompt), "positive is ", "CONDITIONING", "finite")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_prompts_are_looked_at_anew_each_time(pack, dtype):
    """In place, as another node may change them, in any of several; large numbers whose sum overflows are numbers."""
    held, _ = pack.nodes.inputs._SOCKETS["CONDITIONING"]
    prompts = [[torch.ones(1, 3, 4, dtype=dtype), {"pooled_output": torch.ones(1, 5, dtype=dtype)}] for _ in range(2)]
    with torch.inference_mode():  # as ComfyUI runs nodes
        prompts.append([torch.full((1, 2, 2), torch.finfo(dtype).max, dtype=dtype), {"pooled_output": None}])
    assert held(prompts) and not held([])
    for tensor in (prompts[0][0], prompts[1][1]["pooled_output"], prompts[2][0]):
        for value in (math.nan, math.inf, -math.inf):
            with torch.inference_mode():
                place = tensor.view(-1)[-1]
                before = place.clone()
                place.fill_(value)
                assert not held(prompts)
                place.copy_(before)
                assert held(prompts)
    opposite = torch.ones(1, 3, 4, dtype=dtype)
    opposite[0, 0, :2] = torch.tensor([math.inf, -math.inf])
    assert not held([[opposite, {}]]) and held([[opposite.nan_to_num(), {}]])


@pytest.mark.parametrize(("name", "other"), [("wan", "sdxl"), ("sd3", "sdxl")])
def test_prompts_of_another_model_fail_as_they_do_in_comfyui(nodes, tiny, name, other):
    """What PyTorch says is not rewritten: its words have many causes."""
    model = tiny(name)
    plan = nodes.plan(model, sizes=SIZES)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        nodes.sample(model, plan, positive=tiny(other).conditioning(1))


def test_a_stage_that_tells_nothing_or_no_numbers(nodes, tiny, refused):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    silent = SimpleNamespace(sample=lambda *_, **__: torch.zeros(1, 16, 1, 8, 8), sampler_function=sample_euler)
    refused(lambda: nodes.advanced(model, plan, sampler=silent), "stage 1 reported no last step", "euler")
    refused(lambda: nodes.advanced(model, plan, guider=nodes.guider(model, cfg="2")), "cfg is '2'", "use a number")
    broken = model.patcher.clone()
    broken.set_model_unet_function_wrapper(lambda _apply, given: given["input"] * math.nan)
    refused(lambda: nodes.sample(model, plan, patcher=broken), "network of stage 1", "finite")


def sample_euler():
    """Only its name is looked at."""


def test_errors_that_are_comfyuis_pass(nodes, tiny):
    """Out of memory is met by ComfyUI itself, and another error of a network is raised as it is."""
    model = tiny("wan")
    for error in (torch.OutOfMemoryError("out of memory"), RuntimeError("another thing")):

        def fail(_apply, _given, error=error):
            raise error

        failing = model.patcher.clone()
        failing.set_model_unet_function_wrapper(fail)
        with pytest.raises(type(error)) as caught:
            nodes.sample(model, nodes.plan(model, sizes=SIZES), patcher=failing)
        assert caught.value is error


ADVANCED = {
    "RMD_LoadStudent": {"kind.weight_dtype", "kind.strength"},
    "RMD_Schedule": {"denoise", "source.sigmas", "source.mapping", "source.base_shift", "source.method"},
    "RMD_Sampler": {"sampler_name", "second_model_sigma"},
    "RMD_SamplerAdvanced": {"second_model_sigma"},
    "RMD_Guider": {"second_model_sigma"},
    "RMD_StageUpscale": {"upsampler", "switch_noise", "eta_switch"},
}
"""Inputs that ComfyUI folds away: rarely set, and right as they are."""


def all_inputs(schema):
    """(name, input) of every input, those inside a dynamic choice as ComfyUI names them: `source.steps`."""
    for field in schema.inputs:
        yield field.id, field
        for option in getattr(field, "options", None) or ():
            for inner in getattr(option, "inputs", ()):
                yield f"{field.id}.{inner.id}", inner


def test_every_input_and_output_has_a_tooltip(schemas):
    for node, schema in schemas.items():
        for name, field in [*all_inputs(schema), *enumerate(schema.outputs)]:
            assert field.tooltip and field.tooltip.isascii(), (node, name)


def test_one_name_has_one_tooltip_in_all_choices(schemas):
    """ComfyUI's page keys translations by name alone, so an input of several choices must mean one thing."""
    for node, schema in schemas.items():
        tooltips = {}
        for name, field in all_inputs(schema):
            assert tooltips.setdefault(name, field.tooltip) == field.tooltip, (node, name)


def test_what_is_rarely_set_is_folded_away(schemas):
    found = {node: {name for name, field in all_inputs(schema) if field.advanced} for node, schema in schemas.items()}
    assert {node: names for node, names in found.items() if names} == ADVANCED


def test_every_choice_keeps_an_input_in_sight(schemas):
    """A choice whose inputs were all folded away would look empty."""
    for node, schema in schemas.items():
        for field in schema.inputs:
            for option in getattr(field, "options", None) or ():
                inner = getattr(option, "inputs", ())
                assert not inner or not all(one.advanced for one in inner), (node, option.key)


def test_every_input_has_a_tooltip_of_at_most_20_words(node_classes):
    for node, kind in node_classes.items():
        inputs = list(kind.GET_SCHEMA().inputs)
        for field in inputs:
            for option in getattr(field, "options", None) or ():
                inputs += getattr(option, "inputs", ())
        long = {field.id: field.tooltip for field in inputs if not 2 <= len((field.tooltip or "").split()) <= 20}
        assert long == {}, node
