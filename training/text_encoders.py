"""The text encoders of a Diffusers-format folder, asked through the folder's own pipeline class."""

import gc
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from diffusers import (
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
)
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from rmd_core.errors import RMDError
from rmd_core.prompt_cache import NULL_PROMPT

from .hub import ENCODER_STEM, refuse_packed, weight_files, weights_variant
from .offload import ran_out_of_memory

INDEX = "model_index.json"
_READ = (".json", ".txt", ".model", ".safetensors")  # what is read of encoders and tokenizers
_VOCABULARIES = ({"tokenizer.json"}, {"spiece.model"}, {"vocab.json", "merges.txt"})  # any of them is enough
_WEIGHTS = re.compile(r"\.safetensors$|\.safetensors\.index\.")
_LOADING = (  # what loading a broken folder raises
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    ImportError,
    AttributeError,
    SafetensorError,
)


@dataclass(frozen=True)
class Encoded:
    """One prompt: its embedding (tokens, dim) without padding that says nothing, and the pooled one or None."""

    embedding: torch.Tensor
    pooled: torch.Tensor | None


@dataclass(frozen=True)
class Family:
    """How the encoders of one kind of pipeline are asked; ``masked``: whether its network masks the padding."""

    name: str
    pipeline: type
    network: str
    tokens: int | None  # None: the length is the tokenizers' own
    masked: bool = False


FAMILIES = {
    family.pipeline.__name__: family
    for family in (
        Family("sdxl", StableDiffusionXLPipeline, "unet", None),
        Family("pixart-alpha", PixArtAlphaPipeline, "transformer", 120, masked=True),
        Family("pixart-sigma", PixArtSigmaPipeline, "transformer", 300, masked=True),
        # T5's part; the CLIPs' 77 come first. ComfyUI gives a prompt of up to 77 tokens the same length.
        Family("sd3", StableDiffusion3Pipeline, "transformer", 77),
        Family("wan", WanPipeline, "transformer", 512),
    )
}


class TextEncoders:
    """The text encoders of ``folder`` on a device; ``tokens``: length of a text, None for the family's own.

    ``identity`` names the encoders by their content, ``length`` is what every prompt is padded to, ``masked`` whether
    the network masks the padding. Raises RMDError for a folder of an unknown pipeline, or one that lacks an encoder.
    """

    def __init__(self, folder, *, device="cpu", dtype=torch.float32, tokens=None):
        self.folder = Path(folder)
        index = self._index()
        self.family = FAMILIES[index["_class_name"]]
        if tokens is not None and self.family.tokens is None:
            raise RMDError(f"{folder}: the length of its texts is fixed at the tokenizer's; leave --tokens out")
        self._parts = self._encoder_folders(index)
        self.device = device
        self.dtype = dtype
        self._tokens = tokens or self.family.tokens
        self.masked = self.family.masked
        self._pipeline = None

    @property
    def identity(self):
        """The encoders' name: the family, the length of a text, and a digest of the encoders' and tokenizers' files."""
        digest = hashlib.sha256()
        for part in self._parts:
            for path in self._files(part):
                digest.update(f"{part.name}/{path.name}".encode())
                with open(path, "rb") as file:
                    while block := file.read(1 << 22):
                        digest.update(block)
        length = "" if self._tokens is None else f"-{self._tokens}"
        return f"{self.family.name}{length}-{digest.hexdigest()[:12]}"

    def _files(self, part):
        """The files that are read of a part, by name: of weights those of the variant that is loaded."""
        files = sorted(path for path in part.iterdir() if path.is_file() and path.suffix in _READ)
        if not part.name.startswith("text_encoder"):
            return files
        chosen = weight_files([path.name for path in files], ENCODER_STEM)
        return [path for path in files if path.name in chosen or not _WEIGHTS.search(path.name)]

    def __enter__(self):
        others = {"vae": None, "scheduler": None, self.family.network: None}
        if self.family.name == "sd3":
            others |= {"image_encoder": None, "feature_extractor": None}
        transformers_logging.disable_progress_bar()
        try:
            for part in (part for part in self._parts if part.name.startswith("text_encoder")):
                others[part.name] = self._whole_encoder(part)
            self._pipeline = self.family.pipeline.from_pretrained(
                str(self.folder), use_safetensors=True, local_files_only=True, **others
            )
            self._pipeline.set_progress_bar_config(disable=True)
            self._pipeline.to(self.device)
        except RMDError:
            raise
        except _LOADING as error:
            if ran_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise RMDError(f"{self.folder}: its text encoders cannot be loaded ({reason})") from None
        finally:
            transformers_logging.enable_progress_bar()
        return self

    def _whole_encoder(self, part):
        """One encoder with all its weights; transformers would fill what a file lacks with random numbers."""
        kind = getattr(transformers, self._index()[part.name][1])
        model, told = kind.from_pretrained(
            str(part),
            torch_dtype=self.dtype,
            use_safetensors=True,
            variant=weights_variant(part, ENCODER_STEM),
            local_files_only=True,
            output_loading_info=True,
        )
        for words, keys in (("lack", told["missing_keys"]), ("have in another shape", told["mismatched_keys"])):
            if keys:
                raise RMDError(f"{part}: its weights {words} {len(keys)} tensors, first {min(map(str, keys))[:80]!r}")
        return model

    def __exit__(self, *_):
        """Free the encoders."""
        self._pipeline = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def encode(self, texts):
        """The ``Encoded`` of every text, in one batch, on the CPU in float32."""
        texts, name = list(texts), self.family.name
        common = {"device": self.device, "do_classifier_free_guidance": False}
        if name == "sdxl":
            embeddings, _, pooled, _ = self._pipeline.encode_prompt(texts, **common)
            return _several(embeddings, pooled)
        if name == "sd3":
            embeddings, _, pooled, _ = self._pipeline.encode_prompt(
                texts, None, None, max_sequence_length=self._tokens, **common
            )
            return _several(embeddings, pooled)
        if name == "wan":
            embeddings, _ = self._pipeline.encode_prompt(texts, max_sequence_length=self._tokens, **common)
            lengths = [int(row.any(-1).nonzero().max()) + 1 for row in embeddings]  # the rest are zeros
        else:
            embeddings, mask, *_ = self._pipeline.encode_prompt(texts, max_sequence_length=self._tokens, **common)
            lengths = [int(row.sum()) for row in mask]
        return [Encoded(_kept(row[:length]), None) for row, length in zip(embeddings, lengths)]

    def encode_null(self, text=NULL_PROMPT):
        """What guidance is guided away from: ``text``, or what the pipeline takes for no prompt at all.

        SDXL's folders ask for zeros in place of the empty text (force_zeros_for_empty_prompt).
        """
        encoded = self.encode([text])[0]
        zeros = self.family.name == "sdxl" and not text and self._pipeline.config.force_zeros_for_empty_prompt
        return Encoded(torch.zeros_like(encoded.embedding), torch.zeros_like(encoded.pooled)) if zeros else encoded

    @property
    def length(self):
        """The number of tokens that every prompt is padded to, None for the longest one in the cache."""
        return self._tokens if self.family.name == "wan" or self.masked else None

    def _index(self):
        path = self.folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            name = index["_class_name"]
        except (FileNotFoundError, NotADirectoryError):
            raise RMDError(
                f"{self.folder} is no Diffusers-format folder of a whole model: it has no {INDEX}; give the folder "
                "that holds text_encoder and tokenizer"
            ) from None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise RMDError(f"{path} is damaged; download it again") from None
        if name not in FAMILIES:
            raise RMDError(f"{path} names the pipeline {name}; known are {', '.join(FAMILIES)}")
        return index

    def _encoder_folders(self, index):
        parts = [part for part in sorted(index) if part.startswith(("text_encoder", "tokenizer"))]
        parts = [part for part in parts if isinstance(index[part], list) and index[part][0] is not None]
        absent = [part for part in parts if not (self.folder / part).is_dir()]
        if absent or not parts:
            raise RMDError(f"{self.folder} lacks {', '.join(absent) or 'a text encoder'}; download the whole folder")
        folders = [self.folder / part for part in parts]
        for folder in folders:
            _check_part(folder)
        return folders


def _check_part(folder):
    """Raise RMDError for an encoder or a tokenizer that lacks what transformers would make up, or misread."""
    if folder.name.startswith("tokenizer"):
        there = {path.name for path in folder.iterdir()}
        if not any(names <= there for names in _VOCABULARIES):
            wanted = ", or ".join(" and ".join(sorted(names)) for names in _VOCABULARIES)
            raise RMDError(f"{folder} holds no vocabulary, {wanted}; download all of it")
        return
    if not (folder / "config.json").is_file():
        raise RMDError(f"{folder} has no config.json; download all of it")
    weights_variant(folder, ENCODER_STEM)
    refuse_packed(folder, ENCODER_STEM)


def _several(embeddings, pooled):
    return [Encoded(_kept(row), _kept(one)) for row, one in zip(embeddings, pooled)]


def _kept(tensor):
    return tensor.detach().to("cpu", torch.float32).clone()
