"""One update under `official-current` against a plain, slow reference of the authors' loss, with and without defects.

The reference follows the description of their code in docs/method/method.md ("Differences from the authors' code"):
tables of 1000 levels, index arithmetic, sample by sample. Our trainer lends it nothing but the batches.
"""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F

from rmd_core.noise import SeededNoise, derive_seed
from training_world import gradients, make_objective, make_setup

K, LOW, ETA, CFG = 6, 3, 0.5, 5.0
SIZES = ((4, 6), (8, 12))
# Their constant at 720p, 81 frames. That of a tiny latent would be 50 times smaller, the loss all but a sum of signs,
# and the rounding of float32 would show in the student's gradient as 2e-5.
C = 1e-3 * sqrt(16 * 21 * 90 * 160 / 16384)
SETTINGS = (
    "method.preset=official-current",
    "method.upsampler=bilinear",
    f"plan.steps={K}",
    f"plan.split={LOW}+{K - LOW}",
    "plan.sizes=[[4, 6], [8, 12]]",
    "plan.frames=2",
    "backbone.shift=3.0",
    f"loss.cfg={CFG}",
    f"loss.huber_c={C!r}",
    "train.batch=3",
    "train.warmup_updates=0",
    "train.share_forward=false",
)
DEFECTS = {
    "labelled level": "the fake score's noise is built and labelled on the shift-5 table (D1)",
    "two grids": "the sampler steps down by 166, the trainer rounds each index (D3)",
    "bf16 timestep": "the timestep is bf16 in the training calls (D4)",
    "column weight": "the pseudo-Huber weight is one per column (D5)",
    "t_mid": "the estimate is noised to the trainer's t_mid, not to the level the sampler goes to next",
}


def table(shift):
    return [shift * u / (1 + (shift - 1) * u) for u in (i / 1000 for i in range(1, 1001))]


SHIFT_3, SHIFT_5 = table(3.0), table(5.0)
TRAINER_GRID = [1000 * k // K - 1 for k in range(K, 0, -1)]
SAMPLER_GRID = [999 - i * (1000 // K) for i in range(K)]


class Authors:
    """Their two losses for one batch of ours, with some of the defects."""

    def __init__(self, setup, student, fake, teacher, *defects):
        self.setup, self.student, self.fake, self.teacher = setup, student, fake, teacher
        self.defects = set(defects)
        self.grid = SAMPLER_GRID if "two grids" in defects else TRAINER_GRID

    def call(self, network, x, sigma, prompt, *, training=True):
        """(x0, eps) of one sample, in float64 around a float32 network."""
        given = torch.tensor([1000 * sigma], dtype=torch.float32)
        if training and "bf16 timestep" in self.defects:
            given = given.bfloat16().float()
        v = network(x.float(), given, self.setup.embed([prompt])["text"]).sample.double()
        return x - sigma * v, x + (1 - sigma) * v

    @staticmethod
    def up(x):
        """Bilinear, each frame by itself."""
        frames = F.interpolate(x[0].movedim(1, 0), size=SIZES[1], mode="bilinear", align_corners=False)
        return frames.movedim(0, 1)[None]

    @torch.no_grad()
    def received(self, batch, item):
        """What the student receives at each step of a whole trajectory: fresh noise at the switch, else the mix."""
        source = SeededNoise(derive_seed(batch.seed, "trajectory"), [batch.items[item]])
        x, states = source.sample(0, "start", (1, 16, 2, *SIZES[0])).double(), []
        for i in range(K):
            states.append(x)
            if i == K - 1:
                return states
            x0, eps = self.call(self.student, x, SHIFT_3[self.grid[i]], batch.prompts[item], training=False)
            if i == LOW - 1:
                x0 = self.up(x0)
                noise = source.sample(1, "switch", tuple(x0.shape))
            else:
                stage = int(i >= LOW)
                fresh = source.sample(stage, f"step-{i - LOW * stage}", tuple(eps.shape))
                noise = ETA * eps + sqrt(1 - ETA**2) * fresh
            sigma = SHIFT_3[self.grid[i + 1]]
            x = (1 - sigma) * x0 + sigma * noise

    def build(self, batch, item, phase):
        """(x0 with its graph, x_t, index t, the level of x_t)."""
        i = int(batch.steps[item])
        t_g = TRAINER_GRID[i]
        x0, eps = self.call(self.student, self.received(batch, item)[i], SHIFT_3[t_g], batch.prompts[item])
        eps = eps.detach()
        if i < LOW:
            x0, eps = self.up(x0), self.up(eps)
        source = SeededNoise(derive_seed(batch.seed, "loss"), [batch.items[item]])
        fresh = source.sample(batch.stage, "switch" if i < LOW else "step", tuple(eps.shape))
        after = SHIFT_3[TRAINER_GRID[i + 1]] if i < K - 1 else 0.0
        mid = SHIFT_3[t_g - 1000 // K + 1] if "t_mid" in self.defects else after
        x_mid = (1 - mid) * x0.detach() + mid * (ETA * eps + sqrt(1 - ETA**2) * fresh)
        t = min(range(1000), key=lambda index: abs(SHIFT_3[index] - batch.t[item].item()))
        wrong_level = phase == "fake" and "labelled level" in self.defects
        sigma = (SHIFT_5 if wrong_level else SHIFT_3)[t]
        last = SeededNoise(derive_seed(batch.seed, phase), [batch.items[item]]).sample(
            batch.stage, "level", tuple(x0.shape)
        )
        scale = (1 - sigma) / (1 - mid)
        return x0, scale * x_mid + sqrt(sigma**2 - (scale * mid) ** 2) * last, t, sigma

    def fake_loss(self, batch):
        losses = []
        for item, prompt in enumerate(batch.prompts):
            x0, x_t, t, sigma = self.build(batch, item, "fake")
            guess, _ = self.call(self.fake, x_t, sigma, prompt)
            weight = ((1 - SHIFT_3[t]) / (SHIFT_3[t] + 1e-8)) ** 2
            losses.append(weight * (guess - x0.detach()).square().mean())
        return sum(losses) / len(losses)

    def student_loss(self, batch):
        losses = []
        for item, prompt in enumerate(batch.prompts):
            x0, x_t, _, sigma = self.build(batch, item, "student")
            with torch.no_grad():
                fake, _ = self.call(self.fake, x_t, sigma, prompt)
                null, _ = self.call(self.teacher, x_t, sigma, "")
                real = null + CFG * (self.call(self.teacher, x_t, sigma, prompt)[0] - null)
                target = x0 + real - fake
                axes = (1, 2, 3) if "column weight" in self.defects else (1, 2, 3, 4)
                weight = (x0 - real).abs().mean(axes, keepdim=True).clamp(min=0.2)
            losses.append(((((x0 - target) ** 2 + C**2).sqrt() - C) / weight).mean())
        return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("world"), *SETTINGS)


@pytest.fixture(scope="module")
def batches(setup):
    """One (fake batch, student batch) for each stage, every step of the stage in each."""
    source = setup.sampler()

    def first(name, stage):
        several = (source.batch(update, name, round_number=update) for update in range(1, 200))
        return next(batch for batch in several if batch.stage == stage and len(set(batch.steps.tolist())) == 3)

    return [(first("fake-0", stage), first("student", stage)) for stage in (0, 1)]


def flat(network):
    result = torch.cat([gradient.flatten() for gradient in gradients(network).values()])
    network.zero_grad()
    return result


def reference(setup, pair, *defects):
    """(gradient of the fake score, gradient of the student) by the reference."""
    objective = make_objective(setup)
    authors = Authors(setup, objective.student, objective.fake, objective.teacher, *defects)
    found = []
    for network, loss, batch in zip(
        (objective.fake, objective.student), (authors.fake_loss, authors.student_loss), pair
    ):
        loss(batch).backward()
        found.append(flat(network))
    return found


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_the_index_tables_are_those_of_the_page():
    assert SAMPLER_GRID == [999, 833, 667, 501, 335, 169] and TRAINER_GRID == [999, 832, 665, 499, 332, 165]
    assert [index - 165 for index in TRAINER_GRID] == [834, 667, 500, 334, 167, 0]
    assert SHIFT_3[832] == pytest.approx(0.9374, abs=5e-5) and SHIFT_5[833] == pytest.approx(0.9617, abs=5e-5)


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("stage", [0, 1])
def test_our_gradients_are_those_of_the_reference_without_its_defects(setup, batches, stage, micro_batch):
    objective = make_objective(setup)
    pair = batches[stage]
    fake, student = ([batch.rows(n, n + micro_batch) for n in range(0, 3, micro_batch)] for batch in pair)
    objective.fake_phase(fake, share=False)
    ours = [flat(objective.fake)]
    objective.student_phase(student)
    ours.append(flat(objective.student))
    for name, got, expected in zip(("fake score", "student"), ours, reference(setup, pair)):
        print(f"stage {stage + 1}, {name}: relative difference of the gradients {distance(got, expected):.2e}")
        assert distance(got, expected) < 1e-5


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_each_defect_does_to_the_gradients(setup, batches, defect):
    changes = {}
    for stage, pair in enumerate(batches):
        for name, right, wrong in zip(
            ("fake score", "student"), reference(setup, pair), reference(setup, pair, defect)
        ):
            cosine = torch.cosine_similarity(right, wrong, dim=0).item()
            changes[name, stage] = distance(wrong, right)
            print(
                f"{defect}, stage {stage + 1}, {name}: change {changes[name, stage]:.2e}, length "
                f"{(wrong.norm() / right.norm()).item():.3f}, cosine {cosine:.4f} ({DEFECTS[defect]})"
            )
    touched = {"labelled level": {"fake score"}, "column weight": {"student"}}.get(defect, {"fake score", "student"})
    for (name, stage), change in changes.items():
        assert (change > 1e-4) == (name in touched), (name, stage)
