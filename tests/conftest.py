"""What the tests share: a real ComfyUI where one is found, and a last line that counts the tests it was missing for."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from comfyui_checkout import find_comfyui

ROOT = Path(__file__).parents[1]
NO_COMFYUI = "no ComfyUI was found (COMFYUI_PATH, ~/comfy/ComfyUI)"


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    """The `comfy` package of a real ComfyUI, on the CPU, with all its folders in a temporary one.

    A test that asks for it is skipped where there is none. ComfyUI's other modules (`nodes`, `folder_paths`,
    `comfy_extras`, ...) can be imported by their names once this ran.
    """
    folder = find_comfyui()
    if folder is None:
        pytest.skip(NO_COMFYUI)
    sys.path.insert(0, str(folder))
    try:
        import comfy.cli_args

        comfy.cli_args.args.cpu = True  # before anything reads it: a CUDA build without a GPU fails otherwise
        comfy.cli_args.args.base_directory = str(tmp_path_factory.mktemp("comfyui"))
        import comfy.sd
        import comfy.utils
    except ImportError as error:
        pytest.fail(f"{folder} cannot be imported ({error}); install what it needs: python tests/comfyui_checkout.py")
    return comfy


@pytest.fixture(scope="session")
def pack(comfy):
    """This repository imported as ComfyUI imports a pack; its submodules come when asked for: `pack.nodes.inputs`."""
    import comfy_pack

    return comfy_pack.import_pack()


@pytest.fixture(scope="session")
def node_classes(pack):
    """Every node class of the pack by its id; the pack's demo files are then offered in ComfyUI's folders."""
    import comfy_pack

    return comfy_pack.node_classes(pack)


@pytest.fixture(scope="session")
def schemas(node_classes):
    """The schema of every node by its id."""
    return {node: kind.GET_SCHEMA() for node, kind in node_classes.items()}


@pytest.fixture(scope="session")
def nodes(pack, node_classes):
    """A function that calls a node of the pack by its id, with what makes plans for tiny models."""
    import cascade_rig

    return cascade_rig.Nodes(pack, node_classes)


@pytest.fixture(scope="session")
def tiny(comfy):
    """A function that gives a TinyModel by its name in comfy_models: `tiny("wan")`, always the same object."""
    import comfy_models

    return functools.lru_cache(maxsize=None)(lambda name: getattr(comfy_models, f"tiny_{name}")())


@pytest.fixture
def progress(comfy):
    """What ComfyUI's progress bar receives: (value, total, preview) of each event."""
    events = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: events.append((value, total, preview))
    )
    yield events
    comfy.utils.set_progress_bar_global_hook(None)


@pytest.fixture(scope="session")
def shipped():
    """The paths of the package's files: all that .comfyignore, which git reads as comfy-cli does, leaves in."""

    def listed(*flags):
        found = subprocess.run(["git", "ls-files", "-z", *flags], cwd=ROOT, capture_output=True)
        if found.returncode:
            pytest.skip("not a git checkout")
        return {name for name in found.stdout.decode().split("\0") if (ROOT / name).is_file()}

    left_out = ("--ignored", "--exclude-from=.comfyignore")
    mine = listed("--cached") | listed("--others", "--exclude-standard")
    return sorted(mine - listed("--cached", *left_out) - listed("--others", *left_out))


@pytest.fixture(scope="session")
def server(comfy, shipped, tmp_path_factory):
    """A running ComfyUI server with the package's files alone; what it printed is shown with every test that fails."""
    import comfy_server

    folder = tmp_path_factory.mktemp("server")
    for name in shipped:
        (folder / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "pack" / name)
    with comfy_server.ComfyServer(find_comfyui(), folder / "base", pack=folder / "pack") as running:
        yield running


@pytest.fixture(scope="session")
def hard_use():
    """The Ledger of all hard tries of this run; its table is printed at the end (-s shows it)."""
    import hard_use

    ledger = hard_use.Ledger()
    yield ledger
    print(f"\n\n{ledger.table()}")


@pytest.fixture
def refused(pack):
    """A function that runs something, and gives its error: an RMDError of one line with all of the words in it."""

    def check(action, *words):
        with pytest.raises(pack.rmd_core.errors.RMDError) as caught:
            action()
        text = str(caught.value)
        assert "\n" not in text and len(text) > 30
        for word in words:
            assert word in text, text

    return check


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """The trainer's tiny world with an autoencoder beside it; to be copied, never to be changed."""
    from training_world import tiny_vae, write_native_vae, write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    write_native_vae(tiny_vae(), folder / "vae.safetensors")
    return folder


@pytest.fixture
def world(pristine, tmp_path):
    """A copy of the trainer's tiny world."""
    from training_world import copy_world

    return copy_world(pristine, tmp_path)


class MissingComfyui:
    """Counts the tests skipped because there is no ComfyUI, and says so in the very last line of the run."""

    def __init__(self):
        self.skipped = 0

    def pytest_runtest_logreport(self, report):
        self.skipped += report.skipped and NO_COMFYUI in str(report.longrepr)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config):
        if self.skipped:
            tests = "test was" if self.skipped == 1 else "tests were"
            config.get_terminal_writer().line(f"{self.skipped} {tests} skipped because {NO_COMFYUI}")


class ServerLog:
    """Adds the end of the server's log to the report of a failed test that used the server."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        server = getattr(item, "funcargs", {}).get("server")
        if report.failed and server is not None:
            report.sections.append(("ComfyUI server log", server.printed()[-6000:]))
        return report


class PackEntry:
    """Keeps pytest from importing the root's __init__.py: it is ComfyUI's entry point, not a package of tests."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_configure(config):
    settings.register_profile("no deadline", deadline=None, max_examples=60)  # the machine may be busy
    settings.load_profile("no deadline")
    config.pluginmanager.register(MissingComfyui())
    config.pluginmanager.register(PackEntry())
    config.pluginmanager.register(ServerLog())


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.parent.name == "rmd_core")  # short ones last: workers end at the same time
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
