"""What requests have in common: what each of them says of its run, and the arrays that those with a model carry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from flwr.app import ArrayRecord, RecordDict

from fedpriv.messages.fields import SCHEMA, Body, WireError, head_hash, head_number, public

ARRAYS: Final = ("model", "rule", "reference")


@dataclass(frozen=True, kw_only=True)
class Request(Body):
    """Of which run, by which code, on which scenario, after which entry of the client's ledger."""

    run_id: str = public(str, "names the run; the same after a resume")
    source: str = public(str, "digest of the code that asks")
    scenario: str = public(str, "digest of the scenario")
    ledger_seq: int = head_number("last ledger entry of this client that the server saw")
    ledger_head: str = head_hash("hash of that entry; empty before the first")


@dataclass(frozen=True, kw_only=True)
class ModelRequest(Request):
    """A request about a model, which travels as one flat array."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "model"})
    optional: ClassVar[frozenset[str]] = frozenset({"reference"})

    model: ArrayRecord
    reference: ArrayRecord | None = None  # a warm start's fitted model, flat; basis: event. None: there is none

    def to_record(self) -> RecordDict:
        """For Flower; the arrays are shared, not copied."""
        record = self._scalars()
        for name, array in self._arrays():
            record[name] = array
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        values: dict[str, Any] = cls._parse(record)
        for name in (cls.records | cls.optional) & set(ARRAYS):
            found = record.get(name)
            if found is not None and not isinstance(found, ArrayRecord):
                raise WireError(f"{cls.__name__}: `{name}` is a record of another type")
            values[name] = found
        return cls(**values)

    def _arrays(self) -> list[tuple[str, ArrayRecord]]:
        """Those that are there, in a fixed order."""
        found = [(name, getattr(self, name, None)) for name in ARRAYS]
        return [(name, array) for name, array in found if array is not None]

    def _digest(self, parts: Sequence[object]) -> str:
        """Hex SHA-256 of scalars and arrays; two requests with it are the same request."""
        total = hashlib.sha256(json.dumps([SCHEMA, *parts]).encode())
        for kind, array in self._arrays():
            if kind != "model":
                total.update(kind.encode())
            for name in array:
                total.update(array[name].data)
        return total.hexdigest()
