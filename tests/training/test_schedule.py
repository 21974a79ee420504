"""Learning rate by hand; random numbers as functions of what they are for."""

import pytest
import torch

from vnet.core.randomness import point_generators, sample_seed
from vnet.training.schedule import learning_rate


def test_one_cycle_passes_its_three_corners() -> None:
    rates = [learning_rate(t, peak=3e-3, schedule="one_cycle") for t in (0.0, 0.3, 1.0, 2.0)]
    assert rates == pytest.approx([3e-3 / 25, 3e-3, 3e-7, 3e-7])


def test_one_cycle_is_half_way_at_the_middle_of_each_part() -> None:
    assert learning_rate(0.15, peak=1.0, schedule="one_cycle") == pytest.approx((1 / 25 + 1) / 2)
    assert learning_rate(0.65, peak=1.0, schedule="one_cycle") == pytest.approx((1 + 1e-4) / 2)


def test_poly() -> None:
    assert learning_rate(0.5, peak=2.0, schedule="poly") == pytest.approx(2 * 0.5**0.9)
    assert learning_rate(1.0, peak=2.0, schedule="poly") == 0


def test_every_seed_step_sample_and_purpose_has_its_own_stream() -> None:
    seeds = {sample_seed(a, b, c, d) for a in range(3) for b in range(4) for c in range(5) for d in range(2)}
    assert len(seeds) == 3 * 4 * 5 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_sample_draws_the_same_whoever_draws_it() -> None:
    whole = [torch.rand(3, generator=g) for g in point_generators(7, 11, range(4))]
    share = [torch.rand(3, generator=g) for g in point_generators(7, 11, range(2, 4))]
    torch.testing.assert_close(whole[2:], share, rtol=0, atol=0)
