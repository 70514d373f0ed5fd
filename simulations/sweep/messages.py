"""What is said about a key or value that a sweep file may not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ValidationError

from fedpriv.config import Scalar, known_keys
from fedpriv.errors import InputError
from simulations.sweep.sections import Arm, Head, Quick, Tuning

_FREE = frozenset({"run.seed", "run.out", "run.name", "run.engine"})  # the sweep sets these itself


def require_known(key: str, where: str) -> None:
    """Refuses a scenario key that there is not, or that the sweep sets itself.

    Raises:
        InputError: with the nearest known key.
    """
    known = known_keys()
    head = ".".join(key.split(".")[:2])
    if key in _FREE:
        extra = "seeds are in [sweep]" if key == "run.seed" else "the sweep gives it to every run itself"
        raise InputError(f"{key} cannot be set in {where}: {extra}. Nothing was started.")
    if key not in known and not (head in known and key.count(".") == 2):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise InputError(
            f"unknown scenario key {key!r} in {where}; the nearest known key is {near!r}. Nothing was started."
        )


def problems(kind: type[BaseModel], error: ValidationError) -> Iterator[str]:
    """What pydantic found wrong with a sweep file, in the words of the file."""
    for e in error.errors():
        place = [str(part) for part in e["loc"]]
        where = ".".join(place)
        if e["type"] == "extra_forbidden":
            known = _fields(kind, place[:-1])
            near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.0)
            yield f"unknown key {where!r}" + (f", the nearest known one is {near[0]!r}" if near else "")
            continue
        shown = f"={e['input']!r}" if isinstance(e["input"], Scalar) else ""
        yield f"{where}{shown}: {e['msg'].removeprefix('Value error, ')}"


_PARTS: Mapping[str, type[BaseModel]] = {"sweep": Head, "tuning": Tuning, "quick": Quick, "arms": Arm}


def _fields(kind: type[BaseModel], place: list[str]) -> list[str]:
    found = _PARTS.get(place[0], kind) if place else kind
    return [name for name in found.model_fields if name != "directory"]
