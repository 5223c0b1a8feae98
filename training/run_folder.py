"""The output folder of a run, and who may write into it.

config.yaml   the resolved configuration        pictures/      validation grids
run.json      digests of it and of its data,    checkpoints/   see training/checkpoints.py
              commits of hub ids
metrics.jsonl one line per update               tensorboard/   the same for TensorBoard
run.lock      see training/run_lock.py
<name>.safetensors   the student, once the run is complete
"""

import hashlib
import json
from pathlib import Path

import yaml

from rmd_core.errors import RMDError
from rmd_core.prompt_cache import NULL_PROMPT

from .backbones.network_files import is_folder
from .config import decisive
from .files import make_folder, write_json, write_text
from .hub import located
from .run_lock import NAME as LOCK

VERSION = 2  # 1 had a digest of the whole prompt cache


def data_digests(config, prompts, cache):
    """SHA-256 of what a run is fed: the list of ``prompts``, their embeddings in ``cache``, and the teacher."""
    listed = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
    return {
        "prompts": listed,
        "prompts.cache": cache.digest((*prompts, NULL_PROMPT)),
        "backbone.base": _checkpoint_digest(located(config.backbone.base)),
    }


def check_folder(config, data, *, resume):
    """The output folder: new or empty, or, when resuming, one that holds this very run. Nothing is written.

    ``data``: the ``data_digests``. Raises RMDError if the folder holds anything else, or cannot be looked into.
    """
    folder, marker = Path(config.output.folder), Path(config.output.folder) / "run.json"
    try:
        return _checked(config, data, folder, marker, resume=resume)
    except OSError as error:
        raise RMDError(
            f"the output folder {folder} cannot be used ({error.strerror or error}); choose another output.folder"
        ) from None


def known_commits(config):
    """The commits of hub ids that the run in the output folder was begun with, ``{id as given: commit}``."""
    try:
        commits = json.loads((Path(config.output.folder) / "run.json").read_text(encoding="utf-8"))["commits"]
        return {name: commit for name, commit in commits.items() if isinstance(commit, str)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}  # what is wrong with it is told by check_folder


def claim_folder(config, data, folder, commits):
    """Make the folder and mark it as this run's. Raises RMDError where it cannot be written."""
    make_folder(folder)
    write_text(folder / "config.yaml", config.to_yaml())
    write_json(folder / "run.json", {"version": VERSION, "digest": config.digest(), "data": data, "commits": commits})


def _checked(config, data, folder, marker, *, resume):
    if folder.exists() and not folder.is_dir():
        raise RMDError(f"the output folder {folder} is a file; choose another output.folder")
    if resume:
        _check_same_run(config, data, folder, marker)
    elif folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        what = "a run" if marker.exists() else "other files"
        raise RMDError(
            f"the output folder {folder} already holds {what}; "
            + ("continue it with --resume, or " if marker.exists() else "")
            + "choose another one with --set output.folder=..."
        )
    return folder


def _check_same_run(config, data, folder, marker):
    try:
        run = json.loads(marker.read_text(encoding="utf-8"))
        version, digest, old = run["version"], run["digest"], dict(run["data"])
    except FileNotFoundError:
        raise RMDError(f"there is no run to resume in {folder}; start it without --resume") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise RMDError(f"{marker} is damaged; this run cannot be resumed, choose another output.folder") from None
    if version != VERSION:
        raise RMDError(
            f"{marker} is of version {version}, this program reads version {VERSION}; choose another output.folder"
        )
    if digest != config.digest():
        raise RMDError(
            f"the run in {folder} has another configuration ({_differences(config, folder)}); "
            "resume with the same one, or choose another output.folder"
        )
    changed = [key for key, value in data.items() if old.get(key) != value]
    if changed:
        raise RMDError(
            f"{', '.join(_NAMES[key](config) for key in changed)} changed since the run in {folder} began; "
            "put the old content back, or choose another output.folder"
        )


_NAMES = {
    "prompts": lambda config: "the list of prompts",
    "prompts.cache": lambda config: f"the prompt cache {config.prompts.cache}",
    "backbone.base": lambda config: f"the teacher {config.backbone.base}",
}


def _checkpoint_digest(path):
    """The digest of a teacher's file, or over the network's files in a Diffusers-format folder."""
    if not is_folder(path):
        return _file_digest(path)
    folder = next((path / name for name in ("transformer", "unet") if (path / name).is_dir()), path)
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors"))
    return hashlib.sha256("".join(f"{file.name} {_file_digest(file)}\n" for file in files).encode()).hexdigest()


def _file_digest(path):
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise RMDError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


def _differences(config, folder):
    try:
        old = decisive(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return "its config.yaml cannot be read"
    new = decisive(yaml.safe_load(config.to_yaml()))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} there, {new.get(key)} here" for key in changed[:3])
