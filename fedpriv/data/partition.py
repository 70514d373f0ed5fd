"""How the series of a source are divided among clients: the registry of partitioners.

A partitioner names the clients from public facts alone, says who holds which unit (`divide`), and may change what a
client observes of it (`alter`); add one by a `Rule` in `fedpriv.data.partitions`, an entry here and a kind in the
configuration (the contract tests then cover it). Everything is drawn from `partition.seed`, never from `run.seed`: the
same clients for every repetition of an experiment.

    natural      every series is a client; or every parent authority, region or time zone (`by`)
    pooled       one trusted curator holds all series: a centralised reference
    iid          units at random, equally many
    dirichlet    classes of units (profile clusters, seasons) in proportions drawn from Dir(alpha)
    quantity     units at random, numbers by a power law (`skew`)
    temporal     different years of all series
    feature      other channels, covariates or sampling rates
    scale        other sizes
    missingness  other outages: real EIA flag runs, or synthetic ones
    clusters     units that look alike, found without labels
"""

from __future__ import annotations

from fedpriv.data.partitions.base import Calendar, Division, Partitioner, Pool, Public, Unit, assemble
from fedpriv.data.partitions.natural import Natural
from fedpriv.data.partitions.observed import Feature, Missingness, Scale
from fedpriv.data.partitions.pooled import Pooled
from fedpriv.data.partitions.profiles import Clusters
from fedpriv.data.partitions.shares import Dirichlet, Iid, Quantity, Temporal

PARTITIONERS: dict[str, Partitioner] = {
    "natural": Natural(),
    "pooled": Pooled(),
    "iid": Iid(),
    "dirichlet": Dirichlet(),
    "quantity": Quantity(),
    "temporal": Temporal(),
    "feature": Feature(),
    "scale": Scale(),
    "missingness": Missingness(),
    "clusters": Clusters(),
}

__all__ = ["PARTITIONERS", "Calendar", "Division", "Partitioner", "Pool", "Public", "Unit", "assemble"]
