"""The text encoders of a Diffusers-format folder, called through the folder's own pipeline class."""

import gc
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError

from rmd_core.errors import RMDError, one_line
from rmd_core.files import hash_file, read_json
from rmd_core.prompt_cache import NULL_PROMPT

from .hub import ENCODER_STEM, INDEX, index_parts, refuse_packed, weight_files, weights_variant
from .offload import ran_out_of_memory

_READ = (".json", ".jinja", ".txt", ".model", ".safetensors")  # what is read of encoders and tokenizers
_VOCABULARIES = ({"tokenizer.json"}, {"spiece.model"}, {"vocab.json", "merges.txt"})  # any of them is enough
# What loading a broken folder raises.
_LOADING = (OSError, ValueError, RuntimeError, TypeError, KeyError, ImportError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class Encoded:
    """One prompt: its embedding (tokens, dim) without meaningless padding, and the pooled one (width,) or None."""

    embedding: torch.Tensor
    pooled: torch.Tensor | None


@dataclass(frozen=True)
class Family:
    """A kind of pipeline; ``unused``: its parts that encode no text; ``masked``: its network masks the padding."""

    name: str
    tokens: int | None  # length of a text; None: the tokenizers' own
    unused: tuple = ("transformer", "vae", "scheduler")
    masked: bool = False


FAMILIES = {  # by the pipeline's class
    "StableDiffusionXLPipeline": Family("sdxl", None, ("unet", "vae", "scheduler")),
    "PixArtAlphaPipeline": Family("pixart-alpha", 120, masked=True),
    "PixArtSigmaPipeline": Family("pixart-sigma", 300, masked=True),
    # T5's part; the CLIPs' 77 come first. ComfyUI gives a prompt of up to 77 tokens the same length.
    "StableDiffusion3Pipeline": Family("sd3", 77, (*Family.unused, "image_encoder", "feature_extractor")),
    "WanPipeline": Family("wan", 512, (*Family.unused, "transformer_2")),
    "QwenImagePipeline": Family("qwen-image", 1024, masked=True),
    "ZImagePipeline": Family("z-image", 512, masked=True),
    "Flux2KleinPipeline": Family("flux2-klein", 512),
}


class TextEncoders:
    """The text encoders of ``folder`` on a device, loaded within a with statement.

    ``tokens``: length of a text, None for the family's own. Raises RMDError for a folder of an unknown pipeline, or
    one without an encoder.
    """

    def __init__(self, folder, *, device="cpu", dtype=torch.float32, tokens=None):
        self.folder, self.device, self.dtype = Path(folder), device, dtype
        self._index = _read_index(self.folder)
        self.family = FAMILIES[self._index["_class_name"]]
        if tokens is not None and self.family.tokens is None:
            raise RMDError(f"{folder}: its tokenizer fixes the length of prompts; leave --tokens out")
        self._tokens = tokens or self.family.tokens
        self._parts = _encoder_folders(self.folder, self._index)
        self._pipeline = None

    @property
    def masked(self):
        """Whether the network masks the padding."""
        return self.family.masked

    @property
    def length(self):
        """The number of tokens that every prompt is padded to, None for the longest one in the cache."""
        return self._tokens if self.family.name == "wan" or self.masked else None

    @cached_property
    def identity(self):
        """The encoders' name: the family, the length of a text, and a digest of the encoders' and tokenizers' files."""
        digest = hashlib.sha256()
        for part in self._parts:
            for path in _files_read(part):
                digest.update(f"{part.name}/{path.name}".encode())
                hash_file(path, digest)
        length = "" if self._tokens is None else f"-{self._tokens}"
        return f"{self.family.name}{length}-{digest.hexdigest()[:12]}"

    def __enter__(self):
        """Load the encoders. Raises RMDError for weights that do not fit them."""
        import diffusers
        from transformers.utils import logging as transformers_logging

        if self.family.name == "wan":
            try:  # diffusers goes on without it, and then encodes some prompts differently
                import ftfy  # noqa: F401
            except ImportError:
                raise RMDError("Wan's prompts are cleaned by ftfy, which is missing; run: pip install ftfy") from None
        kind = getattr(diffusers, self._index["_class_name"])
        parts = dict.fromkeys(self.family.unused)
        transformers_logging.disable_progress_bar()
        try:
            for part in self._parts:
                if part.name.startswith("text_encoder"):
                    parts[part.name] = self._encoder(part)
            self._pipeline = kind.from_pretrained(
                str(self.folder), use_safetensors=True, local_files_only=True, **parts
            )
            self._pipeline.set_progress_bar_config(disable=True)
            self._pipeline.to(self.device)
        except RMDError:
            raise
        except _LOADING as error:
            if ran_out_of_memory(error):
                raise
            raise RMDError(f"{self.folder}: its text encoders cannot be loaded ({one_line(error, 300)})") from None
        finally:
            transformers_logging.enable_progress_bar()
        return self

    def __exit__(self, *_):
        """Free the encoders."""
        self._pipeline = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _encoder(self, part):
        """One encoder with all its weights; transformers would fill what is missing in a file with random numbers."""
        import transformers

        model, info = getattr(transformers, self._index[part.name][1]).from_pretrained(
            str(part),
            torch_dtype=self.dtype,
            use_safetensors=True,
            variant=weights_variant(part, ENCODER_STEM),
            local_files_only=True,
            output_loading_info=True,
        )
        for words, keys in (("are missing", info["missing_keys"]), ("have in another shape", info["mismatched_keys"])):
            if keys:
                raise RMDError(f"{part}: its weights {words} {len(keys)} tensors, first {min(map(str, keys))[:80]!r}")
        # Some early releases of transformers 5 do not tie the two names of UMT5's embeddings; one is random then.
        used, stored = getattr(model, "encoder", None), getattr(model, "shared", None)
        if stored is not None and not torch.equal(used.embed_tokens.weight, stored.weight):
            version = transformers.__version__
            raise RMDError(
                f"{part}: transformers {version} leaves its embeddings untied; install 5.24, which ties them"
            )
        return model

    @torch.inference_mode()
    def encode(self, texts):
        """The ``Encoded`` of every text, in one batch, on the CPU in float32."""
        settings = {"device": self.device}
        if self.family.name not in ("qwen-image", "flux2-klein"):  # which have no such choice
            settings["do_classifier_free_guidance"] = False
        if self._tokens is not None:
            settings["max_sequence_length"] = self._tokens
        if self.family.name in ("sdxl", "sd3"):
            further = (None, None) if self.family.name == "sd3" else ()  # prompts of the other encoders: the same
            embeddings, _, pooled, _ = self._pipeline.encode_prompt(list(texts), *further, **settings)
            return [Encoded(_on_cpu(row), _on_cpu(one)) for row, one in zip(embeddings, pooled)]
        embeddings, mask, *_ = self._pipeline.encode_prompt(list(texts), **settings)
        if self.family.name in ("z-image", "flux2-klein") or mask is None:  # no padding is left, or it has a meaning
            lengths = [len(row) for row in embeddings]
        elif self.masked:
            lengths = [int(row.sum()) for row in mask]
        else:  # Wan's padding is zeros
            lengths = [int(row.any(-1).nonzero().max()) + 1 for row in embeddings]
        return [Encoded(_on_cpu(row[:length]), None) for row, length in zip(embeddings, lengths)]

    def encode_null(self, text=NULL_PROMPT):
        """The null prompt: ``text``, or what the pipeline takes for no prompt at all.

        SDXL's folders ask for zeros in place of the empty text (force_zeros_for_empty_prompt).
        """
        encoded = self.encode([text])[0]
        zeros = self.family.name == "sdxl" and not text and self._pipeline.config.force_zeros_for_empty_prompt
        return Encoded(torch.zeros_like(encoded.embedding), torch.zeros_like(encoded.pooled)) if zeros else encoded


def _on_cpu(tensor):
    return tensor.detach().to("cpu", torch.float32).clone()


def _read_index(folder):
    path = folder / INDEX
    if not path.exists():
        raise RMDError(
            f"{folder} is not a Diffusers-format folder of a complete model: it has no {INDEX}; give the folder "
            "that contains text_encoder and tokenizer"
        )
    index = read_json(path)
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise RMDError(f"{path} names the pipeline {name}; supported are {', '.join(FAMILIES)}")
    return index


def _encoder_folders(folder, index):
    """The folders of the encoders and tokenizers. Raises RMDError for one without what transformers would make up."""
    names = [name for name in index_parts(index) if name.startswith(("text_encoder", "tokenizer"))]
    absent = [name for name in names if not (folder / name).is_dir()]
    if absent or not names:
        raise RMDError(f"{folder} is missing {', '.join(absent) or 'a text encoder'}; download the whole folder")
    parts = [folder / name for name in names]
    for part in parts:
        if part.name.startswith("text_encoder"):
            if not (part / "config.json").is_file():
                raise RMDError(f"{part} has no config.json; download all of it")
            weights_variant(part, ENCODER_STEM)
            refuse_packed(part, ENCODER_STEM)
        elif not any(files <= {path.name for path in part.iterdir()} for files in _VOCABULARIES):
            needed = ", or ".join(" and ".join(sorted(files)) for files in _VOCABULARIES)
            raise RMDError(f"{part} has no vocabulary, {needed}; download all of it")
    return parts


def _files_read(part):
    """The files that are read of an encoder or tokenizer, by name: of weights those of the variant that is loaded."""
    files = sorted(path for path in part.iterdir() if path.is_file() and path.suffix in _READ)
    if not part.name.startswith("text_encoder"):
        return files
    chosen = weight_files([path.name for path in files], ENCODER_STEM)
    return [f for f in files if f.name in chosen or not re.search(r"\.safetensors$|\.safetensors\.index\.", f.name)]
