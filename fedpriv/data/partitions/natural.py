"""The data's own division: every series is a client, or every parent authority, region or time zone is one."""

from __future__ import annotations

from fedpriv.config import DataConfig, PartitionConfig
from fedpriv.data.partitions.base import Division, Pool, Public, Rule, Unit
from fedpriv.data.registry import dataset
from fedpriv.errors import InputError


class Natural(Rule):
    """Every series that the source offers is one client; the first `partition.clients` of them are used.

    `partition.by` = parent, region or time-zone (EIA-930): the entities of one authority, region or zone are the meters
    of one client, named after it. These labels are published, so the roster needs no reading.
    """

    def wanted(self, config: PartitionConfig) -> int:
        """As many as clients; grouped: `partition.series`."""
        return config.series if config.by else config.clients

    def names(self, public: Public) -> tuple[str, ...]:
        """The chosen names, or the first `partition.clients` available (0: all)."""
        config, found = public.config, public.available
        if config.by:
            found = tuple(dict.fromkeys(label_of(public.data, config.by, name) for name in found))
        elif public.chosen:
            return found
        if config.clients == 0:
            return found
        if config.clients > len(found):
            raise InputError(
                f"partition.clients={config.clients}, but the source has {len(found)} "
                f"({', '.join(found[:12])}{' ...' if len(found) > 12 else ''}); allowed are up to {len(found)}, and "
                "0 for all. Nothing was started."
            )
        return found[: config.clients]

    def divide(self, pool: Pool) -> Division:
        """Each client its own series; series of groups that are not among the clients are not used."""
        names = self.names(pool)
        if not pool.config.by:
            return Division({name: (Unit(name),) for name in names})
        groups: dict[str, list[Unit]] = {name: [] for name in names}
        for series in pool.available:
            label = label_of(pool.data, pool.config.by, series)
            if label in groups:
                groups[label].append(Unit(series))
        return Division({name: tuple(units) for name, units in groups.items()})


def label_of(data: DataConfig, by: str, series: str) -> str:
    """The published parent, region or time zone of an EIA-930 entity.

    Raises:
        InputError: another source, which publishes no such labels.
    """
    if data.source != "eia930":
        raise InputError(
            f"partition.by={by} needs the published labels of data.source=eia930; source {data.source} has none "
            "(allowed: an empty partition.by). Nothing was started."
        )
    known = dataset("eia930")
    labels = {"region": known.regions, "time-zone": known.time_zones}
    # a sub-region is named AUTHORITY-ZONE, an authority of its own just AUTHORITY
    return series.partition("-")[0] if by == "parent" else labels[by][series]
