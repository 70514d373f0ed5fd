"""Everything in one place: a single trusted curator holds all series, as a centralised reference for collaboration."""

from __future__ import annotations

from fedpriv.config import PartitionConfig
from fedpriv.data.partitions.base import Division, Pool, Public, Rule, Unit
from fedpriv.data.partitions.natural import Natural

CURATOR = "curator"


class Pooled(Rule):
    """One client, `curator`, whose meters are the series that would each be a client of the natural partition.

    What it promises is the same for the same unit: to one reading (day, week) of one meter, whoever owns it, against
    everybody who sees what the curator sends. But every owner has handed over its readings in the clear: the curator is
    trusted, and noise is added once to the sum over all owners instead of once by each. So it is the limit of what a
    federation could reach, not an alternative for owners who share nothing. Scores are made for each owner by itself,
    on its own windows and in units of its own training part, so that they compare with the natural partition.
    """

    def wanted(self, config: PartitionConfig) -> int:
        """As many series as the natural partition has clients."""
        return config.clients

    def names(self, public: Public) -> tuple[str, ...]:
        """The curator alone; the owners are checked as the natural partition checks its clients."""
        self.owners(public)
        return (CURATOR,)

    def owners(self, public: Public) -> tuple[str, ...]:
        """The clients of the natural partition: whose readings the curator holds, in the order of its meters."""
        return Natural().names(public)

    def divide(self, pool: Pool) -> Division:
        """All series to the curator."""
        return Division({CURATOR: tuple(Unit(name) for name in self.owners(pool))})
