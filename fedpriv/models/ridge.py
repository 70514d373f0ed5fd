"""Ridge regression fitted from noised second moments: one round, one release per client, exact post-processing.

Clients release the sum over windows of clipped packed moments Z'Z, Z = [inputs, outputs]; the server adds them up and
solves. X'X, X'Y and the residual variance Y'Y - ... for the bands all come from that one vector.

AdaSSP (Wang 2018, arXiv:1803.02596) adds as much ridge as the noise needs where X'X is weak and none where it is
strong. It spends budget on the least eigenvalue; here that is read off the noisy matrix itself, which costs nothing:
eigenvalues below the noise are raised to it (clamp), then  ridge = max(0, strength * noise - least eigenvalue).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from fedpriv.coherence import Coherence, fading_factor
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.models.baselines import JointBand
from fedpriv.models.designs import Design
from fedpriv.models.moments import clamp_eigenvalues, noise_norm, pack, packed_size, unpack

_TINY = 1e-9  # least ridge, as a share of the mean eigenvalue: a singular noise-free matrix must still be solvable
VARIANCE_FLOOR = 1e-4  # least residual variance of a step, in normalised units
CORRELATION_LIMIT = 0.99  # of errors at neighbouring steps

R_co = TypeVar("R_co", covariant=True)


class Releaser(Protocol[R_co]):
    """What a private mechanism offers: sums a statistic over windows and returns it noised (fedpriv.privacy)."""

    def release(self, statistic: Any, reader: Any, *, num_meters: int, start: int, stop: int, rng: Any) -> R_co:
        """The noised sum with its event."""
        ...


@dataclass(frozen=True, kw_only=True)
class RidgeOptions:
    """How the noisy moments are solved; all public. Multiples are of the noise's standard deviation per entry.

    Attributes:
        rule: `fixed` ridge of `ridge` noise units; `adassp`: max(0, ridge * noise norm - least eigenvalue).
        ridge: see `rule`.
        clamp: eigenvalues of the joint moment matrix are raised to this many noise units.
        smooth: noise units on the squared difference of coefficients between neighbouring blocks.
        band_share: how far the residual variance of a window follows the mean square of its inputs: 0 not at all (the
            same bands for all), 1 in proportion (calm windows get narrow bands).
    """

    rule: Literal["fixed", "adassp"] = "fixed"
    ridge: float = 0.5
    clamp: float = 0.5
    smooth: float = 16.0
    band_share: float = 0.7

    def __post_init__(self) -> None:
        """Checks the public constants."""
        if self.rule not in ("fixed", "adassp"):
            raise InputError(f"ridge rule {self.rule!r} is neither fixed nor adassp; nothing was fitted.")
        if not (min(self.ridge, self.clamp, self.smooth) >= 0 and 0 <= self.band_share <= 1):
            raise InputError(f"{self} must be >= 0, with band_share in [0, 1]; nothing was fitted.")


@dataclass(frozen=True)
class RidgeModel:
    """A fitted ridge regression: post-processing of released moments.

    Attributes:
        design: public feature map.
        coefficients: [n, p, m] float64.
        variance: [n, m] float64: residual variance of outputs in a window with inputs of typical size.
        typical: [n] float64: typical mean square of an equation's inputs.
        band_share: see `RidgeOptions`.
        correlation: of the errors at neighbouring steps of the horizon; they fade geometrically with the distance.
    """

    design: Design
    coefficients: Tensor
    variance: Tensor
    typical: Tensor
    band_share: float
    correlation: float = 0.0

    def moments(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every entry, each [B, L, C] float64 in normalised units; 0 spread if given."""
        inputs = self.design.inputs(examples)
        residual = self.design.expand(inputs @ self.coefficients).transpose(1, 2)  # [B, H, C]
        size = inputs.square().sum(dim=-1).mean(dim=-1) / self.typical  # [B, C, n]: 1 on average
        relative = (self.band_share * size + 1.0 - self.band_share)[..., None, None].expand(*inputs.shape[:-1], 1)
        variance = self.design.expand_variance(relative * self.variance[:, None, :]).transpose(1, 2)
        horizon = residual.shape[1]
        point, stddev = examples.baseline.double().clone(), torch.zeros_like(examples.baseline, dtype=torch.float64)
        point[:, -horizon:] += residual
        stddev[:, -horizon:] = variance.clamp(min=VARIANCE_FLOOR).sqrt()
        point = torch.where(examples.given, examples.values.double(), point)
        return point, torch.where(examples.given, torch.zeros_like(stddev), stddev)

    def joint_moments(self, examples: Examples) -> tuple[Tensor, Tensor, Coherence]:
        """The `moments`, and how the errors over the horizon go together."""
        return *self.moments(examples), self._coherence(examples)

    def forecast(self, examples: Examples) -> JointBand:
        """Mean and standard deviation of every entry in physical units; given entries as read, with 0."""
        point, stddev, coherence = self.joint_moments(examples)
        return JointBand(
            point=(point * examples.scale + examples.loc).to(examples.values.dtype),
            stddev=(stddev * examples.scale).to(examples.values.dtype),
            coherence=coherence,
        )

    def _coherence(self, examples: Examples) -> Coherence:
        rows, length, channels = examples.values.shape
        horizon = self.design.horizon
        if not self.correlation or horizon < 2:
            return Coherence()
        steps = torch.arange(length - horizon, length)
        return Coherence(((torch.arange(rows * channels), steps, fading_factor(horizon, self.correlation)),))


@dataclass(frozen=True, kw_only=True)
class RidgeBaseline:
    """The private federated ridge: a statistic to release, and the fit from the sum of what clients released.

    Example (`mechanism`: a fedpriv.privacy StatisticsMechanism; `reader` reads a client's windows):
        baseline = RidgeBaseline(design=ProfileDesign(context=168, horizon=24, period=24))
        sent = baseline.release(mechanism, reader, num_meters=1, start=0, stop=n, rng=rng)
        model = baseline.fit(baseline.aggregate([sent.vector, ...]), stddev=sent.stddev * math.sqrt(clients))
    """

    design: Design
    options: RidgeOptions = RidgeOptions()

    @property
    def size(self) -> int:
        """Numbers that travel."""
        blocks, inputs, outputs = self.design.shape
        return blocks * packed_size(inputs + outputs)

    def rows(self, examples: Examples) -> Tensor:
        """[B, size] float64: packed Z'Z of each block, summed over channels and equations."""
        joint = torch.cat([self.design.inputs(examples), self.design.outputs(examples)], dim=-1)  # [B, C, n, r, q]
        return pack(torch.einsum("bcnrp,bcnrq->bnpq", joint, joint)).flatten(1)

    def release(
        self, mechanism: Releaser[R_co], reader: object, *, num_meters: int, start: int, stop: int, rng: object
    ) -> R_co:
        """What one client sends: the mechanism's noised sum of `rows` (its `.vector`), with `.event` and `.stddev`."""
        return mechanism.release(self, reader, num_meters=num_meters, start=start, stop=stop, rng=rng)

    def aggregate(self, vectors: Sequence[Tensor]) -> Tensor:
        """[size] float64: the sum over clients; the noise variances add up.

        Raises:
            InputError: no vector, or one of another size or not finite.
        """
        return add_up(vectors, self.size)

    def fit(self, total: Tensor, *, stddev: float) -> RidgeModel:
        """Coefficients and residual variances from the aggregate.

        Args:
            total: [size] sum of released vectors.
            stddev: of the noise per coordinate of `total`, public; 0 without privacy.

        Raises:
            InputError: sizes or stddev that do not fit.
        """
        if not (math.isfinite(stddev) and stddev >= 0):
            raise InputError(f"stddev={stddev} is not a finite number >= 0; nothing was fitted.")
        blocks, p, m = self.design.shape
        raw = unpack(add_up([total], self.size).reshape(blocks, -1), p + m)
        tiny = _TINY * max(float(raw.diagonal(dim1=-2, dim2=-1).mean()), 1e-12)
        clean = clamp_eigenvalues(raw, max(self.options.clamp * stddev, 0.0)) if stddev > 0 else raw
        coefficients, inverse = self._solve(clean[:, :p, :p], clean[:, :p, p:], stddev, tiny)
        correlation = self._correlation(raw, coefficients, inverse, stddev) if self.design.lagged else 0.0
        coefficients[..., self.design.scored :] = 0.0  # outputs that only measure what is left over
        contrast = torch.cat([-coefficients, torch.eye(m).double().expand(blocks, m, m)], dim=1)  # [n, q, m]
        rest = torch.einsum("nqm,nqk,nkm->nm", contrast, raw, contrast)
        # The fit follows the noise of X'Y - X'X theta, of variance stddev^2 (1 + |theta|^2) / 2 per entry, so its
        # residual on these very moments is too small by twice the trace of inverse times variance.
        noise = 0.5 * stddev**2 * (1.0 + coefficients.square().sum(dim=1))  # [n, m]
        noise[:, self.design.scored :] = 0.0
        naive = raw[:, p:, p:].diagonal(dim1=-2, dim2=-1)
        rest = torch.minimum(rest + 2.0 * noise * inverse[:, None], naive.clamp(min=0.0))  # the baseline's own at most
        # the constant counts equations; of pure noise nothing can be known, so no count is below one noise unit
        equations = raw[:, p - 1, p - 1].clamp(min=max(tiny, stddev)) / self.design.constant**2  # [n]
        typical = (raw[:, :p, :p].diagonal(dim1=-2, dim2=-1).sum(dim=-1) / equations).clamp(min=self.design.constant**2)
        variance = rest / equations[:, None]
        pooled = rest.sum(dim=0).clamp(min=0.0) / equations.sum()
        variance = torch.where(variance.isfinite() & (variance > 0), variance, pooled)
        return RidgeModel(self.design, coefficients, variance, typical, self.options.band_share, correlation)

    def _correlation(self, raw: Tensor, coefficients: Tensor, inverse: Tensor, stddev: float) -> float:
        """Of the errors at neighbouring steps, in [0, CORRELATION_LIMIT]: the first output's and the last one's.

        The last output is the residual a step earlier; what the inputs say of it is taken off, as from the first.
        Sums over all blocks; the first step has none before it, which is made up for. The fit follows the noise, which
        takes trace(inverse) times the noise's covariance from the sums (see `fit`): that is put back. One noise unit
        more in the denominator makes the result fade to 0, to white errors, where nothing can be known.
        """
        blocks, _, m = coefficients.shape
        contrast = torch.cat([-coefficients, torch.eye(m).double().expand(blocks, m, m)], dim=1)  # [n, q, m]
        contrast = contrast[..., [0, m - 1]]
        left = torch.einsum("nqi,nqk,nkj->nij", contrast, raw, contrast)  # [n, 2, 2]
        noise = 0.5 * stddev**2 * torch.einsum("nqi,nqj->nij", contrast, contrast)
        total = (left + noise * inverse[:, None, None]).sum(dim=0)
        first = 1.0 - 1.0 / self.design.horizon  # 0 for a horizon of one step, which has nothing to measure
        size = math.sqrt(float(total.diagonal().clamp(min=0.0).prod()) * first) + stddev
        found = float(total[0, 1]) / size if size > 0 else 0.0
        return min(max(found, 0.0), CORRELATION_LIMIT)

    def _solve(self, gram: Tensor, cross: Tensor, stddev: float, tiny: float) -> tuple[Tensor, Tensor]:
        """(X'X + ridge + smoothness) theta = X'Y over all blocks at once.

        Returns:
            theta [n, p, m] and the trace of each block of the inverse system [n].
        """
        blocks, p, m = cross.shape
        if self.options.rule == "adassp":
            least = torch.linalg.eigvalsh(gram)[:, 0]
            ridge = (self.options.ridge * noise_norm(stddev, p) - least).clamp(min=0.0)
        else:
            ridge = torch.full((blocks,), self.options.ridge * stddev, dtype=torch.float64)
        eye = torch.eye(p, dtype=torch.float64)
        system = torch.zeros(blocks, p, blocks, p, dtype=torch.float64)
        index = torch.arange(blocks)
        system[index, :, index, :] = gram + (ridge + tiny)[:, None, None] * eye
        step = torch.eye(blocks, dtype=torch.float64).diff(dim=0)  # [n - 1, n]
        system += self.options.smooth * stddev * torch.einsum("ab,pq->apbq", step.T @ step, eye)
        inverse = torch.linalg.inv(system.reshape(blocks * p, -1))
        solved = inverse @ cross.reshape(blocks * p, m)
        return solved.reshape(blocks, p, m), inverse.diagonal().reshape(blocks, p).sum(dim=1)


def add_up(vectors: Sequence[Tensor], size: int) -> Tensor:
    """[size] float64 sum of released vectors.

    Raises:
        InputError: no vector, or one of another size or not finite.
    """
    if not vectors:
        raise InputError("no released statistics to add up; nothing was fitted.")
    for vector in vectors:
        if tuple(vector.shape) != (size,) or not bool(vector.isfinite().all()):
            raise InputError(f"released statistics of shape {tuple(vector.shape)} are not {size} finite numbers.")
    return torch.stack([vector.double() for vector in vectors]).sum(dim=0)
