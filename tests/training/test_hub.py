"""Hub ids: the files a run needs, from a hub on this machine or from the hub cache, and every way it can fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from backbone_world import CONFIG, tiny_kl_vae, tiny_network, write_prompts
from encoder_world import write_model
from hub_world import TOKEN, Hub, digest, lay_out
from process_world import Run
from rmd_core.errors import RMDError
from rmd_core.prompt_cache import PromptCache
from rmd_core.recipe import read_recipe
from training.backbones import make_backbone
from training.config import load_config
from training.encode_prompts import main as encode
from training.export import base_name, export_lora
from training.hub import ENCODERS, NETWORK, VAE, fetched, fetching, hub_id, local_path
from training.networks import adapt
from training.run import _checkpoint_digest
from training.sample import main as sample
from training.setup import outline_run, prepare
from training_world import distill, refused

ID = "owner/tiny-sdxl_1.0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A whole model as it is on the hub: what is read, and everything else that models bring."""
    folder = write_model("sdxl", tmp_path_factory.mktemp("hub") / "model")
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        weights = folder / part / f"{name}.safetensors"
        (folder / part / f"{name}.fp16.safetensors").write_bytes(weights.read_bytes())
        (folder / part / f"{name}.bin").write_bytes(b"pickled")
        (folder / part / "model.onnx").write_bytes(b"onnx")
    (folder / "README.md").write_text("a model")
    (folder / "sd_xl_base_1.0.safetensors").write_bytes(b"a single file")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and no hub; as HF_HOME and HF_HUB_OFFLINE=1 set it before Python starts."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def serve(cache, monkeypatch):
    """Make the hub cache one of a hub on this machine, as HF_ENDPOINT sets it."""
    servers = []

    def start(models, **settings):
        hub = Hub(models, **settings).__enter__()
        servers.append(hub)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, value in hub.constants.items():
            monkeypatch.setattr(constants, name, value)
        return hub

    yield start
    for hub in servers:
        hub.__exit__()


def is_network(path):
    return path.parent.name in ("unet", "scheduler") or path.name == "model_index.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", "main")),
        ("owner/name-1.0@v2", ("owner/name-1.0", "v2")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        ("/abs/olute", None),
        ("./owner/name", ("owner/name", "main")),  # what pathlib makes of it
        ("../owner/name", None),
        ("a/b/c", None),
        ("name", None),
        ("models/student.safetensors", None),
        ("models/student.ckpt", None),
        ("owner/na me", None),
    ],
)
def test_what_is_a_hub_id(cache, text, expected):
    found = hub_id(text)
    assert (found and (found.name, found.revision)) == expected


def test_a_path_that_exists_wins(cache, tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub_id("owner/name") is None and local_path("owner/name") == local_path("owner/name").relative_to(".")
    assert fetched("owner/name", NETWORK).is_dir() and hub_id("owner/other") is not None


def test_only_the_files_that_are_needed_are_downloaded(serve, model, cache):
    hub = serve({ID: {"main": model}})
    unet = [f"unet/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors")]
    folder = fetched(ID, NETWORK)
    assert sorted(hub.downloads) == ["model_index.json", *unet]
    assert folder == cache / f"models--{ID.replace('/', '--')}" / "snapshots" / digest(model)
    fetched(ID, VAE)
    assert fetched(ID, ENCODERS) == folder
    encoders = [
        path.relative_to(model).as_posix()
        for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        for path in (model / part).iterdir()
        if path.suffix in (".json", ".txt", ".safetensors") and ".fp16." not in path.name
    ]
    vae = [f"vae/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors")]
    wanted = {"model_index.json", *unet, *vae, *encoders}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == wanted
    assert set(hub.downloads) <= wanted and len(hub.downloads) == len(set(hub.downloads))
    asked = len(hub.asked)
    assert fetched(f"{ID}@{digest(model)}", NETWORK) == folder and len(hub.asked) == asked  # a commit never changes
    for name in wanted:
        assert (folder / name).read_bytes() == (model / name).read_bytes()


def test_fp16_is_taken_where_there_is_nothing_else_and_pickled_weights_never(serve, model, tmp_path):
    half, pickled = tmp_path / "half", tmp_path / "pickled"
    for folder in (half, pickled):
        shutil.copytree(model, folder)
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (pickled / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    serve({"owner/half": {"main": half}, "owner/pickled": {"main": pickled}})
    folder = fetched("owner/half", NETWORK)
    assert [path.name for path in (folder / "unet").glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    make_backbone("sdxl").outline(folder)
    with pytest.raises(RMDError, match="owner/pickled has no safetensors weights in unet .*only safetensors are read"):
        fetched("owner/pickled", NETWORK)


def test_a_repository_of_one_network(serve, tmp_path):
    tiny_network("wan").save_pretrained(tmp_path / "alone")
    tiny_kl_vae(make_backbone("sdxl")).save_pretrained(tmp_path / "autoencoder")
    serve({"owner/alone": {"main": tmp_path / "alone"}, "owner/vae": {"main": tmp_path / "autoencoder"}})
    make_backbone("wan").outline(fetched("owner/alone", NETWORK))
    make_backbone("sdxl").load_vae(fetched("owner/vae", VAE))
    with pytest.raises(RMDError, match=r"owner/alone has no text_encoder\* or tokenizer\*; it has no folder"):
        fetched("owner/alone", ENCODERS)


def test_a_lora_student_is_sampled_from_the_hub_id_in_its_recipe(serve, model, tmp_path):
    hub = serve({ID: {"main": model}})
    text = CONFIG.format(name="sdxl", folder=tmp_path, low=4, high=8).replace(f"{tmp_path}/model", ID)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "texts.txt").write_text("a b c\n", encoding="utf-8")
    write_prompts("sdxl", tmp_path / "prompts.safetensors")
    config = load_config(tmp_path / "config.yaml", ("model.mode=adapters", "model.rank=3")).resolved()
    fetched(ID, NETWORK)
    setup = prepare(outline_run(config))
    base = adapt(setup.teacher, setup.backbone, config.model)
    export_lora(setup, base.network, base.lora("student"), tmp_path / "lora.safetensors", update=1)
    assert read_recipe(tmp_path / "lora.safetensors").base_model == ID
    options = ("--student", "lora.safetensors", "--prompts", "texts.txt", "--out", "out", "--device", "cpu")
    assert sample(options) == 0 and (tmp_path / "out" / "00000.png").is_file()
    assert {name.split("/")[0] for name in hub.downloads} >= {"unet", "vae", "text_encoder", "text_encoder_2"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("owner/typo", "owner/typo is not a folder here, and the hub has no model of that name"),
        ("owner/gated", "owner/gated is gated: accept its licence on http://127.0.0.1:"),
        (f"{ID}@v9", f"{ID}@v9: the hub has the model, but no revision 'v9'"),
        ("owner/a..b", "owner/a..b is not a folder here"),
    ],
)
def test_what_the_hub_refuses_is_one_line(serve, model, given, words):
    serve({ID: {"main": model}, "owner/gated": {"main": model}}, gated=["owner/gated"])
    with pytest.raises(RMDError) as caught:
        fetched(given, NETWORK)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_token_opens_what_is_gated(serve, model, monkeypatch):
    serve({"owner/gated": {"main": model}}, gated=["owner/gated"])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (fetched("owner/gated", NETWORK) / "unet" / "config.json").is_file()


def test_without_a_network_a_whole_copy_is_enough(cache, model):
    commit = lay_out(cache, ID, model, keep=is_network)
    assert fetched(ID, NETWORK) == local_path(f"{ID}@{commit}") == local_path(ID)
    with pytest.raises(RMDError, match="no complete copy.*it has no vae; it has .*hf download .* --include 'vae/"):
        fetched(ID, VAE)
    with pytest.raises(RMDError, match="HF_HUB_OFFLINE is set.* run: hf download owner/none --include '.*unet/"):
        fetched("owner/none", NETWORK)
    with pytest.raises(RMDError, match="hf download owner/none --revision v2"):
        local_path("owner/none@v2")


def test_a_hub_that_gives_no_answer_is_no_network(cache, model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(RMDError, match="it cannot be downloaded .*hf download owner/tiny-sdxl_1.0") as caught:
        fetched(ID, NETWORK)
    assert "\n" not in str(caught.value)
    lay_out(cache, ID, model, keep=is_network)
    assert (fetched(ID, NETWORK) / "unet" / "config.json").is_file()


def test_a_copy_that_lacks_a_file_is_not_whole(cache, model):
    lay_out(cache, ID, model, keep=lambda path: is_network(path) and path.suffix != ".safetensors")
    with pytest.raises(RMDError, match="no complete copy of this model .*it has no safetensors"):
        fetched(ID, NETWORK)
    parts = lambda path: path.parent.name in ("text_encoder", "tokenizer") or path.name == "model_index.json"  # noqa: E731
    lay_out(cache, "owner/parts", model, keep=parts)
    with pytest.raises(RMDError, match="missing: text_encoder_2, tokenizer_2"):
        fetched("owner/parts", ENCODERS)


@pytest.fixture
def world(tmp_path):
    """A configuration that names the model by its hub id everywhere."""
    (tmp_path / "list.txt").write_text("a red apple\nblue", encoding="utf-8")
    config = CONFIG.replace("encoder: toy", f'file: "{{folder}}/list.txt", encode_from: "{ID}"')
    config = config.replace("prompts.safetensors", "prompts").replace(
        'base: "{folder}/model"', f'base: "{ID}", vae: "{ID}"'
    )
    config = config.replace("mode: three networks", "mode: adapters, rank: 4")
    (tmp_path / "config.yaml").write_text(config.format(name="sdxl", folder=tmp_path, low=4, high=8), encoding="utf-8")
    return tmp_path


def test_a_run_from_a_hub_id_keeps_to_its_commit(serve, world, model, tmp_path, capsys):
    first = digest(model)
    hub = serve({ID: {"main": model}})
    assert distill(world) == 0
    run = json.loads((world / "out" / "run.json").read_text())
    assert run["commits"] == {ID: first} and run["data"]["backbone.base"] == f"commit:{first}"
    assert f"base: {ID}@{first}" in (world / "out" / "config.yaml").read_text()
    assert read_recipe(world / "out" / "student.safetensors").base_model == ID
    newer = tmp_path / "newer"
    shutil.copytree(model, newer)
    (newer / "unet" / "config.json").write_text((newer / "unet" / "config.json").read_text() + "\n")
    hub.models[ID] = {"main": newer, "v1": model}
    before = len(hub.downloads)
    shutil.copy(world / "out" / "config.yaml", world / "config.yaml")  # which names the commit itself
    assert distill(world, "train.updates=2", flags=["--resume"]) == 0
    # Of a run of an older version, which read all of the teacher for its digest.
    run["data"]["backbone.base"] = _checkpoint_digest(local_path(f"{ID}@{first}"))
    (world / "out" / "run.json").write_text(json.dumps(run))
    sets = (f"backbone.base={ID}@main", f"backbone.vae={ID}", "train.updates=3")
    assert distill(world, *sets, flags=["--resume"]) == 0 and len(hub.downloads) == before
    sets = (f"backbone.base={ID}@v9",)
    assert distill(world, *sets, flags=["--resume"]) == refused(capsys, 2, "no revision 'v9'")


def test_without_a_network_the_error_has_the_commands_for_all_that_the_run_needs(cache, world, model, capsys):
    small = "--include '*.json' --include '*.jinja' --include '*.txt' --include '*.model'"
    network = "--include 'transformer*/*.safetensors' --include 'unet/*.safetensors'"
    encoders = "--include 'text_encoder*/*.safetensors' --include 'tokenizer*/*'"
    vae = "--include 'vae/*.safetensors'"
    assert distill(world) == refused(capsys, 2, f"run: hf download {ID} {small} {network} {vae} {encoders}")
    assert distill(world, "backbone.vae=owner/vae") == refused(
        capsys, 2, f"run: hf download {ID} {small} {network} {encoders} && hf download owner/vae {small} {vae}"
    )
    lay_out(cache, ID, model, keep=is_network)
    assert distill(world) == refused(capsys, 2, f"run: hf download {ID} {small} {vae} {encoders}")


def test_prompts_are_encoded_by_a_hub_id(serve, world, model):
    serve({ID: {"main": model}})
    flags = ["--prompts", str(world / "list.txt"), "--device", "cpu"]
    assert encode(["--model", ID, "--out", str(world / "a"), *flags]) == 0
    assert encode(["--model", str(model), "--out", str(world / "b"), *flags]) == 0
    (a,), (b,) = (sorted((world / name).glob("*.safetensors")) for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_of_two_processes_one_downloads_and_both_train(world, model):
    write_prompts("sdxl", world / "prompts.safetensors")
    sets = (f"prompts.cache={world}/prompts.safetensors", "prompts.encode_from=null", "prompts.file=null")
    with Hub({ID: {"main": model}}) as hub:
        run = Run(2, world, *sets, hub=hub.constants | {"HF_HUB_CACHE": str(world / "cache")})
        assert run.codes() == [0, 0], run.printed()
    assert len(hub.downloads) == len(set(hub.downloads)) == 5  # the network's three files, the autoencoder's two
    first, second = run.printed()
    assert "files that are needed" in first and "files that are needed" not in second


def test_files_are_downloaded_side_by_side(serve, model):
    hub = serve({ID: {"main": model}}, slow="unet/config.json")
    steps = fetching(ID, NETWORK)
    next(steps)  # the index, alone: the hub cache then knows the commit
    next(steps)  # the weights, while another file keeps the hub busy
    assert sorted(hub.downloads) == sorted(["model_index.json", hub.slow, "unet/diffusion_pytorch_model.safetensors"])
    hub.hurry.set()
    assert len(list(steps)) == 1 and local_path(ID).is_dir()


def test_ctrl_c_ends_a_download_at_once_and_the_same_command_continues_it(world, model):
    command = [sys.executable, "-m", "training.encode_prompts", "--model", ID, "--device", "cpu"]
    command += ["--prompts", str(world / "list.txt"), "--out", str(world / "prompts")]
    with Hub({ID: {"main": model}}, slow="text_encoder/model.safetensors") as hub:
        hub_settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(world / "home"), "HF_HUB_DISABLE_XET": "1"}
        settings = {"env": {**os.environ, **hub_settings}, "cwd": Path(__file__).parents[2], "stderr": subprocess.PIPE}
        # A shell's background jobs ignore SIGINT, and so would this program.
        process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **settings)
        while not any(name.endswith(hub.slow) for name in hub.downloads):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=30)[1].decode()  # long before the file has been sent
        assert process.returncode == 130 and "the same command continues" in printed and "Traceback" not in printed
        hub.hurry.set()
        assert subprocess.run(command, **settings).returncode == 0
    assert len(PromptCache(world / "prompts").texts) == 2


def test_the_name_of_a_base_on_the_hub(cache):
    assert base_name(type(cache)("owner/name@v1.5")) == "owner/name"
