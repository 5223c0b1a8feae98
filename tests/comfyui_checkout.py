"""Find a ComfyUI checkout and install what `import comfy` needs beside the PyTorch that is already here.

Run as a program (`make test` does): installs into the running interpreter, or says that no ComfyUI was found.
The list is that ComfyUI's own requirements.txt less what only its web page or single optional nodes use.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

NOT_NEEDED = {
    "alembic",
    "blake3",
    "comfy-angle",
    "comfyui-embedded-docs",
    "comfyui-frontend-package",
    "comfyui-workflow-templates",
    "kornia",
    "pydantic-settings",
    "pyopengl",
    "simpleeval",
    "spandrel",
}
TORCH_FAMILY = ("torch", "torchvision", "torchaudio")


def find_comfyui() -> Path | None:
    """Return the ComfyUI of COMFYUI_PATH, else ~/comfy/ComfyUI, else None.

    Raises FileNotFoundError when COMFYUI_PATH is set and holds no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    folder = Path(named).expanduser() if named else Path.home() / "comfy" / "ComfyUI"
    if (folder / "comfy" / "sd.py").is_file():
        return folder
    if named:
        raise FileNotFoundError(f"COMFYUI_PATH={named} holds no ComfyUI (no comfy/sd.py in it)")
    return None


def needed_requirements(text: str) -> list[str]:
    """Return the requirement lines of a requirements.txt that importing and running comfy needs."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and requirement_name(line) not in NOT_NEEDED]


def requirement_name(line: str) -> str:
    """Return the normalised project name of one requirement line: "PyYAML>=6" gives "pyyaml"."""
    return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-")


def install(requirements: list[str]) -> None:
    """Install `requirements` with pip, keeping the installed torch and its build (+cpu, +cu130, ...)."""
    torch_version = version("torch")
    build = torch_version.partition("+")[2]
    index = ["--extra-index-url", f"https://download.pytorch.org/whl/{build}"] if build else []
    with tempfile.TemporaryDirectory() as folder:
        constraint = Path(folder, "constraint.txt")
        constraint.write_text(f"torch=={torch_version}\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraint), *index]
        subprocess.run([*pip, *requirements], check=True)
    subprocess.run([sys.executable, "-c", f"import {', '.join(TORCH_FAMILY)}"], check=True)


def main() -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        print("no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI): the tests that need one will be skipped")
        return
    requirements = needed_requirements((comfyui / "requirements.txt").read_text())
    wanted = "\n".join([f"torch=={version('torch')}", *requirements])
    stamp = Path(sys.prefix, f".comfyui-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}")
    if not stamp.exists():
        print(f"installing what {comfyui} needs beside torch {version('torch')}", flush=True)
        install(requirements)
        stamp.write_text(wanted + "\n")


if __name__ == "__main__":
    main()
