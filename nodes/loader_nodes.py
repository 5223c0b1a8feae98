"""The nodes that load: a student as MODEL with its recipe (RMD Load Student), and a prompt's conditioning from a
prompt cache (RMD Load Prompt Embeddings).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..rmd_core.errors import RMDError, short_repr
from ..rmd_core.prompt_cache import PromptCache
from ..rmd_core.recipe import read_recipe
from .bridge.model import ModelView
from .bridge.plans import pixels
from .bridge.student import WEIGHT_DTYPES, StudentChecks, apply_lora, load_full, profile_recipe
from .folders import cache_fingerprint, find_cache, find_file, fingerprint, plain_files, prompt_caches, student_files
from .inputs import CATEGORY, RecipeSocket, checked
from .profiles import FewStepProfile, load_profiles, profile_stamps

FULL = "full model"
LORA = "LoRA"
PUBLIC = "LoRA without recipe"
KIND_FOLDERS = {FULL: "diffusion_models", LORA: "loras", PUBLIC: "loras"}
STUDENT_FILE = "A student's file in models/diffusion_models (LoRA: models/loras). The node reads the recipe from it."


class RMDLoadStudent(io.ComfyNode):
    """A student file -> MODEL, the Recipe in its header or of a profile, and a report.

    Raises RMDError for a file without a recipe, a student of another kind, or one whose recipe names another base
    than the model is. Source: docs/method/method.md, the recipe.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        weight_dtype = io.Combo.Input(
            "weight_dtype",
            options=list(WEIGHT_DTYPES),
            default="default",
            advanced=True,
            tooltip="As in Load Diffusion Model: default keeps the file's precision, fp8 uses less GPU memory.",
        )
        base = io.Model.Input("model", tooltip="The base model that the LoRA was distilled from.")
        profile = io.Combo.Input(
            "profile",
            options=list(_student_profiles()),
            tooltip="Choose the public student in this file. It sets the sizes, sigmas and base model.",
        )
        strength = io.Float.Input(
            "strength",
            default=1.0,
            min=-10.0,
            max=10.0,
            step=0.01,
            advanced=True,
            tooltip="1.0 is the training strength. A PEFT file may need lora_alpha / r instead.",
        )
        return io.Schema(
            node_id="RMD_LoadStudent",
            display_name="RMD Load Student",
            category=CATEGORY,
            description="Loads a model or LoRA distilled for the cascade, and its recipe from the same file. "
            "Connect recipe to RMD Schedule.",
            search_aliases=["rmd", "load distilled model", "few-step", "recipe"],
            inputs=[
                io.DynamicCombo.Input(
                    "kind",
                    options=[
                        io.DynamicCombo.Option(FULL, [_student_input(FULL), weight_dtype]),
                        io.DynamicCombo.Option(LORA, [_student_input(LORA), base, strength]),
                        io.DynamicCombo.Option(PUBLIC, [_student_input(PUBLIC), base, strength, profile]),
                    ],
                    tooltip="A full model from models/diffusion_models, or a LoRA from models/loras on its base model.",
                )
            ],
            outputs=[
                io.Model.Output("model", tooltip="The student, ready for any sampler."),
                RecipeSocket.Output("recipe", tooltip="Steps, sigmas, sizes and rules of the student."),
                io.String.Output(
                    "report", tooltip="The recipe as text, with the checks that ran and those that could not."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, kind: dict[str, Any] | None = None, **_: Any) -> str:
        chosen = kind if isinstance(kind, dict) else {}
        stamp = fingerprint(KIND_FOLDERS.get(chosen.get("kind"), ""), chosen.get("student"))
        return f"{stamp}\n{profile_stamps()}" if chosen.get("kind") == PUBLIC else stamp

    @classmethod
    @checked
    def execute(cls, kind: dict[str, Any], **_left_over: Any) -> io.NodeOutput:
        chosen, student = kind["kind"], kind["student"]
        path = find_file(KIND_FOLDERS[chosen], student)
        if chosen == PUBLIC:
            return cls._public(path, kind)
        recipe = read_recipe(path)
        is_lora = recipe.adapter_alpha is not None
        if is_lora != (chosen == LORA):
            own = LORA if is_lora else FULL
            raise RMDError(
                f"{student} is a {own} by its recipe; set kind to {own!r} and keep it in models/{KIND_FOLDERS[own]}"
            )
        checks = StudentChecks(recipe, student)
        if chosen == FULL:
            model = load_full(path, checks, weight_dtype=kind["weight_dtype"])
            applied = FULL
        else:
            strength = kind["strength"]
            model = apply_lora(kind["model"], path, checks, strength=strength)
            applied = f"LoRA, alpha {recipe.adapter_alpha:g}, strength {strength:g}"
            applied += "" if strength == 1.0 else ": the student was trained at strength 1"
        return io.NodeOutput(model, recipe, student_report(checks, applied=applied))

    @classmethod
    def _public(cls, path: str, kind: dict[str, Any]) -> io.NodeOutput:
        """A LoRA whose recipe is that of a profile."""
        profiles = _student_profiles()
        if kind["profile"] not in profiles:
            raise RMDError(
                f"no student profile is called {short_repr(kind['profile'])}; "
                f"use one of {'; '.join(profiles) or '(none)'}"
            )
        profile, strength = profiles[kind["profile"]], kind["strength"]
        recipe = profile_recipe(profile, ModelView.of(kind["model"]))
        checks = StudentChecks(recipe, kind["student"])
        model = apply_lora(kind["model"], path, checks, strength=strength)
        checks.unchecked.append(f"whether the file is {profile.title}: it has no recipe, the profile is your choice")
        applied = f"LoRA of the profile {profile.title}, strength {strength:g}"
        return io.NodeOutput(model, recipe, student_report(checks, applied=applied, notes=profile.notes))


def _student_profiles() -> dict[str, FewStepProfile]:
    """The profiles of LoRAs that were distilled for a cascade, by title."""
    return {title: one for title, one in load_profiles().items() if one.sizes and one.folder == KIND_FOLDERS[PUBLIC]}


def _student_input(kind: str) -> io.Combo.Input:
    listed = plain_files if kind == PUBLIC else student_files
    return io.Combo.Input("student", options=listed(KIND_FOLDERS[kind]), tooltip=STUDENT_FILE)


SIZE_CONDITIONING = {
    "none": "nothing",
    "stage": "the size of the stage",
    "final": "the size of the result",
}


def student_report(checks: StudentChecks, *, applied: str, notes: Sequence[str] = ()) -> str:
    """The recipe line by line, then what was checked and what could not be.

    `applied` says how it was loaded, `notes` are sentences of its profile.
    """
    recipe = checks.recipe
    used = [size for size, count in zip(recipe.stage_sizes(), recipe.split) if count]
    sizes = " to ".join(pixels(recipe.pixels_per_cell, size) for size in used)
    lines = [
        f"student: {checks.student} ({applied})",
        f"base: {recipe.base_model} ({recipe.architecture}, predicts {recipe.prediction})",
        f"steps: {'+'.join(map(str, recipe.split))} at {sizes} px (width x height in training)",
        f"sigmas: {', '.join(f'{sigma:.6g}' for sigma in recipe.sigmas)} (as the first size names them)",
        f"noise: {recipe.curve.describe()}",
        f"mapping: {recipe.mapping.describe()}",
        f"inside a stage: eta {recipe.eta:g}",
        f"at a change of size: {recipe.upsampler}, {recipe.switch_noise} noise, eta {recipe.eta_switch:g}",
        f"CFG: {recipe.cfg:g}",
        f"prompt encoder: {recipe.prompt_encoder}",
        f"size conditioning: {SIZE_CONDITIONING[recipe.size_conditioning]}",
    ]
    if recipe.expert is not None:
        place, other = ("model", "low") if recipe.expert == "high" else ("second_model", "high")
        lines.append(
            f"expert: {recipe.expert} noise, one of two networks that change over at sigma {recipe.expert_sigma:g}: "
            f"connect it to {place} of RMD Sampler, and load the student of {other} noise beside it"
        )
    if recipe.training_step:
        lines.append(f"trained: {recipe.training_step} updates, configuration {recipe.config_digest[:12]}")
    if recipe.thresholds is not None:
        levels = ", ".join(f"{value:g}" for value in recipe.thresholds) or "none"
        lines.insert(4, f"thresholds: {levels} (logSNR)")
    lines += [f"note: {note}" for note in notes]
    lines += [f"checked: {sentence}" for sentence in checks.checked]
    lines += [f"NOT checked: {sentence}" for sentence in checks.unchecked]
    return "\n".join(lines)


class RMDLoadPromptEmbeddings(io.ComfyNode):
    """One prompt of a trainer's prompt cache as CONDITIONING (1, tokens, dim) in float32, as the network was given it.

    Zero-padded to the cache's length unless the network takes a mask; with the pooled part (1, width) if there is one.

    Raises RMDError, naming the prompts that look alike, for one that is not in the file.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RMD_LoadPromptEmbeddings",
            display_name="RMD Load Prompt Embeddings",
            category=CATEGORY,
            description="Reads the embedding of one prompt from a prompt cache for training. You need no text encoder.",
            search_aliases=["prompt cache", "text embedding", "no text encoder"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=prompt_caches(),
                    tooltip="A prompt cache in models/rmd_prompts. The demo's cache is always in the list.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="A prompt of the cache, word for word. Empty: the null prompt, the usual negative.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The prompt's embedding as in training, pooled part included.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> str:
        return cache_fingerprint(file)

    @classmethod
    @checked
    def execute(cls, file: str, prompt: str) -> io.NodeOutput:
        cache = PromptCache(find_cache(file))
        text = prompt if prompt in cache else prompt.strip()
        if text not in cache:
            if not text:
                raise RMDError(
                    f"{file} has no null prompt; choose one of its {len(cache.texts)} prompts or another file"
                )
            if not cache.texts:
                raise RMDError(
                    f"{file} only has the null prompt, not {short_repr(text)}; leave the prompt empty, or add yours"
                )
            alike = ", ".join(map(short_repr, cache.closest(text)))
            advice = f"the closest are {alike}" if alike else f"one is {short_repr(cache.texts[0])}"
            raise RMDError(
                f"the prompt {short_repr(text)} is not one of the {len(cache.texts)} in {file}; {advice}: "
                "use one of them word for word, or add yours to the cache"
            )
        # Without a pooled part it is None, as ComfyUI's own encoders of sequences alone (T5, UMT5) give it.
        return io.NodeOutput([[cache.embedding(text), {"pooled_output": cache.pooled([text])}]])
