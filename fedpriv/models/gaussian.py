"""The Gaussian conditional model: a normalised window is N(mean, covariance); any mask has an exact conditional.

Fitted in one round from noised statistics of windows. Two structures:

* `kernels`: the covariance is a non-negative combination of public stationary kernels (harmonics of the day that fade
  or last, harmonics of the week, exponentials, a constant, a nugget) plus a floor. Each window z gives the quadratic
  forms z' S0^-1 K_k S0^-1 z / 2 at a flat public guess S0 of the covariance. Their expectation is linear in the
  weights, with the Fisher information at S0 as the matrix, so weighted least squares (MINQUE, Rao 1971) estimates the
  weights without bias; non-negative least squares keeps every result a covariance. Some thirty numbers per client: at
  epsilon 2 the noise is hardly felt, and there is nothing to repair.
* `dense`: each window gives the packed second moment of (1, z): mean and covariance without structure, repaired by
  raising eigenvalues below the noise. For much data and little noise.

Channels share the covariance and count as independent series. Shapes: B windows, C channels, L steps, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from scipy.optimize import nnls
from torch import Tensor

from fedpriv.coherence import Coherence, Group, correlation_factor
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.models.baselines import JointBand
from fedpriv.models.designs import ProfileDesign
from fedpriv.models.moments import clamp_eigenvalues, noise_norm, pack, packed_size, unpack
from fedpriv.models.ridge import R_co, Releaser, add_up

_MASS = 2.0  # scale of the constant whose moment counts the windows; public
_GUESS = 0.02  # weight of every kernel in the public guess S0
_KEEP = 1e-7  # directions of the Fisher information below this share of its largest are left out
_JITTER = 1e-6  # relative ridge of a conditional, so that repeated readings stay solvable


@dataclass(frozen=True)
class GaussianModel:
    """A fitted Gaussian of normalised windows: post-processing of released statistics.

    Attributes:
        mean: [L] float64.
        covariance: [L, L] float64, positive definite.
    """

    mean: Tensor
    covariance: Tensor

    def moments(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every entry, each [B, L, C] float64 in normalised units; 0 spread if given."""
        point, stddev, _ = self.joint_moments(examples)
        return point, stddev

    def forecast(self, examples: Examples) -> JointBand:
        """The exact conditional of all entries that are not given, given those that are; one Cholesky per mask."""
        point, stddev, coherence = self.joint_moments(examples)
        dtype = examples.values.dtype
        return JointBand(
            point=(point * examples.scale).to(dtype) + examples.loc,
            stddev=(stddev * examples.scale).to(dtype),
            coherence=coherence,
        )

    def joint_moments(self, examples: Examples) -> tuple[Tensor, Tensor, Coherence]:
        """The `moments`, and how the entries that are not given go together."""
        rows, length, channels = examples.values.shape
        if length != len(self.mean):
            raise InputError(f"windows of {length} steps do not fit a model of {len(self.mean)}; nothing was computed.")
        values = examples.values.transpose(1, 2).reshape(rows * channels, length).double()
        given = examples.given.transpose(1, 2).reshape(rows * channels, length)
        point, stddev = values.clone(), torch.zeros_like(values)
        groups: list[Group] = []
        for series, mask in _same_masks(given):
            hidden = torch.nonzero(~mask)[:, 0]
            if not len(hidden):
                continue
            mean, factor = self._conditional_factor(values[series], mask)
            point[series[:, None], hidden] = mean
            stddev[series[:, None], hidden] = factor.norm(dim=1)
            groups.append((series, hidden, correlation_factor(factor)))

        def shaped(flat: Tensor) -> Tensor:
            return flat.reshape(rows, channels, length).transpose(1, 2)

        return shaped(torch.where(given, values, point)), shaped(stddev), Coherence(tuple(groups))

    def conditional(self, values: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [n, h] and covariance [h, h] of the hidden steps of n series that share one mask.

        Args:
            values: [n, L] float64; read where given.
            given: [L] bool.
        """
        mean, factor = self._conditional_factor(values, given)
        return mean, factor @ factor.T

    def _conditional_factor(self, values: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [n, h] and Cholesky factor [h, h] of the conditional.

        Of a factorised covariance [[A, 0], [B, D]] with the given steps first, D is the conditional's own factor, and
        the mean is B A^-1 times what was read: one factorisation for all.
        """
        seen, hidden = torch.nonzero(given)[:, 0], torch.nonzero(~given)[:, 0]
        order = torch.cat([seen, hidden])
        factor = _factor(self.covariance[order[:, None], order])
        split = len(seen)
        whitened = torch.linalg.solve_triangular(
            factor[:split, :split], (values[:, seen] - self.mean[seen]).T, upper=False
        )
        mean = self.mean[hidden] + (factor[split:, :split] @ whitened).T
        return mean, factor[split:, split:]


@dataclass(frozen=True)
class StackedDesign:
    """A design with one more input: the forecast of an already released Gaussian model, minus the baseline.

    The model is post-processing of what was charged for it, hence a public constant here. It needs about a hundredth of
    the budget (give it 4 to 10 times the noise multiplier of the ridge) and a round of its own before the ridge's.

    Attributes:
        inner: the design to extend; its context and horizon must make the model's window.
        model: released earlier.
        scale: public scale of the new input.
    """

    inner: ProfileDesign
    model: GaussianModel
    scale: float = 1.1

    def __post_init__(self) -> None:
        """Checks that the windows agree."""
        length = self.inner.context + self.inner.horizon
        if length != len(self.model.mean):
            raise InputError(f"a design of {length} steps does not fit a model of {len(self.model.mean)}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, p + 1, m)."""
        blocks, inputs, outputs = self.inner.shape
        return blocks, inputs + 1, outputs

    @property
    def scored(self) -> int:
        """The inner design's."""
        return self.inner.scored

    @property
    def constant(self) -> float:
        """The inner design's."""
        return self.inner.constant

    @property
    def horizon(self) -> int:
        """The inner design's."""
        return self.inner.horizon

    @property
    def lagged(self) -> bool:
        """The inner design's."""
        return self.inner.lagged

    def inputs(self, examples: Examples) -> Tensor:
        """[B, C, n, r, p + 1]: the forecast first, the constant last."""
        context = self.inner.context
        seen = torch.where(examples.given, examples.values, examples.baseline).transpose(1, 2).double()  # [B, C, L]
        given = torch.arange(seen.shape[-1]) < context
        mean, _ = self.model.conditional(seen.flatten(0, 1), given)
        ahead = mean.reshape(*seen.shape[:2], -1) - examples.baseline[:, context:].transpose(1, 2).double()
        column = (ahead * self.scale).unflatten(2, (self.shape[0], -1))[..., None]
        return torch.cat([column, self.inner.inputs(examples)], dim=-1)

    def outputs(self, examples: Examples) -> Tensor:
        """The inner design's."""
        return self.inner.outputs(examples)

    def expand(self, predicted: Tensor) -> Tensor:
        """The inner design's."""
        return self.inner.expand(predicted)

    def expand_variance(self, variance: Tensor) -> Tensor:
        """The inner design's."""
        return self.inner.expand_variance(variance)


def _same_masks(given: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(series [n], mask [L]) of each mask that occurs in [N, L]."""
    masks, which = torch.unique(given, dim=0, return_inverse=True)
    for k in range(len(masks)):
        yield torch.nonzero(which == k)[:, 0], masks[k]


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky factor with the least jitter that works."""
    size = matrix.diagonal().abs().mean().clamp(min=1e-12)
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    jitter = 0.0
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * size * eye)
        if not int(failed):
            return factor
        if jitter > 1.0:
            raise InputError("a covariance is not positive definite; nothing was computed.")
        jitter = max(_JITTER, jitter * 10.0)


@dataclass(frozen=True)
class _Forms:
    """Public constants of the kernel structure.

    Attributes:
        kernels: [K, L] autocovariances.
        precision: [L, L] inverse of S0.
        root: [D, K] with root' root = Fisher information H of the weights at S0, on the kept directions.
        project: [D, K] the transposed pseudo-inverse of `root`: raw forms -> forms of expectation root @ weights.
        offset: [D] expectation of the forms that the floor alone brings.
    """

    kernels: Tensor
    precision: Tensor
    root: Tensor
    project: Tensor
    offset: Tensor


@lru_cache(maxsize=8)
def _forms(window: int, period: int, floor: float) -> _Forms:
    kernels = public_kernels(window, period)
    guess = toeplitz(_with_floor(_GUESS * kernels.sum(dim=0), floor))
    precision = torch.cholesky_inverse(torch.linalg.cholesky(guess))
    whitened = precision @ toeplitz(kernels)  # [K, L, L]
    fisher = torch.einsum("kpq,lqp->kl", whitened, whitened) / 2.0
    values, vectors = torch.linalg.eigh(fisher)
    kept = values > _KEEP * values[-1]
    root = (vectors[:, kept] * values[kept].sqrt()).T
    project = (vectors[:, kept] / values[kept].sqrt()).T
    of_floor = torch.einsum("kpq,qp->k", whitened, precision) * floor / 2.0
    return _Forms(kernels, precision, root, project, project @ of_floor)


@dataclass(frozen=True, kw_only=True)
class GaussianBaseline:
    """The private federated Gaussian model: a statistic to release, and the fit from the clients' sum.

    Attributes:
        window: L, steps.
        period: steps of a day, for the public kernels.
        structure: see module text.
        clamp: dense: eigenvalues are raised to this many noise norms (s sqrt(2 L)); kernels: not used.
        floor: least eigenvalue of the covariance, normalised units.
    """

    window: int
    period: int
    structure: Literal["kernels", "dense"] = "kernels"
    clamp: float = 1.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        """Checks the public constants."""
        if self.window < 2 or self.period < 2 or not self.floor > 0:
            raise InputError(
                f"window={self.window} and period={self.period} must be at least 2 and floor={self.floor} positive; "
                "nothing was fitted."
            )

    @property
    def _forms(self) -> _Forms:
        return _forms(self.window, self.period, self.floor)

    @property
    def size(self) -> int:
        """Numbers that travel."""
        return packed_size(self.window + 1) if self.structure == "dense" else 1 + len(self._forms.root)

    def rows(self, examples: Examples) -> Tensor:
        """[B, size] float64, summed over channels: (constant, forms), or the packed moment of (1, z)."""
        z = examples.values.transpose(1, 2).double()  # [B, C, L]
        if self.structure == "dense":
            joint = torch.cat([torch.ones_like(z[..., :1]), z], dim=-1)
            return pack(torch.einsum("bcp,bcq->bpq", joint, joint))
        public = self._forms
        # y' K y with K Toeplitz needs only the autocorrelation of y
        spectrum = torch.fft.rfft(z @ public.precision, n=2 * self.window)
        lags = torch.fft.irfft(spectrum.abs().square(), n=2 * self.window)[..., : self.window].sum(dim=1)  # [B, L]
        lags[:, 1:] *= 2.0
        forms = lags @ public.kernels.T @ public.project.T / 2.0
        return torch.cat([torch.full_like(forms[:, :1], _MASS * z.shape[1]), forms], dim=1)

    def release(
        self, mechanism: Releaser[R_co], reader: object, *, num_meters: int, start: int, stop: int, rng: object
    ) -> R_co:
        """What one client sends: the mechanism's noised sum of `rows` (its `.vector`), with `.event` and `.stddev`."""
        return mechanism.release(self, reader, num_meters=num_meters, start=start, stop=stop, rng=rng)

    def aggregate(self, vectors: Sequence[Tensor]) -> Tensor:
        """[size] float64: the sum over clients; the noise variances add up."""
        return add_up(vectors, self.size)

    def fit(self, total: Tensor, *, stddev: float) -> GaussianModel:
        """Mean and covariance from the aggregate.

        Args:
            total: [size] sum of released vectors.
            stddev: of the noise per coordinate of `total`, public; 0 without privacy.

        Raises:
            InputError: sizes that do not fit, or a stddev that is not a number >= 0.
        """
        if not (math.isfinite(stddev) and stddev >= 0):
            raise InputError(f"stddev={stddev} is not a finite number >= 0; nothing was fitted.")
        total = add_up([total], self.size)
        return self._dense(total, stddev) if self.structure == "dense" else self._kernels(total, stddev)

    def _dense(self, total: Tensor, stddev: float) -> GaussianModel:
        moment = unpack(total, self.window + 1)
        mass = float(moment[0, 0].clamp(min=max(stddev, 1e-12)))
        mean = moment[0, 1:] / mass
        covariance = moment[1:, 1:] / mass - mean[:, None] * mean
        floor = max(self.floor, self.clamp * noise_norm(stddev / mass, self.window))
        return GaussianModel(mean, clamp_eigenvalues(covariance, floor))

    def _kernels(self, total: Tensor, stddev: float) -> GaussianModel:
        public = self._forms
        mass = float(total[0].clamp(min=max(stddev, 1e-12))) / _MASS
        weights, _ = nnls(public.root.numpy(), (total[1:] / mass - public.offset).numpy(), maxiter=10_000)
        lags = torch.from_numpy(weights) @ public.kernels
        return GaussianModel(torch.zeros(self.window, dtype=torch.float64), toeplitz(_with_floor(lags, self.floor)))


def _with_floor(lags: Tensor, floor: float) -> Tensor:
    return lags + floor * torch.eye(1, lags.shape[-1], dtype=lags.dtype)[0]


def toeplitz(lags: Tensor) -> Tensor:
    """[..., L] autocovariances -> [..., L, L]."""
    step = torch.arange(lags.shape[-1])
    return lags[..., (step[:, None] - step).abs()]


def public_kernels(window: int, period: int) -> Tensor:
    """[K, L] autocovariances of the public dictionary, each 1 at lag 0 and positive semi-definite.

    Six harmonics of the day with fades of a day, a week and none; six of the week without fade; exponentials of 1/24,
    1/8, 1/4, 1/2, 1, 2 and 7 days; a constant; a nugget.
    """
    lag = torch.arange(window, dtype=torch.float64)
    week = 7 * period
    waves = [torch.cos(2 * math.pi * j / period * lag) for j in range(1, min(6, period // 2) + 1)]
    fades = [torch.exp(-lag / period), torch.exp(-lag / week), torch.ones_like(lag)]
    kernels = [wave * fade for wave in waves for fade in fades]
    kernels += [torch.cos(2 * math.pi * j / week * lag) for j in range(1, 7)]
    kernels += [torch.exp(-lag / (period * share)) for share in (1 / 24, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 7.0)]
    kernels += [torch.ones_like(lag), (lag == 0).double()]
    return torch.stack(kernels)
