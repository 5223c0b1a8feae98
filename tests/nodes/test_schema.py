"""What the nodes say of themselves: tooltips everywhere, search words, and which inputs are folded away."""

import pytest

ADVANCED = {
    "RMD_LoadStudent": {"kind.weight_dtype", "kind.strength"},
    "RMD_Schedule": {"denoise", "source.sigmas", "source.mapping", "source.base_shift", "source.method"},
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


@pytest.fixture(scope="module")
def schemas(node_classes):
    return {node: kind.GET_SCHEMA() for node, kind in node_classes.items()}


def test_every_input_and_output_has_a_tooltip(schemas):
    for node, schema in schemas.items():
        for name, field in [*all_inputs(schema), *enumerate(schema.outputs)]:
            told = field.tooltip or ""
            assert told.isascii() and told.endswith(".") and 12 < len(told) < 220, (node, name)


def test_one_name_has_one_tooltip_in_all_choices(schemas):
    """ComfyUI's page keys translations by name alone, so an input of several choices must mean one thing."""
    for node, schema in schemas.items():
        told = {}
        for name, field in all_inputs(schema):
            assert told.setdefault(name, field.tooltip) == field.tooltip, (node, name)


def test_every_node_has_a_description_and_search_words(schemas):
    for node, schema in schemas.items():
        assert schema.description.endswith(".") and 40 < len(schema.description) < 320, node
        words = schema.search_aliases
        assert words and len(set(words)) == len(words), node
        assert not [word for word in words if word.lower() in schema.display_name.lower()], node


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
