"""Between ComfyUI and rmd_core: `model`, `plans` (from widgets to a plan), `sampling` (the cascade), `conditioning`,
`latents`, `student` (loading), `show` (a plan as text and image).
"""
