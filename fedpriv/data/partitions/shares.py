"""Partitions that deal units out in proportions: IID, power law of quantity, Dirichlet over classes; and periods."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fedpriv.config import PartitionConfig
from fedpriv.data.partitions.base import Calendar, Division, Pool, Public, Rule, Unit, numbered, too_few_units
from fedpriv.data.partitions.profiles import DAILY, cluster, features
from fedpriv.data.partitions.units import Owners, Shares, deal, leave_nobody_out, make_units
from fedpriv.errors import InputError
from fedpriv.seeding import stream

_SEASONS = ("winter", "spring", "summer", "autumn")  # of the northern hemisphere: December to February is winter


class Dealt(Rule):
    """Units are shuffled and dealt out in the proportions of `shares`, in every part of the calendar alike."""

    def shares(self, clients: int, pool: Pool) -> Shares:
        """[K] proportions; here equal ones."""
        return np.ones(clients)

    def classes(self, units: tuple[Unit, ...], calendar: Calendar | None, pool: Pool) -> list[str]:
        """The class of each unit; classes are dealt out one by one, each in its own proportions. Here one class."""
        return [""] * len(units)

    def divide(self, pool: Pool) -> Division:
        """Deals every stratum, and sees to it that nobody is left without a unit."""
        names, units = self.names(pool), make_units(pool)
        held: dict[str, list[Unit]] = {name: [] for name in names}
        labels: dict[Unit, str] = {}
        for number, stratum in enumerate(units.strata):
            if len(stratum) < len(names):
                raise too_few_units(pool, len(stratum), units.what)
            classes = self.classes(stratum, units.calendar, pool)
            owners = self._owners(stratum, classes, len(names), pool, number)
            labels.update({u: c for u, c in zip(stratum, classes, strict=True) if c})
            for unit, owner in zip(stratum, owners, strict=True):
                held[names[owner]].append(unit)
        return Division({name: tuple(own) for name, own in held.items()}, units.calendar, labels)

    def _owners(self, units: tuple[Unit, ...], classes: list[str], clients: int, pool: Pool, stratum: int) -> Owners:
        owners = np.zeros(len(units), dtype=np.int64)
        for label in sorted(set(classes)):
            own = np.flatnonzero(np.array(classes) == label)
            shares = self.class_shares(label, clients, pool)
            owners[own] = deal([units[i] for i in own], shares, pool, "deal", stratum, label)
        return leave_nobody_out(owners, clients, pool, stratum)

    def class_shares(self, label: str, clients: int, pool: Pool) -> Shares:
        """[K] proportions in which the units of one class are dealt out."""
        return self.shares(clients, pool)


class Iid(Dealt):
    """Equal numbers of units, at random."""


class Quantity(Dealt):
    """Numbers of units by a power law: the client of rank r gets a share proportional to r^-skew.

    Which client has which rank is drawn with the partition's seed.
    """

    def shares(self, clients: int, pool: Pool) -> Shares:
        """The power law; `partition.skew` empty: 1.5."""
        skew = 1.5 if pool.config.skew is None else pool.config.skew
        ranks = stream(pool.config.seed, "partition", "ranks").permutation(clients) + 1
        return ranks.astype(np.float64) ** -skew


class Dirichlet(Dealt):
    """For each class of units, proportions over clients from Dir(alpha, ..., alpha) (Hsu et al., arXiv:1909.06335).

    Classes are clusters of the shape of the mean day (`by` = profile, the default) or seasons of calendar blocks
    (`by` = season). A client keeps its proportions in training, validation and test. Small alpha: every class sits with
    few clients; large alpha: IID.
    """

    def classes(self, units: tuple[Unit, ...], calendar: Calendar | None, pool: Pool) -> list[str]:
        """Season of the middle of the block, or cluster of the daily profile."""
        if pool.config.by == "season":
            assert calendar is not None, "seasons are classes of calendar blocks"
            middles = [sum(unit.span or (0, 0)) // 2 for unit in units]
            months = calendar.index.month.to_numpy()[middles]
            return [_SEASONS[month % 12 // 3] for month in months]
        count = min(pool.config.clusters, len(units))
        found = cluster(features(units, calendar, pool, which=DAILY), count, pool.config.seed)
        return [f"profile-{k}" for k in found]

    def class_shares(self, label: str, clients: int, pool: Pool) -> Shares:
        """One draw for each class."""
        rng = stream(pool.config.seed, "partition", "dirichlet", label)
        drawn = rng.dirichlet(np.full(clients, pool.config.alpha))
        # a tiny alpha can underflow to nothing at all
        return drawn if np.isfinite(drawn).all() and drawn.sum() > 0 else np.eye(clients)[int(rng.integers(0, clients))]

    def disclosed(self, config: PartitionConfig) -> tuple[str, ...]:
        """Clusters come from readings of all clients; seasons from the calendar."""
        if config.by == "season":
            return ()
        return ("who holds which series (clusters of the mean days of all clients' readings; simulation only)",)


class Temporal(Rule):
    """Clients hold different years of all series, in order of time: drift between clients.

    A unit is a period of a meter. Each client's calendar is its period, split into training, validation and test
    by `data.train_fraction` and `data.validation_fraction`: a common test year would belong to one client only.
    `by` = year: periods are calendar years (a first or last year of less than half joins its neighbour), several to
    a client where there are more years than clients. Otherwise: equal periods.
    """

    own_split: ClassVar[bool] = True

    def names(self, public: Public) -> tuple[str, ...]:
        """`client-000` has the oldest period."""
        if public.data.train_until or public.data.validation_until:
            raise InputError(
                "partition.kind=temporal splits every client's own period by data.train_fraction and "
                f"data.validation_fraction; data.train_until={public.data.train_until!r} cannot hold for all of them "
                "(allowed: empty). Nothing was started."
            )
        if public.config.clients == 0:
            raise InputError(
                "partition.kind=temporal needs a number of clients (partition.clients=0 given; allowed are 1 or more): "
                "it is the number of periods. Nothing was started."
            )
        return numbered(public.config.clients)

    def divide(self, pool: Pool) -> Division:
        """Contiguous periods from midnight to midnight."""
        names = self.names(pool)
        read = {name: pool.read(name) for name in pool.available}
        calendar = Calendar.of(list(read.values()))
        edges = _years(calendar) if pool.config.by == "year" else None
        if edges is None:
            ideal = [round(k * calendar.length / len(names)) for k in range(1, len(names))]
            edges = [0, *(calendar.midnight(at) for at in ideal), calendar.length]
        elif len(edges) - 1 < len(names):
            raise too_few_units(pool, len(edges) - 1, "years")
        else:
            groups = np.array_split(np.arange(len(edges) - 1), len(names))
            edges = [edges[int(group[0])] for group in groups] + [calendar.length]
        if min(np.diff(edges)) < pool.window:
            raise too_few_units(pool, calendar.length // pool.window, "periods of one window")
        periods = zip(names, edges, edges[1:], strict=False)
        own = [(name, m) for name, series in read.items() for m in range(len(series.meters))]
        held = {client: tuple(Unit(name, m, (first, stop)) for name, m in own) for client, first, stop in periods}
        return Division(held, calendar, trim=True)


def _years(calendar: Calendar) -> list[int]:
    """Borders of the calendar years; a short first or last year joins its neighbour."""
    years = calendar.index.year.to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(years)) + 1).tolist(), calendar.length]
    half = 365.25 * 43_200 / calendar.step.total_seconds()
    if len(edges) > 2 and edges[1] - edges[0] < half:
        del edges[1]
    if len(edges) > 2 and edges[-1] - edges[-2] < half:
        del edges[-2]
    return edges
