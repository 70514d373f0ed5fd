"""label.json as rows that a person can read; whatever the label says and this page does not know is shown as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpriv.reports.numbers import at_most, number, rung, small

_RELATIONS = {
    "zero-out": "zero-out: what changes if no window that touches the unit had contributed (its place in the calendar "
    "stays public)",
    "replace-one": "replace-one: what changes if the unit had had any other value",
    "add-remove": "add-remove: what changes if the unit had not been there at all",
}
_ORDER = ("epsilon", "noise_multiplier", "sampler", "sampling_prob", "window", "clipper", "bound", "steps_total")
_NAMES = {
    "noise_multiplier": "noise multiplier",
    "sampling_prob": "sampling rate",
    "steps_total": "steps in all",
    "clipper": "clipping rule",
    "window": "window, steps",
}
_HANDLED = {
    "unit", "relation", "delta", "ladder", "committed", "nominal", "max_epsilon", "seeded", "mode", "mechanism",
    "side_releases", "public", "adversary", "accountant", "random_source", "audit", "signature", "ladders",
}  # fmt: skip


def promise_rows(label: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(term, text) for the card, most important first."""
    unit = str(label.get("unit", "unit"))
    relation = str(label.get("relation", ""))
    rows = [
        ("Protected unit", f"one {unit}" + (" of one meter" if unit in ("reading", "day", "week", "month") else "")),
        ("Compared with", _RELATIONS.get(relation, relation)),
        (
            "Epsilon (claim)",
            f"{at_most(label.get('max_epsilon'))} for the largest client, at delta {_text(label.get('delta'))}",
        ),
    ]
    spent = [float(v) for v in (label.get("nominal") or {}).values() if v is not None]
    if spent:
        rows.append(("Spent so far", f"{at_most(max(spent))} at most (nominal; a progress bar, not the claim)"))
    rows += _mechanism(label.get("mechanism") or {})
    rows.append(("Side releases", _text(label.get("side_releases")) or "none: only noised updates leave a client"))
    for key, term in (("public", "Declared public"), ("adversary", "Adversary")):
        if label.get(key):
            rows.append((term, _text(label[key])))
    if label.get("accountant"):
        rows.append(("Accountant", _accountant(label["accountant"])))
    if label.get("seeded"):
        rows.append(("Random source", "seeded, to be repeatable: not a guarantee"))
    else:
        rows.append(("Random source", _text(label.get("random_source")) or "operating system (not repeatable)"))
    rows.append(("Audit", _text(label.get("audit")) or "none was run"))
    rows.append(("Mode", _text(label.get("mode")) or "–"))
    rows += [(key.replace("_", " ").capitalize(), _text(label[key])) for key in label if key not in _HANDLED]
    return [(term, text) for term, text in rows if text]


def ladder_rows(label: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(relations, [unit, epsilon under each]) where the label states the ladder for more than one relation."""
    ladders: Mapping[str, Mapping[str, Any]] = label.get("ladders") or {}
    if len(ladders) < 2:
        return [], []
    units = list(dict.fromkeys(unit for ladder in ladders.values() for unit in ladder))
    return list(ladders), [[unit, *(rung(ladder.get(unit)) for ladder in ladders.values())] for unit in units]


def _accountant(value: object) -> str:
    if isinstance(value, Mapping) and "name" in value:
        return str(value["name"])  # it states version and grid
    return _text(value)


def _mechanism(mechanism: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """One line per parameter: its value, or its range when the clients differ."""
    keys = list(dict.fromkeys(key for parts in mechanism.values() for key in parts))
    keys.sort(key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER))
    rows: list[tuple[str, str]] = []
    for key in keys:
        values = [parts[key] for parts in mechanism.values() if key in parts]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values) and min(numbers) != max(numbers):
            text = f"{number(min(numbers))} to {number(max(numbers))}, by client"
        else:
            text = ", ".join(dict.fromkeys(_text(v) for v in values))
        rows.append((_NAMES.get(key, key.replace("_", " ")).capitalize(), text))
    return rows


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_text(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return small(value)
    return str(value)
