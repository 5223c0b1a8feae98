"""Conditioning at a stage: everything tied to a place or a size in the image follows the stage's size."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch

from ...rmd_core.boundary import area_average
from ...rmd_core.errors import RMDError

Entry = dict[str, Any]
"""One entry of a guider's conditioning: options by name, as ComfyUI keeps them inside a guider."""

SIZE_OPTIONS = {  # option of SDXL's micro-conditioning -> axis
    "width": 1,
    "height": 0,
    "target_width": 1,
    "target_height": 0,
    "crop_w": 1,
    "crop_h": 0,
}

# ComfyUI resizes these for each stage itself, or they are not images.
UNCHANGED = {"mask", "concat_mask_index", "cross_attn", "pooled_output", "model_conds", "control", "hooks", "uuid"}

# Reference images that a network takes at any size, each on its own grid.
REFERENCES = {"reference_latents", "context_latents"}

# Laid cell by cell on the latent: another size than its own would fail inside the network.
ON_THE_GRID = {"time_dim_concat", "vace_frames", "vace_mask", "control_video", "pose_video_latent"}

# In pixels, and right at any size: masks that ComfyUI resizes, and faces of a size of their own.
FREE_PIXELS = {"concat_mask", "face_video_pixels"}

# LTXV's guides, as they are: places in pixels of the frames that LTXVAddGuide appends to the latent.
GUIDES = {"keyframe_idxs", "guide_attention_entries", "generated_keyframes"}

# MiniMax H3's frames to keep and references: dictionaries that hold a latent of their own.
BLOCKS = {"minimax_keyframes", "minimax_refs"}

KNOWN = (
    UNCHANGED | REFERENCES | GUIDES | ON_THE_GRID | FREE_PIXELS | {"concat_latent_image", "condition", "audio_embed"}
)


@dataclass(frozen=True)
class StageView:
    """One stage as conditioning sees it: sizes are (height, width) in latent cells.

    size_conditioning is the recipe's: SDXL gets the size of the `stage` or of the `final` image, `none` leaves
    what the prompt says. references_on_grid as in `model.references_on_grid`.
    """

    stage_hw: tuple[int, int]
    final_hw: tuple[int, int]
    cell_px: int
    size_conditioning: str
    references_on_grid: bool

    def guider(self, guider: Any) -> Any:
        """A guider with its conditioning resized for this stage; the given guider is unchanged.

        One that keeps no conditioning in ComfyUI's way passes through.
        """
        if not hasattr(guider, "original_conds"):
            return guider
        lists = {name: [self.entry(entry) for entry in entries] for name, entries in guider.original_conds.items()}
        changed = copy.copy(guider)
        changed.original_conds = lists
        return changed

    def entry(self, entry: Entry) -> Entry:
        """One entry at this stage's size.

        Absolute areas and SDXL sizes are scaled. Tensors on the latent's grid (I2V and inpaint latents, VACE frames)
        are averaged over area, or left as they are where they were made for this stage. Percentage areas, masks,
        ControlNet hints and references need nothing: ComfyUI sizes them in each stage. Raises RMDError for what cannot
        follow.
        """
        changed = self._sizes(entry)
        if self.stage_hw == self.final_hw:
            return changed
        if "gligen" in entry:
            raise RMDError(
                "GLIGEN boxes do not work with a change of size; remove the GLIGEN node or sample at one size"
            )
        self._check_guides(entry)
        if "area" in entry:
            changed["area"] = self._area(entry["area"])
        unchanged = UNCHANGED | GUIDES | (REFERENCES - self._on_grid)
        for name in entry:
            if name in BLOCKS:
                changed[name] = [self._block(name, block) for block in changed[name]]
            elif name not in unchanged:
                changed[name] = self._image(name, changed[name])
        return changed

    def check_made_for(self, conditioning: Any, source: str) -> None:
        """Raise RMDError for a CONDITIONING with tensors on the latent's grid of another size than the stage's.

        source is the input that it came from.
        """
        for name, value in ((name, entry[name]) for _, entry in conditioning for name in self._on_grid & entry.keys()):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                size = tuple(tensor.shape[-2:])
                if size != self.stage_hw:
                    given, needed = (
                        f"{width * self.cell_px}x{height * self.cell_px}" for height, width in (size, self.stage_hw)
                    )
                    raise RMDError(
                        f"the conditioning {name!r} of {source} was made at {given} px, and the stage is {needed} px; "
                        "make it with small_width and small_height of RMD Schedule, or with more than two sizes give "
                        "each stage a guider of its own: RMD Stage Override and RMD Sampler (Advanced)"
                    )

    @property
    def _on_grid(self) -> set[str]:
        return ON_THE_GRID | {"concat_latent_image"} | ({"reference_latents"} if self.references_on_grid else set())

    def _sizes(self, entry: Entry) -> Entry:
        changed = dict(entry)
        if self.size_conditioning == "stage":
            for name in SIZE_OPTIONS.keys() & entry.keys():
                axis = SIZE_OPTIONS[name]
                changed[name] = round(entry[name] * self.stage_hw[axis] / self.final_hw[axis])
        elif self.size_conditioning == "final":
            for name in ("height", "width"):
                changed.setdefault(name, self.final_hw[SIZE_OPTIONS[name]] * self.cell_px)
        return changed

    def _area(self, area: tuple[Any, ...]) -> tuple[Any, ...]:
        """(size..., origin...) in cells of the final image, height and width last in each half, at this stage."""
        if area[0] == "percentage":
            return area
        half = len(area) // 2
        scaled = list(area)
        for axis, (stage, final) in enumerate(zip(self.stage_hw, self.final_hw), start=half - 2):
            begin, end = area[half + axis], area[half + axis] + area[axis]
            first = min(round(begin * stage / final), stage - 1)
            scaled[half + axis] = first
            scaled[axis] = max(1, min(round(end * stage / final), stage) - first)
        return tuple(scaled)

    def _check_guides(self, entry: Entry) -> None:
        """Raise RMDError for guides of LTXV that were placed on another size than the stage's."""
        places = entry.get("keyframe_idxs")  # (B, (t, y, x), tokens, (start, end)) in pixels
        if places is None or not places.numel():
            return
        height, width = (int(start) + self.cell_px for start in places[:, 1:, :, 0].amax(dim=(0, 2)))
        expected = tuple(side * self.cell_px for side in self.stage_hw)
        if (height, width) != expected:
            raise RMDError(
                f"the guides of LTXVAddGuide were made at {width}x{height} px and do not fit a stage of "
                f"{expected[1]}x{expected[0]} px; make prompts with guides of that size, and connect them to "
                "small_positive of RMD Sampler, or give RMD Sampler (Advanced) a guider and a later_guider"
            )

    def _block(self, name: str, block: dict[str, Any]) -> dict[str, Any]:
        """A keyframe of MiniMax H3, on the latent's grid, or a reference, on its own grid, at this stage.

        A reference is resized to the stage's area, as core's reference node does. One larger than the final image keeps
        its size, which was chosen for its detail.
        """
        latent = block.get("latent")
        if latent is None:
            return block
        size, (stage, final) = tuple(latent.shape[-2:]), (math.prod(hw) for hw in (self.stage_hw, self.final_hw))
        if name == "minimax_keyframes":
            if size not in (self.stage_hw, self.final_hw):
                raise RMDError(
                    f"a keyframe of MiniMax H3 is {size[0]} x {size[1]} cells and does not fit a stage of "
                    f"{self.stage_hw[0]} x {self.stage_hw[1]}; make it for the final size, {self.final_hw[0]} x "
                    f"{self.final_hw[1]}"
                )
            return {**block, "latent": area_average(latent, self.stage_hw)}
        if not stage < math.prod(size) <= 1.1 * final:  # its sides are rounded
            return block
        scale = math.sqrt(stage / math.prod(size))
        height, width = (max(2, 2 * round(side * scale / 2)) for side in size)  # the network takes cells two by two
        return {**block, "latent": area_average(latent, (height, width)), "latent_h": height, "latent_w": width}

    def _image(self, name: str, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, torch.Tensor) for item in value):
            return type(value)(self._image(name, item) for item in value)
        if not isinstance(value, torch.Tensor) or value.ndim < 4:
            return value
        size = tuple(value.shape[-2:])
        if size == self.stage_hw:
            return value
        if size == self.final_hw:
            return area_average(value, self.stage_hw)
        if size == tuple(side * self.cell_px for side in self.stage_hw):
            return value
        in_pixels = size == tuple(side * self.cell_px for side in self.final_hw)
        if name in ON_THE_GRID or (in_pixels and name not in FREE_PIXELS):
            expected = " x ".join(str(side) for side in self.final_hw)
            raise RMDError(
                f"the conditioning {name!r} is {size[0]} x {size[1]}, but only {expected} cells can be "
                "averaged for a smaller stage; make it for the final size, or sample at one size"
            )
        return value


def unknown_tensors(guider: Any) -> list[str]:
    """Names of a guider's conditioning that may be images but are unknown to this module."""
    entries = (entry for listed in getattr(guider, "original_conds", {}).values() for entry in listed)
    return sorted({name for entry in entries for name in entry.keys() - KNOWN if _holds_maps(entry[name])})


def _holds_maps(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_maps, value))
    return isinstance(value, torch.Tensor) and value.ndim >= 4
