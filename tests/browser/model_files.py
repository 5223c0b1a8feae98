"""Where the files that the example workflows name belong, and where they are public."""

FILES = {
    "sd_xl_base_1.0.safetensors": (
        "checkpoints",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    ),
    "sdxl_lightning_4step.safetensors": (
        "checkpoints",
        "https://huggingface.co/ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step.safetensors",
    ),
    "dmd2_sdxl_4step_lora_fp16.safetensors": (
        "loras",
        "https://huggingface.co/tianweiy/DMD2/resolve/main/dmd2_sdxl_4step_lora_fp16.safetensors",
    ),
    "sd3.5_large_turbo.safetensors": (
        "checkpoints",
        "https://huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo/resolve/main/sd3.5_large_turbo.safetensors",
    ),
    "clip_l.safetensors": (
        "text_encoders",
        "https://huggingface.co/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/text_encoders/clip_l.safetensors",
    ),
    "clip_g.safetensors": (
        "text_encoders",
        "https://huggingface.co/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/text_encoders/clip_g.safetensors",
    ),
    "t5xxl_fp8_e4m3fn_scaled.safetensors": (
        "text_encoders",
        "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp8_e4m3fn_scaled.safetensors",
    ),
    "PixArt-LCM-XL-2-1024-MS.safetensors": (
        "diffusion_models",
        "https://huggingface.co/PixArt-alpha/PixArt-LCM-XL-2-1024-MS/resolve/main/transformer/"
        "diffusion_pytorch_model.safetensors",
    ),
    "vae-ft-mse-840000-ema-pruned.safetensors": (
        "vae",
        "https://huggingface.co/stabilityai/sd-vae-ft-mse-original/resolve/main/"
        "vae-ft-mse-840000-ema-pruned.safetensors",
    ),
    "wan2.1_t2v_14B_fp8_e4m3fn.safetensors": (
        "diffusion_models",
        "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/diffusion_models/"
        "wan2.1_t2v_14B_fp8_e4m3fn.safetensors",
    ),
    "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors": (
        "loras",
        "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main/"
        "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors",
    ),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        "text_encoders",
        "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/"
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ),
    "wan_2.1_vae.safetensors": (
        "vae",
        "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/"
        "wan_2.1_vae.safetensors",
    ),
}
"""File name: (folder under models, URL)."""

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


def files_note(prompt: dict) -> str:
    """Markdown that says where each public file of a workflow goes; empty for a workflow without one."""
    rows = [(name, *FILES[name]) for name in files_named(prompt) if name not in SHIPPED]
    if not rows:
        return ""
    lines = [f"- in `models/{folder}`: [{name}]({url})" for name, folder, url in rows]
    return "\n## Files\n\n" + "\n".join(lines) + "\n"
