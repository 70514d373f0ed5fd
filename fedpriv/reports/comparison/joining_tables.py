"""The tables of the value of joining: clients, settings, contributions. Minus is less error everywhere."""

from __future__ import annotations

import math

import numpy as np

from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.comparison.cells import Titled, change, span
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.comparison.shapley import Contribution
from fedpriv.reports.numbers import number
from fedpriv.reports.tables import MODELS


def joining_tables(value: Collaboration) -> list[Titled]:
    """Change of error by joining by client and epsilon, break-even, settings, contributions."""
    last = value.joining[-1]
    heads = [Head("Client"), Head("Verdict", f"at epsilon {last.epsilon:g}")]
    for at in value.joining:
        heads += [
            Head(f"epsilon {at.epsilon:g}", f"change of error by joining at epsilon {at.epsilon:g}"),
            Head("95 % interval", "over seeds"),
        ]
    heads.append(Head("pays from epsilon", "break-even: from which epsilon on joining has no more error"))
    rows: list[list[Cell]] = []
    for client in value.clients:
        row = [Cell(client)]
        final = next((g for g in last.clients if g.client == client), None)
        row.append(Cell("–" if final is None else _OUTCOMES[final.outcome]))
        for at in value.joining:
            own = next((g for g in at.clients if g.client == client), None)
            if own is None:
                row += [Cell("–")] * 2
            else:
                row += [change(-own.gain, sure=own.outcome != "not told"), span(-own.high, -own.low)]
        even = value.by_client.get(client)
        if even is None:
            row.append(Cell("–"))
        else:
            where = even.epsilon if math.isfinite(even.epsilon) else 1e9
            sure = value.established(client)
            row.append(Cell(even.words() if sure else f"{even.words().split(' (')[0]}, may be chance", where))
        rows.append(row)
    text = (
        f"Joining against “{WORDS[value.alternative]}”; minus: less error by joining. “gains” and “loses” only where "
        "the data say so, adjusted for the number of clients; the intervals are for one client by itself."
    )
    out = [Titled("Error by joining, client by client", Grid(heads, rows), text), _settings(value)]
    for title, by_epsilon, about in (
        ("Leave-one-out contribution", value.left_out, "change of the others' error"),
        ("Shapley values", value.shapley, "share of the total change of error"),
    ):
        out += [
            Titled(
                f"{title} at epsilon {epsilon:g}",
                Grid([Head("Client"), Head(about), Head("95 % interval")], [_share(c) for c in rows_]),
                _exact(title, rows_),
            )
            for epsilon, rows_ in by_epsilon.items()
        ]
    return out


_OUTCOMES = {"gains": "gains", "loses": "loses", "not told": "may be chance"}


def _share(c: Contribution) -> list[Cell]:
    return [
        Cell(c.client),
        change(-c.value, sure=not c.low <= 0 <= c.high),
        span(-c.high, -c.low),
    ]


def _exact(title: str, found: tuple[Contribution, ...]) -> str:
    if title.startswith("Leave"):
        return "How the error of the others changes because this client takes part (log error in %; minus: they gain)."
    text = "Shares of the change of error of all clients, which add up to it (log error in %; minus: less error). "
    return text + (
        "All orders of joining: exact for these runs."
        if all(c.exact for c in found)
        else "Estimated from sampled orders of joining."
    )


def _settings(value: Collaboration) -> Titled:
    heads = [
        Head("Setting"),
        Head("epsilon"),
        Head("against naive", "geometric mean over seeds and clients, as in the picture"),
        Head("mean error", "geometric mean over seeds and clients"),
        Head("median"),
        Head("largest error"),
        Head("whose"),
    ]
    rows: list[list[Cell]] = []
    for (setting, epsilon), errors in value.errors.items():
        logs = np.log(errors).mean(axis=0)
        by, against = np.exp(logs), value.against_naive(setting, epsilon)
        name = MODELS.get(setting, setting) if isinstance(setting, str) else WORDS[setting]
        rows.append(
            [
                Cell(name),
                Cell("none" if epsilon is None else f"{epsilon:g}", epsilon),
                change(None if against is None else math.expm1(against), sure=False),
                *(Cell(number(float(v)), float(v)) for v in (np.exp(logs.mean()), np.median(by), by.max())),
                Cell(value.clients[int(by.argmax())]),
            ]
        )
    text = (
        "Errors of all clients on the same held-out windows; every mean is geometric, so that the order is that of the "
        "picture. Whether two settings differ by more than chance stands under “By how much”."
    )
    return Titled("Every setting", Grid(heads, rows), text)
