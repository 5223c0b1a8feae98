"""The recipe: what is written is read back, plans come out the same, and damage is named."""

import json
from contextlib import suppress
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from core_world import FLOW3, PIXART, SDXL
from rmd_core.boundary import UPSAMPLERS, Boundary, learned_name
from rmd_core.errors import RMDError
from rmd_core.files import read_metadata, save_safetensors
from rmd_core.plan import plan_from_split, plan_from_thresholds, stage_sizes
from rmd_core.recipe import RECIPE_KEY, Recipe, read_recipe, student_metadata
from rmd_core.schedule import AreaMap, FixedRatioMap, FlowCurve, NoMap, ShiftPairMap, VPCurve

CURVES = [FLOW3, FlowCurve(1.5), SDXL, PIXART, VPCurve(SDXL.betas)]
MAPPINGS = [AreaMap(), ShiftPairMap(3.0, 5.0), FixedRatioMap(1.5), NoMap()]
STUDENT = {
    "base_model": "Wan-AI/Wan2.1-T2V-1.3B",
    "architecture": "wan2.1",
    "prediction": "flow",
    "multiple": 2,
    "pixels_per_cell": 8,
    "prompt_encoder": "google/umt5-xxl",
    "training_step": 300,
    "config_digest": "5f70bf18a086",
}


def wan_plan(mapping=None):
    return plan_from_split(FLOW3, "3+3", sizes=[(60, 104), (90, 160)], mapping=mapping or ShiftPairMap(3.0, 5.0))


def make_recipe(plan=None, *, boundary=None, eta=0.5, **changes):
    plan = plan or wan_plan()
    return Recipe.from_plan(plan, boundary=boundary or Boundary(), eta=eta, **{**STUDENT, **changes})


@st.composite
def recipes(draw):
    """(plan, a recipe made from it)"""
    sizes = draw(st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=1, max_size=3))
    sizes = list(zip(sorted(height for height, _ in sizes), sorted(width for _, width in sizes)))
    counts = draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)).filter(any))
    curve = draw(st.sampled_from(CURVES))
    try:
        plan = plan_from_split(curve, counts, sizes=sizes, mapping=draw(st.sampled_from(MAPPINGS)))
    except RMDError:  # a large ratio may leave a VP table no two entries for two steps
        reject()
    share = st.floats(0.0, 1.0)
    return plan, make_recipe(
        plan,
        boundary=Boundary(
            draw(st.sampled_from([*UPSAMPLERS, learned_name("upscaler x2.safetensors", 64 * "0")])),
            draw(st.sampled_from(["exact", "mix", "fresh"])),
            draw(share),
        ),
        eta=draw(share),
        base_model=draw(st.text(st.characters(codec="utf-8"))),
        prediction=draw(st.sampled_from(["eps", "v", "flow"])),
        multiple=draw(st.integers(1, 4)),
        size_conditioning=draw(st.sampled_from(["none", "stage", "final"])),
        cfg=draw(st.floats(0.0, 30.0)),
        adapter_alpha=draw(st.none() | st.floats(0.01, 1e6)),
        training_step=draw(st.integers(0, 10**9)),
        **draw(
            st.just({})
            | st.fixed_dictionaries({"expert": st.sampled_from(["high", "low"]), "expert_sigma": st.floats(0.01, 0.99)})
        ),
    )


@given(recipes())
def test_round_trip_through_json(made):
    plan, recipe = made
    text = recipe.to_json()
    back = Recipe.from_json(text)
    assert back == recipe
    assert back.to_json() == text
    assert back.plan() == plan
    assert hash(back) == hash(recipe)


def test_thresholds_are_kept_beside_the_plan_they_made():
    sizes = [(16, 16), (24, 24), (32, 32)]
    plan = plan_from_thresholds(FLOW3, 6, thresholds=[-5.0, -2.5], sizes=sizes, mapping=AreaMap())
    recipe = make_recipe(plan, thresholds=[-5.0, -2.5])
    assert recipe.thresholds == (-5.0, -2.5)
    assert recipe.plan() == plan


def test_another_final_size_keeps_ratios_and_levels():
    recipe = make_recipe()
    larger = recipe.plan((180, 320))
    assert larger.sizes == ((120, 208), (180, 320))
    assert [step.sigma for step in larger.steps] == [step.sigma for step in recipe.plan().steps]
    assert recipe.plan((46, 80)).sizes == ((30, 52), (46, 80))
    assert recipe.plan((91, 161)).sizes == ((60, 104), (91, 161))
    assert recipe.plan((2, 2)).sizes == ((2, 2), (2, 2))


@pytest.mark.parametrize(("split", "sizes"), [("4+0", [(7, 13), (11, 20)]), ("2+2", [(8, 8), (8, 8)])])
def test_sizes_above_the_result_and_equal_sizes_scale_too(split, sizes):
    recipe = make_recipe(plan_from_split(FLOW3, split, sizes=sizes, mapping=AreaMap()))
    assert recipe.stage_sizes() == tuple(sizes)
    doubled = tuple(2 * side for side in recipe.final_hw)
    scaled = recipe.stage_sizes(doubled)
    assert scaled == stage_sizes(doubled, recipe.ratios, multiple=2)
    assert scaled == tuple((2 * height, 2 * width) for height, width in sizes)


def test_boundary_and_eta_switch_default():
    recipe = make_recipe(boundary=Boundary("nearest", "mix", 0.25), eta=0.75)
    assert recipe.boundary() == Boundary("nearest", "mix", 0.25)
    assert (recipe.eta, recipe.eta_switch) == (0.75, 0.25)


def test_metadata_for_other_tools(tmp_path):
    metadata = student_metadata(make_recipe(), title="Student")
    spec = {key.removeprefix("modelspec."): value for key, value in metadata.items() if key != RECIPE_KEY}
    assert spec == {
        "sai_model_spec": "1.0.1",
        "architecture": "wan2.1",
        "implementation": "https://github.com/comfyanonymous/ComfyUI",
        "title": "Student",
        "resolution": "1280x720",
        "prediction_type": "flow",
        "usage_hint": spec["usage_hint"],
    }
    assert "3+3 steps at 832x480 to 1280x720 px, CFG 1;" in spec["usage_hint"]
    adapter = student_metadata(make_recipe(adapter_alpha=32), title="Student")
    assert adapter["modelspec.architecture"] == "wan2.1/lora"
    path = save_safetensors(tmp_path / "s.safetensors", {"w": torch.zeros(1)}, metadata)
    assert read_metadata(path) == metadata


def values_with(**changes):
    values = json.loads(make_recipe().to_json())
    values.update(changes)
    return json.dumps(values)


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe) if not field.name.startswith("expert")])
def test_each_missing_field_is_named(field):
    values = json.loads(make_recipe().to_json())
    del values[field]
    with pytest.raises(RMDError, match=f"is missing the field {field};"):
        Recipe.from_json(json.dumps(values))


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
@pytest.mark.parametrize("wrong", [{"a": 1}, [[["x"]]], True, float("nan")])
def test_each_wrong_type_is_named(field, wrong):
    with pytest.raises(RMDError, match=f"field {field}[: ]"):
        Recipe.from_json(values_with(**{field: wrong}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2, this code reads version 1"),
        ({"version": "1"}, "version '1'"),
        ({"version": None}, "version None"),
        ({"flavour": 1}, "unknown field 'flavour'"),
        ({"prediction": "x0"}, "prediction is 'x0'"),
        ({"size_conditioning": "big"}, "size_conditioning is 'big'"),
        ({"upsampler": "lanczos"}, "lanczos"),
        ({"switch_noise": "pink"}, "pink"),
        ({"cfg": -1.0}, "cfg is -1"),
        ({"adapter_alpha": 0}, "adapter_alpha 0.0"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta_switch": -0.5}, "eta_switch is -0.5"),
        ({"split": [3, 2]}, "must agree"),
        ({"split": [0, 0]}, "must agree"),
        ({"split": [3, 3, 0]}, "must agree"),
        ({"ratios": [[0.5, 0.5], [0.9, 1.0]]}, "size ratios"),
        ({"ratios": [[0.0, 0.5], [1.0, 1.0]]}, "size ratios"),
        ({"ratios": [[0.5], [1.0, 1.0]]}, "field ratios"),
        ({"final_hw": [0, 160]}, "from 1 to"),
        ({"multiple": 0}, "from 1 to"),
        ({"sigmas": [1.0, 0.9, 0.9, 0.7, 0.6, 0.3]}, "are not valid; give sigmas"),
        ({"sigmas": [1.5, 0.9, 0.8, 0.7, 0.6, 0.3]}, "are not valid; give sigmas"),
        ({"curve": {"kind": "cosine"}}, "field curve"),
        ({"curve": {"kind": "vp", "schedule": "linear", "start": 1e-4, "end": 0.02, "size": 10**12}}, "field curve"),
        ({"mapping": {"kind": "warp"}}, "field mapping"),
        ({"mapping": {"kind": "shift", "low": 3.0}}, "field mapping"),
        ({"mapping": {"kind": ["shift"]}}, "field mapping"),
        ({"training_step": 2**70}, "field training_step"),
    ],
)
def test_values_that_make_no_recipe_are_named(changes, message):
    with pytest.raises(RMDError, match=message) as caught:
        Recipe.from_json(values_with(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", "[" * 100_000, '{"a": 1e999999}', "{}", '"text"', "1"])
def test_text_that_is_no_recipe(text):
    with pytest.raises(RMDError, match="the recipe"):
        Recipe.from_json(text)


@pytest.mark.parametrize(
    "wrong", [{"expert": "high"}, {"expert_sigma": 0.5}, {"expert": "middle", "expert_sigma": 0.5}]
)
def test_an_expert_has_a_level(wrong):
    with pytest.raises(RMDError, match="high or low with a sigma between 0 and 1"):
        replace(make_recipe(), **wrong)
    for level in (0.0, 1.0):
        with pytest.raises(RMDError, match="expert_sigma"):
            replace(make_recipe(), expert="high", expert_sigma=level)
    assert "expert" not in make_recipe().to_json()


def test_whole_numbers_may_stand_for_reals():
    assert Recipe.from_json(values_with(cfg=1, eta=1)) == replace(make_recipe(), cfg=1.0, eta=1.0)


def test_files_without_or_with_a_damaged_recipe_are_named(tmp_path):
    path = save_safetensors(tmp_path / "model.safetensors", {"w": torch.zeros(1)}, {"format": "pt"})
    with pytest.raises(RMDError, match="model.safetensors: no RMD recipe"):
        read_recipe(path)
    save_safetensors(path, {"w": torch.zeros(1)}, {RECIPE_KEY: '{"version": 1}'})
    with pytest.raises(RMDError, match="model.safetensors: the recipe is missing the field base_model"):
        read_recipe(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(["version", *(field.name for field in fields(Recipe))]), value=JSON)
@settings(max_examples=300)
def test_any_value_in_any_field_gives_a_recipe_or_an_rmd_error(field, value):
    with suppress(RMDError):
        Recipe.from_json(values_with(**{field: value}))


@given(st.data())
@settings(max_examples=200)
def test_mutated_text_gives_a_recipe_or_an_rmd_error(data):
    text = list(make_recipe().to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from('0123456789eE.-+[]{}",: nulltrue'))
    with suppress(RMDError):
        Recipe.from_json("".join(text))
