"""Model files by ComfyUI's folder API: the pack's own demo files beside the user's, and file lists for drop-downs."""

import os
from pathlib import Path

import folder_paths

from ..rmd_core.errors import RMDError

PROMPTS = "rmd_prompts"
"""Folder key of prompt caches: models/rmd_prompts for the user's own."""

DEMO_MODELS = Path(__file__).parent.parent / "demo" / "models"
DEMO_FOLDERS = {"diffusion_models": "diffusion_models", "vae": "vae", PROMPTS: "embeddings"}
SUFFIXES = (".safetensors", ".sft")


def offer_folders(demo_models: Path = DEMO_MODELS) -> None:
    """Tell ComfyUI of models/rmd_prompts, and of the demo's folders that exist, after the user's own."""
    folder_paths.add_model_folder_path(PROMPTS, os.path.join(folder_paths.models_dir, PROMPTS))
    for key, name in DEMO_FOLDERS.items():
        if (demo_models / name).is_dir():
            folder_paths.add_model_folder_path(key, str(demo_models / name), is_default=False)


def safetensors_files(key: str) -> list[str]:
    """The safetensors files under a folder key, as drop-downs name them; empty for an unknown key."""
    if key not in folder_paths.folder_names_and_paths:
        return []
    return [name for name in folder_paths.get_filename_list(key) if name.lower().endswith(SUFFIXES)]


def find_file(key: str, name: str) -> str:
    """The path of a file that a drop-down named; raises RMDError when it is gone."""
    path = folder_paths.get_full_path(key, name)
    if path is None:
        raise RMDError(f"no file {name!r} in models/{key}; put it there, or choose another one (R refreshes the lists)")
    return path


def fingerprint(key: str, name: str | None) -> str:
    """Text that changes when the file does, so that ComfyUI loads it again."""
    path = folder_paths.get_full_path(key, name) if isinstance(name, str) else None
    try:
        stat = os.stat(path) if path else None
    except OSError:
        stat = None
    return "absent" if stat is None else f"{path} {stat.st_size} {stat.st_mtime_ns}"
