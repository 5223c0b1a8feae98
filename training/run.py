"""The right to write into an output folder, which one run has at a time.
The output folder of a run, and who may write into it.

config.yaml   the resolved configuration        pictures/      validation grids
run.json      digests of it and of its data,    checkpoints/   see training/checkpoints.py
              commits of hub ids
metrics.jsonl one line per update               tensorboard/   the same for TensorBoard
run.lock      see training/run_lock.py
<name>.safetensors   the student, once the run is complete

Checkpoints: one folder each, whole or absent, tensors in safetensors and the rest in JSON.

checkpoints/step_000100/{student,fake,student_optimiser,fake_optimiser[,average]}.safetensors, state.json

Parts whose tensors are spread over N processes are N files, student.1-of-4.safetensors and so on: a tensor that is in
the second file too is spread along its first axis, any other is whole in the first.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch.distributed.tensor import DTensor

from rmd_core.errors import RMDError
from rmd_core.files import make_folder, open_tensors, save_safetensors, write_json, write_text, writing
from rmd_core.prompt_cache import NULL_PROMPT

from .config import decisive
from .hub import is_folder, located
from .parallel import ProcessLost, local

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

log = logging.getLogger(__name__)

NAME = "run.lock"
"""An empty file in the output folder; it stays there, and says nothing by being there."""

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class RunLock:
    """Within the block no other run on this machine writes into ``folder``, which is made if it is not there.

    The system itself takes the right back from a process that ends, however it ends. Raises RMDError where another run
    has it, or the folder cannot be written. A file system without locks is told in a warning.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._file = None

    def __enter__(self):
        make_folder(self.folder)
        with writing(self.folder / NAME):
            self._file = open(self.folder / NAME, "ab")
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno in _HELD:
                self._file.close()
                raise RMDError(
                    f"another run is writing into the output folder {self.folder} at this moment; wait until it has "
                    "ended, stop it, or choose another folder with --set output.folder=..."
                ) from None
            reason = error.strerror or error
            log.warning("warning: %s cannot be locked (%s); let no other run write into it", self.folder, reason)
        return self

    def __exit__(self, *_):
        self._file.close()  # which gives the lock back


def _lock(file):
    """Take an exclusive lock or raise OSError at once."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


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
    elif folder.exists() and any(path.name != NAME for path in folder.iterdir()):
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


_NAME = re.compile(r"^step_(\d+)$")
_STATE = "state.json"
_VERSION = 1


class StoredPart(Mapping):
    """The tensors of one part by name, whole whatever they were spread over; read when asked for."""

    def __init__(self, paths):
        self._files = [open_tensors(path) for path in paths]
        self._names = [set(file.keys()) for file in self._files]

    def __getitem__(self, name):
        held = [file.get_tensor(name) for file, names in zip(self._files, self._names) if name in names]
        if not held:
            raise KeyError(name)
        return held[0] if len(held) == 1 else torch.cat(held)

    def __iter__(self):
        return iter(sorted(self._names[0]))

    def __len__(self):
        return len(self._names[0])


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: the update it was made after, by how many processes, and its tensors by part."""

    update: int
    path: Path
    parts: dict
    processes: int


class CheckpointStore:
    """The checkpoints of one run, at most ``keep`` of them; written by all ``processes`` together, or by one alone."""

    def __init__(self, folder, *, keep, processes=None):
        self.folder = Path(folder)
        self.keep = keep
        self.count = 1 if processes is None else processes.count
        self.rank = 0 if processes is None else processes.rank
        self._together = contextlib.nullcontext if processes is None else processes.together

    def updates(self):
        """The updates there are checkpoints of, in order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.match(path.name) for path in self.folder.iterdir() if (path / _STATE).is_file())
        return sorted(int(match[1]) for match in found if match)

    def path(self, update):
        """Where the checkpoint of an update lies."""
        return self.folder / f"step_{update:06d}"

    def latest_path(self):
        """The newest checkpoint's folder, or None."""
        updates = self.updates()
        return self.path(updates[-1]) if updates else None

    def save(self, update, parts):
        """Write a checkpoint under another name, rename it in one stroke, then drop those beyond ``keep``.

        ``parts``: ``{part: {name: tensor}}``, tensors that may be spread over the processes. Raises RMDError in all
        processes when one cannot write; older checkpoints are untouched.
        """
        partial, final = self.folder / f".part-{update:06d}", self.path(update)
        spread = any(isinstance(tensor, DTensor) for tensors in parts.values() for tensor in tensors.values())
        shards = self.count if spread else 1
        try:
            with self._writing(final):
                if self.rank == 0:
                    make_folder(self.folder)
                    self._clear_partial()
                    partial.mkdir()
            with self._writing(final):
                for part, tensors in parts.items() if self.rank < shards else ():
                    mine = {n: local(t) for n, t in tensors.items() if self.rank == 0 or isinstance(t, DTensor)}
                    save_safetensors(partial / _file_name(part, self.rank, shards), mine)
            with self._writing(final):
                if self.rank == 0:
                    state = {"version": _VERSION, "update": update, "parts": sorted(parts)}
                    write_json(partial / _STATE, state | {"shards": shards, "processes": self.count})
                    if final.exists():
                        shutil.rmtree(final)
                    os.rename(partial, final)
        except ProcessLost:
            raise
        except RMDError as error:
            raise self._failure(error) from None
        for old in self.updates()[: -self.keep] if self.rank == 0 else ():
            shutil.rmtree(self.path(old), ignore_errors=True)
        return final

    def load(self, update, parts):
        """The checkpoint of an update, which must have these ``parts``. Raises RMDError if it is damaged."""
        path = self.path(update)
        instead = f"delete the folder {path} to resume from the one before"
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            version, told, found = state["version"], state["update"], sorted(state["parts"])
            shards, processes = int(state.get("shards", 1)), int(state.get("processes", 1))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise RMDError(f"{path / _STATE} is damaged; {instead}") from None
        if version != _VERSION:
            raise RMDError(
                f"{path / _STATE} is of version {version!r}, this program reads version {_VERSION}; {instead}"
            )
        if told != update or found != sorted(parts):
            raise RMDError(
                f"{path / _STATE} is damaged: it tells of update {told!r} and the parts {found}, "
                f"not of the parts {sorted(parts)}; {instead}"
            )
        files = {part: [path / _file_name(part, number, shards) for number in range(shards)] for part in parts}
        return Checkpoint(update, path, {part: StoredPart(paths) for part, paths in files.items()}, processes)

    @contextlib.contextmanager
    def _writing(self, final):
        with self._together(), writing(final):
            yield

    def _clear_partial(self):
        for path in self.folder.glob(".part-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _failure(self, error):
        if self.rank == 0:
            self._clear_partial()
        latest = self.latest_path()
        kept = f"the last good checkpoint is {latest}" if latest else "there is no earlier checkpoint"
        return RMDError(f"{error}; {kept}")


def _file_name(part, number, shards):
    return f"{part}.safetensors" if shards == 1 else f"{part}.{number + 1}-of-{shards}.safetensors"
