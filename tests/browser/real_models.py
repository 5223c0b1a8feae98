"""The templates for public models, each as one declaration: `make workflows` writes file, note and thumbnail from it.

To add one, append a `Template` to TEMPLATES. Its files give the loaders; `nodes` adds what a model needs besides, or
changes the inputs of a node that is there. A title begins with RMD 6 for students of a cascade, 7 for SDXL and other
small image models, 8 for large ones, 9 for videos; the sum of its files follows in brackets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class File:
    """A file: folder under models/, `owner/repository/path` on Hugging Face, GB (1e9 bytes), new name.

    A file of the user's own has a name alone.
    """

    folder: str
    place: str = ""
    gb: float = 0.0
    saved_as: str = ""

    @property
    def name(self) -> str:
        """What the file is called in its folder."""
        return self.saved_as or self.place.rsplit("/", 1)[1]

    @property
    def url(self) -> str:
        """Where it can be downloaded, empty for a file of the user's own."""
        if not self.place:
            return ""
        owner, repository, path = self.place.split("/", 2)
        return f"{HUB}/{owner}/{repository}/resolve/main/{path}"


def node(kind: str = "", title: str = "", /, **inputs) -> dict:
    """An entry of a prompt in API format; without a kind, inputs that replace those of the node with its id."""
    entry = {"inputs": inputs}
    if kind:
        entry = {"class_type": kind} | entry
    return entry | ({"_meta": {"title": title}} if title else {})


@dataclass(frozen=True)
class Template:
    """A workflow of one RMD Sampler over a public few-step model or a student.

    model: its name in the note and on the thumbnail, `colour` behind it. files: a checkpoint, or diffusion models (each
    followed by its LoRAs), text encoders (of the type `clip`) and a VAE. student: the kind in RMD Load Student of the
    LoRA, empty for a few-step model. sizes: (width, height) of the stages in px. frames: of a video, 0 for an image.
    latent: the node that makes the empty latent. start: a start image, from which WanImageToVideo makes the latent.
    nodes: added to the prompt, or inputs that replace those of a node; ids are 1 model, 11 LoRA (21 and 31 of a second
    model), 3 text encoder, 13 VAE, 2 prompt, 4 plan, 5 latent, 6 sampler, 7 decoder, 10 video, 8 result; of a start
    image 14, with 15 for the small size and 16 the negative prompt. about: paragraphs of the note.
    """

    title: str
    model: str
    colour: str
    profile: str
    files: tuple[File, ...]
    text: str
    clip: str = ""
    student: str = ""
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (1024, 1024))
    steps: tuple[int, ...] = (2, 2)
    frames: int = 0
    fps: float = 16.0
    latent: str = "EmptyLatentImage"
    start: str = ""
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
    """The nodes that load a template's files, and where models, recipe, `clip` and `vae` come from."""
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
            models += 1
            source["model" if models == 1 else "second_model"] = [last, 0]
        elif file.folder == "loras":
            last, below = 20 * (models - 1) + 11, list(found)[-1]
            while str(last) in found:
                last += 1
            last = str(last)
            if template.student:
                chosen = {"student": file.name, "model": [below, 0], "strength": 1.0}
                if template.profile:
                    chosen["profile"] = template.profile
                chosen = {f"kind.{key}": value for key, value in chosen.items()}
                found[last] = node("RMD_LoadStudent", kind=template.student, **chosen)
                source["recipe"] = [last, 1]
            else:
                found[last] = node("LoraLoaderModelOnly", model=[below, 0], lora_name=file.name, strength_model=1.0)
            source["model" if models == 1 else "second_model"] = [last, 0]
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
    plan = {"model": source["model"], "width": width, "height": height, "denoise": 1.0}
    if template.student:
        plan |= {"source": "student recipe", "source.recipe": source["recipe"]}
    else:
        plan |= {"source": "few-step profile", "source.profile": template.profile, "source.split": "auto"}
        plan["source.earlier_sizes"] = ", ".join(sides)
    prompts = {"positive": ["2", 0], "latent_image": ["5", 0]}
    size, small = ({"width": ["4", at], "height": ["4", at + 1]} for at in (4, 6))
    if template.start:
        found |= {
            "14": node("LoadImage", image=template.start),
            "16": node("CLIPTextEncode", "Negative prompt", clip=source["clip"], text=""),
        }
        both = {"positive": ["2", 0], "negative": ["16", 0], "vae": source["vae"], "start_image": ["14", 0]}
        both |= {"length": template.frames, "batch_size": 1}
        found["15"] = node("WanImageToVideo", "Start image, small size", **both, **small)
        latent = node("WanImageToVideo", "Start image, final size", **both, **size)
        prompts = {"positive": ["5", 0], "negative": ["5", 1], "latent_image": ["5", 2]}
        prompts |= {"small_positive": ["15", 0], "small_negative": ["15", 1]}
    elif template.frames:
        plan["latent"] = ["5", 0]
        size = {"width": width, "height": height, "length": template.frames}
        latent = node(template.latent, "Empty latent", **size, batch_size=1)
    else:
        latent = node(template.latent, "Empty latent", **size, batch_size=1)
    if "second_model" in source:
        prompts["second_model"] = source["second_model"]
    found |= {
        "2": node("CLIPTextEncode", "Prompt", clip=source["clip"], text=template.text),
        "4": node("RMD_Schedule", **plan),
        "5": latent,
        "6": node("RMD_Sampler", model=source["model"], plan=["4", 0], seed=1, cfg=["4", 3], **prompts),
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


DISTILLED = "as the student was distilled. RMD Load Student and its recipe set sizes, sigmas, noise and CFG."
NOT_DISTILLED = (
    "with a public few-step model and its published noise levels. It was **not distilled for the cascade**: expect it "
    "to cost less than {steps} steps at {last}, not to look better."
)
OWN_STUDENT = (
    "For your own RMD student, use *RMD Load Student* as loader. Set *source* of RMD Schedule to **student recipe** "
    "and connect **recipe**."
)


def where(file: File) -> str:
    """A file in the list of a note: its name, linked where it can be downloaded, and its size."""
    return f"[{file.name}]({file.url}), {file.gb:.3g} GB" if file.url else f"{file.name}, your own student"


def note_of(template: Template) -> str:
    """The note on the canvas: what runs and what to expect of it, then the files and what they come to."""
    first, *_, last = map(words_of, template.sizes)
    stages = ", ".join(f"{steps} at {words_of(size)}" for steps, size in zip(template.steps, template.sizes))
    frames = f"{template.frames} frames, " if template.frames else ""
    all = sum(template.steps)
    folders = dict.fromkeys(file.folder for file in template.files)
    files = [
        f"- `models/{folder}`: " + "; ".join(where(file) for file in template.files if file.folder == folder)
        for folder in folders
    ]
    return "\n\n".join(
        (
            f"# {template.model} from {first} to {last}",
            f"Steps: {stages}, {frames}"
            + (DISTILLED if template.student else NOT_DISTILLED).format(last=last, steps=all),
            *([template.about] if template.about else []),
            *([] if template.student or template.start else [OWN_STUDENT]),  # none is trained for start images
            f"## Files, {template.gb:.0f} GB together",
            "\n".join(files),
            "ComfyUI keeps in system RAM what does not fit into GPU memory.\n",
        )
    )


_T5 = File("text_encoders", "comfyanonymous/flux_text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors", 5.16)
_SD35 = "Comfy-Org/stable-diffusion-3.5-fp8/text_encoders"
_WAN21 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged/split_files"

_WAN22 = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/split_files"
_QWEN = "Comfy-Org/Qwen-Image_ComfyUI/split_files"
_QWEN3 = File("text_encoders", "Comfy-Org/z_image_turbo/split_files/text_encoders/qwen_3_4b.safetensors", 8.04)
_SDXL = File("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0/sd_xl_base_1.0.safetensors", 6.94)
_UMT5 = File("text_encoders", f"{_WAN21}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", 6.74)
_WAN_VAE = File("vae", f"{_WAN21}/vae/wan_2.1_vae.safetensors", 0.254)
_CLIPS = (
    File("text_encoders", f"{_SD35}/clip_l.safetensors", 0.246),
    File("text_encoders", f"{_SD35}/clip_g.safetensors", 1.39),
    _T5,
)


def _experts(task: str, lora: str) -> tuple[File, ...]:
    """Both models of Wan2.2 A14B for a task, each with the LoRA of lightx2v made for it, and what Wan needs besides."""
    found = []
    for noise in ("high_noise", "low_noise"):
        found += [
            File(
                "diffusion_models", f"{_WAN22}/diffusion_models/wan2.2_{task}_{noise}_14B_fp8_scaled.safetensors", 14.3
            ),
            File("loras", f"{_WAN22}/loras/wan2.2_{task}_lightx2v_4steps_lora_{lora}_{noise}.safetensors", 1.23),
        ]
    return (*found, _UMT5, _WAN_VAE)


_LTX2_FILES = {
    "text_encoder": "gemma_3_12B_it_fp4_mixed.safetensors",
    "ckpt_name": "ltx-2-19b-distilled.safetensors",
}
_EXPERTS = (
    "The high noise model samples at 832x480, the low noise one at 1280x720: with the split 2+2, model and size change "
    "together."
)

TEMPLATES = {
    "swd_sd35_medium": Template(
        "RMD 6 SwD SD3.5 Medium",
        model="SwD SD3.5 Medium",
        colour="#1f7a8c",
        profile="SwD SD3.5 Medium, 6 steps (LoRA)",
        files=(
            File("checkpoints", "stabilityai/stable-diffusion-3.5-medium/sd3.5_medium.safetensors", 5.11),
            File(
                "loras",
                "yresearch/swd-medium-6-steps/adapter_model.safetensors",
                0.301,
                saved_as="swd-medium-6-steps.safetensors",
            ),
            *_CLIPS,
        ),
        text="a glass greenhouse in a snowy garden at dusk, warm light inside, ferns against the panes",
        student="LoRA without recipe",
        sizes=((256, 256), (384, 384), (512, 512), (640, 640), (768, 768), (1024, 1024)),
        steps=(1,) * 6,
        latent="EmptySD3LatentImage",
        about="The LoRAs of SwD are public students of a cascade. Save the download `adapter_model.safetensors` under "
        "the name below. The checkpoint needs a licence: accept it on its page first.",
    ),
    "sdxl_student": Template(
        "RMD 6 your SDXL student",
        model="Your SDXL student",
        colour="#4d6b2f",
        profile="",
        files=(_SDXL, File("loras", saved_as="sdxl_rmd_student.safetensors")),
        text="an old wooden boat on a calm lake, mountains behind, early morning mist",
        student="LoRA",
        about="Train the LoRA in a clone of the repository, because the package of the registry has no trainer: "
        "`python training/distill.py --config training/configs/sdxl.yaml`. Copy it from `outputs/sdxl` into the folder "
        "below. A student with another split or other sizes needs no change here.",
    ),
    "z_image_turbo": Template(
        "RMD 7 Z-Image-Turbo",
        model="Z-Image-Turbo",
        colour="#b0722c",
        profile="Z-Image-Turbo, 8 steps (diffusion model)",
        files=(
            File(
                "diffusion_models",
                "Comfy-Org/z_image_turbo/split_files/diffusion_models/z_image_turbo_bf16.safetensors",
                12.3,
            ),
            _QWEN3,
            File("vae", "Comfy-Org/z_image_turbo/split_files/vae/ae.safetensors", 0.335),
        ),
        text="a street market in the rain, red umbrellas, steam from a noodle stall, neon signs, film photograph",
        clip="lumina2",
        steps=(4, 4),
        latent="EmptySD3LatentImage",
        about="The profile sets the shift: leave out *ModelSamplingAuraFlow*.",
    ),
    "flux2_klein": Template(
        "RMD 7 FLUX.2 klein 4B",
        model="FLUX.2 klein 4B",
        colour="#7a3b52",
        profile="FLUX.2 klein 4B and 9B, 4 steps (diffusion model)",
        files=(
            File(
                "diffusion_models",
                "Comfy-Org/flux2-klein/split_files/diffusion_models/flux-2-klein-4b.safetensors",
                7.75,
            ),
            _QWEN3,
            File("vae", "Comfy-Org/flux2-dev/split_files/vae/flux2-vae.safetensors", 0.336),
        ),
        text="a hand-painted wooden toy train on a shelf, soft window light, shallow depth of field",
        clip="flux2",
        latent="EmptyFlux2LatentImage",
        about="The sigmas depend on the size of the result, as in *Flux2Scheduler*.",
    ),
    "qwen_image_lightning": Template(
        "RMD 8 Qwen-Image 2512",
        model="Qwen-Image 2512 Lightning",
        colour="#3c4f8f",
        profile="Qwen-Image 2512 Lightning, 4 steps (LoRA)",
        files=(
            File("diffusion_models", f"{_QWEN}/diffusion_models/qwen_image_2512_fp8_e4m3fn.safetensors", 20.4),
            File(
                "loras",
                "lightx2v/Qwen-Image-2512-Lightning/Qwen-Image-2512-Lightning-4steps-V1.0-fp32.safetensors",
                1.7,
            ),
            File("text_encoders", f"{_QWEN}/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors", 9.38),
            File("vae", f"{_QWEN}/vae/qwen_image_vae.safetensors", 0.254),
        ),
        text='a chalkboard outside a cafe that says "Today: lemon cake", morning sun, bicycles behind',
        clip="qwen_image",
        sizes=((640, 640), (1280, 1280)),
        latent="EmptySD3LatentImage",
        about="The profile sets the shift: leave out *ModelSamplingAuraFlow*.",
    ),
    "sdxl_dmd2_lora": Template(
        "RMD 7 SDXL with DMD2 LoRA",
        model="SDXL + DMD2 LoRA",
        colour="#2f6fb5",
        profile="SDXL DMD2, 4 steps (LoRA)",
        files=(
            _SDXL,
            File("loras", "tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors", 0.394),
        ),
        text="a wooden desk by a rainy window, an open sketchbook, a cup of tea, soft morning light",
        about="You can use any SDXL checkpoint as the base model.",
    ),
    "sdxl_lightning": Template(
        "RMD 7 SDXL-Lightning",
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
        about="Save the download `diffusion_pytorch_model.safetensors` under the name below. Sides of a PixArt stage "
        "must be multiples of 16 px with a mean above 256 px.",
    ),
    "sd35_large_turbo": Template(
        "RMD 8 SD3.5 Large Turbo",
        model="SD3.5 Large Turbo",
        colour="#a8503a",
        profile="SD3.5 Large Turbo, 4 steps (checkpoint)",
        files=(
            File("checkpoints", "stabilityai/stable-diffusion-3.5-large-turbo/sd3.5_large_turbo.safetensors", 16.5),
            *_CLIPS,
        ),
        text="a small bookshop at night, warm light in the window, a painted sign that says OPEN LATE, "
        "wet cobblestones",
        latent="EmptySD3LatentImage",
        about="The checkpoint needs a licence: accept it on its page first.",
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
            _UMT5,
            _WAN_VAE,
        ),
        clip="wan",
        text="a paper boat drifts down a rain-filled gutter, autumn leaves turning in the current, close to the water, "
        "slow camera",
        sizes=((832, 480), (1280, 720)),
        frames=81,
        latent="EmptyHunyuanLatentVideo",
        about="Set size and length in *Empty latent*; *RMD Schedule* reads them from there. To try a prompt, start "
        "with fewer frames (17, 33).\n\nA student of this model has six sigmas and runs 3+3.",
    ),
    "wan22_t2v": Template(
        "RMD 9 Wan2.2 A14B T2V",
        model="Wan2.2 A14B text to video",
        colour="#2f6d7a",
        profile="Wan2.2 T2V A14B lightx2v, 4 steps (LoRA)",
        files=_experts("t2v", "v1.1"),
        text="a red kite rises over a windy beach, children running below, the camera follows it up into the clouds",
        clip="wan",
        sizes=((832, 480), (1280, 720)),
        frames=81,
        latent="EmptyHunyuanLatentVideo",
        about=_EXPERTS,
    ),
    "wan22_i2v": Template(
        "RMD 9 Wan2.2 A14B I2V",
        model="Wan2.2 A14B image to video",
        colour="#8a5a2b",
        profile="Wan2.2 I2V A14B lightx2v, 4 steps (LoRA)",
        files=_experts("i2v", "v1"),
        text="the camera moves slowly closer, leaves drift through the image, soft light",
        clip="wan",
        sizes=((832, 480), (1280, 720)),
        frames=81,
        start="example.png",
        about=f"{_EXPERTS}\n\nChoose your start image in *Load Image*. The graph encodes it at both sizes. Set the "
        "size in RMD Schedule, the length in both *Start image* nodes. CFG is 1, so the negative prompt is not used.",
    ),
    "ltx2_distilled": Template(
        "RMD 9 LTX-2 with sound",
        model="LTX-2 distilled",
        colour="#5a4a8a",
        profile="LTX-2 distilled, 8 steps (checkpoint)",
        files=(
            File("checkpoints", "Lightricks/LTX-2/ltx-2-19b-distilled.safetensors", 43.0),
            File(
                "text_encoders", "Comfy-Org/ltx-2/split_files/text_encoders/gemma_3_12B_it_fp4_mixed.safetensors", 9.45
            ),
            File("latent_upscale_models", "Lightricks/LTX-2/ltx-2-spatial-upscaler-x2-1.0.safetensors", 0.996),
        ),
        text="a street musician plays a slow melody on a cello under a bridge, footsteps echo, a tram passes behind",
        sizes=((640, 352), (1280, 704)),
        steps=(5, 3),
        frames=121,
        fps=25.0,
        latent="EmptyLTXVLatentVideo",
        nodes={
            "3": node("LTXAVTextEncoderLoader", **_LTX2_FILES, device="default"),
            "30": node("LTXVAudioVAELoader", ckpt_name=_LTX2_FILES["ckpt_name"]),
            "31": node("LatentUpscaleModelLoader", model_name="ltx-2-spatial-upscaler-x2-1.0.safetensors"),
            "16": node("CLIPTextEncode", "Negative prompt", clip=["3", 0], text=""),
            "17": node("LTXVConditioning", positive=["2", 0], negative=["16", 0], frame_rate=25.0),
            "18": node("LTXVEmptyLatentAudio", frames_number=121, frame_rate=25.0, batch_size=1, audio_vae=["30", 0]),
            "19": node("LTXVConcatAVLatent", video_latent=["5", 0], audio_latent=["18", 0]),
            "32": node("RMD_Upsampler", upscale_model=["31", 0], vae=["1", 2]),
            "4": node(latent=["19", 0]),
            "6": node(
                **{"positive": ["17", 0], "negative": ["17", 1], "latent_image": ["19", 0]},
                learned_upsampler=["32", 0],
            ),
            "20": node("LTXVSeparateAVLatent", av_latent=["6", 0]),
            "7": node(samples=["20", 0]),
            "33": node("LTXVAudioVAEDecode", samples=["20", 1], audio_vae=["30", 0]),
            "10": node(audio=["33", 0]),
        },
        about="After five steps LTX's upscaler enlarges the video; the sound keeps its size. Sides "
        "are multiples of 64 px. Set the length in *Empty latent* and in *LTXV Empty Latent Audio*.",
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
