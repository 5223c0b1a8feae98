"""Networks spread over the processes of a run by PyTorch's ``fully_shard`` (FSDP2), and tensors that may be spread."""

import warnings

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor


def shard(network, processes, *, whole=()):
    """Spread a network's parameters over the processes, each along its first axis; returns the network.

    A block (one of ``_no_split_modules``) is brought together for its own call and let go after it, always, so that no
    call sees weights from before a step. Parameters in ``whole`` are left as they are.
    """
    from torch.distributed.fsdp import fully_shard  # not there in older PyTorch, see Processes

    # Ours are never changed in place, which is what fully_shard warns of at each output that is a view.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    settings = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": set(whole)}
    blocks = network._no_split_modules or ()
    for module in reversed(list(network.modules())):  # inner before outer
        if type(module).__name__ in blocks and module is not network:
            fully_shard(module, **settings)
    return fully_shard(network, **settings)


def local(tensor):
    """What lies in this process of a tensor; all of it, where it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor):
    """The whole of a tensor, to be asked for by all processes together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target, whole):
    """Copy the values of a whole tensor into one that may be spread."""
    if not isinstance(target, DTensor):
        target.copy_(whole)
        return
    mesh = target.device_mesh
    parts = whole.chunk(mesh.size(), dim=0)
    if mesh.get_local_rank() < len(parts):
        target.to_local().copy_(parts[mesh.get_local_rank()])


def fits(tensors, targets):
    """Whether two mappings hold tensors of the same names and shapes."""
    return tensors.keys() == targets.keys() and all(tensors[n].shape == t.shape for n, t in targets.items())


def like(target, whole):
    """The values of a whole tensor, spread as ``target`` is where the shapes agree."""
    if not isinstance(target, DTensor) or target.shape != whole.shape:
        return whole
    spread = torch.zeros_like(target)
    put(spread, whole)
    return spread
