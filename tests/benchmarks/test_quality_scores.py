"""The quality benchmark's figures on real, damaged and made pictures, with few pictures."""

import pytest
import torch

from benchmarks.quality import rows
from benchmarks.quality.damage import DAMAGES, violations
from benchmarks.quality.rows import RealRow
from benchmarks.quality.scoring import PROMPTS, Scorer
from demo import files
from demo.sampling import make_pictures
from demo.students import student_way
from demo.world.catalogue import BACKGROUNDS
from training.prompts import PromptCache

FEW = [text for text in PROMPTS if text.endswith(("on-blue", "on-pink"))]


@pytest.fixture(scope="module")
def scorer():
    return Scorer(repeats=1, prompts=FEW)


def test_damaged_pictures_rank_as_they_should(scorer):
    figures = {"": scorer.score(scorer.real_pictures(901))}
    for damage in DAMAGES:
        pictures = damage.apply(scorer.real_pictures(901, damage.prompts(scorer.prompts)))
        assert pictures.shape == scorer.reference.shape and pictures.abs().max() <= 1
        if damage.name == "wrong_prompts":
            pictures = scorer.real_pictures(901).roll(2, 0)  # two backgrounds here, so the next concept
        figures[damage.name] = scorer.score(pictures)
    assert violations(figures) == []
    assert figures[""]["concept"] == 1.0
    assert violations({**figures, "blur_3": figures["blur_5"]})[0] == ("blur_5", "blur_3", "swd")


def test_the_reference_against_itself_is_perfect(scorer):
    figures = scorer.score(scorer.reference)
    assert figures["fd"] == pytest.approx(0.0, abs=1e-6) and figures["spread"] == pytest.approx(1.0)


def test_blocks_are_moved_and_kept(scorer):
    (blocks,) = [damage for damage in DAMAGES if damage.name == "blocks"]
    picture = torch.arange(64.0).view(1, 1, 8, 8).repeat_interleave(16, 2).repeat_interleave(16, 3).expand(1, 3, -1, -1)
    moved = blocks.apply(picture / 64)
    assert not torch.equal(moved, picture / 64)
    assert torch.equal(moved.flatten().sort().values, (picture / 64).flatten().sort().values)
    assert (moved.unfold(2, 16, 16).unfold(3, 16, 16).flatten(4).diff(dim=4) == 0).all()


def test_wrong_prompts_shift_by_a_concept():
    (wrong,) = [damage for damage in DAMAGES if damage.name == "wrong_prompts"]
    numbers = torch.arange(len(PROMPTS)).view(-1, 1, 1, 1) / len(PROMPTS)
    order = (wrong.apply(numbers) * len(PROMPTS)).round().long().flatten().tolist()
    assert all(PROMPTS[i].split()[0] != PROMPTS[j].split()[0] for i, j in enumerate(order))
    assert len(BACKGROUNDS) == 6


def test_pictures_are_those_of_the_demo(scorer):
    """The scorer decodes single frames by a shortcut; the demo's own path gives the same pictures."""
    backbone = rows.backbone()
    way = student_way("student", files.STUDENT, backbone)
    few = Scorer.__new__(Scorer)
    few.__dict__ = scorer.__dict__ | {"prompts": FEW[:4]}
    slow, _ = make_pictures(way, backbone, backbone.load_vae(files.VAE), PromptCache(files.PROMPTS), FEW[:4], seed=0)
    assert torch.allclose(few.pictures(way, backbone), slow, atol=1e-4)


def test_a_cascade_row_makes_pictures_of_every_prompt(scorer):
    row = next(row for row in rows.cascade_rows() if row.name == "cascade_exact_0.5")
    assert row.ready and row.units == 2.5
    assert scorer.score(row.pictures(scorer))["concept"] > 0.8


def test_a_real_row_has_the_reference_distribution(scorer):
    row = RealRow(name="real", title="", seed=901)
    assert row.ready and torch.equal(row.pictures(scorer), scorer.real_pictures(901))
