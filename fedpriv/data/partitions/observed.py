"""Partitions in which clients observe differently: other channels, other sampling rates, other sizes, other outages.

Feature and missingness skew keep the data's own division (or deal series out evenly, where there are more series
than clients) and hide readings; what is hidden is NaN, like any gap. A hidden reading is in no loss and no score.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedpriv.config import PartitionConfig
from fedpriv.data.partitions.base import Calendar, Division, Pool, Public, Rule, Unit, numbered, too_few_units
from fedpriv.data.partitions.outages import flag_masks, outage_mask, replay, spread_shares
from fedpriv.data.partitions.profiles import training_mean
from fedpriv.data.sources.base import Series
from fedpriv.data.windows import day_steps
from fedpriv.errors import InputError
from fedpriv.seeding import stream


class Observed(Rule):
    """Series are dealt out in turn: to each client its own, or several where `partition.series` says so."""

    def wanted(self, config: PartitionConfig) -> int:
        """As many series as clients, unless `partition.series` says otherwise."""
        return config.series or config.clients

    def names(self, public: Public) -> tuple[str, ...]:
        """The names of the series where each is a client, so that results compare with the natural partition."""
        count = public.config.clients or len(public.available)
        if count > len(public.available):
            raise too_few_units(public, len(public.available), "series")
        return public.available if count == len(public.available) else numbered(count)

    def divide(self, pool: Pool) -> Division:
        """Series k goes to client k modulo the number of clients."""
        names = self.names(pool)
        return Division({name: tuple(Unit(s) for s in pool.available[k :: len(names)]) for k, name in enumerate(names)})


class Feature(Observed):
    """Clients read different things.

    by = sampling (default)   every n-th step of the day only, n from the divisors of a day up to `skew` (default 4)
    by = channels             a random part of the channels: each is hidden with probability `skew` (default 0.5),
                              every client keeps one and every channel is kept by some client (if there are enough)
    by = covariates           the first channel always; each other one is hidden with probability `skew`
    """

    def alter(self, client: str, series: Series, pool: Pool) -> Series:
        """The client's readings with what it does not observe as NaN."""
        names = self.names(pool)
        index = names.index(client)
        if pool.config.by in ("", "sampling"):
            return _thinned(series, index, len(names), pool)
        kept = self._channels(len(names), series.channels, pool)[index]
        return replace(series, values=np.where(kept, series.values, np.nan))

    def _channels(self, clients: int, channels: tuple[str, ...], pool: Pool) -> NDArray[np.bool_]:
        """[K, C] which channels each client observes; drawn for all clients at once."""
        count, by = len(channels), pool.config.by
        if count < 2:
            raise InputError(
                f"partition.by={by} hides channels, but the data have only {channels[0]!r} (allowed: sources with "
                "two or more channels, or partition.by=sampling); nothing was started."
            )
        hidden = 0.5 if pool.config.skew is None else pool.config.skew
        kept = stream(pool.config.seed, "partition", "channels").random((clients, count)) >= hidden
        if by == "covariates":
            kept[:, 0] = True
            return kept
        for client in np.flatnonzero(~kept.any(axis=1)):
            kept[client, client % count] = True
        for channel in np.flatnonzero(~kept.any(axis=0)):
            kept[channel % clients, channel] = True
        return kept


def _thinned(series: Series, index: int, clients: int, pool: Pool) -> Series:
    day = day_steps(series.step)
    most = 4 if pool.config.skew is None else round(pool.config.skew)
    rates = [n for n in range(1, most + 1) if day % n == 0]
    # every rate about equally often, who has which by the seed
    turn = stream(pool.config.seed, "partition", "rates").permutation(clients)
    rate = rates[int(turn[index]) % len(rates)]
    since = int((series.start - series.start.floor("D")).value // series.step.value)  # steps after midnight
    kept = (np.arange(series.values.shape[1]) + since) % rate == 0
    return replace(series, values=np.where(kept[None, :, None], series.values, np.nan))


class Scale(Rule):
    """Clients of different size: series sorted by mean level, neighbours share a client.

    `skew` (default 0) also multiplies readings so that the clients span that many decades more, evenly on a logarithmic
    scale: what other units of measurement or ratings would do. It is invented, not in the data.
    """

    def divide(self, pool: Pool) -> Division:
        """Equal numbers of series, the smallest ones first."""
        names = self.names(pool)
        units = [Unit(series) for series in pool.available]
        if len(units) < len(names):
            raise too_few_units(pool, len(units), "series")
        levels = np.array([training_mean(unit, None, pool) for unit in units])
        groups = np.array_split(np.argsort(levels, kind="stable"), len(names))
        return Division({name: tuple(units[i] for i in group) for name, group in zip(names, groups, strict=True)})

    def alter(self, client: str, series: Series, pool: Pool) -> Series:
        """Times 10^(skew (k / (K - 1) - 1/2)) for client k of K."""
        names, skew = self.names(pool), pool.config.skew or 0.0
        if not skew or len(names) < 2:
            return series
        place = names.index(client) / (len(names) - 1) - 0.5
        return replace(series, values=series.values * 10.0 ** (skew * place))

    def disclosed(self, config: PartitionConfig) -> tuple[str, ...]:
        """The order of sizes."""
        return ("who holds which series (sorted by the mean of all clients' readings; simulation only)",)


class Missingness(Observed):
    """Clients with different outages, in training, validation and test.

    by = flags    every series gets the hours that the publisher of EIA-930 flagged at another entity (missing or
                  rejected; median run 1 h, longest 4200 h), at the same stamps, on other years' calendars at the
                  same hour of the day. Donors are spread evenly over the entities sorted by their flagged share, so
                  some clients lose next to nothing and one a fifth.
    by = outages  synthetic runs until client k's share is missing; shares are spread evenly on a logarithmic scale
                  from `skew` / 50 to `skew` (default 0.2).

    Empty: flags for the published data sets, outages for synthetic and one's own data. All channels of a series go
    missing together, as when telemetry fails.
    """

    def alter(self, client: str, series: Series, pool: Pool) -> Series:
        """The client's readings without those in an outage."""
        names, config = self.names(pool), pool.config
        calendar = Calendar(series.start, series.step, series.values.shape[1])
        by = config.by or ("outages" if pool.data.source in ("synthetic", "csv") else "flags")
        values = series.values.copy()
        rows, row = len(series.meters), names.index(client)
        if by == "flags":
            # one donor for each row of each client; ranks spread over all rows of all clients
            ranks = stream(config.seed, "partition", "donors").permutation(len(names))
            masks = flag_masks(pool.data)
            for meter in range(rows):
                place = (ranks[row] + (meter + 1) / rows) / len(names)  # in (0, 1], the last donor is the worst
                values[meter, replay(masks, place, series.meters[meter], calendar)] = np.nan
            return replace(series, values=values)
        worst = 0.2 if config.skew is None else config.skew
        share = spread_shares(len(names), worst, config.seed)[row]
        for meter in range(rows):
            rng = stream(config.seed, "partition", "outages", row, meter)
            values[meter, outage_mask(calendar, share, rng)] = np.nan
        return replace(series, values=values)
