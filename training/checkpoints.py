"""Checkpoints: one folder each, whole or absent, tensors in safetensors and the rest in JSON.

checkpoints/step_000100/{student,fake,student_optimiser,fake_optimiser[,average]}.safetensors, state.json

Parts whose tensors are spread over N processes are N files, student.1-of-4.safetensors and so on: a tensor that is in
the second file too is spread along its first axis, any other is whole in the first.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from rmd_core.errors import RMDError
from rmd_core.header import save_safetensors

from .files import make_folder, write_json, writing
from .processes import ProcessLost
from .sharding import local
from .tensor_files import open_tensors

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
