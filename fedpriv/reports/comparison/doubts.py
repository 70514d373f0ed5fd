"""What has to be known before a page is believed: who was not scored, and whether there is anything to compare with."""

from __future__ import annotations

import numpy as np

from fedpriv.reports.comparison.analysis import Analysis, Cell
from fedpriv.reports.comparison.phrases import listed

_CLOSE = 0.01  # log error by which a run without noise may be worse than one with it before it is called badly trained


def unscored_words(found: Analysis) -> str:
    """Clients that took part and have no score; empty if there are none."""
    said = [f"{listed(names)}{f' ({where})' if where else ''}" for where, names in found.sweep.unscored.items()]
    if not said:
        return ""
    count = sum(len(names) for names in found.sweep.unscored.values())
    return (
        f"{count} client{' has' if count == 1 else 's have'} no score: {'; '.join(said)}. They trained and were "
        "promised the same as everybody, but no unbroken stretch of the held-out part that fell to them is as long as "
        "a window. "
        "Whatever is said here about errors, gains and losers is about the others."
    )


def weak_references(found: Analysis) -> list[str]:
    """Runs without privacy that are worse than seasonal naive, or than private ones: they were not trained well."""
    naive: dict[str, list[str]] = {}
    private: dict[str, list[str]] = {}
    for (where, epsilon), cell in found.cells.items():
        if epsilon is not None:
            continue
        place = f" ({where})" if where else ""
        for rule in cell.trials.rules:
            gain = cell.gains.get(rule)
            if gain is not None and gain.mean > 0:
                naive.setdefault(rule, []).append(f"{gain.change[0] * 100:+.1f} %{place}")
            worse = _against_private(found, cell, where, rule)
            if worse is not None and worse[1] > _CLOSE:
                private.setdefault(rule, []).append(f"{np.expm1(worse[1]) * 100:+.1f} % against {worse[0]}{place}")
    said = [
        f"{listed([rule])} has more error than repeating the last day (seasonal naive): {'; '.join(where)}"
        for rule, where in naive.items()
    ]
    said += [
        f"{listed([rule])} has more error than private runs: {'; '.join(where)}" for rule, where in private.items()
    ]
    if not said:
        return []
    return [
        f"The runs without privacy are no good reference. {'. '.join(said)}. Noise only takes away, so these were not "
        "trained well (too few rounds, or a learning rate that suits noise); what privacy costs cannot be read off "
        "here."
    ]


def _against_private(found: Analysis, cell: Cell, where: str, rule: str) -> tuple[str, float] | None:
    """(name, log ratio of errors) against the same contender at the largest epsilon, else the best one there."""
    places = [(e, c) for (w, e), c in found.cells.items() if w == where and e is not None]
    if not places:
        return None
    epsilon, other = max(places, key=lambda item: item[0])
    twin = rule if rule in other.trials.rules else other.best
    clients = [c for c in cell.trials.clients if c in other.trials.clients]
    if not clients or min(cell.trials.errors.min(), other.trials.errors.min()) <= 0:
        return None
    means = [
        float(np.log(c.trials.of_rule(name)[:, [c.trials.clients.index(k) for k in clients]]).mean())
        for c, name in ((cell, rule), (other, twin))
    ]
    return f"{twin} at epsilon {epsilon:g}", means[0] - means[1]
