"""Checkpoints: one folder each, whole or absent, tensors in safetensors and the rest in JSON.

checkpoints/step_000100/{student,fake,student_optimiser,fake_optimiser[,average]}.safetensors, state.json
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rmd_core.errors import RMDError
from rmd_core.header import save_safetensors

from .files import make_folder, write_failure, write_json
from .tensor_files import read_tensors

_NAME = re.compile(r"^step_(\d+)$")
_STATE = "state.json"
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: the update it was made after, and its tensors by part."""

    update: int
    path: Path
    parts: dict


class CheckpointStore:
    """The checkpoints of one run, at most ``keep`` of them."""

    def __init__(self, folder, *, keep):
        self.folder = Path(folder)
        self.keep = keep

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

        ``parts``: ``{part: {name: tensor}}``. Raises RMDError when it cannot be written; older ones are untouched.
        """
        make_folder(self.folder)
        self._clear_partial()
        partial, final = self.folder / f".part-{update:06d}", self.path(update)
        try:
            partial.mkdir()
            for part, tensors in parts.items():
                save_safetensors(partial / f"{part}.safetensors", tensors)
            write_json(partial / _STATE, {"version": _VERSION, "update": update, "parts": sorted(parts)})
            if final.exists():
                shutil.rmtree(final)
            os.rename(partial, final)
        except OSError as error:
            raise self._failure(write_failure(final, error)) from None
        except RMDError as error:
            raise self._failure(error) from None
        for old in self.updates()[: -self.keep]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        return final

    def load_latest(self, parts):
        """The newest checkpoint, which must have these ``parts``, or None. Raises RMDError if it is damaged."""
        path = self.latest_path()
        if path is None:
            return None
        instead = f"delete the folder {path} to resume from the one before"
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            version, update, found = state["version"], state["update"], sorted(state["parts"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise RMDError(f"{path / _STATE} is damaged; {instead}") from None
        if version != _VERSION:
            raise RMDError(
                f"{path / _STATE} is of version {version!r}, this program reads version {_VERSION}; {instead}"
            )
        if update != self.updates()[-1] or found != sorted(parts):
            raise RMDError(
                f"{path / _STATE} is damaged: it tells of update {update!r} and the parts {found}, "
                f"not of the parts {sorted(parts)}; {instead}"
            )
        return Checkpoint(update, path, {name: read_tensors(path / f"{name}.safetensors")[0] for name in parts})

    def _clear_partial(self):
        for path in self.folder.glob(".part-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _failure(self, error):
        self._clear_partial()
        latest = self.latest_path()
        kept = f"the last good checkpoint is {latest}" if latest else "there is no earlier checkpoint"
        return RMDError(f"{error}; {kept}")
