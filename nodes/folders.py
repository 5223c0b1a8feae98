"""Model files by ComfyUI's folder API: the pack's own demo files with the user's, and file lists for drop-downs."""

import os
from functools import lru_cache
from pathlib import Path

import folder_paths

from ..rmd_core.errors import RMDError
from ..rmd_core.files import read_metadata
from ..rmd_core.prompt_cache import SHARD_NAME, shard_files
from ..rmd_core.recipe import RECIPE_KEY
from ..rmd_core.upsampler import UPSAMPLER_KEY

PROMPTS = "rmd_prompts"
"""Folder key of prompt caches: models/rmd_prompts for the user's own."""

UPSCALERS = "latent_upscale_models"
"""Core's folder key of latent upscale models, where upsamplers of the trainer are too."""

DEMO_MODELS = Path(__file__).parent.parent / "demo" / "models"
DEMO_FOLDERS = {"diffusion_models": "diffusion_models", "vae": "vae", PROMPTS: "embeddings"}
SUFFIXES = (".safetensors", ".sft")


def register_folders(demo_models: Path = DEMO_MODELS) -> None:
    """Register models/rmd_prompts with ComfyUI, and the demo's folders that exist, after the user's own."""
    folder_paths.add_model_folder_path(PROMPTS, os.path.join(folder_paths.models_dir, PROMPTS))
    for key, name in DEMO_FOLDERS.items():
        if (demo_models / name).is_dir():
            folder_paths.add_model_folder_path(key, str(demo_models / name), is_default=False)


def safetensors_files(key: str) -> list[str]:
    """The safetensors files under a folder key, as drop-downs name them; empty for an unknown key."""
    if key not in folder_paths.folder_names_and_paths:
        return []
    return [name for name in folder_paths.get_filename_list(key) if name.lower().endswith(SUFFIXES)]


def student_files(key: str) -> list[str]:
    """The safetensors files under a folder key that carry a recipe; each header is read once."""
    return _by_entry(key, RECIPE_KEY, True)


def plain_files(key: str) -> list[str]:
    """The safetensors files under a folder key that carry no recipe."""
    return _by_entry(key, RECIPE_KEY, False)


def upsampler_files() -> list[str]:
    """The files that training/train_upsampler.py wrote."""
    return _by_entry(UPSCALERS, UPSAMPLER_KEY, True)


def _by_entry(key: str, entry: str, wanted: bool) -> list[str]:
    paths = ((name, folder_paths.get_full_path(key, name)) for name in safetensors_files(key))
    return [name for name, path in paths if path is not None and _has_entry(path, entry, _stamp(path)) == wanted]


@lru_cache(maxsize=4096)
def _has_entry(path: str, entry: str, stamp: str) -> bool:
    try:
        return entry in read_metadata(path)
    except RMDError:  # damaged, or no safetensors file
        return False


def prompt_caches() -> list[str]:
    """The prompt caches as a drop-down names them: files, and a folder once for all the shards in it."""
    caches = {}
    for name in safetensors_files(PROMPTS):
        folder, file = os.path.split(name)
        caches[folder if folder and SHARD_NAME.fullmatch(file) else name] = None
    return list(caches)


def find_cache(name: str) -> str:
    """The path of a prompt cache, file or folder; raises RMDError when there is none."""
    return _cache_folder(name) or find_file(PROMPTS, name)


def find_file(key: str, name: str) -> str:
    """The path of a file that a drop-down named; raises RMDError when there is none."""
    path = folder_paths.get_full_path(key, name)
    if path is None:
        raise RMDError(
            f"no file {name!r:.90} in models/{key}; put it there, or choose another one (R refreshes the lists)"
        )
    return path


def fingerprint(key: str, name: str | None) -> str:
    """Text that changes when the file does, so that ComfyUI loads it again."""
    path = folder_paths.get_full_path(key, name) if isinstance(name, str) else None
    return _stamp(path)


def cache_fingerprint(name: str | None) -> str:
    """Text that changes when a file of a prompt cache does."""
    folder = _cache_folder(name) if isinstance(name, str) else None
    return "\n".join(map(_stamp, shard_files(folder))) if folder else fingerprint(PROMPTS, name)


def _cache_folder(name: str) -> str | None:
    if name not in prompt_caches():
        return None
    folders = (os.path.join(base, name) for base in folder_paths.get_folder_paths(PROMPTS))
    return next((folder for folder in folders if os.path.isdir(folder)), None)


def _stamp(path: str | Path | None) -> str:
    try:
        stat = os.stat(path) if path else None
    except OSError:
        stat = None
    return "absent" if stat is None else f"{path} {stat.st_size} {stat.st_mtime_ns}"
