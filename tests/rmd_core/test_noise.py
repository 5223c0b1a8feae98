"""Derived seeds and addressed noise."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmd_core.errors import RMDError
from rmd_core.noise import derive_seed, noise

parts = st.lists(st.one_of(st.integers(), st.text(max_size=6)), max_size=4)


def test_derive_seed_is_sha256_of_the_address():
    digest = hashlib.sha256(b'[7,1,"switch",0]').hexdigest()
    assert derive_seed(7, 1, "switch", 0) == int(digest[:16], 16) // 2


@given(seed=st.integers(), address=parts)
def test_derived_seeds_fit_a_generator(seed, address):
    derived = derive_seed(seed, *address)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)


@given(first=parts, second=parts)
def test_different_addresses_give_different_seeds(first, second):
    assert (derive_seed(0, *first) == derive_seed(0, *second)) == (first == second)


def test_parts_do_not_run_together():
    seeds = {derive_seed(1, 23), derive_seed(12, 3), derive_seed(1, "23"), derive_seed(1, 2, 3), derive_seed(123)}
    assert len(seeds) == 5


@pytest.mark.parametrize("part", [1.5, None, b"x", True, (1,)])
def test_derive_seed_refuses_other_parts(part):
    with pytest.raises(RMDError, match="integers and text"):
        derive_seed(0, part)


@given(batch=st.integers(1, 5), more=st.integers(0, 4))
def test_item_0_does_not_depend_on_the_batch_size(batch, more):
    small, large = (noise((size, 3, 4, 5), 11, 0, "start") for size in (batch, batch + more))
    assert torch.equal(small, large[:batch])


def test_items_are_drawn_again_by_name():
    whole = noise((4, 2, 3, 3), 5, 1, "switch")
    assert torch.equal(noise((2, 2, 3, 3), 5, 1, "switch", items=[3, 1]), whole[[3, 1]])


def test_every_part_of_the_address_counts():
    draws = [noise((1, 64), *address) for address in [(5, 1, "a"), (6, 1, "a"), (5, 2, "a"), (5, 1, "b")]]
    draws.append(noise((1, 64), 5, 1, "a", items=[1]))
    for place, draw in enumerate(draws):
        assert not any(torch.equal(draw, other) for other in draws[:place])
        assert all(abs(float((draw * other).mean())) < 0.6 for other in draws[:place])


def test_noise_is_standard_normal_float32_on_the_cpu():
    draw = noise((2, 4, 64, 64), 3, 0, "start")
    assert draw.dtype == torch.float32 and draw.device.type == "cpu"
    assert abs(float(draw.mean())) < 0.02 and abs(float(draw.var()) - 1.0) < 0.03


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    noise((2, 3), 1, 0, "start")
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_refuses_shapes_and_items_that_do_not_fit():
    with pytest.raises(RMDError, match="batch axis"):
        noise((), 0, 0, "start")
    with pytest.raises(RMDError, match="one per batch item"):
        noise((2, 3), 0, 0, "start", items=[0])
