"""A good file of each kind that is read, each family's teacher among them, and what loads one."""

import torch

from backbone_world import TINY, random_network, tiny_network
from rmd_core.files import save_safetensors
from rmd_core.recipe import student_metadata
from student_files import lora_pairs, lora_tensors, metadata, recipe
from training.backbones import make_backbone
from training.backbones.pixart import PixArtBackbone
from training.prompts import write_prompt_cache
from training_world import tiny_wan

NAME = "tried.safetensors"
FILES = {
    **{"full student": 40, "full student, SD3": 40, "LoRA student": 60, "prompt cache": 50},
    **{"teacher": 50, "teacher, SD3": 40, "teacher, PixArt": 40, "teacher, SDXL": 40},
}
"""Kind of file -> mutations of it; 360 together."""

BACKBONES = {"teacher": "wan", "teacher, SD3": "sd3", "teacher, PixArt": "pixart_sigma", "teacher, SDXL": "sdxl"}
"""Kind of teacher -> backbone; SDXL's is in Diffusers format, as its tiny network has no native one."""

PROMPTS = ("", "a red apple", "a blue cup \u4e2d")


class Folder:
    """models/ of the test's own, a good file of each kind, and what loads one."""

    def __init__(self, path, nodes, base):
        self.path, self.nodes, self.base = path, nodes, base
        self.node = nodes.classes["RMD_LoadStudent"]
        self.good = {kind: self._made(kind).read_bytes() for kind in FILES}

    def place(self, kind):
        """Where a file of a kind is put."""
        if kind == "teacher, SDXL":
            return self.path / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
        folders = {"LoRA student": "loras", "prompt cache": "rmd_prompts"}
        folder = "diffusion_models" if kind.startswith("full student") else folders.get(kind, "teachers")
        return self.path / folder / NAME

    def load(self, kind):
        """The file at its place through the loader of its kind, as ComfyUI or the trainer would."""
        path = self.place(kind)
        if kind.startswith("full student"):
            return self.node.execute(kind={"kind": "full model", "student": NAME, "weight_dtype": "default"}).args
        if kind == "LoRA student":
            return self.node.execute(kind={"kind": "LoRA", "student": NAME, "model": self.base, "strength": 1.0}).args
        if kind == "prompt cache":
            given = [self.nodes("RMD_LoadPromptEmbeddings", file=NAME, prompt=text)[0][0][0] for text in PROMPTS]
            self.nodes.pack.rmd_core.prompt_cache.PromptCache(path).mask(PROMPTS)
            return dict(zip(PROMPTS, given))
        backbone = make_backbone(BACKBONES[kind])
        base = self.path / "sdxl" if kind == "teacher, SDXL" else path
        outline = backbone.outline(base)
        network = backbone.load(base, dtype=torch.float32)
        assert {n: t.shape for n, t in outline.state_dict().items()} == {
            n: t.shape for n, t in network.state_dict().items()
        }
        return network

    def _made(self, kind):
        path = self.place(kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "LoRA student":
            save_safetensors(path, lora_tensors(lora_pairs()), metadata(adapter_alpha=6.0))
        elif kind == "prompt cache":
            embeddings = {
                text: torch.randn(3, 16, generator=torch.Generator().manual_seed(len(text))) for text in PROMPTS
            }
            pooled = {text: value[0] for text, value in embeddings.items()}
            write_prompt_cache(path, embeddings, encoder="toy", pooled=pooled)
        elif kind == "teacher, SDXL":
            tiny_network("sdxl").half().save_pretrained(path.parent)
        else:
            backbone = make_backbone("sd3" if kind == "full student, SD3" else BACKBONES.get(kind, "wan"))
            header = {}
            if kind.startswith("full student"):
                header = student_metadata(recipe(base_model="own", architecture=backbone.architecture), title="own")
            backbone.export(_network(backbone.name), path, dtype=torch.float16, metadata=header)
        return path


def held(kind, loaded):
    """{name in the file: tensor} of what a loader made of a file."""
    if kind.startswith("full student"):
        return {name: tensor.cpu() for name, tensor in loaded[0].model.diffusion_model.state_dict().items()}
    if kind == "teacher, SDXL":
        return loaded.state_dict()
    if kind in BACKBONES:
        native = make_backbone(BACKBONES[kind]).native_state(loaded)
        unused = PixArtBackbone.unused if kind == "teacher, PixArt" else ()
        return {name: tensor for name, tensor in native.items() if name not in unused}
    pairs = {key.removesuffix(".weight"): patches[0][1].weights for key, patches in loaded[0].patches.items()}
    ends = (".lora_B.weight", ".lora_A.weight")
    return {f"{key}{end}": weights[place] for key, weights in pairs.items() for place, end in enumerate(ends)}


def _network(name):
    """The tiny network of a backbone, with the width of heads that a native PixArt file has."""
    if name == "wan":
        return tiny_wan()
    heads = {"num_attention_heads": 1, "attention_head_dim": 72, "cross_attention_dim": 72}
    return random_network(TINY[name][0], TINY[name][1] | (heads if name.startswith("pixart") else {}))
