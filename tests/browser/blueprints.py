"""What the subgraph blueprints hold: their nodes in API format, their places, and what is seen from outside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Blueprint:
    """One node that stands for several.

    prompt: the nodes inside, in API format. places: node -> (x, y). inputs: (name, node, its input) and outputs: (name,
    node, its output's number), in the order in which the outside shows them; an input that is a widget inside becomes a
    widget outside.
    """

    description: str
    words: tuple[str, ...]
    prompt: dict[str, dict]
    places: dict[str, tuple[int, int]]
    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, str, int], ...]


_STUDENT = {
    "class_type": "RMD_LoadStudent",
    "inputs": {
        "kind": "full model",
        "kind.student": "rmd_tiny_wan_student.safetensors",
        "kind.weight_dtype": "default",
    },
}
_RECIPE = {"source": "student recipe", "source.recipe": ["1", 1], "denoise": 1.0}
_SAMPLER = {
    "class_type": "RMD_Sampler",
    "inputs": {"model": ["1", 0], "latent_image": ["3", 0], "plan": ["2", 0], "seed": 0, "cfg": ["2", 3]},
}
_DECODE = {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0]}}

BLUEPRINTS = {
    "RMD text to image": Blueprint(
        description="Makes an image with an RMD student. Connect the prompt's conditioning and the VAE of its base.",
        words=("few-step", "distilled", "cascade", "txt2img"),
        prompt={
            "1": _STUDENT,
            "2": {
                "class_type": "RMD_Schedule",
                "inputs": {"model": ["1", 0], "width": 1024, "height": 1024, **_RECIPE},
            },
            "3": {"class_type": "EmptyLatentImage", "inputs": {"width": ["2", 4], "height": ["2", 5], "batch_size": 1}},
            "4": _SAMPLER,
            "5": _DECODE,
        },
        places={"1": (0, 0), "2": (380, 0), "3": (780, 0), "4": (1100, 0), "5": (1480, 0)},
        inputs=(
            ("positive", "4", "positive"),
            ("negative", "4", "negative"),
            ("vae", "5", "vae"),
            ("student", "1", "kind.student"),
            ("width", "2", "width"),
            ("height", "2", "height"),
            ("batch_size", "3", "batch_size"),
            ("seed", "4", "seed"),
        ),
        outputs=(("image", "5", 0), ("table", "2", 1)),
    ),
    "RMD text to video": Blueprint(
        description="Makes a video with an RMD student. Connect the prompt's conditioning and the VAE of its base.",
        words=("few-step", "distilled", "cascade", "txt2video", "Wan"),
        prompt={
            "1": _STUDENT,
            "2": {
                "class_type": "RMD_Schedule",
                "inputs": {"model": ["1", 0], "latent": ["3", 0], "width": 1280, "height": 720, **_RECIPE},
            },
            "3": {
                "class_type": "EmptyHunyuanLatentVideo",
                "inputs": {"width": 1280, "height": 720, "length": 81, "batch_size": 1},
            },
            "4": _SAMPLER,
            "5": _DECODE,
            "6": {"class_type": "CreateVideo", "inputs": {"images": ["5", 0], "fps": 16.0}},
        },
        places={"1": (0, 0), "3": (0, 220), "2": (380, 0), "4": (800, 0), "5": (1180, 0), "6": (1400, 0)},
        inputs=(
            ("positive", "4", "positive"),
            ("negative", "4", "negative"),
            ("vae", "5", "vae"),
            ("student", "1", "kind.student"),
            ("width", "3", "width"),
            ("height", "3", "height"),
            ("length", "3", "length"),
            ("fps", "6", "fps"),
            ("seed", "4", "seed"),
        ),
        outputs=(("video", "6", 0), ("frames", "5", 0), ("table", "2", 1)),
    ),
}
"""By the name that ComfyUI shows, which is that of the file."""

# How the tests use one: its sizes, and how its result is saved.
SMALL = {"width": 128, "height": 128, "length": 5}
SAVED_BY = {
    "image": ("SaveImage", {"filename_prefix": "blueprint"}, "images"),
    "video": ("SaveVideo", {"filename_prefix": "blueprint", "format": "auto", "format.codec": "auto"}, "video"),
}
