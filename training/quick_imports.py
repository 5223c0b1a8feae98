"""diffusers' networks in three seconds instead of ten, for a process that only looks at them: ``--dry-run``.

diffusers imports peft, bitsandbytes and transformers wherever they are installed, and torch its compiler to make
tensors without data. A dry run needs none of them. A process that trains or encodes imports everything as it is.
"""

import importlib
import sys
import types

_UNUSED = ("peft", "bitsandbytes", "transformers", "torchvision", "scipy")
_NETWORKS = ("models.transformers", "models.unets", "models.autoencoders", "loaders.single_file_utils")


def import_networks_alone(config):
    """Import diffusers' networks as if those packages were not installed.

    Nothing where diffusers is there already, or the configuration needs one of the packages. The compiler stays away
    for the rest of the process, which therefore must not train.
    """
    needs_bitsandbytes = config.optimiser.kind == "adamw8bit" or config.model.base_dtype in ("int8", "nf4")
    if "diffusers" in sys.modules or needs_bitsandbytes or config.prompts.encode_from is not None:
        return
    if "torch._dynamo" not in sys.modules:
        compiler = types.ModuleType("torch._dynamo")  # what diffusers and torch decorate classes and functions with
        compiler.allow_in_graph = lambda target: target
        compiler.disable = lambda target=None, *_, **__: target or (lambda inner: inner)
        sys.modules["torch._dynamo"] = compiler
    hidden = {name: None for name in _UNUSED if name not in sys.modules}
    sys.modules.update(hidden)
    flags = importlib.import_module("diffusers.utils.import_utils")
    installed = {f"_{name}_available": getattr(flags, f"_{name}_available", False) for name in hidden}
    vars(flags).update(dict.fromkeys(installed, False))
    try:
        for name in _NETWORKS:
            importlib.import_module(f"diffusers.{name}")
    finally:
        vars(flags).update(installed)
        for name in hidden:
            del sys.modules[name]
