"""Between ComfyUI and rmd_core: what a MODEL is, how a stage is sampled with it, and what its conditioning becomes.

A whole cascade: `cascade_run` (the one function behind every sampler node), `cascade_guider` (the same as a GUIDER),
`stage_runner` (one `guider.sample` a stage), `overrides`, `checks` (before anything runs).
What is handed over: `sampling_plan` (what an RMD_PLAN carries), `latents`, `source_picture`, `stage_conditioning`,
`stage_noise`, `noise_form` (ComfyUI's noisy states), `step_function` (our sampler), `stage_crossing` (by hand).
Models: `model_view`, `class_names`, `bases`; students: `full_student`, `lora_student`, `student_checks`,
`readable_files`.
"""
