"""The trainer of ComfyUI-RMD: ``python training/distill.py --config FILE``.

Commands: ``distill``, ``encode_prompts`` (a prompt cache), ``plot_run`` (the curves of a run).
What is asked for: ``config``, ``config_files``, ``configs/``, ``plans``, ``limits``, ``setup`` (all of it, checked).
An update: ``trainer`` (the loop), ``draws``, ``two_phase``, ``objective``, ``estimate`` (one network call), ``optim``,
``ema``, ``networks/`` (student, fake score, teacher), ``backbones/`` (model families), ``sampling``, ``validation``.
What is kept: ``run_folder``, ``run_lock``, ``checkpoints``, ``metrics``, ``trackers``, ``board``, ``export``,
``lora_file``, ``tensor_files``, ``files``, ``errors``.
Prompts: ``prompts`` (lists), ``prompt_cache``, ``text_encoders``, ``first_use``. Models: ``hub``, ``weight_files``, and
for Wan's native files ``wan_files``, ``wan_keys``, ``wan_vae``.
Processes and memory: ``processes``, ``sharding``, ``stopping``, ``memory``, ``dry_run``, ``costs``, ``activations``,
``dry_calls``, ``live_memory``, ``quantised``, ``recomputing``, ``waiting``.
"""
