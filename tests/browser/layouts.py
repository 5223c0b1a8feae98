"""The layout of each example workflow: rows of groups, groups of columns, columns of nodes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from browser.real_models import TEMPLATES, Template, loaders, note_of, prompt_of

API_FORMAT = Path(__file__).parents[1] / "workflows"
NOTES = Path(__file__).parent / "notes"

BLUE, GREEN, ORANGE, GREY, PURPLE = "#3f789e", "#5a8a5a", "#b58b2a", "#6a6a6a", "#7a5a9a"
NOTE = "note"
FOLDED = -1
PREVIEW = 250  # room below a sampler for the preview, which makes it 221 px higher


@dataclass(frozen=True)
class Column:
    """Nodes on top of each other: ids of the API format, `note`, or (id, least height or FOLDED[, room below])."""

    width: int
    nodes: tuple[str | tuple[str, int] | tuple[str, int, int], ...]


@dataclass(frozen=True)
class Group:
    """Columns side by side in a titled frame."""

    title: str
    colour: str
    columns: tuple[Column, ...]


Stack = tuple[Group, ...]  # groups on top of each other
Rows = tuple[tuple[Group | Stack, ...], ...]


def groups_of(entry: Group | Stack) -> Stack:
    """The groups of an entry of a row, from top to bottom."""
    return (entry,) if isinstance(entry, Group) else entry


def _group(title: str, colour: str, *columns: tuple) -> Group:
    return Group(title, colour, tuple(Column(width, tuple(nodes)) for width, *nodes in columns))


TITLE_OF = {
    "rmd_demo": "RMD 1 demo (runs anywhere)",
    "rmd_wired": "RMD 2 demo with all nodes (runs anywhere)",
    "rmd_few_step_and_rmd": "RMD 3 few-step model and student (runs anywhere)",
    "rmd_three_sizes": "RMD 4 three sizes (runs anywhere)",
    "rmd_hand_built": "RMD 5 stage by stage (runs anywhere)",
    **{key: template.name for key, template in sorted(TEMPLATES.items(), key=lambda entry: entry[1].name)},
}
"""The name that ComfyUI shows of each workflow, which is that of its file; in brackets what there is to download."""

BLUEPRINT_OF = {"rmd_demo": "RMD text to image"}
"""The blueprint that a workflow uses: its node holds those with a colon in their id, such as `10:1`."""


def read_prompt(name: str) -> dict:
    """A workflow in API format."""
    if name in TEMPLATES:
        return prompt_of(TEMPLATES[name], name)
    return json.loads((API_FORMAT / f"{name}.json").read_text(encoding="utf-8"))


def read_note(name: str) -> str:
    """The Markdown of a workflow's note."""
    return note_of(TEMPLATES[name]) if name in TEMPLATES else (NOTES / f"{name}.md").read_text(encoding="utf-8")


def _by_columns(
    loaders: tuple, plan: tuple, latent: str, result: tuple, *, widths: tuple[int, int] = (520, 400)
) -> Rows:
    """The form of a workflow with one RMD Sampler; widths are those of the plan and of the result."""
    return (
        (
            _group("1 Models and prompt", BLUE, (330, *loaders)),
            _group("2 Plan: what runs at which size", GREEN, (widths[0], *plan)),
            _group("3 Sample", ORANGE, (280, latent, ("6", 300, PREVIEW), "7")),
            _group("4 Result", PURPLE, (widths[1], *result)),
        ),
    )


_STUDENT = ("1", 130)
_PICTURE = (("8", 560),)
_MANY_WIRES = ("4", 540, 110)  # pass below the plan
_DEMO = (_STUDENT, "3", ("2", 130), (NOTE, 300))


def _close(*ids: str) -> list[tuple[str, int, int]]:
    """Nodes with little room between them, over a long note."""
    return [(id, 0, 14) for id in ids]


def _public(template: Template) -> Rows:
    """The form of a template for a public model; its models have a column of their own where there are many nodes."""
    found = sorted(loaders(template)[0], key=lambda id: (id in ("3", "13"), int(id)))
    usual = {*found, *"245678", "10"}
    others = [id for id in template.nodes if id not in usual]
    models, rest = ([id for id in found if (id in ("3", "13")) == last] for last in (False, True))
    plan, result = (("4", 540), (NOTE, 300)), ("10", ("8", 460)) if template.frames else _PICTURE
    if len(found) + len(others) <= 4:
        return _by_columns((*found, *others, ("2", 160)), plan, "5", result)
    widths = (280, 340, 330)
    if "21" in found:  # the files of two models make the note long
        models = [*_close(*models), (NOTE, 420)]
        plan, widths = (_MANY_WIRES,), (365, 330, 260)
    title = "1 Models and prompt"
    if template.start:
        return (
            (
                _group(title, BLUE, (widths[0], *models), (280, *rest, ("2", 160), ("16", 100))),
                _group("2 Plan: what runs at which size", GREEN, (widths[1], *plan)),
                _group("3 Start image at both sizes", GREY, (240, "14", "5", "15")),
                _group(
                    "4 Sample and save",
                    ORANGE,
                    (300, ("6", 300, PREVIEW), ("7", FOLDED, 24), ("10", FOLDED, 24), ("8", 224)),
                ),
            ),
        )
    return (
        (
            _group(title, BLUE, (widths[0], *models), (280, *rest, *others, ("2", 160))),
            _group("2 Plan: what runs at which size", GREEN, (widths[1], *plan)),
            _group("3 Sample", ORANGE, (280, "5", ("6", 300, PREVIEW), "7")),
            _group("4 Result", PURPLE, (widths[2], *result)),
        ),
    )


LAYOUTS: dict[str, Rows] = {
    "rmd_demo": (
        (
            _group("Prompt and VAE", BLUE, (330, ("11", 130), "12", (NOTE, 300))),
            _group("Sample", ORANGE, (330, ("10", 300), ("14", 90))),
            _group("Result", PURPLE, (520, ("13", 590))),
        ),
    ),
    "rmd_wired": _by_columns(_DEMO, (("4", 540), ("9", 300)), "5", (("8", 500),)),
    "rmd_few_step_and_rmd": (
        (
            _group("Read me", GREY, (270, (NOTE, 440))),
            _group("For all three", BLUE, (310, _STUDENT, ("11", 130), ("2", 120), ("3", FOLDED), "5")),
            *(
                _group(
                    title,
                    colour,
                    (290, (f"{n}0", FOLDED, 34), (f"{n}1", 280, PREVIEW), (f"{n}2", FOLDED, 24), (f"{n}3", 216)),
                )
                for n, title, colour in (
                    ("2", "1 Few-step, full size", PURPLE),
                    ("3", "2 The same in a cascade", ORANGE),
                    ("4", "3 RMD student, same cascade", GREEN),
                )
            ),
        ),
    ),
    "rmd_three_sizes": _by_columns(_DEMO, (("4", 630), ("9", 212)), "5", _PICTURE, widths=(400, 460)),
    "rmd_hand_built": (
        (
            _group("1 Model and prompt", BLUE, (310, _STUDENT, ("2", 130), "3", (NOTE, 300))),
            _group("2 For both stages", GREEN, (300, ("4", 470), "7", "6", "5")),
            (
                _group(
                    "3 Stage 1: the small size",
                    ORANGE,
                    (260, "10", "11"),
                    (240, "12"),
                    (280, ("30", FOLDED), ("31", 210)),
                ),
                _group(
                    "4 Stage 2: the final size",
                    PURPLE,
                    (260, "20", "21"),
                    (240, "22"),
                    (280, ("32", FOLDED), ("33", 360)),
                ),
            ),
        ),
    ),
    **{key: _public(template) for key, template in TEMPLATES.items()},
    "ltx2_distilled": (
        (
            _group(
                "1 Models and prompt",
                BLUE,
                (330, *_close("1", "3", "30", "31"), (NOTE, 390)),
                (250, ("2", 160), ("16", 90), "17", "32"),
            ),
            _group("2 Plan: what runs at which size", GREEN, (340, _MANY_WIRES)),
            _group("3 Sample", ORANGE, (260, "5", "18", ("19", FOLDED), ("6", 300))),
            _group("4 Result", PURPLE, (320, "20", ("7", FOLDED), ("33", FOLDED), ("10", FOLDED), ("8", 400))),
        ),
    ),
}
"""The layout of each workflow, by its name in TITLE_OF."""

_DEMO_SIZE = {"5": {"width": 128, "height": 128}}
SHOWN: dict[str, dict[str, dict[str, int]]] = {
    "rmd_wired": _DEMO_SIZE,
    "rmd_three_sizes": _DEMO_SIZE,
    "rmd_hand_built": {"11": {"width": 64, "height": 64}, "21": {"width": 128, "height": 128}},
    "rmd_few_step_and_rmd": _DEMO_SIZE,
    **{
        key: {"5": dict(zip(("width", "height"), template.sizes[-1]))}
        for key, template in TEMPLATES.items()
        if template.start or not template.frames
    },
}
"""Values of widgets that a wire overrules, by workflow, node and name: what the frontend shows greyed out."""
