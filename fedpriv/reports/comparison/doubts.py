"""What has to be known before a page is believed: who was not scored, and whether there is anything to compare with."""

from __future__ import annotations

import math

import numpy as np

from fedpriv.reports.comparison.analysis import Analysis, Cell
from fedpriv.reports.comparison.collaboration import CLOSE, Collaboration
from fedpriv.reports.comparison.divisions import same_divisions
from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.comparison.phrases import listed
from fedpriv.reports.comparison.sweep import FEDERATED

_FEW_SEEDS = 3
_BAND = 0.9
_NARROW = 0.86  # less than this of what came true in the 90 % bands is said
_COVERED = 0.8  # less than this of what came true in the 90 % bands is warned of
_NEARER = 0.01  # by which other bands must come nearer to be named


def notes(found: Analysis, value: Collaboration | None) -> list[str]:
    """Every warning under the answer."""
    said_: list[str] = []
    others = {run.run: run for run in found.sweep.others}
    if others:
        counts: dict[str, int] = {}
        for run in others.values():
            counts[run.status] = counts.get(run.status, 0) + 1
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        said_.append(
            f"Not all runs are done: {said}. What is compared are the runs that are; see “Not done” below. Runs that "
            "failed because the model diverged speak against what they tested, and the averages do not show it."
        )
    said_ += same_divisions(found)
    if unscored := unscored_words(found):
        said_.append(unscored)
    if value is None or found.sweep.question != "collaboration":  # there the answer begins with it
        said_ += weak_references(found)
    missing = [*found.notes, *(value.notes if value is not None else ())]
    if missing:
        said_.append(" ".join(missing[:4]) + (f" And {len(missing) - 4} more like it." if len(missing) > 4 else ""))
    seeds = min(len(cell.trials.seeds) for cell in found.cells.values())
    if seeds < _FEW_SEEDS:
        said_.append(
            f"Only {seeds} seed{'s' if seeds > 1 else ''}: how much results vary from run to run is hardly known. Take "
            "differences as hints, and run more seeds before deciding."
        )
    return [*said_, *_narrow_bands(found)]


def _narrow_bands(found: Analysis) -> list[str]:
    """Forecast intervals that hold much less than they say are warned of: reserves would be planned by them."""
    if not (found.sweep.frame["metric"] == "coverage90").any():
        return []
    frame = found.sweep.scores("coverage90")
    federation = WORDS["federated", True]
    shown = federation if federation in found.contenders else found.best
    values = frame.loc[(frame["contender"] == shown) & (frame["model"] == FEDERATED), "value"]
    share = float(values.mean()) if len(values) else math.nan
    if math.isnan(share) or share >= _NARROW:
        return []
    if share >= _COVERED:
        shares = frame[frame["model"] == FEDERATED].groupby("contender")["value"].mean()
        nearest = str((shares - _BAND).abs().idxmin())
        other = (
            ""
            if shares[nearest] - share < _NEARER
            else f"; those of {nearest} come nearest with {shares[nearest] * 100:.0f} %"
        )
        return [
            f"The forecast intervals are narrow: the 90 % bands of {listed([shown])} hold {share * 100:.0f} % of what "
            f"came true{other}. The answer above is about the error alone; see “Other measures”."
        ]
    return [
        f"The forecast intervals are far too narrow: the 90 % bands of {listed([shown])} hold {share * 100:.0f} "
        "% of what came true. The comparison of errors is not touched by that, but do not plan reserves by these bands."
    ]


def unscored_words(found: Analysis) -> str:
    """Clients that took part and have no score; empty if there are none."""
    said = [f"{listed(names)}{f' ({where})' if where else ''}" for where, names in found.sweep.unscored.items()]
    if not said:
        return ""
    count = sum(len(names) for names in found.sweep.unscored.values())
    return (
        f"{count} client{' has' if count == 1 else 's have'} no score: {'; '.join(said)}. They trained and were "
        "promised the same as everybody, but none of the windows that they were to be scored on has enough readings of "
        "theirs (no unbroken stretch as long as a window, say). "
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
            if worse is not None and worse[1] > CLOSE:
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
    """(name, log ratio of errors) against the same contender at the largest epsilon, else the best one there.

    A setting of a collaboration is compared with itself under a promise, or not at all: others have other data.
    """
    places = [(e, c) for (w, e), c in found.cells.items() if w == where and e is not None]
    if not places:
        return None
    epsilon, other = max(places, key=lambda item: item[0])
    # Alone without privacy may well be worse than everybody together with it: more data are no sign of bad training.
    twins = {WORDS[kind, False]: WORDS[kind, True] for kind, private in WORDS if private}
    twin = twins.get(rule, rule if rule in other.trials.rules else other.best)
    if twin not in other.trials.rules:
        return None
    clients = [c for c in cell.trials.clients if c in other.trials.clients]
    if not clients or min(cell.trials.errors.min(), other.trials.errors.min()) <= 0:
        return None
    means = [
        float(np.log(c.trials.of_rule(name)[:, [c.trials.clients.index(k) for k in clients]]).mean())
        for c, name in ((cell, rule), (other, twin))
    ]
    return f"{twin} at epsilon {epsilon:g}", means[0] - means[1]
