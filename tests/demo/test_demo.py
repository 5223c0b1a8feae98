"""The demo's shipped world: drawings, prompts, teacher, student, classifier, and the image it makes."""

from dataclasses import replace

import pytest
import torch

from demo import files
from demo.__main__ import all_prompts
from demo.classifier import classify, decode_frames, frame_vae, frechet_distance, load_classifier, real_images
from demo.comparison import comparison_image, table
from demo.make.vae import encode_images
from demo.sampling import SamplingSetup, make_latents, single_resolution, student_setup
from demo.world import (
    BACKGROUNDS,
    CONCEPTS,
    ENCODER,
    JITTER_CELLS,
    JITTER_HIGH,
    JITTER_LOW,
    TEACHER_STYLES,
    TOKENS,
    WIDTH,
    Drawings,
    embed,
    prompt,
    sample_jitter,
)
from rmd_core.boundary import Boundary
from rmd_core.files import read_tensors
from rmd_core.plan import plan_from_split
from rmd_core.recipe import read_recipe
from rmd_core.schedule import NoMap
from training.backbones import make_backbone
from training.prompts import PromptCache, prompt_key

PROMPTS = [prompt(c, TEACHER_STYLES[i % 2], list(BACKGROUNDS)[i % 6]) for i, c in enumerate(CONCEPTS)]


@pytest.fixture(scope="module")
def world():
    backbone = make_backbone("wan", shift=read_recipe(files.STUDENT).curve.shift)
    return backbone, backbone.load_vae(files.VAE), PromptCache(files.PROMPTS, encoder=ENCODER), load_classifier()


def make_images(setup, backbone, vae, cache, prompts, *, seed, batch=24):
    """By the autoencoder as ComfyUI has it, which decodes clips."""
    latents, _ = make_latents(setup, backbone, cache, prompts, seed=seed, batch=batch)
    return backbone.decode(vae, latents)[:, :, 0] * 2 - 1


def named_right(classifier, images):
    concepts = list(CONCEPTS)
    truth = torch.tensor([concepts.index(text.split()[0]) for text in PROMPTS])
    return (classify(classifier, images).labels["concept"] == truth).float().mean().item()


def cells(jitter):
    return ((jitter - JITTER_LOW) / (JITTER_HIGH - JITTER_LOW) * JITTER_CELLS).long()


def test_held_out_jitters_share_no_cell_with_training_and_have_the_same_marginals():
    train, held_out = (sample_jitter(4000, torch.Generator().manual_seed(1), held_out=h) for h in (False, True))
    assert (cells(train).sum(1) % JITTER_CELLS != 0).all()
    assert (cells(held_out).sum(1) % JITTER_CELLS == 0).all()
    for jitter in (train, held_out):
        unit = (jitter - JITTER_LOW) / (JITTER_HIGH - JITTER_LOW)
        assert torch.allclose(unit.mean(0), torch.full((4,), 0.5), atol=0.03)
        assert torch.allclose(unit.std(0), torch.full((4,), 12**-0.5), atol=0.02)


def test_images_of_a_size_are_the_larger_ones_seen_from_afar():
    drawings = Drawings(TEACHER_STYLES)
    jitter = sample_jitter(4, torch.Generator().manual_seed(2), held_out=False)
    index, background = torch.arange(4), torch.arange(4)
    large, small = (drawings.render(index, background, jitter, side=side) for side in (128, 64))
    assert large.min() >= -1 and large.max() <= 1
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 0.02


def test_rendering_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Drawings(TEACHER_STYLES).sample(2, torch.Generator().manual_seed(3), side=64)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_prompt_file_holds_the_words_own_vectors():
    cache = PromptCache(files.PROMPTS, encoder=ENCODER)
    assert set(files.PROMPT_LIST.read_text().split("\n")[:-1]) <= set(cache.texts)
    stored, _ = read_tensors(files.PROMPTS)
    for text in ("", "apple", "star fluent", "frog * on-pink", "apple noto on-blue"):
        assert stored[prompt_key(text)].shape == (TOKENS, WIDTH)
        assert torch.equal(stored[prompt_key(text)], embed(text).half())


def test_latents_of_the_teachers_images_have_unit_size(world):
    _, vae, _, _ = world
    images, _, _ = Drawings(TEACHER_STYLES).sample(24, torch.Generator().manual_seed(4), side=128, held_out=True)
    latents = encode_images(vae, images)
    assert latents.shape == (24, 16, 16, 16)
    assert latents.std((0, 2, 3)).sub(1).abs().max() < 0.25
    assert latents.mean((0, 2, 3)).abs().max() < 0.5


def test_the_shipped_student_has_its_recipe_and_samples_what_it_is_asked_for(world):
    backbone, vae, cache, classifier = world
    setup = student_setup("student", files.STUDENT, backbone)
    assert (setup.sides, setup.calls, setup.units) == ("2 x 64 px, 2 x 128 px", 4, 2.5)
    images = make_images(setup, backbone, vae, cache, PROMPTS, seed=0)
    assert images.shape == (len(PROMPTS), 3, 128, 128)
    assert named_right(classifier, images) >= 0.9


def test_the_teacher_samples_what_it_is_asked_for(world):
    backbone, vae, cache, classifier = world
    teacher = backbone.load(files.TEACHER, dtype=torch.float32)
    plan = single_resolution(backbone.curve, 10, (16, 16))
    setup = SamplingSetup(title="", network=teacher, plan=plan, boundary=Boundary(), eta=1.0, guidance=2.0)
    assert setup.calls == 20
    images = make_images(setup, backbone, vae, cache, PROMPTS, seed=0)
    assert named_right(classifier, images) >= 0.9


def test_the_few_step_model_is_of_one_resolution_and_breaks_untouched_in_the_cascade(world):
    """The gap between the sizes that the demo is about: concepts are lost without training for the cascade."""
    backbone, vae, cache, classifier = world
    few_step = student_setup("few-step", files.FEW_STEP, backbone)
    assert (few_step.sides, few_step.units) == ("4 x 128 px", 4.0)
    recipe = read_recipe(files.STUDENT)
    sizes = [(stage.height, stage.width) for stage in recipe.plan().stages]
    plan = plan_from_split(recipe.curve, recipe.split, sizes=sizes, mapping=NoMap(), steps=4)
    untouched = replace(student_setup("", files.STUDENT, backbone), network=few_step.network, plan=plan)
    prompts = all_prompts()[:72]
    reference = classify(classifier, real_images(frame_vae(), prompts, 1)).features
    distances = []
    for setup in (few_step, untouched, student_setup("", files.STUDENT, backbone)):
        latents, _ = make_latents(setup, backbone, cache, prompts, seed=0)
        distances.append(
            frechet_distance(classify(classifier, decode_frames(frame_vae(), latents)).features, reference)
        )
    full, broken, rmd = distances
    assert broken > 4 * max(full, rmd)


def test_frames_decode_as_clips_of_one_frame_do(world):
    backbone, vae, cache, _ = world
    latents, _ = make_latents(student_setup("", files.STUDENT, backbone), backbone, cache, PROMPTS[:2], seed=0)
    assert torch.allclose(
        decode_frames(frame_vae(), latents), backbone.decode(vae, latents)[:, :, 0] * 2 - 1, atol=1e-4
    )


def test_an_image_does_not_depend_on_its_batch(world):
    backbone, vae, cache, _ = world
    setup = student_setup("student", files.STUDENT, backbone)
    whole = make_images(setup, backbone, vae, cache, PROMPTS[:3], seed=5)
    parts = make_images(setup, backbone, vae, cache, PROMPTS[:3], seed=5, batch=1)
    assert torch.allclose(whole, parts, atol=1e-3)


def test_the_page_has_a_row_for_each_way_and_a_column_for_each_prompt():
    images = torch.zeros(3, 3, 16, 16)
    rows = [("a", "x", images), ("b", "y", images)]
    sheet = comparison_image(rows, ["apple noto", "star", "frog fluent on-pink"])
    assert sheet.width > 3 * 16 and sheet.height > 2 * 16
    assert table(["", "n"], [["long name", 1], ["b", 22]]).splitlines()[-1] == "b" + 10 * " " + "22"
