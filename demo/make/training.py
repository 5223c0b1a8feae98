"""Training of the demo's small networks, on a GPU or in several processes on a CPU: Muon, AdamW, a weight average.

torch's own Muon works in bfloat16, which is very slow without hardware for it.
"""

import os
import time

import torch
from torch import distributed

# quintic iteration that drives every singular value to about 1 (Jordan et al. 2024)
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(g_NRC, steps=5):
    """The nearest orthogonal matrix of each matrix in a stack (N, R, C) with R <= C, roughly."""
    x = g_NRC / (g_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, scaled to the size of an AdamW update; for 2-D parameters."""

    def __init__(self, parameters, lr, momentum=0.95):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                buffer = state.setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                flip = p.shape[0] > p.shape[1]
                by_shape.setdefault(tuple(sorted(p.shape)), []).append((p, update.mT if flip else update, flip))
            for shape, members in by_shape.items():
                updates = orthogonalise(torch.stack([u for _, u, _ in members]))
                for (p, _, flip), update in zip(members, updates):
                    p.add_(update.mT if flip else update, alpha=-0.2 * group["lr"] * max(shape) ** 0.5)


class Training:
    """Updates of a model by Muon and AdamW until ``minutes`` are spent, with a weight average.

    minutes: of CPU time over all processes, or of wall time on a GPU.
    ``is_matrix(name, parameter)``: whether Muon takes it.
    Under torchrun the processes average their gradients.
    """

    def __init__(self, model, is_matrix, *, lr, minutes, clip):
        self.ranks, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.ranks > 1:
            distributed.init_process_group("gloo")
        self.model, self.clip = model, clip
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        matrices = [p for name, p in named if is_matrix(name, p)]
        others = [p for name, p in named if not is_matrix(name, p)]
        self.optimisers = [Muon(matrices, lr), torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.0)]
        self.averaged = {key: value.clone() for key, value in model.state_dict().items()}
        self.step, self.spent = 0, 0.0
        self._clock = time.monotonic if self.parameters[0].is_cuda else time.process_time
        self._began, self._budget = self._clock(), 60 * minutes / self.ranks

    def share(self):
        """The share of the time that is spent, by the process that has spent the most."""
        self.spent = self._clock() - self._began
        if self.ranks > 1:
            spent = torch.tensor(self.spent)
            distributed.all_reduce(spent, distributed.ReduceOp.MAX)
            self.spent = spent.item()
        return self.spent / self._budget

    def update(self, loss, rate):
        """One step of both optimisers at a learning rate, and of the average."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.ranks > 1:
            flat = torch.cat([p.grad.flatten() for p in self.parameters])
            distributed.all_reduce(flat)
            for p, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters])):
                p.grad.copy_(part.view_as(p) / self.ranks)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()
        self.step += 1
        decay = min(0.998, self.step / (self.step + 20))
        torch._foreach_lerp_(list(self.averaged.values()), list(self.model.state_dict().values()), 1 - decay)

    def save(self, path):
        """Write the average, whole or not at all."""
        torch.save({key: value.cpu() for key, value in self.averaged.items()}, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def close(self):
        """Part from the other processes."""
        if self.ranks > 1:
            distributed.destroy_process_group()
