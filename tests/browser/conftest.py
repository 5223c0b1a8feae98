"""One server and one page for all browser tests."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from browser.real_models import FILES
from browser.session import open_frontend


@pytest.fixture(scope="session")
def frontend(tmp_path_factory):
    """The frontend, with files (empty here) by the names that the workflows ask for."""
    folder = tmp_path_factory.mktemp("browser") / "comfyui"
    models = [(file.folder, name) for name, file in FILES.items()]
    with open_frontend(folder, models=models, Comfy_Execution_PreviewMethod="none") as opened:
        yield opened


@pytest.fixture
def keep_image(tmp_path):
    """A function (name, PNG) that keeps a screenshot in the folder of the variable SCREENSHOTS."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))

    def keep(name, png):
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(png)).convert("RGB").save(folder / f"{name}.png", optimize=True)

    return keep
