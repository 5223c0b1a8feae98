"""Tiny random text encoders and tokenizers in Diffusers-format folders, beside the tiny networks of backbone_world."""

import time

import torch
from diffusers import (
    Flux2KleinPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
    ZImagePipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from backbone_world import tiny_kl_vae, tiny_network
from training.backbones import make_backbone
from training.encode_prompts import encode_prompts
from training.text_encoders import TextEncoders

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer():
    """A CLIP tokenizer that knows single letters."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def t5_tokenizer():
    """A T5 tokenizer that knows single letters."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    return T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def qwen_tokenizer():
    """A Qwen tokenizer that knows single letters, with the template of a chat of Qwen3, without thinking."""
    pieces = [*LETTERS, "\u0120", "\u010a", "<", ">", "|", "_"]
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\n' }}"
    )
    return tokenizer


def qwen(width, layers=3, kind=Qwen3Model):
    """A Qwen3 language model."""
    sizes = {"vocab_size": 64, "hidden_size": width, "intermediate_size": 32, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    return kind(Qwen3Config(**sizes, **heads, tie_word_embeddings=kind is not Qwen3Model))


def qwen_vl(width):
    """A Qwen2.5-VL language and vision model."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": {"mrope_section": [1, 1, 2]}}
    text = {"vocab_size": 64, "hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, **heads}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def clip(width, projection=None):
    """A CLIP text model, with a projection where one is named."""
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection or 8,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


def t5(width, kind=(T5Config, T5EncoderModel)):
    """A T5 (or UMT5) encoder."""
    config, model = kind
    return model(config(vocab_size=30, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2))


def encode_slowly(model, texts, out):
    """Make a cache of files of two prompts, so slowly that a process can be met in the middle of it."""

    class Slow(TextEncoders):
        def encode(self, texts):
            time.sleep(0.1)
            return super().encode(texts)

    encode_prompts(Slow(model), texts, out, batch=1, shard=2)


def write_model(name, folder, *, seed=0):
    """Write a whole Diffusers-format folder of a backbone: text encoders, tokenizers, network, autoencoder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = make_pipeline(name)
    pipeline.save_pretrained(folder)
    return folder


def make_pipeline(name):
    """The whole pipeline of a backbone, with tiny random parts."""
    network = tiny_network(name)
    if name.startswith("wan"):
        encoder = t5(16, (UMT5Config, UMT5EncoderModel))
        return WanPipeline(
            tokenizer=t5_tokenizer(), text_encoder=encoder, transformer=network, vae=None, scheduler=None
        )
    vae = tiny_kl_vae(make_backbone(name))
    if name == "sdxl":
        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=clip(10),
            text_encoder_2=clip(14, 20),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            unet=network,
            scheduler=None,
            add_watermarker=False,
        )
    if name == "sd3":
        return StableDiffusion3Pipeline(
            transformer=network,
            scheduler=None,
            vae=vae,
            text_encoder=clip(8, 8),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip(12, 12),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5(24),
            tokenizer_3=t5_tokenizer(),
        )
    if name in ("qwen_image", "z_image"):
        kind, encoder = (ZImagePipeline, qwen(24)) if name == "z_image" else (QwenImagePipeline, qwen_vl(16))
        return kind(scheduler=None, vae=vae, text_encoder=encoder, tokenizer=qwen_tokenizer(), transformer=network)
    if name == "flux2_klein":
        encoder = qwen(8, layers=28, kind=Qwen3ForCausalLM)
        parts = {"scheduler": None, "vae": vae, "text_encoder": encoder, "tokenizer": qwen_tokenizer()}
        return Flux2KleinPipeline(**parts, transformer=network)
    kind = PixArtAlphaPipeline if name == "pixart_alpha" else PixArtSigmaPipeline
    return kind(tokenizer=t5_tokenizer(), text_encoder=t5(24), vae=vae, transformer=network, scheduler=None)
