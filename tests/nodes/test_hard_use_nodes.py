"""Every input of every node at and beyond its limits: a good result or one clear line, never anything else.

RMD_HARD_USE=25 python -m pytest tests/test_hard_use_nodes.py -s    tries 25 times as much, and prints the table
"""

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from cascade_rig import TINY
from hard_use import EFFORT
from hard_use_contracts import contract
from hard_use_world import World, made

NODES = {
    "RMD_Guider": 30,
    "RMD_LoadPromptEmbeddings": 30,
    "RMD_LoadStudent": 20,
    "RMD_Noise": 20,
    "RMD_Sampler": 40,
    "RMD_SamplerAdvanced": 60,
    "RMD_Schedule": 60,
    "RMD_StageOverride": 20,
    "RMD_StageSigmas": 20,
    "RMD_StageUpscale": 40,
    "RMD_StepSampler": 20,
}
"""Node id -> tries in the suite."""

LARGEST = 1024
"""Sides in pixels above which nothing is really enlarged here: it would only take long."""


@pytest.fixture(scope="module")
def world(nodes, tiny, comfy):
    return World(nodes, tiny, comfy)


def tries(count):
    return settings(
        max_examples=count * EFFORT,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # the first try that fails is told as it was
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("node_id", NODES)
def test_a_node_with_inputs_at_and_beyond_their_limits(world, hard_use, node_id):
    """Inputs that fit one model, but for some of them, which are anything at all."""
    node = world.nodes.classes[node_id]
    entries = node.GET_SCHEMA().inputs

    @tries(NODES[node_id])
    @given(st.data())
    def attempt(data):
        fitting = world.usual_of(node_id, data.draw(st.sampled_from(sorted(TINY))))
        odd = data.draw(st.sets(st.sampled_from([entry.id for entry in entries]), max_size=2))
        shown = {}
        for entry in entries:
            if entry.id in odd:
                shown[entry.id] = data.draw(world.values(entry, None), label=entry.id)
            elif not entry.optional or data.draw(st.booleans()):
                own = fitting.get(entry.id)
                shown[entry.id] = data.draw(own if own is not None else world.values(entry, fitting), label=entry.id)
        if node_id == "RMD_StageUpscale":
            sides = [shown[name] for name in ("width", "height")]
            assume(not any(isinstance(side, int) and LARGEST < side <= 16384 for side in sides))
        inputs = made(shown)

        def action():
            if "fingerprint_inputs" in vars(node):
                node.fingerprint_inputs(**inputs)
            return node.execute(**inputs).args

        hard_use.attempt(node_id, shown, action, lambda outputs: contract(node_id)(inputs, outputs))

    attempt()


def test_every_node_is_tried(world):
    assert NODES.keys() == world.nodes.classes.keys()
