"""How much memory a computation holds at most: counted while it runs, on tensors with or without data."""

import weakref

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Within the block, ``live`` and ``peak`` count the bytes of tensors that were made there.

    Views count once with what they look at. What existed before the block does not count. Where it runs on tensors
    without data, the bytes are those that it would take with data.
    """

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        before = {_key(tensor) for tensor in _tensors((arguments, named))}
        result = function(*arguments, **(named or {}))
        for tensor in _tensors(result):
            if _key(tensor) not in before:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.live -= self._sizes.pop(key, 0)


class FusedAttention(TorchFunctionMode):
    """Within the block attention has the memory of a fused kernel, which never holds the table of all pairs.

    Without data PyTorch would take the plain formula. For tensors without data only; a backward pass leaves the block.
    """

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*arguments, **(named or {}))
        return function(*arguments, **(named or {}))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(context, query, key, value):
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(context, gradient):
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


def _attention(query, key, value, *_, **__):
    return _Fused.apply(query, key, value)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _key(tensor):
    return tensor.untyped_storage()._cdata
