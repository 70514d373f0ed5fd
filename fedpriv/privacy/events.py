"""Privacy events as data: the canonical text of a `DpEvent`, and one event that dp-accounting lacks.

Ledgers and contracts store this text, and equal mechanisms have equal text, so that counts can be added up and two
processes agree on a digest. Events that are not on the list are refused, never guessed.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import cast

import attrs
from dp_accounting import DpEvent, dp_event

from fedpriv.errors import InputError


@attrs.frozen(slots=True, eq=True)
class PublicChoiceDpEvent(DpEvent):
    """Event i takes place with probability `probabilities[i]`, whatever the data, and i is published.

    Its privacy loss distribution is the mixture of those of the events. It covers a secret choice, too, by joint
    convexity; where the rest of the output may give the choice away, nothing smaller is safe.
    """

    events: Sequence[DpEvent]
    probabilities: Sequence[float]


@attrs.frozen(slots=True, eq=True)
class ScheduledDpEvent(DpEvent):
    """A public schedule of a whole run: `counts[0]` steps of `events[0]`, then `counts[1]` of `events[1]` and so on.

    Which step has which event is fixed before the run, so the whole costs what composing all of them costs. Part of
    a schedule, when it is not known which part, is charged as the whole.
    """

    events: Sequence[DpEvent]
    counts: Sequence[int]

    @property
    def steps(self) -> int:
        """Steps in all."""
        return sum(self.counts)

    def part(self, start: int, stop: int) -> list[tuple[DpEvent, int]]:
        """(event, count) of the steps [start, stop).

        Raises:
            InputError: steps that the schedule does not have; nothing was charged.
        """
        if not 0 <= start <= stop <= self.steps:
            raise InputError(
                f"steps {start} to {stop} are not in a schedule of {self.steps} steps; nothing was charged."
            )
        parts: list[tuple[DpEvent, int]] = []
        first = 0
        for event, count in zip(self.events, self.counts, strict=True):
            inside = min(stop, first + count) - max(start, first)
            if inside > 0:
                parts.append((event, inside))
            first += count
        return parts


# Each field is `float`, `int`, `ints`, `event`, `floats` or `events`; the order is that of the constructor.
_FIELDS: Mapping[type[DpEvent], Mapping[str, str]] = {
    dp_event.NoOpDpEvent: {},
    dp_event.NonPrivateDpEvent: {},
    dp_event.GaussianDpEvent: {"noise_multiplier": "float"},
    dp_event.LaplaceDpEvent: {"noise_multiplier": "float"},
    dp_event.PoissonSampledDpEvent: {"sampling_probability": "prob", "event": "event"},
    dp_event.MixtureOfGaussiansDpEvent: {
        "standard_deviation": "float",
        "sensitivities": "floats",
        "sampling_probs": "law",
    },
    dp_event.ZCDpEvent: {"rho": "float", "xi": "float"},
    dp_event.SelfComposedDpEvent: {"event": "event", "count": "int"},
    dp_event.ComposedDpEvent: {"events": "events"},
    PublicChoiceDpEvent: {"events": "events", "probabilities": "law"},
    ScheduledDpEvent: {"events": "events", "counts": "ints"},
}
_BY_NAME = {kind.__name__: kind for kind in _FIELDS}


def encode_event(event: DpEvent) -> str:
    """Canonical JSON: sorted keys, no spaces, shortest exact floats. Equal events give equal text.

    Raises:
        InputError: an event that the accountant does not know, or a parameter that is not finite or in range.
    """
    return json.dumps(_to_json(event), sort_keys=True, separators=(",", ":"), allow_nan=False)


def decode_event(text: str) -> DpEvent:
    """The event with this canonical text.

    Raises:
        InputError: not JSON, an unknown type, missing or extra fields, or a parameter out of range.
    """
    try:
        raw = json.loads(text)
    except ValueError:
        raise InputError(f"{text[:80]!r} is not the JSON text of a privacy event.") from None
    return _from_json(raw)


def _to_json(event: DpEvent) -> dict[str, object]:
    fields = _FIELDS.get(type(event))
    if fields is None:
        raise InputError(f"privacy events of type {type(event).__name__} are not known here; nothing was charged.")
    tag = type(event).__name__.removesuffix("DpEvent")
    return {"@type": tag, **{n: _encode(kind, getattr(event, n), f"{tag}.{n}") for n, kind in fields.items()}}


def _from_json(raw: object) -> DpEvent:
    if not isinstance(raw, dict):
        raise InputError(f"{str(raw)[:80]!r} is not the JSON object of a privacy event.")
    data = cast("dict[str, object]", raw)
    kind = _BY_NAME.get(f"{data.get('@type')}DpEvent")
    if kind is None:
        raise InputError(f"privacy events of type {str(data.get('@type'))[:80]!r} are not known here.")
    fields = _FIELDS[kind]
    if set(data) != {"@type", *fields}:
        raise InputError(f"a {data['@type']} event has the fields {sorted(fields)}, not {sorted(data)}.")
    found = {n: _decode(how, data[n], f"{data['@type']}.{n}") for n, how in fields.items()}
    lengths = {len(cast("list[object]", found[n])) for n in ("events", "counts") if n in found}
    if kind is ScheduledDpEvent and len(lengths) != 1:
        raise InputError("a Scheduled event has as many counts as events.")
    return kind(**found)  # pyright: ignore[reportArgumentType]  # checked by its table


def _encode(kind: str, value: object, where: str) -> object:
    if kind == "event" and isinstance(value, DpEvent):
        return _to_json(value)
    if kind == "events":
        return [_to_json(v) for v in cast("Sequence[DpEvent]", value)]
    return _number(kind, value, where)


def _decode(kind: str, value: object, where: str) -> object:
    if kind == "event":
        return _from_json(value)
    if kind == "events":
        return [_from_json(v) for v in cast("Sequence[object]", value)]
    return _number(kind, value, where)


def _number(kind: str, value: object, where: str) -> object:
    """The checked number or numbers, as plain Python values."""
    try:
        if kind == "ints":
            counts = [int(v) for v in cast("Sequence[int]", value)]
            if not counts or counts != list(cast("Sequence[int]", value)) or min(counts) < 1:
                raise ValueError
            return counts
        if kind in ("floats", "law"):
            numbers = [float(v) for v in cast("Sequence[float]", value)]
            if kind == "law" and not math.isclose(sum(numbers), 1.0, rel_tol=0, abs_tol=1e-9):
                raise ValueError
        elif kind == "int":
            number = int(cast("int", value))
            if number != value or number < 1:
                raise ValueError
            return number
        else:
            numbers = [float(cast("float", value))]
            if kind == "prob" and numbers[0] > 1:
                raise ValueError
        if not all(math.isfinite(v) and v >= 0 for v in numbers):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{where}={str(value)[:80]} is not a valid parameter of a privacy event.") from None
    return numbers if kind in ("floats", "law") else numbers[0]
