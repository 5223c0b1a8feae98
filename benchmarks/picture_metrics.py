"""Distances between two sets of pictures, on the judge's features and on small patches."""

import torch


def frechet_distance(a_ND, b_ND):
    """Frechet distance of two sets of features (N, D), each as a Gaussian; 0 for equal sets (Heusel et al. 2017)."""
    a, b = a_ND.double(), b_ND.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # trace of the root of cov_a cov_b, by the symmetric form root(cov_a) cov_b root(cov_a)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel_distance(a_ND, b_ND):
    """Unbiased squared MMD of two sets of features with the cubic kernel, x1000 (Binkowski et al. 2018)."""
    a, b = a_ND.double(), b_ND.double()
    n, m, width = len(a), len(b), a.shape[1]

    def kernel(x, y):
        return (x @ y.T / width + 1) ** 3

    aa, bb = kernel(a, a), kernel(b, b)
    within_a = (aa.sum() - aa.trace()) / (n * (n - 1))
    within_b = (bb.sum() - bb.trace()) / (m * (m - 1))
    return 1000 * (within_a + within_b - 2 * kernel(a, b).mean()).item()


def patches(pictures, generator, *, side=7, per_picture=16):
    """Random patches (N * per_picture, 3 * side * side), each with its mean colour removed."""
    height, width = pictures.shape[-2:]
    found = []
    for picture in pictures:
        ys = torch.randint(height - side + 1, (per_picture,), generator=generator).tolist()
        xs = torch.randint(width - side + 1, (per_picture,), generator=generator).tolist()
        found += [picture[:, y : y + side, x : x + side] for y, x in zip(ys, xs)]
    stack = torch.stack(found)
    return (stack - stack.mean((2, 3), keepdim=True)).flatten(1)


def sliced_wasserstein(a, b, seed, *, directions=256):
    """Sliced Wasserstein distance of the patches of two equally large sets of pictures in -1..1, x100."""
    generator = torch.Generator().manual_seed(seed)
    rows_a, rows_b = patches(a, generator), patches(b, generator)
    along = torch.randn(rows_a.shape[1], directions, generator=generator)
    along = along / along.norm(dim=0)
    sorted_a, sorted_b = (rows_a @ along).sort(0).values, (rows_b @ along).sort(0).values
    return 100 * (sorted_a - sorted_b).abs().mean().item()


def diversity(features, concepts):
    """Mean distance of features to the mean of their concept."""
    spread = [(features[concepts == c] - features[concepts == c].mean(0)).norm(dim=1).mean() for c in concepts.unique()]
    return torch.stack(spread).mean().item()
