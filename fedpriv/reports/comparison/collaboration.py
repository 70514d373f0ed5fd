"""What a client gains by joining: the federation against training alone, against a trusted curator, against a baseline.

Who took part in a run is read off its scores: one client is training *alone*, all of them is the *federation*, anything
between is a coalition, and a partition of kind `pooled` is a single trusted curator who holds everything. The gain of
joining is 1 - error in the federation / error alone. What a client would do if it did not join is to train on its own
readings and to publish nothing, which needs no noise: so the gain is against training alone *without* privacy where
that was run, else against training alone under the same promise.

For one client only the seeds are chance, and with few of them its interval is wide; whether it gains or loses is said
with Holm's correction over the clients. Over all clients seeds and clients are chance, as everywhere on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpriv.reports.comparison.curves import BreakEven, break_even
from fedpriv.reports.comparison.naming import WORDS, Kind, Setting
from fedpriv.reports.comparison.shapley import Contribution, leave_one_out, shapley
from fedpriv.reports.comparison.sweep import FEDERATED, NAIVE, Sweep
from fedpriv.reports.comparison.sweep_runs import SweepRun
from fedpriv.reports.statistics import Paired, Trials, holm, paired

Outcome = Literal["gains", "loses", "not told"]

LEVEL = 0.95
_FITTED = ("ridge", "gaussian")  # by noised statistics in every run: those of a run without noise are the baselines
CLOSE = 0.01  # log error by which training without noise may be worse than with it before it counts as badly trained


@dataclass(frozen=True)
class Gain:
    """One client at one epsilon; shares of the error alone, positive: joining helps.

    Attributes:
        gain, low, high: with the interval over seeds.
        p: adjusted over the clients. outcome: what follows.
    """

    client: str
    gain: float
    low: float
    high: float
    p: float
    outcome: Outcome


@dataclass(frozen=True)
class AtEpsilon:
    """All clients at one epsilon. `mean` is joining against alone, over seeds and clients (negative: joining helps)."""

    epsilon: float
    mean: Paired
    clients: tuple[Gain, ...]

    @property
    def gain(self) -> tuple[float, float, float]:
        """Mean gain of joining with its interval, as shares."""
        mean, low, high = self.mean.change
        return -mean, -high, -low

    def of(self, outcome: Outcome) -> list[str]:
        """Clients by what follows for them."""
        return [gain.client for gain in self.clients if gain.outcome == outcome]

    @property
    def sure(self) -> bool:
        """Whether the interval of the mean gain is on one side of 0."""
        _, low, high = self.gain
        return low > 0 or high < 0


@dataclass(frozen=True)
class Weak:
    """A setting without privacy that a sound training would not leave where it is: noise only takes away.

    Attributes:
        naive: mean log ratio of its errors to the seasonal baseline's; above 0 it is worse than repeating the last day.
        private: the same to its own private version at `epsilon`; above 0 it is worse although it has no noise.
    """

    setting: Setting
    epsilon: float | None
    naive: float
    private: float


@dataclass(frozen=True)
class Collaboration:
    """The value of collaboration.

    Attributes:
        clients: all of them.
        alternative: what a client does that does not join.
        joining: by epsilon, rising.
        same_promise: the same against training alone under the same promise, where that was run.
        price: (setting, epsilon) -> federated private against that setting, such as a trusted curator.
        errors: (setting or baseline name, epsilon or None) -> [S, K] errors.
        overall, by_client: from which epsilon on joining pays.
        left_out, shapley: contributions of the clients by epsilon; empty where no such runs are there.
        notes: what is missing, and why.
    """

    clients: tuple[str, ...]
    alternative: Setting
    joining: tuple[AtEpsilon, ...]
    same_promise: tuple[AtEpsilon, ...]
    price: dict[tuple[Setting, float], Paired]
    errors: dict[tuple[Setting | str, float | None], NDArray[np.float64]]
    overall: BreakEven | None
    by_client: dict[str, BreakEven]
    left_out: dict[float, tuple[Contribution, ...]]
    shapley: dict[float, tuple[Contribution, ...]]
    notes: tuple[str, ...]

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Epsilons at which the federation was run."""
        return tuple(at.epsilon for at in self.joining)

    def against_naive(self, setting: Setting | str, epsilon: float | None) -> float | None:
        """Mean log ratio of a setting's errors to those of the seasonal baseline; None where one is missing."""
        errors, naive = self.errors.get((setting, epsilon)), self.errors.get((NAIVE, None))
        return None if errors is None or naive is None else float(np.log(errors / naive[0]).mean())

    def established(self, client: str = "") -> bool:
        """Whether a gain or loss is more than chance at the largest epsilon: on average, or of one client."""
        last = self.joining[-1]
        if not client:
            return last.sure
        return any(gain.client == client and gain.outcome != "not told" for gain in last.clients)

    @property
    def weak(self) -> tuple[Weak, ...]:
        """Settings without privacy that were not trained well enough to judge a gain by; see `Weak`."""
        found: list[Weak] = []
        for setting in WORDS:
            level = None if setting[1] else self.against_naive(setting, None)
            if level is None:
                continue
            own = self.errors[setting, None]
            at = [e for key, e in self.errors if key == (setting[0], True) and e is not None]
            private = self.errors[(setting[0], True), max(at)] if at else None
            worse = 0.0 if private is None else float(np.log(own).mean() - np.log(private).mean())
            if level > 0 or worse > CLOSE:
                found.append(Weak(setting, max(at, default=None), level, worse))
        return tuple(found)


@dataclass(frozen=True)
class _Table:
    """(kind, private, epsilon, coalition) -> client -> seed -> error."""

    clients: tuple[str, ...]
    values: dict[tuple[Kind, bool, float | None, frozenset[str]], dict[str, dict[str, float]]]
    baselines: dict[str, dict[str, float]]
    notes: list[str]

    def errors(self, setting: Setting, epsilon: float | None) -> dict[str, dict[str, float]]:
        """Client -> seed -> error; clients that trained alone are put together."""
        out: dict[str, dict[str, float]] = {}
        for (kind, private, at, _), by_client in self.values.items():
            if (kind, private) == setting and (at == epsilon or not private):
                out |= by_client
        return out

    def epsilons(self, setting: Setting) -> list[float]:
        found = {at for kind, private, at, _ in self.values if (kind, private) == setting and at is not None}
        return sorted(found)

    def coalitions(self, epsilon: float) -> dict[frozenset[str], dict[str, dict[str, float]]]:
        """Members -> client -> seed -> error of private runs at `epsilon`, the whole federation among them."""
        return {
            members: by_client
            for (kind, private, at, members), by_client in self.values.items()
            if private and at == epsilon and kind != "centralised"
        }


def value_of_joining(sweep: Sweep) -> Collaboration | None:
    """None where the sweep has no private federation, or nobody trained alone."""
    table = _collected(sweep)
    if table is None:
        return None
    alternative: Setting = ("local", False) if table.errors(("local", False), None) else ("local", True)
    joining, by_client = _over_epsilons(table, alternative)
    if not joining:
        return None
    same = _over_epsilons(table, ("local", True))[0] if alternative == ("local", False) else ()
    price = {
        (setting, epsilon): found
        for epsilon in table.epsilons(("federated", True))
        for setting in WORDS
        if setting not in (("federated", True), alternative)
        and (found := _against(table, ("federated", True), setting, epsilon)) is not None
    }
    contributions = {at.epsilon: table.coalitions(at.epsilon) for at in joining}
    alone = table.errors(alternative, joining[0].epsilon)
    return Collaboration(
        clients=table.clients,
        alternative=alternative,
        joining=joining,
        same_promise=same,
        price=price,
        errors=_all_errors(table),
        overall=_overall(joining),
        by_client=by_client,
        left_out={e: found for e, runs in contributions.items() if (found := leave_one_out(table.clients, runs))},
        shapley={
            e: found
            for e, runs in contributions.items()
            if (
                found := shapley(
                    table.clients, runs, alone if alternative[1] is False else table.errors(alternative, e)
                )
            )
        },
        notes=tuple(dict.fromkeys(table.notes)),
    )


def setting_of(sweep: Sweep, run: SweepRun, members: frozenset[str], everyone: frozenset[str]) -> Kind:
    """What kind of run it is, by its partition and by who took part."""
    if run.settings.get("partition.kind") == "pooled":
        return "centralised"
    if members == everyone:
        return "federated"
    return "local" if len(members) == 1 else "coalition"


def _collected(sweep: Sweep) -> _Table | None:
    frame = sweep.errors
    model = frame[frame["model"] == FEDERATED]
    members = {str(run): frozenset(rows["client"]) for run, rows in model.groupby("run", sort=False)}
    runs = {run.run: run for run in sweep.done if run.run in members}  # lines of one run differ in nothing that counts
    plain = [name for name, run in runs.items() if run.settings.get("partition.kind") != "pooled"]
    everyone = max((members[name] for name in plain), key=len, default=frozenset())
    if len(everyone) < 2:
        return None
    clients = tuple(dict.fromkeys(c for c in model["client"] if c in everyone))
    values: dict[tuple[Kind, bool, float | None, frozenset[str]], dict[str, dict[str, float]]] = {}
    first: dict[Setting, str] = {}
    notes: list[str] = []
    for name, rows in model.drop_duplicates(["run", "client"]).groupby("run", sort=False):
        run, who = runs[str(name)], members[str(name)]
        if sweep.where(run) != sweep.where(runs[plain[0]]) and run.settings.get("partition.kind") != "pooled":
            notes.append("Only the first partition of this sweep is used for the value of joining.")
            continue
        kind = setting_of(sweep, run, who, everyone)
        if kind != "coalition" and first.setdefault((kind, run.private), run.arm) != run.arm:
            notes.append(f"{run.arm} is another arm of the kind {WORDS[kind, run.private]}; only the first is used.")
            continue
        cell = values.setdefault((kind, run.private, run.budget, who if kind != "centralised" else everyone), {})
        for client, value in zip(rows["client"], rows["value"], strict=True):
            if np.isfinite(value) and value > 0:
                cell.setdefault(str(client), {})[run.seed] = float(value)
            else:
                notes.append(f"{run.run} has no usable {sweep.metric} of {client}.")
    baselines: dict[str, dict[str, float]] = {}
    open_runs = [n for n in plain if members[n] == everyone and not runs[n].private]
    others = frame[(frame["model"] != FEDERATED) & frame["client"].isin(list(clients))]
    others = others[~others["model"].isin(_FITTED) | others["run"].isin(open_runs)]
    for (baseline, client), part in others.groupby(["model", "client"], sort=False):
        baselines.setdefault(str(baseline), {})[str(client)] = float(
            np.exp(np.log(np.maximum(part["value"], 1e-300)).mean())
        )
    return _Table(clients, values, baselines, notes)


def _trials(table: _Table, a: Setting, b: Setting, epsilon: float) -> Trials | None:
    """Both settings with the clients and seeds that they have in common; the private ones at `epsilon`."""
    one, two = table.errors(a, epsilon), table.errors(b, epsilon)
    clients = [c for c in table.clients if c in one and c in two]
    common = [set(one[c]) & set(two[c]) for c in clients]
    seeds = sorted(set.intersection(*common)) if common else []
    if not seeds:
        return None
    if len(clients) < len(table.clients):
        lost = ", ".join(c for c in table.clients if c not in clients)
        table.notes.append(f"{WORDS[b]} at epsilon {epsilon:g} lacks {lost}, which are left out there.")
    errors = np.array([[[found[c][s] for c in clients] for s in seeds] for found in (one, two)])
    return Trials((WORDS[a], WORDS[b]), tuple(seeds), tuple(clients), errors)


def _against(table: _Table, a: Setting, b: Setting, epsilon: float) -> Paired | None:
    trials = _trials(table, a, b, epsilon)
    return None if trials is None else paired(trials, WORDS[a], WORDS[b])


def _over_epsilons(table: _Table, alternative: Setting) -> tuple[tuple[AtEpsilon, ...], dict[str, BreakEven]]:
    found: list[AtEpsilon] = []
    for epsilon in table.epsilons(("federated", True)):
        trials = _trials(table, ("federated", True), alternative, epsilon)
        if trials is not None:
            found.append(_at_epsilon(trials, epsilon))
    by_client: dict[str, BreakEven] = {}
    for client in table.clients:
        gains = [(at.epsilon, g) for at in found for g in at.clients if g.client == client]
        if gains:
            epsilons, own = [e for e, _ in gains], [g for _, g in gains]
            by_client[client] = break_even(epsilons, [g.gain for g in own], [g.low for g in own], [g.high for g in own])
    return tuple(found), by_client


def _at_epsilon(trials: Trials, epsilon: float) -> AtEpsilon:
    one, two = trials.rules
    singles = [
        paired(Trials(trials.rules, trials.seeds, (client,), trials.errors[:, :, k : k + 1]), one, two)
        for k, client in enumerate(trials.clients)
    ]
    adjusted = holm([single.p for single in singles])
    gains: list[Gain] = []
    for client, single, p in zip(trials.clients, singles, adjusted, strict=True):
        mean, low, high = single.change
        sure = single.significant(float(p))
        outcome: Outcome = ("gains" if mean < 0 else "loses") if sure else "not told"
        gains.append(Gain(client, -mean, -high, -low, float(p), outcome))
    return AtEpsilon(epsilon, paired(trials, one, two), tuple(gains))


def _overall(joining: Sequence[AtEpsilon]) -> BreakEven:
    gains = [at.gain for at in joining]
    return break_even(
        [at.epsilon for at in joining], [g[0] for g in gains], [g[1] for g in gains], [g[2] for g in gains]
    )


def _all_errors(table: _Table) -> dict[tuple[Setting | str, float | None], NDArray[np.float64]]:
    """For the table and the picture of all settings: [S, K] where every client has every seed."""
    out: dict[tuple[Setting | str, float | None], NDArray[np.float64]] = {}
    for setting in WORDS:
        private = setting[1]
        for epsilon in table.epsilons(setting) if private else [None]:
            found = table.errors(setting, epsilon)
            if not found or any(c not in found for c in table.clients):
                continue
            seeds = sorted(set.intersection(*(set(found[c]) for c in table.clients)))
            if seeds:
                out[setting, epsilon] = np.array([[found[c][s] for c in table.clients] for s in seeds])
    for name, values in table.baselines.items():
        if all(c in values for c in table.clients):
            out[name, None] = np.array([[values[c] for c in table.clients]])
    return dict(sorted(out.items(), key=lambda item: (isinstance(item[0][0], str), item[0][0] != NAIVE)))
