"""Who takes part: arms that run a federation for every client alone, without each client, or for sampled coalitions.

For Shapley values every coalition on the way from nobody to everybody is run, for a number of orders in which the
clients might join. Orders are drawn uniformly; where as many are asked for as there are, all coalitions are run and the
values are exact.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from fedpriv.config import Scenario
from fedpriv.data.clients import roster
from fedpriv.errors import InputError
from simulations.sweep.sections import Arm

MAX_CLIENTS = 14  # what the analysis walks: 2^K subsets


def members(arm: Arm, scenario: Scenario, seed: int) -> Iterator[tuple[str, Scenario]]:
    """(label, scenario) of every run that an arm stands for; one with an empty label for an ordinary arm.

    Args:
        arm: with `each_client`, `leave_one_out` or `coalitions`.
        scenario: with all clients.
        seed: of the orders of joining.

    Raises:
        InputError: clients that are no series of the source, or too many or too few of them.
    """
    if not (arm.each_client or arm.leave_one_out or arm.coalitions):
        yield "", scenario
        return
    names = _series(scenario, arm)
    if arm.each_client:
        for name in names:
            yield name, only(scenario, (name,))
    elif arm.leave_one_out:
        if len(names) < 3:
            raise InputError(
                f"arm {arm.name} has leave_one_out, which needs at least 3 clients; there are {len(names)}. Nothing "
                "was started."
            )
        for name in names:
            yield f"without {name}", only(scenario, tuple(other for other in names if other != name))
    else:
        for chosen in coalitions(names, arm.coalitions, seed, arm.name):
            yield " + ".join(chosen), only(scenario, chosen)


def only(scenario: Scenario, names: tuple[str, ...]) -> Scenario:
    """The same with some of the clients and their own data alone."""
    return scenario.override({"data.clients": list(names), "partition.clients": len(names), "partition.series": 0})


def coalitions(names: tuple[str, ...], orders: int, seed: int, arm: str = "") -> list[tuple[str, ...]]:
    """The coalitions that `orders` different orders of joining need, smaller ones first; everybody is not among them.

    Raises:
        InputError: fewer than 3 clients, or too many to be analysed.
    """
    if not 3 <= len(names) <= MAX_CLIENTS:
        raise InputError(
            f"arm {arm} has coalitions, which need 3 to {MAX_CLIENTS} clients; there are {len(names)}. Nothing was "
            "started."
        )
    if orders >= math.factorial(len(names)):
        return [c for size in range(1, len(names)) for c in itertools.combinations(names, size)]
    rng = random.Random(seed)
    drawn: set[tuple[str, ...]] = set()
    while len(drawn) < orders:
        drawn.add(tuple(rng.sample(names, len(names))))
    found = {frozenset(order[:size]) for order in drawn for size in range(1, len(names))}
    place = {name: k for k, name in enumerate(names)}
    ordered = (tuple(sorted(chosen, key=place.__getitem__)) for chosen in found)
    return sorted(ordered, key=lambda chosen: (len(chosen), [place[name] for name in chosen]))


def _series(scenario: Scenario, arm: Arm) -> tuple[str, ...]:
    if scenario.partition.kind != "natural" or scenario.partition.by:
        kind = next(name for name in ("each_client", "leave_one_out", "coalitions") if getattr(arm, name))
        raise InputError(
            f"arm {arm.name} has {kind}, which needs clients that are series of the source (partition.kind=natural), "
            f"not {scenario.partition.kind}; nothing was started."
        )
    return roster(scenario).names
