"""The templates for public models, each as one declaration: `make workflows` writes file, note and thumbnail from it.

To add one, append a `Template` to TEMPLATES. Its files give the loaders; `nodes` adds what a model needs besides, or
changes the inputs of a node that is there. A title begins with RMD 6 for SDXL, 7 for small and 8 for large image
models, 9 for videos; the sum of its files follows in brackets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class File:
    """A public file: folder under models/, `owner/repository/path` on Hugging Face, GB (1e9 bytes), new name."""

    folder: str
    place: str
    gb: float
    saved_as: str = ""

    @property
    def name(self) -> str:
        """What the file is called in its folder."""
        return self.saved_as or self.place.rsplit("/", 1)[1]

    @property
    def url(self) -> str:
        """Where it can be downloaded."""
        owner, repository, path = self.place.split("/", 2)
        return f"{HUB}/{owner}/{repository}/resolve/main/{path}"


def node(kind: str = "", title: str = "", **inputs) -> dict:
    """An entry of a prompt in API format; without a kind, inputs that replace those of the node with its id."""
    entry = {"inputs": inputs}
    if kind:
        entry = {"class_type": kind} | entry
    return entry | ({"_meta": {"title": title}} if title else {})


@dataclass(frozen=True)
class Template:
    """A workflow of one RMD Sampler over a public few-step model.

    model: its name in the note and on the thumbnail, `colour` behind it. files: a checkpoint, or diffusion models (each
    followed by its LoRAs), text encoders (of the type `clip`) and a VAE. sizes: (width, height) of the stages in px.
    frames: of a video, 0 for an image. latent: the node that makes the empty latent. nodes: added to the prompt, or
    inputs that replace those of a node; ids are 1 model, 11 LoRA (21 and 31 of a second model), 3 text encoder,
    13 VAE, 2 prompt, 4 plan, 5 latent, 6 sampler, 7 decoder, 10 video, 8 result. about: paragraphs of the note.
    """

    title: str
    model: str
    colour: str
    profile: str
    files: tuple[File, ...]
    text: str
    clip: str = ""
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (1024, 1024))
    steps: tuple[int, ...] = (2, 2)
    frames: int = 0
    fps: float = 16.0
    latent: str = "EmptyLatentImage"
    nodes: dict[str, dict] = field(default_factory=dict)
    about: str = ""

    @property
    def gb(self) -> float:
        """The sum of its files in GB (1e9 bytes)."""
        return sum(file.gb for file in self.files)

    @property
    def name(self) -> str:
        """What ComfyUI shows: the title with the sum of the files."""
        return f"{self.title} ({self.gb:.0f} GB)"


def words_of(size: tuple[int, int]) -> str:
    """A size as people write it: its side in px where it is a square."""
    width, height = size
    return f"{width} px" if width == height else f"{width}x{height}"


def loaders(template: Template) -> tuple[dict[str, dict], dict[str, list]]:
    """The nodes that load a template's files, and where `model`, `clip` and `vae` come from."""
    found, source, models = {}, {}, 0
    encoders = [file.name for file in template.files if file.folder == "text_encoders"]
    for file in template.files:
        if file.folder == "checkpoints":
            found["1"] = node("CheckpointLoaderSimple", ckpt_name=file.name)
            source = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]}
            models = 1
        elif file.folder == "diffusion_models":
            last = str(20 * models + 1)
            found[last] = node("UNETLoader", unet_name=file.name, weight_dtype="default")
            source.setdefault("model", [last, 0])
            models += 1
        elif file.folder == "loras":
            last, below = 20 * (models - 1) + 11, list(found)[-1]
            while str(last) in found:
                last += 1
            found[str(last)] = node("LoraLoaderModelOnly", model=[below, 0], lora_name=file.name, strength_model=1.0)
            if models == 1:
                source["model"] = [str(last), 0]
        elif file.folder == "vae":
            found["13"] = node("VAELoader", vae_name=file.name)
            source["vae"] = ["13", 0]
    if encoders:
        kind = {1: "CLIPLoader", 2: "DualCLIPLoader", 3: "TripleCLIPLoader"}[len(encoders)]
        names = {f"clip_name{number}": name for number, name in enumerate(encoders, 1)}
        names = {"clip_name": encoders[0]} if len(encoders) == 1 else names
        more = {} if kind == "TripleCLIPLoader" else {"type": template.clip, "device": "default"}
        found["3"] = node(kind, **names, **more)
        source["clip"] = ["3", 0]
    return found, source


def prompt_of(template: Template, key: str) -> dict[str, dict]:
    """The workflow in API format; key: what its results are called."""
    found, source = loaders(template)
    *earlier, (width, height) = template.sizes
    sides = [f"{w / width:g}" if w * height == h * width else f"{w}x{h}" for w, h in earlier]
    plan = {"model": source["model"], "width": width, "height": height, "denoise": 1.0, "source": "few-step profile"}
    plan |= {"source.profile": template.profile, "source.split": "auto", "source.earlier_sizes": ", ".join(sides)}
    empty = {"width": ["4", 4], "height": ["4", 5]}
    if template.frames:
        plan["latent"] = ["5", 0]
        empty = {"width": width, "height": height, "length": template.frames}
    found |= {
        "2": node("CLIPTextEncode", "Prompt", clip=source["clip"], text=template.text),
        "4": node("RMD_Schedule", **plan),
        "5": node(template.latent, "Empty latent", **empty, batch_size=1),
        "6": node(
            "RMD_Sampler",
            **{"model": source["model"], "positive": ["2", 0], "latent_image": ["5", 0]},
            **{"plan": ["4", 0], "seed": 1, "cfg": ["4", 3]},
        ),
        "7": node("VAEDecode", samples=["6", 0], vae=source["vae"]),
    }
    if template.frames:
        found["10"] = node("CreateVideo", images=["7", 0], fps=template.fps)
        name = {"filename_prefix": f"video/{key}", "format": "auto", "format.codec": "auto"}
        found["8"] = node("SaveVideo", video=["10", 0], **name)
    else:
        found["8"] = node("SaveImage", images=["7", 0], filename_prefix=key)
    for id, entry in template.nodes.items():
        if "class_type" in entry:
            found[id] = entry
        else:
            found[id]["inputs"] |= entry["inputs"]
    return found


def note_of(template: Template) -> str:
    """The note on the canvas: what runs and what to expect of it, then the files and what they come to."""
    first, *_, last = map(words_of, template.sizes)
    stages = ", ".join(f"{steps} at {words_of(size)}" for steps, size in zip(template.steps, template.sizes))
    frames = f"{template.frames} frames, " if template.frames else ""
    files = [f"- in `models/{file.folder}`: [{file.name}]({file.url}), {file.gb:.3g} GB" for file in template.files]
    return "\n\n".join(
        (
            f"# {template.model} from {first} to {last}",
            f"Steps: {stages}, {frames}with a public few-step model and its published levels. It was **not distilled "
            f"for the cascade**: expect it to be faster than {sum(template.steps)} steps at {last}, not better.",
            *([template.about] if template.about else []),
            "With an RMD student of your own, put *RMD Load Student* in place of the loader. Then set *source* of RMD "
            "Schedule to **student recipe** and connect **recipe**.",
            "## Files",
            "\n".join(files),
            f"Together {template.gb:.0f} GB, the number in the template's name. ComfyUI keeps in RAM what does not fit "
            "into the memory of the GPU.\n",
        )
    )


_T5 = File("text_encoders", "comfyanonymous/flux_text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors", 5.16)
_SD35 = "Comfy-Org/stable-diffusion-3.5-fp8/text_encoders"
_WAN21 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged/split_files"

TEMPLATES = {
    "sdxl_dmd2_lora": Template(
        "RMD 6 SDXL with DMD2 LoRA",
        model="SDXL + DMD2 LoRA",
        colour="#2f6fb5",
        profile="SDXL DMD2, 4 steps (LoRA)",
        files=(
            File("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0/sd_xl_base_1.0.safetensors", 6.94),
            File("loras", "tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors", 0.394),
        ),
        text="a wooden desk by a rainy window, an open sketchbook, a cup of tea, soft morning light",
        about="Any SDXL checkpoint can take the place of the base model.",
    ),
    "sdxl_lightning": Template(
        "RMD 6 SDXL-Lightning",
        model="SDXL-Lightning",
        colour="#5b4bb7",
        profile="SDXL-Lightning, 4 steps (checkpoint)",
        files=(File("checkpoints", "ByteDance/SDXL-Lightning/sdxl_lightning_4step.safetensors", 6.94),),
        text="a lighthouse on a cliff at dusk, waves breaking below, a lit window, film photograph",
    ),
    "pixart_lcm": Template(
        "RMD 7 PixArt LCM",
        model="PixArt-alpha LCM",
        colour="#2f7d5b",
        profile="PixArt-alpha LCM, 4 steps (diffusion model)",
        files=(
            File(
                "diffusion_models",
                "PixArt-alpha/PixArt-LCM-XL-2-1024-MS/transformer/diffusion_pytorch_model.safetensors",
                2.45,
                saved_as="PixArt-LCM-XL-2-1024-MS.safetensors",
            ),
            _T5,
            File("vae", "stabilityai/sd-vae-ft-mse-original/vae-ft-mse-840000-ema-pruned.safetensors", 0.335),
        ),
        clip="pixart",
        text="a red fox asleep in autumn leaves, watercolour",
        about="The download is called `diffusion_pytorch_model.safetensors`: save it under the name below. Sides of a "
        "PixArt stage must be multiples of 16 px with a mean above 256 px.",
    ),
    "sd35_large_turbo": Template(
        "RMD 8 SD3.5 Large Turbo",
        model="SD3.5 Large Turbo",
        colour="#a8503a",
        profile="SD3.5 Large Turbo, 4 steps (checkpoint)",
        files=(
            File("checkpoints", "stabilityai/stable-diffusion-3.5-large-turbo/sd3.5_large_turbo.safetensors", 16.5),
            File("text_encoders", f"{_SD35}/clip_l.safetensors", 0.246),
            File("text_encoders", f"{_SD35}/clip_g.safetensors", 1.39),
            _T5,
        ),
        text="a small bookshop at night, warm light in the window, a painted sign that says OPEN LATE, "
        "wet cobblestones",
        latent="EmptySD3LatentImage",
        about="The checkpoint is behind a licence: accept it on its page before the download.",
    ),
    "wan21_480p_to_720p": Template(
        "RMD 9 Wan2.1 480p to 720p",
        model="Wan2.1 + lightx2v",
        colour="#8a3f7d",
        profile="Wan2.1 T2V 14B lightx2v StepDistill CfgDistill, 4 steps (LoRA)",
        files=(
            File("diffusion_models", f"{_WAN21}/diffusion_models/wan2.1_t2v_14B_fp8_e4m3fn.safetensors", 14.3),
            File(
                "loras",
                "Kijai/WanVideo_comfy/Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors",
                0.32,
            ),
            File("text_encoders", f"{_WAN21}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", 6.74),
            File("vae", f"{_WAN21}/vae/wan_2.1_vae.safetensors", 0.254),
        ),
        clip="wan",
        text="a paper boat drifts down a rain-filled gutter, autumn leaves turning in the current, close to the water, "
        "slow camera",
        sizes=((832, 480), (1280, 720)),
        frames=81,
        latent="EmptyHunyuanLatentVideo",
        about="Size and length are set in *Empty latent*; *RMD Schedule* reads them from there. Start with fewer "
        "frames (17, 33) to try a prompt.\n\nA student of this model has six levels and runs 3+3.",
    ),
}
"""By the name of its results."""

FILES = {file.name: file for template in TEMPLATES.values() for file in template.files}
SHIPPED = {
    "rmd_tiny_wan_few_step.safetensors",
    "rmd_tiny_wan_student.safetensors",
    "rmd_tiny_wan_teacher.safetensors",
    "rmd_tiny_wan_vae.safetensors",
    "rmd_tiny_prompts.safetensors",
}
"""Files that the pack brings along."""


def files_named(prompt: dict) -> list[str]:
    """The model files that the widgets of a workflow in API format name, in order."""
    values = [value for node in prompt.values() for value in node["inputs"].values()]
    return list(dict.fromkeys(value for value in values if str(value).endswith(".safetensors")))
