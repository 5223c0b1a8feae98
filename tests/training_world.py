"""A tiny random world for the trainer's tests: a Wan transformer, its autoencoder and prompts, made in milliseconds."""

import json
import shutil

import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from rmd_core.files import read_tensors, save_safetensors
from training.backbones.wan import WanBackbone
from training.config import load_config
from training.distill import main
from training.lora import AdaptedNetwork
from training.objective import Objective
from training.prompts import write_prompt_cache
from training.setup import outline_run, prepare

TEXT_DIM = 16
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")  # the adapters' of Wan
PROMPTS = ("a red apple", "a blue cup", "a green leaf", "a yellow sun", "a white cloud")

# A millionth of a gradient's size decides the direction of AdamW's first steps where the gradient is zero but for
# rounding; a larger eps keeps such steps small.
EPS = "optimiser.eps=1e-5"
TOLERANCE = 1e-3  # between trainings that differ in the order of sums, of the way that the weights have gone

CONFIG = """
backbone: {{name: wan, base: "{folder}/teacher.safetensors", shift: 1.5}}
model: {{mode: three networks}}
plan: {{steps: 4, split: 2+2, sizes: [[4, 4], [8, 8]]}}
method: {{preset: default, upsampler: nearest}}
loss: {{cfg: 2.0}}
prompts: {{cache: "{folder}/prompts.safetensors", encoder: toy}}
optimiser: {{student_lr: 1e-3, fake_lr: 4e-3, clip_fake: 1.0}}
train: {{updates: 6, batch: 3, warmup_updates: 1, device: cpu, ema: 0.9}}
output:
  {{folder: "{folder}/out", checkpoint_every: 3, validate_every: 3, images: 3, trackers: [], dtype: float32}}
"""


def write_world(folder):
    """Write a tiny teacher, a prompt cache and a configuration into ``folder``; returns the configuration's path."""
    WanBackbone().export(tiny_wan(), folder / "teacher.safetensors", dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    embeddings = {text: torch.randn(4, TEXT_DIM, generator=generator) for text in ("", *PROMPTS)}
    write_prompt_cache(folder / "prompts.safetensors", embeddings, encoder="toy", dtype=torch.float32)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return path


def make_setup(folder, *overrides, shards=1):
    """The Setup of the tiny world in ``folder``, written there if need be."""
    path = folder / "config.yaml"
    if not path.exists():
        write_world(folder)
    return prepare(outline_run(load_config(path, overrides).resolved(), shards=shards))


def make_objective(setup):
    """An Objective whose student, fake score and teacher have different weights, so that no two can be confused."""
    return Objective(setup, student=tiny_wan(seed=5), fake=tiny_wan(seed=6), teacher=setup.teacher)


def gradients(network):
    """The gradients that a network or adapter has, by the name of the parameter."""
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def adapted(names=("student", "fake"), *, network=None, seed=0, moved=True):
    """A tiny transformer with adapters, away from their start where ``moved``: each has an effect of its own."""
    base = AdaptedNetwork(network or tiny_wan(layers=2), names, rank=3, alpha=1.5, targets=TARGETS, seed=seed)
    if moved:
        for number, name in enumerate(names):
            generator = torch.Generator().manual_seed(len(name) + number)
            for parameter in base.adapters[name].parameters():
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return base


def copy_world(source, target):
    """Copy a world, its configurations changed to the new folder."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for path in target.rglob("*.yaml"):
        path.write_bytes(path.read_bytes().replace(str(source).encode(), str(target).encode()))
    run = target / "out" / "run.json"
    if run.exists():  # the digest covers the paths
        digests = json.loads(run.read_bytes())
        run.write_text(json.dumps(digests | {"digest": load_config(target / "config.yaml").resolved().digest()}))
    return target


def distill(world, *overrides, flags=()):
    """The exit code of distill.py in a world."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process normally makes one run
    sets = [part for override in overrides for part in ("--set", override)]
    return main(["--config", str(world / "config.yaml"), *sets, *flags])


# Figures that differ between equal runs.
PHASES = {f"seconds_{phase}" for phase in ("fake", "student", "validation", "checkpoint")}
TIMED = {"seconds", "samples_per_second", "tflop_per_second"} | PHASES


def metrics(folder):
    """The record of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def tensors(path):
    """The tensors of a safetensors file."""
    return read_tensors(path)[0]


def distance(a, b, start):
    """How far two networks are apart, over how far the first has come from its start."""
    apart, way = (
        sum(float((x[name] - y[name]).double().square().sum()) for name in x) ** 0.5 for x, y in ((a, b), (a, start))
    )
    return apart / way


def equal(a, b):
    """Whether two state dicts are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(capsys, code, *words):
    """The error of the last command: one line, with these words."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines
    return code


def tiny_wan(seed=0, *, layers=1, dim=128, heads=1):
    """A WanTransformer3DModel with random weights, none of them zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=dim // heads,
            in_channels=16,
            out_channels=16,
            text_dim=TEXT_DIM,
            freq_dim=32,
            ffn_dim=64,
            num_layers=layers,
            cross_attn_norm=True,
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.normal_(0, 0.05)
    return model.eval()


def tiny_vae(seed=0):
    """An AutoencoderKLWan of base width 4 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKLWan(base_dim=4).eval()


def write_native_vae(vae, path):
    """Write an AutoencoderKLWan under native key names."""
    state = vae.state_dict()
    native = {ours: name for name in _native_vae_names() if (ours := _converted(name)) in state}
    assert native.keys() == state.keys()
    save_safetensors(path, {native[name]: tensor for name, tensor in state.items()})


def _converted(name):
    (ours,) = convert_wan_vae_to_diffusers({name: None})
    return ours


def _native_vae_names():
    """Every key that a native Wan2.1 autoencoder could have."""
    inner = [f"residual.{i}" for i in (0, 2, 3, 6)] + ["shortcut", "resample.1", "time_conv", "norm", "to_qkv", "proj"]
    places = ["conv1", "conv2"]
    for half, blocks in (("encoder", "downsamples"), ("decoder", "upsamples")):
        places += [f"{half}.conv1", f"{half}.head.0", f"{half}.head.2"]
        places += [f"{half}.middle.{i}.{part}" for i in range(3) for part in inner]
        places += [f"{half}.{blocks}.{i}.{part}" for i in range(16) for part in inner]
    return [f"{place}.{kind}" for place in places for kind in ("weight", "bias", "gamma")]
