"""A 2+2 plan on every class of ComfyUI's that makes images or videos, against core; see tests/zoo.py."""

import dataclasses
import re

import pytest

import zoo


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_model_is_sampled_as_core_does_or_refused_in_a_line(nodes, name):
    import comfy.supported_models

    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    row = zoo.meet(name, nodes)
    assert "\n" not in row.refused and bool(row.noise) != bool(row.refused)


def test_the_page_has_every_class():
    page = zoo.PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", page.split(zoo.BEGIN)[1].split(zoo.END)[0])
    assert sorted(listed) == sorted(zoo.ZOO)


def kind(pack, name):
    return pack.nodes.bridge.model.ModelView.of(zoo.tiny_model(name).patcher).kind


@pytest.mark.parametrize(("one", "other"), [("Flux", "FluxSchnell"), ("Lumina2", "ZImage"), ("SD15", "SD20")])
def test_models_of_one_network_class_are_distinguished(pack, one, other):
    assert kind(pack, one) != kind(pack, other) and kind(pack, one) == kind(pack, one)


def test_the_first_models_are_named(pack):
    assert [kind(pack, name).name for name in ("SD15", "SD20")] == ["SD15", "SD20"]


@pytest.mark.parametrize(("name", "patch"), [("Anima", 2), ("Krea2", 2), ("PixelDiTT2I", 16), ("LTXV", 1)])
def test_stages_are_whole_patches(pack, name, patch):
    assert pack.nodes.bridge.model.ModelView.of(zoo.tiny_model(name).patcher).multiple == patch


def test_the_noise_scale_of_hidream_o1_is_in_its_logsnr(pack):
    curve = pack.nodes.bridge.model.ModelView.of(zoo.tiny_model("HiDreamO1").patcher).curve
    assert curve.noise_scale == 8.0 and curve.logsnr(1 / 9) == pytest.approx(0.0)
    assert dataclasses.replace(curve, noise_scale=1.0).logsnr(1 / 9) > 4.0


@pytest.mark.parametrize("name", ["HunyuanVideo", "HiDream", "Kandinsky5"])
def test_a_prompt_without_a_pooled_part_is_refused(nodes, refused, name):
    model = zoo.tiny_model(name)
    bridge = nodes.pack.nodes.bridge
    empty = bridge.latents.final_latent(model.patcher, zoo.empty_latent(name))
    size = tuple(empty["samples"].shape[-2:])
    view = bridge.model.ModelView.of(model.patcher)
    plan = bridge.plans.sampling_plan(view, size, {"source": "steps per size", "split": "2", "scale": 0.5})
    ((embedding, values),) = model.conditioning(1, **zoo.ZOO[name].extra)
    for pooled in ({}, {"pooled_output": None}):
        others = {key: value for key, value in values.items() if key != "pooled_output"}
        prompt = [[embedding, others | pooled]]
        refused(
            lambda prompt=prompt: nodes.sample(model, plan, positive=prompt, latent=empty),
            "pooled output",
            "text encoders",
        )
