"""Wan2.2 A14B text-to-video: two networks of Wan2.1's kind, of which the level decides which one is asked."""

from functools import partial
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import FrozenDict

from rmd_core.errors import RMDError
from rmd_core.experts import EXPERTS, expert_files, is_low
from rmd_core.files import read_json
from rmd_core.noising import place

from ..hub import INDEX, is_folder
from .wan import WanBackbone


class Experts(torch.nn.Module):
    """Two networks of one kind, ``high`` and ``low``, called as one: each makes the rows that are its own.

    ``boundary``: the level from which on ``high`` is asked (``rmd_core.experts``); it is in ``config`` too.
    """

    kind = WanTransformer3DModel

    def __init__(self, high, low, boundary):
        super().__init__()
        self.high, self.low = high, low
        self.config = FrozenDict({**high.config, "boundary": boundary})
        self._offloader = None

    @classmethod
    def from_config(cls, config):
        """The two networks of such a ``config``, with weights of their own."""
        config = dict(config)
        boundary = config.pop("boundary")
        return cls(*(cls.kind.from_config(config) for _ in EXPERTS), boundary)

    def wait(self, offloader):
        """Let ``offloader``, a NetworkOffloader, bring an expert to the device when it is called, the other one away.

        A backward pass brings it again: blocks are to be recomputed, or they keep weights on the device until then.
        """
        self._offloader = offloader

    def enable_gradient_checkpointing(self, recomputing):
        """Have both experts recompute their blocks in a backward pass, by the function ``recomputing``."""
        for name in EXPERTS:
            getattr(self, name).enable_gradient_checkpointing(recomputing)

    def set_attention_backend(self, name):
        """Use one of diffusers' attention backends in both experts."""
        for expert in EXPERTS:
            getattr(self, expert).set_attention_backend(name)

    def forward(self, x, timestep, text, *, low_B, return_dict=False):
        """(output,) for states ``x``; ``low_B``, bool on the CPU: the rows that the low-noise expert makes."""
        rows = dict(zip(EXPERTS, ((~low_B).nonzero().flatten(), low_B.nonzero().flatten())))
        asked = [name for name in EXPERTS if len(rows[name])]
        if len(asked) == 1:
            return (self._call(asked[0], x, timestep, text),)
        parts = []
        for name in asked:
            own = place(rows[name], x.device)
            parts.append(self._call(name, x[own], timestep[own], text[own]))
        order = torch.cat(tuple(rows.values())).argsort()
        return (torch.cat(parts)[place(order, x.device)],)

    def _call(self, name, *inputs):
        if self._offloader is not None:
            self._offloader.swap_to(name)
        (output,) = getattr(self, name)(*inputs, return_dict=False)
        if self._offloader is not None and output.requires_grad:
            output.register_hook(lambda gradient: self._offloader.swap_to(name))
        return output


class Wan22A14BBackbone(WanBackbone):
    """Wan2.2 A14B: latents, autoencoder and text encoder of Wan2.1."""

    name = "wan22_a14b"
    prompts_of = "wan"
    architecture = "wan2.2-a14b"
    experts = EXPERTS
    boundary = 0.875  # where no folder says it; `boundary` in wan/configs/wan_t2v_A14B.py of Wan-Video/Wan2.2
    sequence_plan = ()  # processes that divide a sequence: not tried

    def load(self, path, *, dtype=torch.float32):
        return self._both(path, partial(super().load, dtype=dtype))

    def outline(self, path):
        return self._both(path, super().outline)

    def _both(self, path, load):
        """The Experts of a folder with ``transformer`` and ``transformer_2``, or of two native files by either."""
        boundary = self.boundary
        if is_folder(path):
            files = [Path(path) / name for name in ("transformer", "transformer_2")]
            if not files[1].is_dir() and Path(path).is_dir():
                raise RMDError(f"{path} has no transformer_2; give the whole Diffusers-format folder of Wan2.2 A14B")
            if (Path(path) / INDEX).is_file():
                boundary = read_json(Path(path) / INDEX).get("boundary_ratio") or boundary
        else:
            files = expert_files(path)
        high, low = map(load, files)
        sizes = [{n: value for n, value in one.config.items() if not n.startswith("_")} for one in (high, low)]
        if sizes[0] != sizes[1]:
            raise RMDError(f"{files[0]} and {files[1]} are networks of different kinds; give the two of one model")
        return Experts(high, low, boundary).eval()

    def predict(self, network, x, sigma_B, conditioning):
        return super().predict(network, x, sigma_B, conditioning, low_B=is_low(sigma_B, network.config.boundary))

    def native_layer(self, network, layer):
        return super().native_layer(network, layer.partition(".")[2])
