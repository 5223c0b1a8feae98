"""Two networks for one path: an expert for high noise, one for low noise, and a level at which they change over.

So is Wan2.2 A14B. A level is that which a network is asked at: of a mapped step the one after the mapping.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import torch

from .errors import RMDError

EXPERTS = ("high", "low")
"""The experts in the order of a sample; their files and the adapters in them are named so too."""

AT_SIGMA = 1e-6
"""A level that is below a sigma by no more than this share, the rounding of float32, is at that sigma."""

# A capital begins a word within letters (T2VHighNoise); "flow", "slow", "glow", "below" and "yellow" are not "low".
_OF_NOISE = re.compile(r"(?:High|Low|(?i:(?<![efgls])(?:high|low)))(?=(?i:[ _.-]?noise))")
_WORD = re.compile(r"(?:High|Low|(?i:(?<![a-z])(?:high|low)))(?![A-Za-z])")

Level = TypeVar("Level", float, torch.Tensor)


def is_low(sigma: Level, boundary: float) -> Level | bool:
    """Whether a level is the low-noise expert's, or which of several are; one at the boundary is the high-noise one's.

    Source: `boundary` in wan/text2video.py of github.com/Wan-Video/Wan2.2, and diffusers' `WanPipeline`.
    """
    return sigma < boundary * (1.0 - AT_SIGMA)


def expert_of(name: str) -> str | None:
    """Which expert's a file is by its name, None where the name does not say.

    ``high_noise`` or ``low_noise`` in any case, also with another or no separator, else ``high`` or ``low`` as a word;
    the last one counts.
    """
    sides = _sides(Path(name).name)
    return sides[-1][0].lower() if sides else None


def _sides(name: str) -> list[re.Match[str]]:
    return list(_OF_NOISE.finditer(name)) or list(_WORD.finditer(name))


def expert_files(path: str | Path) -> tuple[Path, Path]:
    """The files of both experts, high noise first, of which `path` is either: their names differ in one word.

    Raises RMDError for a name without either word, and where one of the files is not there.
    """
    path = Path(path)
    sides = _sides(path.name)
    if not sides:
        raise RMDError(
            f"{path} is one of two networks, and its name does not say which; put both files into one folder, and name "
            "them alike but for 'high' in one and 'low' in the other"
        )
    begin, end = sides[-1].span()
    given = path.name[begin:end]
    files = []
    for word in EXPERTS:
        side = word.upper() if given.isupper() else word.capitalize() if given[0].isupper() else word
        files.append(path.with_name(path.name[:begin] + side + path.name[end:]))
    for file in files:
        if not file.is_file():
            raise RMDError(f"{path} is one of two networks, but there is no {file}; put both files into one folder")
    return files[0], files[1]
