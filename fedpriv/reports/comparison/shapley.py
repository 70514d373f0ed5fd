"""Who contributes what: leave-one-out, and Shapley values from the coalitions that were run.

*Leave-one-out*: how much more error the others have without a client, on average. *Shapley*: a client's share of the
whole federation's gain. The value of a coalition S is the gain of all clients together when S trains together and the
others stay alone,

    v(S) = mean over clients i of [i in S] log(error of i alone / error of i in S),    v(empty) = 0,

and a client's Shapley value is the mean of v(S and i) - v(S) over orders in which the clients might join; the values
of all clients add up to v(everyone). Here the mean is over all orders of which every coalition on the way was run: with
all 2^K coalitions these are all orders and the value is exact; with coalitions from sampled orders (Castro, Gomez and
Tejada, Computers & Operations Research 36, 2009) it is an estimate: orders drawn uniformly favour no client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fedpriv.reports.chance import interval, two_way_error
from fedpriv.reports.statistics import LEVEL

ByClient = Mapping[str, Mapping[str, float]]  # client -> seed -> error
Coalitions = Mapping[frozenset[str], ByClient]
MAX_CLIENTS = 14  # 2^K subsets are walked


@dataclass(frozen=True)
class Contribution:
    """Of one client, in log error (0.05: about 5 %), with an interval over seeds (and the others, leave-one-out).

    Attributes:
        exact: all orders of joining were run (Shapley); True for leave-one-out.
    """

    client: str
    value: float
    low: float
    high: float
    exact: bool = True


def leave_one_out(clients: Sequence[str], runs: Coalitions) -> tuple[Contribution, ...]:
    """For every client that was left out of a run: mean log(error of the others without it / with it)."""
    everyone = frozenset(clients)
    whole = runs.get(everyone)
    found: list[Contribution] = []
    for client in clients:
        without = runs.get(everyone - {client})
        if whole is None or without is None or len(clients) < 3:
            continue
        others = [c for c in clients if c != client and c in whole and c in without]
        seeds = sorted(set.intersection(*(set(whole[c]) & set(without[c]) for c in others))) if others else []
        if not seeds:
            continue
        d = np.array([[np.log(without[c][s] / whole[c][s]) for c in others] for s in seeds])
        found.append(_contribution(client, d))
    return tuple(found)


def shapley(clients: Sequence[str], runs: Coalitions, alone: ByClient) -> tuple[Contribution, ...]:
    """Shapley values over the orders that were run; empty without one, or with too many clients.

    Args:
        clients: all of them.
        runs: coalition -> errors of its members when they train together; everyone and single clients included.
        alone: errors of each client when it does not join.
    """
    if not 2 <= len(clients) <= MAX_CLIENTS or any(c not in alone for c in clients):
        return ()
    whole = frozenset(clients)
    singles = {s for c in clients for s in alone[c]}
    usable = {members: by for members, by in runs.items() if members <= whole and set(by) >= members}
    seeds = sorted(
        seed
        for seed in singles
        if all(seed in alone[c] for c in clients) and all(seed in by[c] for m, by in usable.items() for c in m)
    )
    if whole not in usable or not seeds or not any(1 < len(members) < len(clients) for members in usable):
        return ()
    value = {frozenset[str](): np.zeros(len(seeds))}
    for members, by in usable.items():
        gains = [[np.log(alone[c][s] / by[c][s]) for s in seeds] for c in sorted(members)]
        value[members] = np.sum(gains, axis=0) / len(clients)
    weights = _order_weights(tuple(clients), frozenset(value))
    if not weights:
        return ()
    exact = len(value) == 2 ** len(clients)
    found: list[Contribution] = []
    for client in clients:
        per_seed = sum(
            (w * (value[members | {client}] - value[members]) for (members, c), w in weights.items() if c == client),
            np.zeros(len(seeds)),
        )
        found.append(_contribution(client, np.asarray(per_seed)[:, None], exact=exact))
    return tuple(found)


def _order_weights(
    clients: tuple[str, ...], known: frozenset[frozenset[str]]
) -> dict[tuple[frozenset[str], str], float]:
    """(coalition, who joins it) -> share of the orders whose coalitions are all known that go this way."""
    whole = frozenset(clients)

    @cache
    def before(members: frozenset[str]) -> int:  # ways to reach it
        if not members:
            return 1
        return sum(before(members - {c}) for c in members if members - {c} in known)

    @cache
    def after(members: frozenset[str]) -> int:  # ways to go on to everyone
        if members == whole:
            return 1
        return sum(after(members | {c}) for c in whole - members if members | {c} in known)

    total = after(frozenset())
    if not total:
        return {}
    return {
        (members, c): before(members) * after(members | {c}) / total
        for members in known
        for c in whole - members
        if members | {c} in known
    }


def _contribution(client: str, d: NDArray[np.float64], *, exact: bool = True) -> Contribution:
    chance = two_way_error(d)
    low, high = interval([d], chance.error, chance.freedom, level=LEVEL, draws=2000, seed=0)
    return Contribution(client, float(d.mean()), low, high, exact)
