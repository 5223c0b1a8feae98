"""How each example workflow lies on the canvas: rows of groups, groups of columns, columns of nodes."""

from __future__ import annotations

from dataclasses import dataclass

BLUE, GREEN, ORANGE, GREY, PURPLE = "#3f789e", "#5a8a5a", "#b58b2a", "#6a6a6a", "#7a5a9a"
NOTE = "note"


@dataclass(frozen=True)
class Column:
    """Nodes on top of each other: ids of the API format, `note`, or (id, least height)."""

    width: int
    nodes: tuple[str | tuple[str, int], ...]


@dataclass(frozen=True)
class Group:
    """Columns side by side in a titled frame."""

    title: str
    colour: str
    columns: tuple[Column, ...]


Rows = tuple[tuple[Group, ...], ...]


def _group(title: str, colour: str, *columns: tuple) -> Group:
    return Group(title, colour, tuple(Column(width, tuple(nodes)) for width, *nodes in columns))


def _one_row(loaders: tuple, latent: str, result: tuple, *, note: int, plan: int = 570) -> Rows:
    """The form of a workflow with one RMD Sampler: read me, models and prompt, plan, sampling, result.

    note and plan are the least heights of the note and of RMD Schedule with its picture.
    """
    return (
        (
            _group("Read me", GREY, (380, (NOTE, note))),
            _group("1 Models and prompt", BLUE, (360, *loaders)),
            _group("2 Plan: what runs at which size", GREEN, (480, ("4", plan), ("9", 410))),
            _group("3 Sample", ORANGE, (290, latent, ("6", 500))),
            _group("4 Result", PURPLE, (340, *result)),
        ),
    )


_STUDENT = ("1", 130)
_PICTURE = ("7", ("8", 360))
_DEMO = (_STUDENT, "3", ("2", 130))
_TEXT = ("2", 220)

LAYOUTS: dict[str, Rows] = {
    "rmd_demo": _one_row(_DEMO, "5", _PICTURE, note=430, plan=490),
    "rmd_three_sizes": _one_row(_DEMO, "5", _PICTURE, note=430, plan=640),
    "rmd_hand_built": (
        (
            _group("Read me", GREY, (420, (NOTE, 360))),
            _group("1 Model and prompt", BLUE, (400, _STUDENT, ("2", 130))),
            _group("2 Plan", GREEN, (560, ("4", 460))),
        ),
        (
            _group("3 For both stages", BLUE, (320, "7", "6", "5", "3")),
            _group("4 Stage 1: the small size", ORANGE, (260, "10", "11"), (270, ("12", 330), "30", ("31", 270))),
            _group("5 Stage 2: the final size", ORANGE, (280, "20", "21"), (270, ("22", 330), "32", ("33", 270))),
        ),
    ),
    "rmd_few_step_and_rmd": (
        (
            _group("Read me", GREY, (360, (NOTE, 380))),
            _group("For all three", BLUE, (380, _STUDENT, ("11", 130)), (360, ("2", 130), "3", "5")),
        ),
        *(
            (_group(title, colour, (400, (f"{n}0", 430)), (290, (f"{n}1", 430)), (340, f"{n}2", (f"{n}3", 360))),)
            for n, title, colour in (
                ("2", "1 The few-step model at full size", BLUE),
                ("3", "2 The same, untouched, in a cascade", ORANGE),
                ("4", "3 The RMD student in the same cascade", GREEN),
            )
        ),
    ),
    "sdxl_lightning": _one_row(("1", _TEXT), "5", _PICTURE, note=460),
    "sdxl_dmd2_lora": _one_row(("1", "11", _TEXT), "5", _PICTURE, note=520),
    "sd35_large_turbo": _one_row(("1", "3", _TEXT), "5", _PICTURE, note=600),
    "pixart_lcm": _one_row(("1", "3", "13", _TEXT), "5", _PICTURE, note=600),
    "wan21_480p_to_720p": _one_row(("1", "11", "3", "13", _TEXT), "5", ("7", "10", ("8", 400)), note=640),
}
"""The layout of each workflow, by the name of its file."""

_DEMO_SIZE = {"5": {"width": 128, "height": 128}}
_FULL_SIZE = {"5": {"width": 1024, "height": 1024}}
SHOWN: dict[str, dict[str, dict[str, int]]] = {
    "rmd_demo": _DEMO_SIZE,
    "rmd_three_sizes": _DEMO_SIZE,
    "rmd_hand_built": {"11": {"width": 64, "height": 64}, "21": {"width": 128, "height": 128}},
    "rmd_few_step_and_rmd": _DEMO_SIZE,
    "sdxl_lightning": _FULL_SIZE,
    "sdxl_dmd2_lora": _FULL_SIZE,
    "sd35_large_turbo": _FULL_SIZE,
    "pixart_lcm": _FULL_SIZE,
}
"""Values of widgets that a wire overrules, by workflow, node and name: what the frontend shows greyed out."""
