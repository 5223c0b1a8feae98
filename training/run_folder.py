"""The output folder of a run, and who may write into it.

config.yaml   the resolved configuration        pictures/      validation grids
run.json      its digest                        checkpoints/   see training/checkpoints.py
metrics.jsonl one line per update               tensorboard/   the same for TensorBoard
<name>.safetensors   the student, once the run is complete
"""

import json
from pathlib import Path

import yaml

from rmd_core.errors import RMDError

from .files import make_folder, write_json, write_text


def check_folder(config, *, resume):
    """The output folder: new or empty, or, when resuming, one that holds this very run. Nothing is written.

    Raises RMDError if the folder holds anything else.
    """
    folder, marker = Path(config.output.folder), Path(config.output.folder) / "run.json"
    if folder.exists() and not folder.is_dir():
        raise RMDError(f"the output folder {folder} is a file; choose another output.folder")
    if resume:
        _check_same_run(config, folder, marker)
    elif folder.exists() and any(folder.iterdir()):
        what = "a run" if marker.exists() else "other files"
        raise RMDError(
            f"the output folder {folder} already holds {what}; "
            + ("continue it with --resume, or " if marker.exists() else "")
            + "choose another one with --set output.folder=..."
        )
    return folder


def claim_folder(config, folder):
    """Make the folder and mark it as this run's. Raises RMDError where it cannot be written."""
    make_folder(folder)
    write_text(folder / "config.yaml", config.to_yaml())
    write_json(folder / "run.json", {"version": 1, "digest": config.digest()})


def _check_same_run(config, folder, marker):
    try:
        digest = json.loads(marker.read_text(encoding="utf-8"))["digest"]
    except FileNotFoundError:
        raise RMDError(f"there is no run to resume in {folder}; start it without --resume") from None
    except (OSError, ValueError, TypeError, KeyError):
        raise RMDError(f"{marker} is damaged; this run cannot be resumed") from None
    if digest != config.digest():
        raise RMDError(
            f"the run in {folder} has another configuration ({_differences(config, folder)}); "
            "resume with the same one, or choose another output.folder"
        )


def _differences(config, folder):
    try:
        old = _flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return "its config.yaml cannot be read"
    new = _flat(yaml.safe_load(config.to_yaml()))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and key[:7] != "output."]
    return ", ".join(f"{key}: {old.get(key)} there, {new.get(key)} here" for key in changed[:3])


def _flat(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
