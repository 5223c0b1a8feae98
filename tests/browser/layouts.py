"""How each example workflow lies on the canvas: rows of groups, groups of columns, columns of nodes."""

from __future__ import annotations

from dataclasses import dataclass

BLUE, GREEN, ORANGE, GREY, PURPLE = "#3f789e", "#5a8a5a", "#b58b2a", "#6a6a6a", "#7a5a9a"
NOTE = "note"
FOLDED = -1


@dataclass(frozen=True)
class Column:
    """Nodes on top of each other: ids of the API format, `note`, or (id, least height or FOLDED)."""

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


TITLE_OF = {
    "rmd_demo": "RMD 1 demo (runs anywhere)",
    "rmd_wired": "RMD 2 demo with all nodes (runs anywhere)",
    "rmd_few_step_and_rmd": "RMD 3 few-step model and student (runs anywhere)",
    "rmd_three_sizes": "RMD 4 three sizes (runs anywhere)",
    "rmd_hand_built": "RMD 5 stage by stage (runs anywhere)",
    "sdxl_dmd2_lora": "RMD 6 SDXL with DMD2 LoRA (7 GB)",
    "sdxl_lightning": "RMD 6 SDXL-Lightning (7 GB)",
    "pixart_lcm": "RMD 7 PixArt LCM (8 GB)",
    "sd35_large_turbo": "RMD 8 SD3.5 Large Turbo (23 GB)",
    "wan21_480p_to_720p": "RMD 9 Wan2.1 480p to 720p (22 GB)",
}
"""The name that ComfyUI shows of each workflow, which is that of its file; in brackets what there is to download."""

BLUEPRINT_OF = {"rmd_demo": "RMD text to image"}
"""The blueprint that a workflow uses: its node holds those with a colon in their id, such as `10:1`."""


def _by_columns(
    loaders: tuple, plan: tuple, latent: str, result: tuple, *, widths: tuple[int, int] = (360, 460)
) -> Rows:
    """The form of a workflow with one RMD Sampler; widths are those of the plan and of the result."""
    return (
        (
            _group("1 Models and prompt", BLUE, (330, *loaders)),
            _group("2 Plan: what runs at which size", GREEN, (widths[0], *plan)),
            _group("3 Sample", ORANGE, (280, latent, ("6", 300), "7")),
            _group("4 Result", PURPLE, (widths[1], *result)),
        ),
    )


_STUDENT = ("1", 130)
_PICTURE = (("8", 560),)
_DEMO = (_STUDENT, "3", ("2", 130), (NOTE, 300))
_SCHEDULE_AND_NOTE = (("4", 540), (NOTE, 270))
_TEXT = ("2", 160)

LAYOUTS: dict[str, Rows] = {
    "rmd_demo": (
        (
            _group("Prompt and VAE", BLUE, (330, ("11", 130), "12", (NOTE, 300))),
            _group("Sample", ORANGE, (330, ("10", 300), ("14", 90))),
            _group("Result", PURPLE, (520, ("13", 590))),
        ),
    ),
    "rmd_wired": _by_columns(_DEMO, (("4", 560), ("9", 250)), "5", (("8", 500),), widths=(520, 400)),
    "rmd_few_step_and_rmd": (
        (
            _group("Read me", GREY, (270, (NOTE, 440))),
            _group("For all three", BLUE, (310, _STUDENT, ("11", 130), ("2", 120), ("3", FOLDED), "5")),
            *(
                _group(title, colour, (290, (f"{n}0", FOLDED), (f"{n}1", 280), (f"{n}2", FOLDED), (f"{n}3", 360)))
                for n, title, colour in (
                    ("2", "1 Few-step, full size", PURPLE),
                    ("3", "2 The same in a cascade", ORANGE),
                    ("4", "3 RMD student, same cascade", GREEN),
                )
            ),
        ),
    ),
    "rmd_three_sizes": _by_columns(_DEMO, (("4", 560), ("9", 250)), "5", _PICTURE),
    "rmd_hand_built": (
        (
            _group("1 Model and prompt", BLUE, (310, _STUDENT, ("2", 130), "3", (NOTE, 300))),
            _group("2 For both stages", GREEN, (340, ("4", 450), "7", "6", "5")),
            _group("3 Stage 1: the small size", ORANGE, (260, "10", "11", "12", ("30", FOLDED), ("31", 200))),
            _group("4 Stage 2: the final size", PURPLE, (280, "20", "21", "22"), (310, ("32", FOLDED), ("33", 420))),
        ),
    ),
    "sdxl_dmd2_lora": _by_columns(("1", "11", _TEXT), _SCHEDULE_AND_NOTE, "5", _PICTURE),
    "sdxl_lightning": _by_columns(("1", _TEXT), _SCHEDULE_AND_NOTE, "5", _PICTURE),
    "pixart_lcm": _by_columns(("1", "3", "13", _TEXT), _SCHEDULE_AND_NOTE, "5", _PICTURE),
    "sd35_large_turbo": _by_columns(("1", "3", _TEXT), _SCHEDULE_AND_NOTE, "5", _PICTURE),
    "wan21_480p_to_720p": _by_columns(("1", "11", "3", "13", _TEXT), _SCHEDULE_AND_NOTE, "5", ("10", ("8", 460))),
}
"""The layout of each workflow, by the name of its file in API format."""

_DEMO_SIZE = {"5": {"width": 128, "height": 128}}
_FULL_SIZE = {"5": {"width": 1024, "height": 1024}}
SHOWN: dict[str, dict[str, dict[str, int]]] = {
    "rmd_wired": _DEMO_SIZE,
    "rmd_three_sizes": _DEMO_SIZE,
    "rmd_hand_built": {"11": {"width": 64, "height": 64}, "21": {"width": 128, "height": 128}},
    "rmd_few_step_and_rmd": _DEMO_SIZE,
    "sdxl_lightning": _FULL_SIZE,
    "sdxl_dmd2_lora": _FULL_SIZE,
    "sd35_large_turbo": _FULL_SIZE,
    "pixart_lcm": _FULL_SIZE,
}
"""Values of widgets that a wire overrules, by workflow, node and name: what the frontend shows greyed out."""
