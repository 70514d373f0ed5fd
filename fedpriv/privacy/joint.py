"""One step, several releases, one event: a gradient and what else is asked about the same rows, with shared noise.

A controller that follows the norms of the gradients, or a rule that keeps the clipped-off remainder, asks a second
question about the rows of a step. It is answered in the same step, of the same rows, and both answers together are
ONE Gaussian mechanism of the total multiplier sigma:

    sigma^-2 = sigma_gradient^-2 + sum over the other queries of (bound_k / stddev_k)^2.

Proof note. Scale each query by its own noise: a row's joint contribution is the vector (g_i / (sigma_gradient C),
q_i / stddev), of squared norm at most sigma_gradient^-2 + sum (bound_k / stddev_k)^2 = sigma^-2, and the noise is
standard normal in all coordinates. That is the Gaussian mechanism of multiplier sigma on a sum with per-row norm 1;
sampling amplifies it as a whole, since all queries see the same rows. Under replace-one every part at most doubles.
The accountant, the contract and the label are told sigma, never sigma_gradient: recording the latter reports
3.78 for 5.92, and 0.086 for 0.171, in two published implementations (Renyi accounting; docs/clipping.md).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from dp_accounting import DpEvent
from torch import Tensor

from fedpriv.errors import CheckFailed, InputError
from fedpriv.privacy.engines.base import ClippedSum
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.seeding import PrivacyRng


@dataclass(frozen=True)
class Query:
    """Sensitive: a sum over the rows of a step that is released beside the gradient.

    Attributes:
        total: [S] float64. Its repr is hidden, and it refuses to be pickled.
        bound: L2 norm that any one row can add.
        stddev: of the noise per coordinate: public.
    """

    total: Tensor = field(repr=False)
    bound: float
    stddev: float

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Query is private and is not pickled; release it first")


@dataclass(frozen=True)
class JointRelease:
    """Private by `event`; anything may read it.

    Attributes:
        grad: [P] float32, (clipped sum + noise) / denominator.
        answers: the other queries' sums with their noise, float64, not divided.
        event: the DpEvent of the whole step, of the total noise multiplier.
    """

    grad: Tensor
    answers: tuple[Tensor, ...]
    event: DpEvent


def gradient_noise(sigma: float, shares: Sequence[float]) -> float:
    """Noise multiplier left for the gradient when other queries take `shares` = (bound / stddev)^2 each.

    Raises:
        InputError: they take everything; nothing was released.
    """
    rest = sigma**-2 - math.fsum(shares)
    if not shares:
        return sigma
    if not rest > 1e-12 * sigma**-2:
        noise = 1 / math.sqrt(math.fsum(shares))
        raise InputError(
            f"noise_multiplier={sigma:g} is not below {noise:g}, the noise of the other queries of a step (noise over "
            "sensitivity); nothing is left for the gradient. Raise the noise of the other query. Nothing was started."
        )
    return rest**-0.5


def release_jointly(
    mechanism: Mechanism, clipped: ClippedSum, queries: Sequence[Query], *, denominator: float, rng: PrivacyRng
) -> JointRelease:
    """Releases the gradient and all queries as one event of `mechanism.noise_multiplier`.

    Args:
        mechanism: with the clipper and the TOTAL noise multiplier of this step.
        clipped: the sensitive sum of gradients.
        queries: what else is asked about the same rows.
        denominator: public divisor of the gradient.
        rng: source of the noise, drawn in the order gradient, queries.

    Raises:
        InputError: the queries leave no noise budget for the gradient.
        CheckFailed: a sum is not finite; nothing was released.
    """
    if not queries:
        released = mechanism.release(clipped, denominator=denominator, rng=rng)
        return JointRelease(released.grad, (), released.event)
    shares = [(q.bound / q.stddev) ** 2 for q in queries]
    alone = replace(mechanism, noise_multiplier=gradient_noise(mechanism.noise_multiplier, shares))
    if any(not bool(q.total.isfinite().all()) for q in queries):
        raise CheckFailed("a query beside the gradient is not finite (a fault of its rule); nothing was released.")
    grad = alone.release(clipped, denominator=denominator, rng=rng).grad  # its own event would be too small a claim
    answers = tuple(
        q.total.to(torch.float64) + q.stddev * torch.from_numpy(rng.standard_normal(q.total.numel())).to(q.total.device)
        for q in queries
    )
    return JointRelease(grad, answers, mechanism.step_event())
