"""How different the clients of a partition are: the numbers of the heterogeneity card. Simulation only.

It reads all clients' readings and is no release that anybody paid for: whoever runs a simulation holds all data, a
deployment computes nothing of this. Definitions, on the first channel (or the one named) of one part of the calendar:

    level              mean reading of the client, over meters and steps; physical units
    cv                 standard deviation of all its readings over |level|
    scale ratio        largest over least |level|; 90 % over 10 % quantile of |level|
    daily profile      [24] mean of each hour of the day over the level; distance of two clients: mean |difference|
    w1 scaled          Wasserstein-1 distance between two clients' readings, each standardised by its own mean and
                       standard deviation: difference in shape of the distribution, in standard deviations
    w1 raw             the same without standardising, physical units: difference in size, mostly
    correlation        Pearson, of the two clients' means over meters, where both were read (at least two days)
    quantity Gini      of the clients' numbers of readings; 0 equal, 1 one client has all
    missing            share of the part's calendar (meters x steps x channels) without a reading

Over the whole calendar, level, cv, ratios, profile distance and correlation are those of the reference table that comes
with the published data sets. How its Wasserstein distance is standardised it does not say; ours is within 15 % of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpriv.data.client_data import ClientData
from fedpriv.data.partitions.profiles import daily_profile, level
from fedpriv.errors import InputError

Array = NDArray[np.float64]
CardPart = Literal["train", "all"]

PAIRS = ("profile_l1", "w1_scaled", "w1_raw", "correlation")
_QUANTILES = 1000  # of the grid on which quantile functions are compared
_MIN_OVERLAP_DAYS = 2.0


@dataclass(frozen=True)
class ClientFacts:
    """One row of the card. `readings` counts finite entries of all channels, `missing` is a share."""

    client: str
    meters: int
    readings: int
    missing: float
    level: float
    cv: float


@dataclass(frozen=True)
class Card:
    """The heterogeneity card of a partition.

    Attributes:
        part, channel, unit: what it describes.
        clients: one row each, in partition order.
        profiles: [K, 24] daily profiles, 1 on average.
        pairs: name of `PAIRS` -> [K, K] symmetric; NaN where two clients share too few stamps.
        summary: one number per name.
    """

    part: str
    channel: str
    unit: str
    clients: tuple[ClientFacts, ...]
    profiles: Array
    pairs: Mapping[str, Array]
    summary: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "simulation_only": True,
            "part": self.part,
            "channel": self.channel,
            "unit": self.unit,
            "summary": dict(self.summary),
            "clients": [asdict(facts) for facts in self.clients],
            "profiles": self.profiles,
            "pairs": {name: matrix for name, matrix in self.pairs.items()},
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Card:
        """The inverse of `to_dict`, also after JSON, where NaN is null."""
        return cls(
            part=found["part"],
            channel=found["channel"],
            unit=found["unit"],
            clients=tuple(ClientFacts(**{k: _number(v) for k, v in one.items()}) for one in found["clients"]),
            profiles=np.array(found["profiles"], dtype=np.float64),
            pairs={name: np.array(matrix, dtype=np.float64) for name, matrix in found["pairs"].items()},
            summary={name: _number(value) for name, value in found["summary"].items()},
        )


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


def heterogeneity(clients: Sequence[ClientData], *, part: CardPart = "train", channel: str = "") -> Card:
    """The card of `clients`.

    Args:
        clients: all clients of a partition.
        part: `train`, or `all` of the calendar.
        channel: which channel to describe; empty: the first one.

    Raises:
        InputError: no client, or no such channel.
    """
    if not clients:
        raise InputError("a heterogeneity card needs at least one client; nothing was computed.")
    chosen = channel or clients[0].channels[0]
    if any(chosen not in client.channels for client in clients):
        raise InputError(f"channel {chosen!r} is not one of all clients; nothing was computed.")
    spans = [client.train if part == "train" else slice(0, client.values.shape[1]) for client in clients]
    readings = [
        client.values[:, span, client.channels.index(chosen)].astype(np.float64)  # [M, n]
        for client, span in zip(clients, spans, strict=True)
    ]
    facts = tuple(
        _facts(client, client.values[:, span], own) for client, span, own in zip(clients, spans, readings, strict=True)
    )
    profiles = np.array(
        [
            daily_profile(_mean_of_meters(own), client.index[span])
            for client, span, own in zip(clients, spans, readings, strict=True)
        ]
    )
    pairs = {
        "profile_l1": _profile_distances(profiles),
        "w1_scaled": _wasserstein([_standardised(own) for own in readings]),
        "w1_raw": _wasserstein([own[np.isfinite(own)] for own in readings]),
        "correlation": _correlations(clients, spans, readings),
    }
    return Card(part, chosen, clients[0].unit, facts, profiles, pairs, _summary(facts, pairs))


def _facts(client: ClientData, values: NDArray[np.float32], own: Array) -> ClientFacts:
    seen = own[np.isfinite(own)]
    mean = float(seen.mean()) if len(seen) else float("nan")
    finite = int(np.isfinite(values).sum())
    return ClientFacts(
        client=client.name,
        meters=client.num_meters,
        readings=finite,
        missing=1.0 - finite / max(values.size, 1),
        level=mean,
        cv=float(seen.std()) / abs(level(seen)) if len(seen) else float("nan"),
    )


def _mean_of_meters(values: Array) -> Array:
    """[n] mean over the meters [M, n] that were read; NaN where none was."""
    seen = np.isfinite(values)
    count = seen.sum(axis=0)
    return np.where(count > 0, np.where(seen, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _standardised(values: Array) -> Array:
    seen = values[np.isfinite(values)]
    deviation = seen.std() if len(seen) else 0.0
    return (seen - seen.mean()) / deviation if deviation > 0 else seen * 0.0


def _profile_distances(profiles: Array) -> Array:
    """[K, K] mean |difference| over the hours that both have."""
    count = len(profiles)
    result = np.full((count, count), np.nan)
    for k in range(count):
        difference = np.abs(profiles - profiles[k])
        both = np.isfinite(difference)
        hours = both.sum(axis=1)
        total = np.where(both, difference, 0.0).sum(axis=1)
        result[k] = np.where(hours > 0, total / np.maximum(hours, 1), np.nan)
    return result


def _wasserstein(samples: Sequence[Array]) -> Array:
    """[K, K] integral of |difference of quantile functions|, on a grid of 1000 levels."""
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    table = np.array([np.quantile(s, levels) if len(s) else np.full(_QUANTILES, np.nan) for s in samples])
    return np.array([np.abs(table - row).mean(axis=1) for row in table])


def _correlations(clients: Sequence[ClientData], spans: Sequence[slice], readings: Sequence[Array]) -> Array:
    """[K, K] Pearson correlation over common stamps; NaN where clients overlap too little or differ in step."""
    count, step = len(clients), clients[0].step
    result = np.full((count, count), np.nan)
    if any(client.step != step for client in clients):
        return result
    firsts = [client.start + span.start * client.step for client, span in zip(clients, spans, strict=True)]
    origin = min(firsts)
    offsets = [int((first - origin).value // step.value) for first in firsts]
    length = max(at + own.shape[1] for at, own in zip(offsets, readings, strict=True))
    table = np.full((count, length), np.nan)
    for k, (at, own) in enumerate(zip(offsets, readings, strict=True)):
        table[k, at : at + own.shape[1]] = _mean_of_meters(own)
    seen = np.isfinite(table)
    size = np.maximum(seen.sum(axis=1, keepdims=True), 1)
    centred = np.where(seen, table - np.where(seen, table, 0.0).sum(axis=1, keepdims=True) / size, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / size)
    z = centred / np.where(deviation > 0, deviation, 1.0)
    both = seen.astype(np.float64)
    n = both @ both.T
    mean = z @ both.T / np.maximum(n, 1)  # [i, j] mean of i where j was read too
    square = (z**2) @ both.T / np.maximum(n, 1)
    covariance = z @ z.T / np.maximum(n, 1) - mean * mean.T
    spread = np.sqrt(np.clip(square - mean**2, 0, None))
    scale = spread * spread.T
    enough = (n * (step.total_seconds() / 86_400) >= _MIN_OVERLAP_DAYS) & (scale > 1e-12)
    return np.where(enough, covariance / np.where(scale > 0, scale, 1.0), np.nan)


def gini(amounts: Sequence[float] | Array) -> float:
    """Gini coefficient of non-negative amounts: 0 all equal, (n - 1) / n one has all. 0 for none or only zeros.

    Raises:
        ValueError: a negative amount.
    """
    ordered = np.sort(np.asarray(amounts, dtype=np.float64))
    if len(ordered) and ordered[0] < 0:
        raise ValueError(f"amount {ordered[0]:g} is negative")
    count, total = len(ordered), float(ordered.sum())
    if not total > 0:
        return 0.0
    return float(((2 * np.arange(1, count + 1) - count - 1) * ordered).sum() / (count * total))


def _summary(facts: Sequence[ClientFacts], pairs: Mapping[str, Array]) -> dict[str, float]:
    levels = np.abs([f.level for f in facts])
    result: dict[str, float] = {
        "clients": float(len(facts)),
        "scale_ratio_max_min": _ratio(levels, 1.0, 0.0),
        "scale_ratio_p90_p10": _ratio(levels, 0.9, 0.1),
        **_spread("cv", np.array([f.cv for f in facts]), ("min", "median", "max")),
    }
    upper = np.triu_indices(len(facts), k=1)
    for name in PAIRS:
        which = ("min", "median", "max") if name == "correlation" else ("median", "max")
        result |= _spread(name, pairs[name][upper], which)
    result["correlation_mean"] = _over(pairs["correlation"][upper], np.mean)
    result["quantity_gini"] = gini([f.readings for f in facts])
    result |= _spread("missing", np.array([f.missing for f in facts]), ("min", "median", "max"))
    return result


def _ratio(values: Array, high: float, low: float) -> float:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan")
    least = float(np.quantile(finite, low))
    return float(np.quantile(finite, high)) / least if least > 0 else float("inf")


def _spread(name: str, values: Array, which: Sequence[str]) -> dict[str, float]:
    functions = {"min": np.min, "median": np.median, "max": np.max}
    return {f"{name}_{w}": _over(values, functions[w]) for w in which}


def _over(values: Array, function: Any) -> float:
    finite = values[np.isfinite(values)]
    return float(function(finite)) if len(finite) else float("nan")
