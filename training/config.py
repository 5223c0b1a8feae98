"""The trainer's configuration: one validated tree, read from YAML with ``--set a.b=c`` overrides.

Unknown keys are refused, and what is wrong is said in one line. No import of torch here: a bad configuration is refused
at once.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from rmd_core.errors import RMDError, one_line
from rmd_core.presets import PRESETS


def _a_path(path):
    try:
        if b"\0" not in os.fsencode(path):
            return path
    except UnicodeEncodeError:
        pass
    raise ValueError("this is not a valid path: it has a character that file names cannot have")


def _an_upsampler(path):
    if path.suffix in (".safetensors", ".sft"):
        return path
    raise ValueError("no file of an upsampler")


def _a_digest(text):
    if re.fullmatch("[0-9a-f]{64}", text):
        return text
    raise ValueError("a digest has 64 hexadecimal digits")


def _each_once(names):
    if len(set(names)) == len(names):
        return names
    raise ValueError("name each tracker once")


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Cells = tuple[Count, Count]
_UNDECISIVE = {  # keys that decide no trained weight, besides all of the output section
    "backbone.vae",
    "backbone.gradient_checkpointing",
    "prompts.encode_from",
    "prompts.negative",
    "train.updates",
    "train.device",
    "train.guidance_calls",
    "train.offload",
    "train.compile",
    "train.attention",
    "train.channels_last",
    "train.tf32",
    "train.cudnn_benchmark",
    "train.expandable_segments",
    "train.replicas",
    "train.context_parallel",
}
# Keys that came later, with their defaults: a run of before them keeps its digest.
_LATER = {
    "model.init_from": None,
    "model.init_strength": 1.0,
    "model.init_fake": "teacher",
    "optimiser.lr_warmup": 0,
    "optimiser.lr_decay": "none",
    "method.upsampler_sha256": None,
}
File = Annotated[Path, AfterValidator(_a_path)]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Split = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
SwitchNoise = Literal["exact", "mix", "fresh"]  # SWITCH_NOISES of rmd_core.boundary
Upsampler = Literal["nearest", "bicubic", "bilinear", "area"]  # UPSAMPLERS of it
UpsamplerFile = Annotated[File, AfterValidator(_an_upsampler)]
FakeWeighting = Literal["eps", "v", "min_snr5", "legacy"]  # FAKE_WEIGHTINGS of rmd_core.losses


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BackboneSection(Section):
    """Which model is distilled."""

    name: str = Field(description="model family, such as wan or sdxl; see docs/train/models.md")
    base: File = Field(
        description="the teacher: a Diffusers-format folder, a hub id, or a native-key file (of two experts either)"
    )
    vae: File | None = Field(None, description="autoencoder for validation: a folder, hub id or file; null: no images")
    shift: Positive | None = Field(
        None, description="flow shift at the first size of the plan; null: the family's own, 3; not for SDXL and PixArt"
    )
    gradient_checkpointing: Literal[False, True, "offload"] = Field(
        False, description="recompute activations: less memory, a third more time; offload: block inputs wait in RAM"
    )


class ModelSection(Section):
    """Student, fake score and teacher; all keys but ``mode`` and ``init_...`` are for adapters."""

    mode: Literal["adapters", "three networks"] = Field(
        "adapters", description="LoRA adapters on one frozen base, or full copies, which ignore adapter keys and warn"
    )
    rank: Count = Field(64, description="rank of each adapter; at most the narrowest layer's width")
    alpha: Positive | None = Field(
        None, description="adapters are scaled by alpha / rank; null: the rank; a warning above 4 ranks"
    )
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="layers that get an adapter, by name endings such as [to_q, to_v]; null: the family's"
    )
    base_dtype: Literal["float32", "bfloat16", "int8", "nf4"] | None = Field(
        None, description="dtype of the frozen base; int8, nf4: quantised; null: train.precision; adapters are float32"
    )
    init_from: File | None = Field(
        None, description="start of the student: an RMD student, a few-step model or its LoRA; null: the teacher"
    )
    init_strength: Positive = Field(1.0, description="strength of a LoRA in init_from")
    init_fake: Literal["teacher", "student"] = Field(
        "teacher", description="start of the fake score: the teacher, or the student's own start"
    )

    @model_validator(mode="after")
    def _a_start(self):
        if self.init_from is None and (self.init_strength, self.init_fake) != (1.0, "teacher"):
            raise ValueError("init_strength and init_fake need init_from; set it, or leave them out")
        return self

    @model_validator(mode="after")
    def _quantised_base(self):
        if self.mode == "three networks" and self.base_dtype in ("int8", "nf4"):
            raise ValueError(f"base_dtype {self.base_dtype} is for mode adapters; trained weights are float32")
        return self


class PlanSection(Section):
    """Steps and stages."""

    steps: Count = Field(description="steps in all")
    sizes: Annotated[
        tuple[Cells, ...], Field(min_length=1, description="latent height and width of each stage, low to high")
    ]
    split: Split | None = Field(None, description="steps of each stage, such as 2+2; give this or thresholds")
    thresholds: tuple[float, ...] | None = Field(
        None, description="logSNR between the stages, such as [-2.5], instead of split"
    )
    frames: Count = Field(1, description="latent frames")

    @model_validator(mode="after")
    def _one_rule(self):
        if (self.split is None) == (self.thresholds is None):
            raise ValueError("give either split or thresholds")
        return self


class ShiftPair(Section):
    """The mapping between two native flow shifts, such as Wan's 3 at 480p and 5 at 720p."""

    shift: tuple[Positive, Positive]


class Ratio(Section):
    """The mapping by a fixed resolution ratio."""

    ratio: Positive


class MethodSection(Section):
    """The method's own choices; null takes the preset's value (docs/method/method.md, presets)."""

    preset: Literal[tuple(PRESETS)] = Field("default", description="fills in the rest of this section")
    mapping: Literal["area", "none"] | ShiftPair | Ratio | None = Field(
        None, description="how levels move with the size; none: for a teacher that knows the small size too"
    )
    upsampler: Upsampler | UpsamplerFile | None = Field(
        None, description="upsampler at a switch, in losses and sampling; or a file of training/train_upsampler.py"
    )
    upsampler_sha256: Annotated[str, AfterValidator(_a_digest)] | None = Field(
        None, description="digest of the weights in that file; null: filled in; if given, other weights are refused"
    )
    switch_noise: SwitchNoise | None = Field(None, description="noise at a switch, in sampling")
    loss_noise: SwitchNoise | None = Field(None, description="noise at a switch, in the losses")
    eta_train: Share | None = Field(None, description="share of predicted noise in training")
    eta: Share | None = Field(
        None, description="share of predicted noise in validation and in the recipe; null: eta_train if that is set"
    )
    eta_switch: Share | None = Field(None, description="share of predicted noise at a switch; null: as eta")
    offset_factor: Share | None = Field(None, description="see docs/method/method.md, timestep intervals")
    split_timestep: bool | None = Field(None, description="see docs/method/method.md, timestep intervals")

    @model_validator(mode="after")
    def _digest_of_a_file(self):
        if self.upsampler_sha256 is not None and not isinstance(self.upsampler, Path):
            raise ValueError("upsampler_sha256 needs a file in upsampler; give one, or leave upsampler_sha256 out")
        return self


class LossSection(Section):
    """The two losses."""

    cfg: Annotated[float, Field(ge=1)] = Field(5.0, description="guidance of the teacher; 1: none, which saves a call")
    fake_weighting: FakeWeighting = Field("eps", description="see docs/method/method.md, weighting of the fake score")
    fake_target: Literal["x0", "subinterval"] = Field(
        "x0", description="target of the fake score; subinterval: unbiased under inherited noise"
    )
    clip: Positive = Field(0.2, description="least per-sample normaliser of the student's loss")
    huber_c: Positive | None = Field(None, description="pseudo-Huber constant; null: by the size of the latent")


class PromptSection(Section):
    """Prompts and their embeddings."""

    cache: File | None = Field(None, description="prompt embeddings: a folder or file; null: encode as prompts come")
    file: File | None = Field(None, description=".txt (one a line) or .jsonl; null: every prompt of the cache")
    encoder: str | None = Field(None, description="refuse a cache made by another text encoder")
    encode_from: File | None = Field(
        None, description="folder or hub id whose text encoders first encode what the cache lacks"
    )
    negative: str = Field("", description="negative prompt of the teacher, in a cache made by encode_from")

    @model_validator(mode="after")
    def _something_to_encode(self):
        if self.cache is None and self.encode_from is None:
            raise ValueError("give cache, or encode_from to encode prompts as they come")
        if self.encode_from is not None and self.file is None:
            raise ValueError("encode_from makes a cache of the prompts of a file; give prompts.file")
        if self.negative and self.encode_from is None:
            raise ValueError("negative is for a cache that encode_from makes; leave it out, or give encode_from")
        return self


class OptimiserSection(Section):
    """AdamW for the student and the fake score."""

    kind: Literal["adamw", "adamw8bit"] = Field("adamw", description="optimiser; adamw8bit: both moments in 8 bits")
    student_lr: Positive = Field(5e-6, description="learning rate of the student (the authors')")
    fake_lr: Positive = Field(2e-5, description="learning rate of the fake score (the authors')")
    lr_warmup: Natural = Field(0, description="updates of a network over which its rate rises (the authors: none)")
    lr_decay: Literal["none", "linear", "cosine"] = Field(
        "none", description="decay of both rates to 0 at train.updates, which is then fixed for resumed runs"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.0, 0.95), description="betas of AdamW (the authors')"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="weight decay of AdamW (the authors')")
    eps: Positive = Field(1e-8, description="epsilon of AdamW (the authors')")
    clip_student: Positive | None = Field(1.0, description="largest gradient norm of the student; null: not clipped")
    clip_fake: Positive | None = Field(None, description="largest gradient norm of the fake score; null: not clipped")


class TrainSection(Section):
    """The loop."""

    updates: Count = Field(description="updates in all")
    batch: Count = Field(description="samples of one forward on one device, all of one stage")
    accumulation: Count = Field(1, description="forwards of an update, each with its own stage")
    warmup_updates: Natural = Field(15, description="first updates, which train every stage but the last")
    fake_steps: Count = Field(1, description="fake-score steps before each student step")
    fake_only_updates: Natural = Field(
        0, description="first updates, which train the fake score alone; fewer than train.updates"
    )
    share_forward: bool = Field(True, description="one student forward serves both phases of an update")
    guidance_calls: Literal["together", "apart"] = Field(
        "together", description="conditional and null rows of the teacher in one call, or one after the other"
    )
    offload: Literal["none", "waiting"] = Field(
        "none", description="waiting: networks and optimiser states that are not in use wait in RAM"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="decay of the student's weight average, which validation and export then use"
    )
    seed: Natural = Field(0, description="everything random follows from it")
    device: Literal["auto", "cpu"] = Field("auto", description="cpu: do not use a GPU")
    precision: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="precision of calls; null: bfloat16 on a GPU, else float32; trained weights, and the teacher of "
        "three networks, stay float32",
    )
    compile: str | None = Field(
        None, description="compile each transformer block by this backend of torch.compile, such as inductor"
    )
    attention: str | None = Field(None, description="diffusers' backend, such as flash or sage (Wan); null: PyTorch's")
    channels_last: bool = Field(False, description="channels_last for 2D convolutions, for SDXL; not if sharded")
    tf32: bool = Field(False, description="TF32 on a GPU, for precision float32")
    cudnn_benchmark: bool = Field(False, description="cuDNN tries its kernels at each new size")
    replicas: Count = Field(1, description="copies of sharded networks (HSDP), such as one for each machine")
    context_parallel: Count = Field(
        1, description="processes that divide each sequence of a video; see docs/train/gpus.md, several GPUs"
    )
    expandable_segments: bool = Field(
        True, description="PyTorch's allocator grows its segments (Linux); PYTORCH_ALLOC_CONF wins"
    )

    @model_validator(mode="after")
    def _student_trains(self):
        if self.fake_only_updates >= self.updates:
            raise ValueError(
                f"fake_only_updates {self.fake_only_updates} leaves none of {self.updates} updates to train the "
                "student in; give a smaller fake_only_updates or more updates"
            )
        return self


class OutputSection(Section):
    """What the run writes, and how often."""

    folder: File = Field(description="where the run writes")
    name: str = Field(
        "student",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$",
        description="file name of the student: letters, digits, ., _ and -, not beginning with .",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float16", description="dtype of the student's file")
    merge: bool = Field(False, description="adapters: write a full student, merged into the base, instead of a LoRA")
    lora_names: Literal["comfyui", "kohya", "diffusers"] = Field(  # LORA_NAMES of training.lora_files
        "comfyui", description="adapters: naming scheme of the LoRA's tensors"
    )
    checkpoint_every: Count = Field(100, description="updates between checkpoints")
    keep: Count = Field(2, description="checkpoints kept")
    validate_every: Count = Field(50, description="updates between validation grids; also at update 0 and at the end")
    validation_prompts: tuple[str, ...] | None = Field(
        None, description="prompts of the grid, repeated as needed; null: the first prompts"
    )
    images: Count = Field(  # pictures: its name in older configurations
        8, validation_alias=AliasChoices("images", "pictures"), description="images of a validation grid"
    )
    trackers: Annotated[tuple[Tracker, ...], AfterValidator(_each_once)] = Field(
        ("tensorboard",), description="programs that get the figures of metrics.jsonl too; []: none"
    )


class Config(Section):
    """Everything a run depends on."""

    backbone: BackboneSection
    model: ModelSection = ModelSection()
    plan: PlanSection
    method: MethodSection = MethodSection()
    loss: LossSection = LossSection()
    prompts: PromptSection
    optimiser: OptimiserSection = OptimiserSection()
    train: TrainSection
    output: OutputSection

    def resolved(self):
        """The same configuration with what is null filled in: from the preset, for adapters, and from this machine."""
        method, model, preset = self.method, self.model, PRESETS[self.method.preset]
        choices = {
            "mapping": "none" if preset.mapping == "none" else "area",
            "upsampler": preset.upsampler,
            "switch_noise": preset.switch_noise,
            "loss_noise": preset.loss_noise,
            "eta_train": preset.eta_train,
            "eta": preset.eta if method.eta_train is None else method.eta_train,
            "offset_factor": preset.offset_factor,
            "split_timestep": preset.split,
        }
        method = _filled(method, choices)
        if isinstance(method.upsampler, Path):
            method = _filled(method, {"upsampler_sha256": _weights_of(method)})
        train = self.train if self.train.precision else _filled(self.train, {"precision": _own_precision(self.train)})
        if model.mode == "adapters":
            model = _filled(model, {"alpha": float(model.rank), "base_dtype": train.precision})
        return self.model_copy(update={"method": method, "model": model, "train": train})

    def unused(self):
        """The names of keys that are for adapters and were given other values than their own, in another mode."""
        if self.model.mode == "adapters":
            return ()
        own = {name for name in ModelSection.model_fields if name != "mode" and not name.startswith("init_")}
        sections = {"model": own, "output": {"merge", "lora_names"}}
        return tuple(
            f"{name}.{key}"
            for name, keys in sections.items()
            for key, field in type(getattr(self, name)).model_fields.items()
            if key in keys and getattr(getattr(self, name), key) != field.default
        )

    def to_yaml(self):
        """The configuration as YAML text that reads back as the same configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=False)

    def digest(self):
        """SHA-256 over all keys that decide the trained weights."""
        content = decisive(self.model_dump(mode="json"))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _own_precision(train):
    """The precision of calls where none is given: bfloat16 on a GPU that computes in it, else float32."""
    if train.device == "cpu":
        return "float32"
    import torch  # takes seconds, so not before a configuration has been found right

    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast or torch.xpu.is_available() else "float32"


def _weights_of(method):
    """The digest of the weights of a learned upsampler."""
    if method.upsampler_sha256 is not None:
        return method.upsampler_sha256
    from rmd_core.upsampler import read_upsampler  # which imports torch

    return read_upsampler(method.upsampler).digest()


def decisive(tree):
    """The keys of a dumped configuration that decide the trained weights, as ``{"section.key": value}``."""
    flat = {f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()}
    for name, default in _LATER.items():
        if flat.get(name) == default:
            flat.pop(name, None)
    if "method.upsampler_sha256" in flat:  # which says more than the path
        flat.pop("method.upsampler", None)
    undecisive = _UNDECISIVE - ({"train.updates"} if "optimiser.lr_decay" in flat else set())
    return {n: value for n, value in flat.items() if not n.startswith("output.") and n not in undecisive}


def _filled(section, choices):
    """The section with what is null in it taken from ``choices``."""
    return section.model_copy(update={key: v for key, v in choices.items() if getattr(section, key) is None})


class _Loader(yaml.SafeLoader):
    """YAML with 1e-4 as a number (YAML 1.2), and repeated keys refused."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path, overrides=()):
    """The ``Config`` of a YAML file with overrides such as ``train.batch=8``; values are YAML.

    Raises RMDError, in one line, for a missing file, broken YAML, an unknown key or a value of the wrong kind.
    """
    path = Path(path)
    try:
        tree = _parse(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise RMDError(f"the configuration {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RMDError(f"the configuration {path} cannot be read ({error})") from None
    if not isinstance(tree, dict):
        raise RMDError(f"the configuration {path} is not a mapping of sections; see training/configs/demo.yaml")
    for override in overrides:
        _apply(tree, override)
    try:
        text = json.dumps(tree, default=str, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RMDError(
            f"{path}: keys must be text, text must be Unicode, and no value may contain itself ({error})"
        ) from None
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        lines = dict.fromkeys(map(_line, error.errors()))
        raise RMDError(f"{path}: " + "; ".join(list(lines)[:5])) from None


def _parse(text, source):
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        # The reader passes on what Python says of a date that is none (2020-13-45) or a number without digits (0b_).
        raise RMDError(f"{source}: not valid YAML ({one_line(error)})") from None


def _apply(tree, override):
    name, equals, value = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RMDError(f"--set {override}: write it as section.key=value, such as --set train.batch=8")
    for key in keys[:-1]:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise RMDError(f"--set {override}: '{key}' is a value, not a section")
    tree[keys[-1]] = _parse(value, f"--set {override}")


def _line(error):
    """One validation error in words."""
    place, kind = ".".join(str(part) for part in error["loc"]), error["type"]
    if error["loc"][:2] == ("method", "mapping"):  # one complaint for each form that it is not
        return "'method.mapping': it is area, none, {shift: [LOW, HIGH]} or {ratio: NUMBER}, with numbers above 0"
    if error["loc"][:2] == ("method", "upsampler"):
        return (
            f"'method.upsampler': it is {', '.join(Upsampler.__args__)}, or a .safetensors file of "
            f"training/train_upsampler.py (given: {json.dumps(error['input'], default=str)[:80]})"
        )
    if kind == "extra_forbidden":
        return f"unknown key '{place}'; allowed there: {', '.join(_fields(error['loc'][:-1]))}"
    if kind == "missing":
        return f"'{place}' is missing"
    if kind == "string_pattern_mismatch":
        return f"'{place}' is {json.dumps(error['input'])[:80]}; use letters, digits, '_', '-', and '.' but in front"
    message = error["msg"].removeprefix("Value error, ")
    return f"'{place}': {message[:1].lower()}{message[1:]} (given: {json.dumps(error['input'], default=str)[:80]})"


def _fields(path):
    """The keys allowed in the section at ``path``."""
    section = Config
    for key in path:
        inner = section.model_fields[key].annotation if key in section.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        section = inner
    return section.model_fields
