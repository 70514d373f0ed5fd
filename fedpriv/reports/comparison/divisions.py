"""How the data were divided among clients in each place: how unlike the clients are, and whether two divisions are one.

Both come from the heterogeneity cards that the runs left (`fedpriv.reports.heterogeneity`); computed from all clients'
readings, as only a simulation can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedpriv.reports.atomic import read_json
from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.cells import Titled
from fedpriv.reports.comparison.phrases import listed
from fedpriv.reports.heterogeneity import FILE
from fedpriv.reports.numbers import number

_DEALT = ("natural", "iid", "dirichlet", "quantity", "clusters", "scale")  # kinds that only say who holds what
_COLUMNS = (
    ("scale_ratio_max_min", "largest / smallest", "ratio of the clients' mean readings"),
    ("profile_l1_median", "days apart", "L1 distance of the shapes of mean days, median over pairs of clients"),
    ("w1_scaled_median", "values apart", "Wasserstein distance of scaled readings, median over pairs of clients"),
    ("correlation_median", "correlation", "of the clients' readings, median over pairs"),
    ("quantity_gini", "Gini of amounts", "0: all hold the same number of readings"),
    ("missing_max", "most not held", "largest share of its calendar that a client has no reading of"),
)


def cards(found: Analysis) -> dict[str, Mapping[str, Any]]:
    """Place -> heterogeneity card of its first run that has one and in which every client took part."""
    cards: dict[str, Mapping[str, Any]] = {}
    for run in found.sweep.done:
        where = found.sweep.where(run)
        if where not in cards and not run.client and run.settings.get("partition.kind") != "pooled":
            card = read_json(found.sweep.folder(run) / FILE)
            if isinstance(card.get("summary"), Mapping) and isinstance(card.get("partition"), Mapping):
                cards[where] = card
    return cards


def division_table(found: Analysis) -> Titled | None:
    """How unlike the clients of each partition are; None where there is one way of dividing the data."""
    known = cards(found)
    if len({json.dumps(card["partition"], sort_keys=True, default=str) for card in known.values()}) < 2:
        return None
    heads = [Head("Partition"), Head("clients"), Head("series of a client", "least to most")]
    heads += [Head(text, about) for _, text, about in _COLUMNS]
    rows: list[list[Cell]] = []
    for where, card in known.items():
        held = [len(client.get("series") or []) for client in (card["partition"].get("clients") or {}).values()]
        row = [Cell(where), Cell(str(len(held)), len(held))]
        row.append(Cell(f"{min(held)} to {max(held)}" if min(held) < max(held) else str(max(held)), max(held)))
        for key, _, _ in _COLUMNS:
            value = card["summary"].get(key)
            if not isinstance(value, int | float):
                row.append(Cell("–"))
            else:
                row.append(Cell(f"{value * 100:.0f} %" if key == "missing_max" else number(float(value)), float(value)))
        rows.append(row)
    text = (
        "What the clients of each partition have in common (training part). Computed from all clients' readings, as "
        "only a simulation can. The pages of the runs show it client by client."
    )
    return Titled("How unlike the clients are", Grid(heads, rows), text)


def same_divisions(found: Analysis) -> list[str]:
    """Partitions that give the same series to clients of other names are one partition: nothing can differ there."""
    groups: dict[str, list[str]] = {}
    for where, card in cards(found).items():
        partition = card["partition"]
        clients = list((partition.get("clients") or {}).values())
        settings = partition.get("settings") or {}
        kind = str(partition.get("kind") or settings.get("kind"))
        if kind not in _DEALT or (kind == "scale" and settings.get("skew")):  # a skew changes the readings
            continue
        if not clients or any(client.get("fill") != 1.0 for client in clients):
            continue  # blocks of time: who holds which is not in the card
        held = sorted(sorted(map(str, client.get("series") or [])) for client in clients)
        run = next(run for run in found.sweep.done if found.sweep.where(run) == where)
        rest = {k: v for k, v in run.settings.items() if k.startswith(("data.", "task.", "privacy.unit"))}
        key = json.dumps([held, rest], sort_keys=True, default=str)
        groups.setdefault(key, []).append(where)
    return [
        f"{listed(wheres)} are the same division under other names: in each of them the same series make up a client. "
        "They are one partition, and what seems to differ between them is chance. Calendar blocks "
        "(partition.unit=block), or more series than clients, make other divisions."
        for wheres in groups.values()
        if len(wheres) > 1
    ]
