"""Tiny latent upscale models and VAEs of core's own classes, loaded as core loads them."""

import json
from pathlib import Path

import torch

from comfy_models import _fill
from rmd_core.files import save_safetensors


def latent_upscaler(scale=2.0, channels=128):
    """LATENT_UPSCALE_MODEL of LTX's class from core's loader, and the weights in its file."""
    from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler

    config = {"in_channels": channels, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3}
    config |= {"spatial_scale": scale, "rational_resampler": scale != 2.0}
    network = LatentUpsampler.from_config(config, operations=torch.nn)
    _fill(network)
    return _loaded(f"spatial_x{scale}", network, {"config": json.dumps(config)})


def sr_model(channels):
    """LATENT_UPSCALE_MODEL of HunyuanVideo 1.5's 720p class, and the weights in its file."""
    from comfy.ldm.hunyuan_video.upsampler import SRModel3DV2

    network = SRModel3DV2(channels, channels, hidden_channels=8, num_blocks=1)
    _fill(network)
    return _loaded(f"sr_{channels}", network, None)


def _loaded(name, network, metadata):
    import folder_paths
    from comfy_extras.nodes_hunyuan import LatentUpscaleModelLoader

    folder = Path(folder_paths.get_folder_paths("latent_upscale_models")[0])
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    save_safetensors(folder / f"{name}.safetensors", weights, metadata=metadata)
    return LatentUpscaleModelLoader.execute(f"{name}.safetensors").args[0], weights


def ltx_vae():
    """LTX's video VAE (32 px and 8 frames a cell), whose decoder samples noise."""
    import comfy.sd
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    config = {"dims": 3, "latent_channels": 128, "norm_layer": "pixel_norm", "patch_size": 4}
    config |= {"latent_log_var": "uniform", "timestep_conditioning": True}
    config |= {"encoder_base_channels": 8, "decoder_base_channels": 8}
    halves = [["compress_all", {}]] * 3
    config |= {"encoder_blocks": [["res_x", {"num_layers": 1}], *halves], "decoder_blocks": [*halves, ["res_x", 1]]}
    network = VideoVAE(config=config)
    _fill(network)
    statistics = network.per_channel_statistics
    statistics.get_buffer("std-of-means").uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    statistics.get_buffer("mean-of-means").uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(2))
    return comfy.sd.VAE(sd=network.state_dict(), metadata={"config": json.dumps({"vae": config})})


def image_vae():
    """An autoencoder of images with 4 channels, 8 px a cell."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    size = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    size |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": size, "embed_dim": 4}
    network = AutoencoderKL(**params)
    _fill(network)
    return comfy.sd.VAE(sd=network.state_dict(), config={"params": params})
