"""What may be said and why: declared fields with their basis, refusals as codes, and the codec of scalars.

A key that is not in a message's table, a missing one, or one of another type or range is refused on both sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from typing import Any, ClassVar, Final, Literal, Self, cast

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedpriv.errors import CheckFailed

SCHEMA: Final = 1
Part = Literal["validation", "test"]
Mode = Literal["simulation", "deployment"]
SIMULATION_VARIABLE: Final = "FEDPRIV_SIMULATION"  # "1" in every process that our simulation launchers start


class Basis(StrEnum):
    """Why a field may leave its owner."""

    PUBLIC = "public"  # known to everybody before any private row is read
    EVENT = "event"  # a release that the ledger has charged, or a function of what it charged
    SIMULATION_ONLY = "simulation-only"  # private and not paid for: never sent by a deployed client


class Refusal(IntEnum):
    """Why a request was not carried out. The wire carries the code and the word, nothing more."""

    BUDGET_EXCEEDED = 1001
    LEDGER_MISSING = 1002
    LEDGER_CONFLICT = 1003
    SOURCE_MISMATCH = 1004
    SCENARIO_MISMATCH = 1005
    BAD_REQUEST = 1006
    NO_DATA = 1007
    INTERNAL = 1008
    LOST = 1009  # charged, but the reply was lost before it was stored: it will not be computed again
    NOT_CONFIGURED = 1010  # neither a simulated nor a configured node: fails closed
    NODE_LOST = 1011  # said by the engine for a client whose process died

    @property
    def word(self) -> str:
        """The enumerated word that goes into `Error.reason`."""
        return self.name.lower().replace("_", "-")

    def to_message(self, request: Message) -> Message:
        """The refusal as the reply to `request`."""
        return Message(Error(int(self), self.word), reply_to=request)


class WireError(CheckFailed):
    """A message that is not what the table says; `refusal` is the code to answer or count it with."""

    def __init__(self, text: str, refusal: Refusal = Refusal.BAD_REQUEST) -> None:
        super().__init__(text)
        self.refusal = refusal


@dataclass(frozen=True)
class Field:
    """Declaration of one scalar on the wire."""

    kind: type[int] | type[float] | type[str]
    basis: Basis
    about: str
    low: float = -math.inf
    high: float = math.inf


_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,128}")


def public(kind: type[Any], about: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field that everybody knows before a private row is read."""
    return field(metadata={"wire": Field(kind, Basis.PUBLIC, about, low, high)})


def event(kind: type[Any], about: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field that is a function of what the ledger charged."""
    return field(metadata={"wire": Field(kind, Basis.EVENT, about, low, high)})


def head_number(about: str) -> Any:
    """The number of a ledger entry."""
    return field(default=0, metadata={"wire": Field(int, Basis.EVENT, about, 0, 2**62)})


def head_hash(about: str) -> Any:
    """The hash of a ledger entry."""
    return field(default="", metadata={"wire": Field(str, Basis.EVENT, about)})


@dataclass(frozen=True, kw_only=True)
class Body:
    """Scalars of a message: numbers in the MetricRecord `numbers`, words in the ConfigRecord `words`."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words"})
    optional: ClassVar[frozenset[str]] = frozenset()  # records that need not be there

    @classmethod
    def declared(cls) -> dict[str, Field]:
        """Every scalar of this message with its declaration."""
        return {f.name: f.metadata["wire"] for f in fields(cls) if "wire" in f.metadata}

    def _scalars(self) -> RecordDict:
        numbers, words = MetricRecord(), ConfigRecord()
        for name, declaration in _declared(type(self)).items():
            value = getattr(self, name)
            _check_scalar(name, value, declaration)
            (words if declaration.kind is str else numbers)[name] = value
        return RecordDict({"numbers": numbers, "words": words})

    @classmethod
    def _parse(cls, record: RecordDict) -> dict[str, Any]:
        if not cls.records <= set(record) <= cls.records | cls.optional:
            raise WireError(f"{cls.__name__} has the records {names(record)}, expected {names(cls.records)}")
        numbers, words = record["numbers"], record["words"]
        if not isinstance(numbers, MetricRecord) or not isinstance(words, ConfigRecord):
            raise WireError(f"{cls.__name__}: `numbers` or `words` is a record of another type")
        declared = _declared(cls)
        if len(numbers) + len(words) != len(declared):
            extra = (set(numbers) | set(words)) ^ set(declared)
            raise WireError(f"{cls.__name__}: unexpected or missing fields {names(extra)}")
        values: dict[str, Any] = {}
        for name, declaration in declared.items():
            source: Mapping[str, object] = words if declaration.kind is str else numbers
            if name not in source:
                raise WireError(f"{cls.__name__}: field {name} is missing")
            _check_scalar(name, source[name], declaration)
            values[name] = source[name]
        return values


@dataclass(frozen=True, kw_only=True)
class Numbers(Body):
    """A message of scalars alone."""

    def to_record(self) -> RecordDict:
        """For Flower."""
        return self._scalars()

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        return cls(**cls._parse(record))


_DECLARED: dict[type, dict[str, Field]] = {}


def _declared(cls: type[Body]) -> dict[str, Field]:
    if cls not in _DECLARED:
        _DECLARED[cls] = cls.declared()
    return _DECLARED[cls]


def names(keys: Any) -> str:
    """Keys for an error text, cut to a safe length."""
    return ", ".join(sorted(str(k)[:40] for k in keys)) or "(none)"


def _check_scalar(name: str, value: object, declaration: Field) -> None:
    # bool is an int to isinstance; numpy scalars are refused as well: the table means Python's own types
    if type(value) is not declaration.kind:
        raise WireError(f"field {name} is a {type(value).__name__}, expected {declaration.kind.__name__}")
    if isinstance(value, str):
        if not _TEXT.fullmatch(value):
            raise WireError(f"field {name} has {len(value)} characters or control characters; at most 128 are allowed")
    elif not declaration.low <= cast(float, value) <= declaration.high:  # false for NaN
        raise WireError(f"field {name}={value} is not in [{declaration.low:g}, {declaration.high:g}]")


def refusal_of(message: Message) -> Refusal:
    """Why `message`, a reply with an error, says no.

    Codes that are not ours (Flower's own: node unavailable, app not loaded ...) count as NODE_LOST; the text that
    came with them is not looked at, for it may quote an exception.
    """
    try:
        return Refusal(message.error.code)
    except ValueError:
        return Refusal.NODE_LOST


def content_of(message: Message) -> RecordDict:
    """What a reply carries.

    Raises:
        WireError: an error reply; its `refusal` is the client's.
    """
    if message.has_error():
        refusal = refusal_of(message)
        raise WireError(f"the client refused: {refusal.word}", refusal)
    return message.content
