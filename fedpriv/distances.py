"""How far the forecasts' distribution is from the truth's, as sketches that merge: add them, then finalize.

A marginal score such as CRPS judges one window at a time; these judge all windows together. Of standardised values z
(the client's training mean and standard deviation, per channel), at the targets, over all S samples of a window:

    dist-kl    KL(truth || forecasts), nats, of BINS_COARSE bins; half a count is added to every bin, so it is finite
    dist-js    Jensen-Shannon divergence with logarithms of base 2, in [0, 1], of the same bins
    dist-ws    1-Wasserstein distance of the two binned distributions (BINS bins), in units of z; within WIDTH of that
               of the values themselves as long as these lie in [-LIMIT, LIMIT]
    dist-ks    largest distance of the two distribution functions at the edges of the BINS bins
    mmd        squared maximum mean discrepancy of whole windows under exp(-|x - y|^2 / 2), x = z / sqrt(targets of the
               window), 0 where not a target: |x - y|^2 is then about 2 for unrelated windows, so the fixed bandwidth
               plays the part of the median heuristic. The kernel is the one of FEATURES fixed random frequencies
               (Rahimi & Recht 2007); the estimate runs over pairs of different windows, is unbiased, and may fall
               below 0
    spectrum-distance
               mean over frequencies of the squared difference of the two mean power spectra, each normalised to sum 1;
               of the span that is generated (the horizon of a forecast, the whole window otherwise), given entries as
               read, what was never read as the mean, frequency zero left out

Bins, frequencies and bandwidth are public constants, so that sums of different clients add up. Cost for each
model and client, on one core, of 192 windows with 20 samples: 24 steps of one channel take 1 ms for the bins, 14 ms for
mmd and 1 ms for the spectrum; 168 steps of seven channels 73, 71 and 113 ms; and 400, 258 and H numbers in a reply.
None is in the default set. In simulation only, like all exact scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpriv.errors import InputError
from fedpriv.seeding import stream

MARGINAL = ("dist-kl", "dist-js", "dist-ws", "dist-ks")
DISTANCES = (*MARGINAL, "mmd", "spectrum-distance")
LIMIT = 5.0  # standardised values beyond are counted in the outer bins
BINS = 200
WIDTH = 2 * LIMIT / BINS
BINS_COARSE = 50
FEATURES = 128  # random frequencies, each with a cosine and a sine
_PREFIX = "dist."

Sums = NDArray[np.float64]


def _none() -> Sums:
    return np.zeros(0)


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Sums over scored windows; empty where nothing was asked. Adding two of them is measuring both sets of windows.

    Attributes:
        truth, forecast: [BINS] number of values in each bin; of forecasts divided by S.
        drift: [2 FEATURES] sum over windows of the difference in mean features.
        drift_squared: [1] sum over windows of its squared norm.
        windows: [1] windows with a target.
        power_truth, power_forecast: [F] summed power at frequencies 1, 2, ... of the span.
    """

    truth: Sums = field(default_factory=_none)
    forecast: Sums = field(default_factory=_none)
    drift: Sums = field(default_factory=_none)
    drift_squared: Sums = field(default_factory=_none)
    windows: Sums = field(default_factory=_none)
    power_truth: Sums = field(default_factory=_none)
    power_forecast: Sums = field(default_factory=_none)

    def merge(self, other: Distances) -> Distances:
        """The distances of both sets of windows.

        Raises:
            InputError: sums of other sizes, such as spectra of another span.
        """
        return Distances(
            **{f.name: _added(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        )

    def finalize(self, names: Iterable[str] = DISTANCES) -> dict[str, float]:
        """The distances asked for; one that nothing was measured for is left out.

        Raises:
            InputError: an unknown name.
        """
        wanted = list(names)
        if unknown := [name for name in wanted if name not in DISTANCES]:
            raise InputError(
                f"unknown distance {unknown[0]!r}; known are {', '.join(DISTANCES)}. Nothing was computed."
            )
        values: dict[str, float] = {}
        if self.truth.size and self.truth.sum() > 0:
            values |= _marginal(self.truth, self.forecast)
        if self.windows.size and self.windows[0] >= 2:
            n = float(self.windows[0])
            values["mmd"] = float(self.drift @ self.drift - self.drift_squared[0]) / (n * (n - 1))
        if self.power_truth.sum() > 0 and self.power_forecast.sum() > 0:
            p, q = self.power_truth / self.power_truth.sum(), self.power_forecast / self.power_forecast.sum()
            values["spectrum-distance"] = float(np.square(p - q).mean())
        return {name: values[name] for name in wanted if name in values}

    def to_dict(self) -> dict[str, float]:
        """The sums under flat names, for a message."""
        return {
            f"{_PREFIX}{f.name}.{i}": float(value)
            for f in fields(self)
            for i, value in enumerate(getattr(self, f.name))
        }

    @classmethod
    def from_dict(cls, flat: Mapping[str, object]) -> Distances:
        """What `to_dict` wrote; other keys are ignored.

        Raises:
            InputError: a sum is missing or is not a finite number.
        """
        found: dict[str, dict[int, float]] = {}
        known = {f.name for f in fields(cls)}
        for key, value in flat.items():
            if not key.startswith(_PREFIX):
                continue
            name, _, place = key.removeprefix(_PREFIX).rpartition(".")
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name not in known or not place.isdecimal() or not number:
                raise InputError(f"distances have a sum {key[:60]!r} that is unknown or not finite; it was not merged.")
            assert isinstance(value, int | float)
            found.setdefault(name, {})[int(place)] = float(value)
        for name, sums in found.items():
            if set(sums) != set(range(len(sums))):
                raise InputError(f"distances lack some of the sums {_PREFIX}{name}; they were not merged.")
        return cls(**{name: np.array([sums[i] for i in range(len(sums))]) for name, sums in found.items()})


def measure(
    truth: Tensor,
    samples: Tensor,
    target: Tensor,
    given: Tensor,
    *,
    loc: Tensor,
    scale: Tensor,
    span: slice,
    names: Iterable[str] = DISTANCES,
) -> Distances:
    """Sketches of windows, in float64.

    Args:
        truth: [B, L, C] physical units; read where given or target only.
        samples: [S, B, L, C] forecast samples, physical units; read at targets only.
        target, given: [B, L, C] bool, entries that are generated, and that the model was given.
        loc, scale: [C] the client's training mean and standard deviation.
        span: steps that can be generated.
        names: which of `DISTANCES`; others are ignored.

    Raises:
        InputError: values that are not finite at a target.
    """
    wanted, count = set(names), samples.shape[0]
    target, given = target[:, span], given[:, span]
    y = (torch.where(target | given, truth[:, span].double(), loc) - loc) / scale  # [B, H, C]
    x = torch.where(target, (samples[:, :, span].double() - loc) / scale, y)  # [S, B, H, C]
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InputError("a sample or a truth is not finite at a target; no distance was computed.")
    sums: dict[str, Sums] = {}
    if wanted & set(MARGINAL):
        sums["truth"] = _counts(y[target])
        sums["forecast"] = _counts(x[:, target]) / count
    if "mmd" in wanted:
        targets = target.flatten(1).sum(dim=1)  # [B]
        scaled = target / targets.clamp(min=1).sqrt()[:, None, None]  # 0 where not a target
        features = _frequencies(y[0].numel())
        drift = _features(y * scaled, features) - _features(x * scaled, features).mean(dim=0)  # [B, 2F]
        drift = drift[targets > 0]
        sums["drift"] = drift.sum(dim=0).numpy()
        sums["drift_squared"] = np.array([float(drift.square().sum())])
        sums["windows"] = np.array([float(len(drift))])
    if "spectrum-distance" in wanted:
        sums["power_truth"] = _power(y).sum(dim=0).numpy()
        sums["power_forecast"] = _power(x).mean(dim=0).sum(dim=0).numpy()
    return Distances(**sums)


def _counts(z: Tensor) -> Sums:
    place = torch.floor((z.flatten() + LIMIT) / WIDTH).clamp(0, BINS - 1).long()
    return torch.bincount(place, minlength=BINS).double().numpy()


def _marginal(truth: Sums, forecast: Sums) -> dict[str, float]:
    p, q = truth / truth.sum(), forecast / forecast.sum()
    apart = np.abs(np.cumsum(p - q))
    coarse = truth.reshape(BINS_COARSE, -1).sum(axis=1), forecast.reshape(BINS_COARSE, -1).sum(axis=1)
    a, b = ((counts + 0.5) / (counts + 0.5).sum() for counts in coarse)
    u, v = (counts / counts.sum() for counts in coarse)
    middle = (u + v) / 2
    return {
        "dist-kl": float((a * np.log(a / b)).sum()),
        "dist-js": (_relative_entropy(u, middle) + _relative_entropy(v, middle)) / (2 * math.log(2)),
        "dist-ws": float(apart.sum()) * WIDTH,
        "dist-ks": float(apart.max()),
    }


def _relative_entropy(p: Sums, q: Sums) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


@lru_cache(maxsize=8)
def _frequencies(size: int) -> Tensor:
    """[size, FEATURES] standard normal: the same in every process and client."""
    drawn = stream(0, "random-features", size).standard_normal(size * FEATURES)
    return torch.from_numpy(np.asarray(drawn, dtype=np.float64).reshape(size, FEATURES))


def _features(x: Tensor, frequencies: Tensor) -> Tensor:
    """[..., H, C] -> [..., 2 FEATURES] whose inner products estimate exp(-|x - y|^2 / 2)."""
    phase = x.flatten(-2) @ frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=-1) / math.sqrt(FEATURES)


def _power(z: Tensor) -> Tensor:
    """[..., H, C] -> [..., F] power at frequencies 1 ... H / 2, mean over channels, each series without its mean."""
    spectrum = torch.fft.rfft(z - z.mean(dim=-2, keepdim=True), dim=-2)[..., 1:, :]
    return spectrum.abs().square().mean(dim=-1)


def _added(name: str, a: Sums, b: Sums) -> Sums:
    if a.size and b.size and a.size != b.size:
        raise InputError(f"distances with {a.size} and {b.size} sums {name!r} do not merge; nothing was added.")
    return b if not a.size else a if not b.size else a + b
