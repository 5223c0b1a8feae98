"""Names of one network's tensors in the file ComfyUI reads (native) and in diffusers, both ways."""

from dataclasses import dataclass

import torch

from rmd_core.errors import RMDError


@dataclass(frozen=True)
class Source:
    """What a native tensor is made of: diffusers tensors one below the other; ``swapped`` exchanges the two halves.

    Diffusers keeps scale before shift in its final norms, the native files shift before scale.
    """

    names: tuple
    swapped: bool = False


class KeyMap:
    """The native names of a network, each with its ``Source``."""

    def __init__(self):
        self.entries = {}

    def add(self, native, *names, swapped=False, ends=("weight", "bias")):
        """Map a native layer to one diffusers layer, or to several stacked ones, for each parameter in ``ends``."""
        for end in ends:
            self.add_tensor(f"{native}.{end}", *(f"{name}.{end}" for name in names), swapped=swapped)

    def add_tensor(self, native, *names, swapped=False):
        """Map one native tensor."""
        self.entries[native] = Source(names, swapped)

    def diffusers_names(self):
        """Every diffusers name that the map knows."""
        return {name for source in self.entries.values() for name in source.names}

    def native_layer(self, layer):
        """(native layer, layers that are stacked in it, from its first row) of a diffusers layer, by name.

        Raises RMDError for a layer outside the map, or one whose halves change places.
        """
        for native, source in self.entries.items():
            if f"{layer}.weight" in source.names:
                if source.swapped:
                    raise RMDError(f"'{layer}' has its halves the other way round in native files; leave it out")
                return native.removesuffix(".weight"), tuple(name.removesuffix(".weight") for name in source.names)
        raise RMDError(f"'{layer}' has no native name; name other layers")

    def to_native(self, state):
        """A diffusers state dict under native names; tensors that are only renamed are shared, not copied.

        Names of the map that ``state`` lacks altogether (an optional layer) are left out. Raises RMDError for a name
        outside the map and for a stack of which a part is missing.
        """
        foreign = sorted(state.keys() - self.diffusers_names())
        if foreign:
            raise RMDError(f"'{foreign[0]}' has no native name; this variant cannot be saved for ComfyUI")
        native = {}
        for name, source in self.entries.items():
            parts = [state[part] for part in source.names if part in state]
            if not parts:
                continue
            if len(parts) != len(source.names):
                raise RMDError(f"'{name}' is made of {', '.join(source.names)}, of which the network has only a part")
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            native[name] = _swapped(tensor) if source.swapped else tensor
        return native

    def to_diffusers(self, state):
        """A native state dict under diffusers names, stacks taken apart. Raises RMDError for a name outside the map."""
        foreign = sorted(state.keys() - self.entries.keys())
        if foreign:
            raise RMDError(f"{len(foreign)} tensors are foreign to this network, first {foreign[0][:80]!r}")
        ours = {}
        for name, tensor in state.items():
            source = self.entries[name]
            if source.swapped:
                tensor = _swapped(tensor)
            if len(source.names) == 1:
                ours[source.names[0]] = tensor
            else:
                ours |= {part: rows.clone() for part, rows in zip(source.names, tensor.chunk(len(source.names)))}
        return ours


def _swapped(tensor):
    first, second = tensor.chunk(2)
    return torch.cat((second, first))
