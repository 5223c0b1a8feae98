"""ComfyUI nodes over rmd_core, one file each; under `bridge`, what turns ComfyUI's objects into ours.

Nodes: `load_student`, `load_prompts`, `schedule`, `sampler`, `sampler_advanced`, `guider`, `stage_override`,
`step_sampler`, and for hand-built graphs `stage_sigmas`, `stage_upscale` and `noise`.
What ComfyUI is told: `extension` (every node), `folders` (model files), `renames`, `sockets` (types of our own).
What several nodes share: `shared_inputs`, `checked_inputs` (what a link may bring), `stage_pixels` (sizes in pixels).
Behind RMD Schedule: `plan_source_inputs`, `plan_sources`, `plan_widgets` (what its widgets mean), `plan_table`,
`plan_picture`, `picture_canvas`. Behind RMD Load Student: `student_report`.
"""
