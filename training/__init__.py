"""The trainer of ComfyUI-RMD: ``python training/distill.py --config FILE``."""
