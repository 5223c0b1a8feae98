"""The trainer of ComfyUI-RMD: ``python training/distill.py --config FILE``.

A run, top to bottom: ``distill`` (the command), ``trainer`` (the loop and one update), ``objective`` (its losses).
Commands beside it: ``encode_prompts`` (a prompt cache), ``gather_prompts`` and ``write_prompts`` (prompt lists),
``plot_run`` (the curves of a run), ``sample`` (images of a student), ``evaluate`` (scores of images), ``export`` (a
LoRA under other names).
Before an update: ``config``, ``plans``, ``setup`` (all of it, loaded and checked), ``prompts``, ``text_encoders``,
``start`` (of the student), ``hub``, ``memory`` (what a run needs). Within one: ``batches``, ``networks``, ``lora``,
``quantised``, ``offload``, ``parallel``, ``speed``, ``backbones/`` (model families). What is kept: ``run`` (folder,
lock, checkpoints), ``record`` (figures), ``validation`` (images), ``export`` (the student's file), ``lora_files``.
"""
