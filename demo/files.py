"""Where the demo's shipped files are."""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
TEACHER = MODELS / "diffusion_models" / "rmd_tiny_wan_teacher.safetensors"
FEW_STEP = MODELS / "diffusion_models" / "rmd_tiny_wan_few_step.safetensors"  # a student of one resolution
STUDENT = MODELS / "diffusion_models" / "rmd_tiny_wan_student.safetensors"
VAE = MODELS / "vae" / "rmd_tiny_wan_vae.safetensors"
PROMPTS = MODELS / "embeddings" / "rmd_tiny_prompts.safetensors"
CLASSIFIER = MODELS / "judge.safetensors"
PROMPT_LIST = Path(__file__).parent / "data" / "prompts.txt"
