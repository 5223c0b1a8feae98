"""The trainer of ComfyUI-RMD: ``python training/distill.py --config FILE``.

Commands: ``distill``, ``encode_prompts`` (a prompt cache), ``plot_run`` (the curves of a run).
A run: ``config`` and ``plans``, ``setup`` (all of it loaded and checked), ``trainer`` (the loop), ``objective`` (the
losses of an update), ``draws``, ``networks`` and ``lora`` (student, fake score, teacher), ``sample``, ``record``,
``run`` (folder, lock, checkpoints), ``export`` (the student's file).
Models and prompts: ``backbones/`` (model families), ``hub``, ``quantised``, ``prompts``, ``text_encoders``.
Processes and memory: ``parallel``, ``memory``, ``offload``.
"""
