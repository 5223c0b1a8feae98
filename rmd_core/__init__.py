"""The RMD method in pure PyTorch: few steps, low resolution early, high resolution late, one student.

Import from the modules; this package itself exports nothing.

Levels and plans: `logsnr` (noise curves), `mapping` (the same level at another size), `plan` (which step runs where),
`intervals` (where the losses look), `presets` (named settings), `prediction` (network outputs), `broadcast` (a level
for each sample), `seeds`.
Running a plan: `upsample`, `renoise` and `boundary` (the change of size), `noising`, `noise_sources`, `cascade`.
Training: `losses`.
Files: `recipe` (how to sample a student again), `header` (safetensors), `tensor_file` (single tensors of one),
`prompt_cache` (prompt embeddings), `prompt_shard` (one file of them), `atomic_files` (the whole new file or the old
one).
Every refusal is an `errors.RMDError`.
"""
