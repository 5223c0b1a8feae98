"""Renamed nodes: what is listed leads to nodes that exist, and an entry mends an older prompt in ComfyUI itself."""

import asyncio
import sys
import types

import pytest

OLD = {"3": {"class_type": "RMD_OldSampler", "inputs": {"latent": ["1", 0], "seed": 7}, "_meta": {}}}


def test_every_entry_leads_from_a_node_that_is_gone_to_one_that_is_there(pack, node_classes):
    for rename in pack.nodes.renames.RENAMES:
        assert rename.old_node_id not in node_classes and rename.new_node_id in node_classes
        inputs = {field.id for field in node_classes[rename.new_node_id].GET_SCHEMA().inputs}
        assert {entry["new_id"].split(".")[0] for entry in rename.input_mapping or ()} <= inputs


@pytest.fixture
def manager(pack, node_classes, monkeypatch):
    """ComfyUI's own manager of replacements, as its server holds it, with the nodes of the pack registered."""
    monkeypatch.setitem(sys.modules, "server", types.ModuleType("server"))
    from app.node_replace_manager import NodeReplaceManager

    import nodes

    held = types.SimpleNamespace(node_replace_manager=NodeReplaceManager())
    sys.modules["server"].PromptServer = types.SimpleNamespace(instance=held)
    for name, kind in node_classes.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, kind)
    return held.node_replace_manager


def test_an_entry_mends_an_older_prompt(pack, manager):
    from comfy_api.latest import io

    mapping = [{"new_id": "latent_image", "old_id": "latent"}, {"new_id": "seed", "old_id": "seed"}]
    entry = io.NodeReplace("RMD_Sampler", "RMD_OldSampler", ["seed"], mapping, [{"new_idx": 0, "old_idx": 0}])
    asyncio.run(pack.nodes.renames.register_renames([entry]))
    prompt = {node: dict(value) for node, value in OLD.items()}
    manager.apply_replacements(prompt)
    assert prompt["3"]["class_type"] == "RMD_Sampler"
    assert prompt["3"]["inputs"] == {"latent_image": ["1", 0], "seed": 7}
