"""RMD Load Student: a distilled model or LoRA as MODEL, with the recipe by which it is to be sampled."""

from typing import Any

from comfy_api.latest import io

from ..rmd_core.errors import RMDError
from ..rmd_core.recipe import Recipe, read_recipe
from . import sockets
from .bridge.full_student import WEIGHT_DTYPES, load_full
from .bridge.lora_student import apply_lora
from .bridge.student_checks import check_network, check_source
from .checked_inputs import checked
from .folders import find_file, fingerprint, safetensors_files
from .student_report import student_report

FULL, LORA = "full model", "LoRA"
FOLDERS = {FULL: "diffusion_models", LORA: "loras"}
STUDENT_FILE = "A student's file, from models/diffusion_models or, a LoRA, models/loras; it carries the recipe."


class RMDLoadStudent(io.ComfyNode):
    """A student file -> MODEL, the Recipe in its header, and a report.

    Raises RMDError for a file without a recipe, a student of the other kind, or one whose recipe names another base
    than the model is. Source: docs/method.md, the recipe.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RMD_LoadStudent",
            display_name="RMD Load Student",
            category=sockets.CATEGORY,
            description="Loads a model or LoRA distilled for the cascade and reads from its file how to sample it. "
            "Connect recipe to RMD Schedule.",
            search_aliases=["load distilled model", "few-step", "recipe"],
            inputs=[
                io.DynamicCombo.Input(
                    "kind",
                    options=[
                        io.DynamicCombo.Option(FULL, _full_inputs()),
                        io.DynamicCombo.Option(LORA, _lora_inputs()),
                    ],
                    tooltip="A full model from models/diffusion_models, or a LoRA from models/loras on its base model.",
                )
            ],
            outputs=[
                io.Model.Output("model", tooltip="The student, ready for any sampler."),
                sockets.Recipe.Output("recipe", tooltip="Steps, sigmas, sizes and rules of the student."),
                io.String.Output("report", tooltip="The recipe in words, what was checked and what could not be."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, kind: dict[str, Any] | None = None, **_: Any) -> str:
        chosen = kind if isinstance(kind, dict) else {}
        return fingerprint(FOLDERS.get(chosen.get("kind"), ""), chosen.get("student"))

    @classmethod
    @checked
    def execute(cls, kind: dict[str, Any] | None = None, **_left_over: Any) -> io.NodeOutput:
        if kind is None:  # ComfyUI leaves out a dynamic choice that it does not know
            raise RMDError(f"kind is none of the choices of RMD Load Student; set it to {FULL!r} or {LORA!r}")
        chosen, student = kind["kind"], kind["student"]
        path = find_file(FOLDERS[chosen], student)
        recipe = read_recipe(path)
        _check_kind(recipe, chosen, student)
        if chosen == FULL:
            model, loaded = load_full(path, weight_dtype=kind["weight_dtype"], student=student)
            findings, applied = check_network(recipe, model, student) + loaded, FULL
        else:
            base, strength = kind["model"], kind["strength"]
            findings = check_network(recipe, base, student) + check_source(recipe, base, student)
            model, loaded = apply_lora(base, path, recipe, strength=strength, student=student)
            findings, applied = findings + loaded, _lora_words(recipe, strength)
        return io.NodeOutput(model, recipe, student_report(recipe, findings, file=student, applied=applied))


def _full_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "student",
            options=safetensors_files(FOLDERS[FULL]),
            tooltip=STUDENT_FILE,
        ),
        io.Combo.Input(
            "weight_dtype",
            options=list(WEIGHT_DTYPES),
            default="default",
            advanced=True,
            tooltip="As in Load Diffusion Model: default keeps the file's precision, fp8 saves memory.",
        ),
    ]


def _lora_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "student",
            options=safetensors_files(FOLDERS[LORA]),
            tooltip=STUDENT_FILE,
        ),
        io.Model.Input("model", tooltip="The base model that the LoRA was distilled from."),
        io.Float.Input(
            "strength",
            default=1.0,
            min=-10.0,
            max=10.0,
            step=0.01,
            advanced=True,
            tooltip="1 is what the student was trained with; anything else is another model.",
        ),
    ]


def _check_kind(recipe: Recipe, chosen: str, student: str) -> None:
    adapter = recipe.adapter_alpha is not None
    if adapter != (chosen == LORA):
        held, other = ("LoRA", LORA) if adapter else ("full model", FULL)
        raise RMDError(
            f"{student} is a {held} by its recipe; set kind to {other!r} and keep it in models/{FOLDERS[other]}"
        )


def _lora_words(recipe: Recipe, strength: float) -> str:
    words = f"LoRA, alpha {recipe.adapter_alpha:g}, strength {strength:g}"
    return words if strength == 1.0 else f"{words}: the student was trained at strength 1"
