"""Finished rows, one small JSON file each, found by what they depend on; several processes may write."""

import datetime
import json
import platform
from pathlib import Path

import torch

from rmd_core.errors import RMDError
from rmd_core.files import make_folder, write_json

RESULTS = Path(__file__).resolve().parents[1] / "results" / "quality"


class Store:
    """Figures by key, in files ``<row name>.<key>.json`` of a folder."""

    def __init__(self, folder=RESULTS):
        self.folder = Path(folder)

    def figures(self, key):
        """The figures kept under a key, or None. Raises RMDError for a damaged file."""
        entry = self._entry(key)
        return None if entry is None else entry["figures"]

    def made(self):
        """How the kept rows were made, as sorted texts: date, processor and versions."""
        entries = [self._read(path) for path in sorted(self.folder.glob("*.*.json"))]
        return sorted({f"{e['made']['cpu']}, torch {e['made']['torch']}, {e['made']['date']}" for e in entries})

    def keep(self, row, key, figures):
        """Write the figures of a row."""
        make_folder(self.folder)
        entry = {"name": row.name, "title": row.title, "key": key, "content": row.content, "figures": figures}
        write_json(self.folder / f"{row.name}.{key}.json", entry | {"made": made_here()})

    def _entry(self, key):
        found = sorted(self.folder.glob(f"*.{key}.json"))
        return self._read(found[0]) if found else None

    def _read(self, path):
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            dict(entry["figures"]), dict(entry["made"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RMDError(f"{path} is damaged ({error!r:.80}); delete it, and the row is made again") from None
        return entry


def made_here():
    """Date, processor and version of torch."""
    return {"date": datetime.date.today().isoformat(), "torch": torch.__version__.split("+")[0], "cpu": processor()}


def processor():
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
