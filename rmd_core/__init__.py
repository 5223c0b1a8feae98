"""The RMD method in pure PyTorch: few steps, low resolution early, high resolution late, one student.

Import from the modules; this package itself exports nothing.

Levels and plans: `logsnr` (noise curves), `mapping` (the ratio of two sizes), `plan` (which step runs where),
`plan_notes`, `plan_tail` (the last steps of one), `intervals` (where the losses look), `presets` (named settings).
Public few-step models: `few_step` (how one is sampled), `profiles` (all of them), `profiles_flow`, `profiles_vp`.
Running a plan: `cascade`, `upsample`, `renoise` and `boundary` (the change of size), `noising`, `noise_sources`,
`seeds`. Network outputs: `prediction`, `broadcast` (a level for each sample). Training: `losses`.
Files: `recipe` (how to sample a student again), `recipe_fields`, `header` (safetensors), `tensor_file` (single tensors
of one), `prompt_cache` (prompt embeddings), `prompt_shard` (one file of them), `atomic_files` (the whole new file or
the old one).
Every refusal is an `errors.RMDError`.
"""
