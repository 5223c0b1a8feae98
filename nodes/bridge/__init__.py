"""Between ComfyUI and rmd_core: what a MODEL is, how a stage is sampled with it, and what its conditioning becomes."""
