"""ComfyUI nodes over rmd_core: one file per node, and under `bridge` what turns ComfyUI's objects into ours."""
