"""Correlated noise: every entry keeps its law, whitening undoes it, and what is in no group stays white."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from fedpriv.coherence import TAIL_DOF, TAIL_SCALE, Coherence, correlation_factor, fading_factor, tail_factors

B, K, L, C = 3, 4000, 12, 2


def made() -> tuple[Coherence, torch.Tensor, torch.Tensor]:
    half = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = correlation_factor(torch.linalg.cholesky(half @ half.T + 0.3 * torch.eye(5)))
    steps = torch.tensor([2, 3, 7, 8, 11])
    series = torch.tensor([0, 3])  # row 0, channel 0; row 1, channel 1
    return (
        Coherence(((series, steps, factor), (torch.tensor([5]), torch.arange(L), fading_factor(L, 0.9)))),
        steps,
        factor,
    )


def test_colour_has_the_correlation_and_unit_variance() -> None:
    coherence, steps, factor = made()
    white = torch.randn(B, K, L, C, generator=torch.Generator().manual_seed(1))
    drawn = coherence.colour(white)
    assert drawn.shape == white.shape
    assert (drawn.var(dim=1) - 1.0).abs().max() < 5 * (2 / K) ** 0.5
    for row, channel in ((0, 0), (1, 1)):
        seen = torch.corrcoef(drawn[row, :, steps, channel].T)
        assert (seen - factor @ factor.T).abs().max() < 5 / K**0.5
    lag = torch.corrcoef(drawn[2, :, :, 1].T)
    assert (lag[0] - 0.9 ** torch.arange(L)).abs().max() < 5 / K**0.5
    untouched = [(0, 1), (1, 0), (2, 0)]
    for row, channel in untouched:
        assert torch.equal(drawn[row, :, :, channel], white[row, :, :, channel])
    others = [step for step in range(L) if step not in steps.tolist()]
    assert torch.equal(drawn[0, :, others, 0], white[0, :, others, 0])


def test_whitening_undoes_colour() -> None:
    coherence, _, _ = made()
    white = torch.randn(B, 7, L, C, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(coherence.whiten(coherence.colour(white)), white, rtol=1e-4, atol=1e-4)
    assert Coherence().colour(white) is white


@pytest.mark.parametrize("start", [0, 5, 11])
def test_a_part_keeps_its_own_correlation(start: int) -> None:
    coherence, steps, factor = made()
    series, kept, part = coherence.part(start).groups[0]
    late = steps >= start
    assert series.tolist() == [0, 3]
    assert torch.equal(kept, steps[late] - start)
    torch.testing.assert_close(part @ part.T, (factor @ factor.T)[late][:, late], rtol=1e-5, atol=1e-5)


def test_tails_are_those_of_a_student_t() -> None:
    rng = torch.Generator().manual_seed(3)
    scale = tail_factors(torch.randn(20_000, TAIL_DOF, C, generator=rng))
    assert scale.shape == (20_000, 1, C)
    drawn = (scale * torch.randn(20_000, 1, C, generator=rng))[:, 0, 1].numpy()
    assert stats.kstest(drawn, stats.t(TAIL_DOF, scale=TAIL_SCALE).cdf).pvalue > 1e-3
