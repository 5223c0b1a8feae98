"""The output folder of a run: who may write into it, which run it is of, and its checkpoints.

config.yaml   the resolved configuration        images/        validation images
run.json      digests of it and of its data,    checkpoints/   see CheckpointStore
              commits of hub ids
metrics.jsonl one line per update               tensorboard/   the same for TensorBoard
run.lock      see lock_folder
<name>.safetensors   the student, once the run is complete

Checkpoints are safetensors and JSON, written here and not by torch.distributed.checkpoint, which pickles its metadata,
does not replace a checkpoint atomically, and would still leave versions, retention and one-line errors to do.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from rmd_core.errors import RMDError
from rmd_core.experts import expert_files
from rmd_core.files import (
    hash_file,
    lock_file,
    make_folder,
    open_tensors,
    read_json,
    save_safetensors,
    write_json,
    write_text,
    writing,
)
from rmd_core.prompt_cache import NULL_PROMPT

from .backbones import make_backbone
from .config import decisive
from .hub import COMMIT, commit_of, is_folder, local_path
from .parallel import ProcessLost, is_sharded, local

LOCK = "run.lock"
RUN_VERSION = 2  # of run.json; 1 had a digest of the whole prompt cache


def lock_folder(folder):
    """A block in which no other run on this machine writes into ``folder``, which is made if it does not exist.

    Raises RMDError where another run does, or the folder cannot be written.
    """
    make_folder(folder)
    return lock_file(
        folder / LOCK,
        f"another run is writing into the output folder {folder}; wait until it has ended, stop it, or choose another "
        "folder with --set output.folder=...",
    )


def check_folder(config, data, *, resume):
    """The output folder: new or empty, or, when resuming, one of this very run. Nothing is written.

    ``data``: the ``data_digests``. Raises RMDError if the folder contains anything else, or cannot be read.
    """
    folder = Path(config.output.folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise RMDError(f"the output folder {folder} is a file; choose another output.folder")
        if resume:
            _check_same_run(config, data, folder)
        elif folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            run = (folder / "run.json").exists()
            raise RMDError(
                f"the output folder {folder} already contains {'a run' if run else 'other files'}; "
                f"{'continue it with --resume, or ' if run else ''}choose another one with --set output.folder=..."
            )
    except OSError as error:
        raise RMDError(
            f"the output folder {folder} cannot be used ({error.strerror or error}); choose another output.folder"
        ) from None
    return folder


def claim_folder(config, data, folder, commits):
    """Make the folder and mark it as this run's. Raises RMDError where it cannot be written."""
    make_folder(folder)
    write_text(folder / "config.yaml", config.to_yaml())
    run = {"version": RUN_VERSION, "digest": config.digest(), "data": data, "commits": commits}
    write_json(folder / "run.json", run)


def known_commits(config):
    """The commits of hub ids that the run in the output folder was started with, ``{id as given: commit}``."""
    try:
        commits = read_json(Path(config.output.folder) / "run.json")["commits"]
        return {name: commit for name, commit in commits.items() if isinstance(commit, str)}
    except (RMDError, KeyError, AttributeError):
        return {}  # check_folder reports what is wrong


def data_digests(config, prompts, cache):
    """SHA-256 of the data of a run: prompts, their embeddings in ``cache``, the teacher, what the student starts from.

    Of a teacher on the hub it is the commit, which names the content: nothing is read for it.
    """
    start, experts = config.model.init_from, make_backbone(config.backbone.name).experts
    base = commit_of(config.backbone.base) or _checkpoint_digest(local_path(config.backbone.base), experts)
    return {
        "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        "prompts.cache": cache.digest((*prompts, NULL_PROMPT)),
        "backbone.base": base,
    } | ({} if start is None else {"model.init_from": _checkpoint_digest(local_path(start), experts)})


def _checkpoint_digest(path, experts=()):
    """The digest of a teacher's file, or over the network's files in a Diffusers-format folder; of both ``experts``."""
    if not is_folder(path):
        return " ".join(map(_file_digest, expert_files(path) if experts else (path,)))
    folder = next((path / name for name in ("transformer", "unet") if (path / name).is_dir()), path)
    folders = [folder, *([path / "transformer_2"] if experts else [])]
    files = [f for one in folders for f in sorted(one.iterdir()) if f.suffix in (".json", ".safetensors")]
    return hashlib.sha256("".join(f"{file.name} {_file_digest(file)}\n" for file in files).encode()).hexdigest()


def _file_digest(path):
    return hash_file(path, hashlib.sha256()).hexdigest()


def _check_same_run(config, data, folder):
    marker = folder / "run.json"
    if not marker.exists():
        raise RMDError(f"there is no run to resume in {folder}; start it without --resume")
    try:
        run = read_json(marker)
        version, digest, old = run["version"], run["digest"], dict(run["data"])
    except (RMDError, KeyError, TypeError, ValueError):
        raise RMDError(f"{marker} is damaged; this run cannot be resumed, choose another output.folder") from None
    if version != RUN_VERSION:
        raise RMDError(
            f"{marker} is of version {version}, this program reads version {RUN_VERSION}; choose another output.folder"
        )
    if digest != config.digest():
        raise RMDError(
            f"the run in {folder} has a different configuration ({_differences(config, folder)}); "
            "resume with the same one, or choose another output.folder"
        )
    names = {
        "prompts": "the list of prompts",
        "prompts.cache": f"the prompt cache {config.prompts.cache or config.prompts.encode_from}",
        "backbone.base": f"the teacher {config.backbone.base}",
        "model.init_from": f"the file {config.model.init_from} that the student started from",
    }
    if commit_of(config.backbone.base) and not str(old.get("backbone.base")).startswith(COMMIT):  # of an older version
        experts = make_backbone(config.backbone.name).experts
        data = data | {"backbone.base": _checkpoint_digest(local_path(config.backbone.base), experts)}
    changed = [names[key] for key, value in data.items() if old.get(key, value) != value]
    if changed:
        raise RMDError(
            f"{', '.join(changed)} changed since the run in {folder} started; "
            "put the old content back, or choose another output.folder"
        )


def _differences(config, folder):
    try:
        old = decisive(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError):
        return "its config.yaml cannot be read"
    new = decisive(yaml.safe_load(config.to_yaml()))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} there, {new.get(key)} here" for key in changed[:3])


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: the update it was made after, by how many processes, and its tensors by part.

    ``mixes_stages``: each micro-batch had its own stage; in old checkpoints all of an update share one.
    """

    update: int
    path: Path
    parts: dict
    processes: int
    mixes_stages: bool


class StoredPart(Mapping):
    """The tensors of one part by name, joined where they were sharded; each is read when asked for."""

    def __init__(self, paths):
        self._files = [open_tensors(path) for path in paths]
        self._names = [set(file.keys()) for file in self._files]

    def __getitem__(self, name):
        shards = [file.get_tensor(name) for file, names in zip(self._files, self._names) if name in names]
        if not shards:
            raise KeyError(name)
        return shards[0] if len(shards) == 1 else torch.cat(shards)

    def __iter__(self):
        return iter(sorted(self._names[0]))

    def __len__(self):
        return len(self._names[0])


class CheckpointStore:
    """The checkpoints of one run, at most ``keep`` of them; written by all ``processes`` together, or by one alone.

    step_000100/{student,fake,student_optimiser,fake_optimiser[,average]}.safetensors, state.json

    Each is one folder, complete or absent. Parts whose tensors are sharded over N processes are N files,
    student.1-of-4.safetensors and so on: a tensor that is in the second file too is sharded along its first axis, any
    other is whole in the first. They can be read by any number of processes.
    """

    VERSION = 1

    def __init__(self, folder, *, keep, processes=None):
        self.folder = Path(folder)
        self.keep = keep
        self.count, self.shards = (1, 1) if processes is None else (processes.count, processes.shards)
        self.rank = 0 if processes is None else processes.rank
        self._raise_together = contextlib.nullcontext if processes is None else processes.raise_together

    def updates(self):
        """The updates there are checkpoints of, in order."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if (path / "state.json").is_file()]
        return sorted(int(match[1]) for match in (re.fullmatch(r"step_(\d+)", name) for name in names) if match)

    def path(self, update):
        """The folder of the checkpoint of an update."""
        return self.folder / f"step_{update:06d}"

    def latest_path(self):
        """The newest checkpoint's folder, or None."""
        updates = self.updates()
        return self.path(updates[-1]) if updates else None

    def save(self, update, parts):
        """Write a checkpoint under another name, rename it, then remove those beyond ``keep``.

        ``parts``: ``{part: {name: tensor}}``, tensors that may be sharded over the processes. Raises RMDError in all
        processes when one cannot write; older checkpoints are untouched.
        """
        partial, final = self.folder / f".part-{update:06d}", self.path(update)
        sharded = any(is_sharded(tensor) for tensors in parts.values() for tensor in tensors.values())
        shards = self.shards if sharded else 1  # the first replica alone writes
        try:
            with self._raise_together(), writing(final):
                if self.rank == 0:
                    make_folder(self.folder)
                    self._remove_partial()
                    partial.mkdir()
            with self._raise_together(), writing(final):
                for part, tensors in parts.items() if self.rank < shards else ():
                    own = {n: local(t) for n, t in tensors.items() if self.rank == 0 or is_sharded(t)}
                    save_safetensors(partial / _file_name(part, self.rank, shards), own)
            with self._raise_together(), writing(final):
                if self.rank == 0:
                    state = {"version": self.VERSION, "update": update, "parts": sorted(parts), "mixes_stages": True}
                    write_json(partial / "state.json", state | {"shards": shards, "processes": self.count})
                    if final.exists():
                        shutil.rmtree(final)
                    os.rename(partial, final)
        except ProcessLost:
            raise
        except RMDError as error:
            if self.rank == 0:
                self._remove_partial()
            latest = self.latest_path()
            kept = f"the last good checkpoint is {latest}" if latest else "there is no earlier checkpoint"
            raise RMDError(f"{error}; {kept}") from None
        for old in self.updates()[: -self.keep] if self.rank == 0 else ():
            shutil.rmtree(self.path(old), ignore_errors=True)
        return final

    def load(self, update, parts):
        """The checkpoint of an update, which must have these ``parts``. Raises RMDError if it is damaged."""
        path = self.path(update)
        file, instead = path / "state.json", f"delete the folder {path} to resume from the one before"
        try:
            state = read_json(file)
            version, stored, found = state["version"], state["update"], sorted(state["parts"])
            shards, processes = int(state.get("shards", 1)), int(state.get("processes", 1))
            mixes_stages = state.get("mixes_stages", False)
        except (RMDError, KeyError, TypeError, ValueError):
            raise RMDError(f"{file} is damaged; {instead}") from None
        if version != self.VERSION:
            raise RMDError(f"{file} is of version {version!r}, this program reads version {self.VERSION}; {instead}")
        if stored != update or found != sorted(parts):
            raise RMDError(
                f"{file} is damaged: it is of update {stored!r} and the parts {found}, not of the parts "
                f"{sorted(parts)}; {instead}"
            )
        stored_parts = {
            part: StoredPart([path / _file_name(part, number, shards) for number in range(shards)]) for part in parts
        }
        return Checkpoint(update, path, stored_parts, processes, mixes_stages)

    def _remove_partial(self):
        for path in self.folder.glob(".part-*"):
            shutil.rmtree(path, ignore_errors=True)


def _file_name(part, number, shards):
    return f"{part}.safetensors" if shards == 1 else f"{part}.{number + 1}-of-{shards}.safetensors"
