"""Muon for small networks on a CPU: torch's own works in bfloat16, which is very slow without hardware for it."""

import torch

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
