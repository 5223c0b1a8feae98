"""Configuration: overrides, presets, refusals in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.results import stored_block
from config_page import MARK, PAGE, tables
from rmd_core.boundary import SWITCH_NOISES, UPSAMPLERS
from rmd_core.errors import RMDError
from rmd_core.losses import FAKE_WEIGHTINGS
from rmd_core.presets import PRESETS
from training.config import FakeWeighting, SwitchNoise, Upsampler, load_config
from training.plans import build_plan, loss_boundary, sampling_boundary, training_boundary
from training_world import make_setup, write_world

DEMO = Path(__file__).parents[2] / "training" / "configs" / "demo.yaml"


def test_the_resolved_copy_reads_back_as_itself(tmp_path):
    config = load_config(DEMO, ["train.batch=8"]).resolved()
    (tmp_path / "copy.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(tmp_path / "copy.yaml")
    assert again == config == again.resolved() and again.digest() == config.digest()


def test_overrides_are_yaml_values():
    config = load_config(
        DEMO, ["optimiser.student_lr=1e-5", "plan.split=4", "plan.sizes=[[16, 16]]", "train.ema=null", "output.name=x"]
    )
    assert config.optimiser.student_lr == 1e-5 and config.plan.split == "4" and config.plan.sizes == ((16, 16),)
    assert config.train.ema is None and config.output.name == "x"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fill_in_what_is_left_out_and_single_keys_win(name):
    preset = PRESETS[name]
    method = load_config(DEMO, [f"method.preset={name}", "method.upsampler=null"]).resolved().method
    assert (method.upsampler, method.switch_noise, method.loss_noise) == (
        preset.upsampler,
        preset.switch_noise,
        preset.loss_noise,
    )
    assert (method.eta_train, method.eta, method.offset_factor, method.split_timestep) == (
        preset.eta_train,
        preset.eta,
        preset.offset_factor,
        preset.split,
    )
    assert method.mapping == ("none" if preset.mapping == "none" else "area")
    own = (
        load_config(DEMO, [f"method.preset={name}", "method.eta_train=0.25", "method.switch_noise=exact"])
        .resolved()
        .method
    )
    assert own.eta_train == own.eta == 0.25 and own.switch_noise == "exact" and own.loss_noise == preset.loss_noise


def test_eta_of_training_and_of_sampling_stay_apart():
    method = load_config(DEMO, ["method.eta_train=0.3", "method.eta=0.9", "method.loss_noise=mix"]).resolved().method
    assert training_boundary(method).eta_switch == loss_boundary(method).eta_switch == 0.3
    assert sampling_boundary(method).eta_switch == 0.9 and loss_boundary(method).switch_noise == "mix"
    method = load_config(DEMO, ["method.eta_switch=0.1", "method.eta=0.9"]).resolved().method
    assert training_boundary(method).eta_switch == sampling_boundary(method).eta_switch == 0.1


def test_what_three_networks_do_not_use_is_logged_once(tmp_path, caplog):
    given = ["model.rank=3", "model.targets=[to_q]", "model.base_dtype=bfloat16", "output.merge=true"]
    make_setup(tmp_path, *given)
    messages = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    names = "model.rank, model.targets, model.base_dtype, output.merge"
    assert messages == [f"warning: {names}: not used by model.mode three networks"]
    caplog.clear()
    make_setup(tmp_path, *given, "model.mode=adapters")
    make_setup(tmp_path)
    assert "not used" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.btach=8"], ["unknown key 'train.btach'", "batch"]),
        (["colour=red"], ["unknown key 'colour'", "backbone"]),
        (["train.batch=many"], ["'train.batch'", "many"]),
        (["train.updates=5", "train.fake_only_updates=5"], ["fake_only_updates 5 leaves none of 5 updates"]),
        (["train.batch='8'"], ["'train.batch'"]),
        (["train.batch=0"], ["'train.batch'", "greater than or equal to 1"]),
        (["train.batch=true"], ["'train.batch'"]),
        (["train.ema=1.5"], ["'train.ema'", "less than 1"]),
        (["loss.cfg=.nan"], ["'loss.cfg'"]),
        (["method.preset=best"], ["'method.preset'", "default", "official-first"]),
        (["method.upsampler=lanczos"], ["'method.upsampler'", "bicubic"]),
        (["method.mapping=upwards"], ["'method.mapping", "area"]),
        (["plan.thresholds=[-2.5]"], ["either split or thresholds"]),
        (["plan.sizes=[[8, 8], [16]]"], ["plan.sizes"]),
        (["output.name=../x"], ["'output.name' is \"../x\"; use letters, digits"]),
        (["output.name=.."], ["'output.name' is \"..\"; use letters, digits", "'.' but in front"]),
        (["output.name='.student'"], ["'output.name' is \".student\"; use letters, digits"]),
        (["model.init_fake=student"], ["set it, or leave them out"]),
        (["output.name=a/b"], ["'output.name' is \"a/b\"; use letters, digits"]),
        (["train=3"], ["'train'"]),
        (["train.batch.size=3"], ["'batch' is a value, not a section"]),
        (["train.batch"], ["section.key=value"]),
        (["train.batch=[1,"], ["not valid YAML"]),
        (["prompts.cache=null"], ["give cache, or encode_from"]),
        (["output.name=2020-13-45"], ["output.name=2020-13-45", "not valid YAML"]),
        (["train.batch=0b_"], ["not valid YAML"]),
        (["train.batch=0x_"], ["not valid YAML"]),
        (["train=&a [*a]"], ["contain itself"]),
        (["train=&a {b: *a}"], ["contain itself"]),
        (["train={2020-01-01: 3}"], ["keys must be text"]),
        (["train={[1]: 3}"], ["not valid YAML"]),
        (["train.batch=" + "[" * 3000], ["not valid YAML"]),
        (['output.folder="a\\0b"'], ["'output.folder'", "not a valid path"]),
        (['prompts.file="a\\0b"'], ["'prompts.file'", "not a valid path"]),
        (['backbone.base="a\\uD800b"'], ["text must be Unicode"]),
    ],
)
def test_bad_values_are_refused_in_one_line(overrides, words):
    with pytest.raises(RMDError) as caught:
        load_config(DEMO, overrides)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "given twice"),
        ("- 1\n", "not a mapping"),
        ("a: [", "not valid YAML"),
        ("", "not a mapping"),
        ("train: {updates: 3}\n", "'backbone' is missing"),
        ("x: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RMDError, match=words) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RMDError, match="does not exist"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.mode=adapters", "model.targets=['']"], "no layer's name ends in ''"),
        (["plan.split=2+1"], "3 steps"),
        (["plan.split=2+x"], "2+x"),
        (["plan.split=4"], "2 sizes"),
        (["plan.sizes=[[8, 8], [4, 4]]"], "shrinks"),
        (["plan.sizes=[[4, 4], [7, 7]]"], "multiples of 2"),
        (["plan.split=null", "plan.thresholds=[-2, -3]"], "thresholds"),
        (["method.mapping={shift: [5, 3]}"], "shift"),
        (["method.offset_factor=1.0"], "offset"),
        (["backbone.name=flux"], "choose one of: wan"),
        (["prompts.encoder=umt5"], "made by the text encoder 'toy'"),
    ],
)
def test_impossible_plans_and_settings_are_refused(tmp_path, overrides, words):
    with pytest.raises(RMDError, match=words.replace("+", r"\+")) as caught:
        make_setup(tmp_path, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("split", "calls"), [("1+3", (1, 3)), ("4+0", (4,)), ("0+4", (4,)), ("2+2", (2, 2))])
def test_every_plan_makes_a_training_setup(tmp_path, split, calls):
    setup = make_setup(tmp_path, f"plan.split={split}")
    assert setup.plan.calls_per_stage == calls and len(setup.plan.steps) == 4


def test_plan_follows_mapping_choices(tmp_path):
    config = load_config(write_world(tmp_path), ["method.mapping={ratio: 3.0}"]).resolved()
    setup = make_setup(tmp_path)
    assert build_plan(config, setup.backbone).stages[-1].ratio == pytest.approx(3.0)
    assert setup.plan.stages[-1].ratio == pytest.approx(2.0)  # the default preset maps
    config = load_config(tmp_path / "config.yaml", ["method.mapping={shift: [3.0, 5.0]}"]).resolved()
    assert build_plan(config, setup.backbone).stages[-1].ratio == pytest.approx(5 / 3)
    assert yaml.safe_load(config.to_yaml())["method"]["mapping"] == {"shift": [3.0, 5.0]}
    config = load_config(tmp_path / "config.yaml", ["method.mapping=none"]).resolved()
    assert build_plan(config, setup.backbone).stages[-1].ratio == 1.0


def test_digest_covers_what_decides_the_weights():
    digest = load_config(DEMO).resolved().digest()
    assert (
        load_config(DEMO, ["output.folder=elsewhere", "train.updates=999", "backbone.vae=null"]).resolved().digest()
        == digest
    )
    for change in ("train.seed=1", "loss.cfg=3.0", "method.eta_train=0.4", "optimiser.fake_lr=1e-5", "plan.split=1+3"):
        assert load_config(DEMO, [change]).resolved().digest() != digest, change


def test_the_forms_of_a_mapping_are_listed_once():
    with pytest.raises(RMDError) as caught:
        load_config(DEMO, ["method.mapping={shfit: [3, 5]}", "train.batch=0"])
    message = str(caught.value)
    assert message.count("method.mapping") == 1 and message.count("{shift: [LOW, HIGH]}") == 1 and "batch" in message


def test_the_choices_are_those_of_the_core():
    """They are written out in config.py, which imports no torch, so that a bad configuration is refused at once."""
    for choice, known in ((SwitchNoise, SWITCH_NOISES), (Upsampler, UPSAMPLERS), (FakeWeighting, FAKE_WEIGHTINGS)):
        assert choice.__args__ == known


def test_a_bad_configuration_is_refused_before_anything_is_imported(tmp_path):
    code = "import sys, training.distill as d; print(d.main(sys.argv[1:]), *sys.modules)"
    arguments = [sys.executable, "-c", code, "--config", str(DEMO), "--set", "train.batch=0"]
    done = subprocess.run(arguments, cwd=DEMO.parents[2], capture_output=True, text=True)
    code, *modules = done.stdout.split()
    assert code == "2" and "train.batch" in done.stderr
    assert not {"torch", "diffusers", "transformers", "accelerate", "matplotlib"} & set(modules)


def test_the_page_of_keys_is_what_its_command_writes():
    assert stored_block(PAGE, MARK) == tables(), "run: python tests/config_page.py"
