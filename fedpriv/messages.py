"""The wire: what a client may be asked and what it may answer. Nothing else passes.

Every message is a dataclass whose fields are declared in a table, each with the *basis* on which it may be known
to the other side; a key that is not in the table, a missing one, or one of another type is refused on both sides.
A model travels as ONE flat float32 array (`model/flat`), so that a message costs one copy however many layers
there are, and a server encodes it once per round for all clients. Errors travel as codes, never as text.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from typing import Any, ClassVar, Final, Literal, Self, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedpriv.errors import CheckFailed

SCHEMA: Final = 1
MAX_PARAMETERS: Final = 500_000_000  # a bound on what either side will decode, 2 GB
TRAIN: Final = "train"
EVALUATE: Final = "evaluate"
HELLO: Final = "query.hello"
BUDGET: Final = "query.budget"
COUNT: Final = "query.count"

Flat = NDArray[np.float32]
Part = Literal["validation", "test"]
Mode = Literal["simulation", "deployment"]


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
_SUM_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,95}")
_MAX_SUMS = 4096


def _public(kind: type[Any], about: str, low: float = -math.inf, high: float = math.inf) -> Any:
    return field(metadata={"wire": Field(kind, Basis.PUBLIC, about, low, high)})


def _event(kind: type[Any], about: str, low: float = -math.inf, high: float = math.inf) -> Any:
    return field(metadata={"wire": Field(kind, Basis.EVENT, about, low, high)})


def _head_number(about: str) -> Any:
    return field(default=0, metadata={"wire": Field(int, Basis.EVENT, about, 0, 2**62)})


def _head_hash(about: str) -> Any:
    return field(default="", metadata={"wire": Field(str, Basis.EVENT, about)})


@dataclass(frozen=True, kw_only=True)
class _Body:
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
            raise WireError(f"{cls.__name__} has the records {_names(record)}, expected {_names(cls.records)}")
        numbers, words = record["numbers"], record["words"]
        if not isinstance(numbers, MetricRecord) or not isinstance(words, ConfigRecord):
            raise WireError(f"{cls.__name__}: `numbers` or `words` is a record of another type")
        declared = _declared(cls)
        if len(numbers) + len(words) != len(declared):
            extra = (set(numbers) | set(words)) ^ set(declared)
            raise WireError(f"{cls.__name__}: unexpected or missing fields {_names(extra)}")
        values: dict[str, Any] = {}
        for name, declaration in declared.items():
            source: Mapping[str, object] = words if declaration.kind is str else numbers
            if name not in source:
                raise WireError(f"{cls.__name__}: field {name} is missing")
            _check_scalar(name, source[name], declaration)
            values[name] = source[name]
        return values


@dataclass(frozen=True, kw_only=True)
class _Numbers(_Body):
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


def _declared(cls: type[_Body]) -> dict[str, Field]:
    if cls not in _DECLARED:
        _DECLARED[cls] = cls.declared()
    return _DECLARED[cls]


def _names(keys: Any) -> str:
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


# ---- the model -----------------------------------------------------------------------------------------


def encode_model(parameters: Flat) -> ArrayRecord:
    """[P] float32 as Flower's record with the one key `flat`, in NumPy's own file format; one copy.

    Raises:
        WireError: not a float32 vector.
    """
    if parameters.ndim != 1 or parameters.dtype != np.float32:
        raise WireError(f"the model is {parameters.dtype}{list(parameters.shape)}, expected float32 [P]")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (parameters.shape[0],)}
    )
    body = np.ascontiguousarray(parameters, dtype="<f4")
    data = b"".join((head.getvalue(), body.data))  # one copy
    return ArrayRecord({"flat": Array("float32", (parameters.shape[0],), "numpy.ndarray", data)})


def decode_model(record: object, *, num_parameters: int | None, require_finite: bool = True) -> Flat:
    """[P] float32, a read-only view of the message's bytes (no copy).

    Raises:
        WireError: other keys, shape, type or length than declared, or values that are not finite.
    """
    if not isinstance(record, ArrayRecord) or set(record) != {"flat"}:
        raise WireError("the model is not a record with the one key `flat`")
    array = record["flat"]
    data = array.data
    try:
        head = io.BytesIO(data[:256])
        if np.lib.format.read_magic(head) != (1, 0):
            raise WireError("the model's header is not of version 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
    except (ValueError, struct.error, EOFError):
        raise WireError("the model's bytes are not a NumPy array") from None
    # The declared and the real header must agree: Flower shows people the declared one.
    if dtype.str != "<f4" or fortran or len(shape) != 1 or array.dtype != "float32" or tuple(array.shape) != shape:
        raise WireError(f"the model is {dtype}{list(shape)}, expected float32 [P]")
    size = shape[0]
    if not 0 < size <= MAX_PARAMETERS or (num_parameters is not None and size != num_parameters):
        raise WireError(f"the model has {size} parameters, expected {num_parameters}")
    if len(data) != head.tell() + 4 * size:
        raise WireError(f"the model has {len(data) - head.tell()} bytes, expected {4 * size}")
    flat = np.frombuffer(data, dtype="<f4", offset=head.tell())
    if require_finite and not all_finite(flat):
        raise WireError("the model has values that are not finite")
    return flat


def all_finite(flat: Flat) -> bool:
    """True when no entry is NaN or infinite."""
    # NaN and infinity survive a sum, so a finite sum settles it four times faster; one that overflows does not.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(flat.sum())) or bool(np.isfinite(flat).all())


# ---- requests and replies ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainRequest(_Body):
    """Train `steps` private steps from `model` in round `round`."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "model"})
    optional: ClassVar[frozenset[str]] = frozenset({"rule"})

    run_id: str = _public(str, "names the run; the same after a resume")
    round: int = _public(int, "1, 2, ...", 1, 1_000_000)
    steps: int = _public(int, "private steps to take", 0, 100_000)
    source: str = _public(str, "digest of the code that asks")
    scenario: str = _public(str, "digest of the scenario")
    ledger_seq: int = _event(int, "last ledger entry of this client that the server saw", 0, 2**62)
    ledger_head: str = _event(str, "hash of that entry; empty before the first")
    model: ArrayRecord
    rule: ArrayRecord | None = None  # what the rules remember, as a flat vector; basis: event. None: they keep nothing

    def to_record(self) -> RecordDict:
        """For Flower; `model` and `rule` are shared, not copied."""
        record = self._scalars()
        record["model"] = self.model
        if self.rule is not None:
            record["rule"] = self.rule
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        values = cls._parse(record)
        model = record["model"]
        if not isinstance(model, ArrayRecord):
            raise WireError("TrainRequest: `model` is a record of another type")
        rule = record.get("rule")
        if rule is not None and not isinstance(rule, ArrayRecord):
            raise WireError("TrainRequest: `rule` is a record of another type")
        return cls(**values, model=model, rule=rule)

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides the reply; two requests with it are the same request."""
        total = hashlib.sha256(
            json.dumps([SCHEMA, self.run_id, self.round, self.steps, self.source, self.scenario]).encode()
        )
        for name in self.model:
            total.update(self.model[name].data)
        if self.rule is not None:
            total.update(b"rule")
            for name in self.rule:
                total.update(self.rule[name].data)
        return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrainReply(_Body):
    """New parameters after the asked steps: a release that the ledger charged before any private row was read."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "model"})
    optional: ClassVar[frozenset[str]] = frozenset({"rule"})

    run_id: str = _public(str, "echo of the request")
    round: int = _public(int, "echo of the request", 1, 1_000_000)
    steps: int = _public(int, "echo of the request: steps taken do not depend on data", 0, 100_000)
    ledger_seq: int = _event(int, "number of the client's newest ledger entry; 0 without privacy", 0, 2**62)
    ledger_head: str = _event(str, "hash of that entry; the server echoes it, so that an old copy is noticed")
    parameters: Flat  # [P] float32; basis: event
    rule: Flat | None = None  # the request's `rule` advanced by these steps, float32; basis: event

    def to_record(self) -> RecordDict:
        """For Flower."""
        record = self._scalars()
        record["model"] = encode_model(self.parameters)
        if self.rule is not None:
            record["rule"] = encode_model(self.rule)
        return record

    @classmethod
    def from_record(cls, record: RecordDict, *, num_parameters: int | None = None) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types, ranges, shape than declared, or values that are not finite.
        """
        values = cls._parse(record)
        rule = decode_model(record["rule"], num_parameters=None) if "rule" in record else None
        return cls(**values, parameters=decode_model(record["model"], num_parameters=num_parameters), rule=rule)

    def to_bytes(self) -> bytes:
        """For the ledger's outbox: what would be sent, without the ledger's head (that is added when sending)."""
        told: dict[str, object] = {"run_id": self.run_id, "round": self.round, "steps": self.steps}
        if self.rule is not None:
            told["rule"] = int(self.rule.size)  # the last so many numbers of the body
        head = json.dumps(told).encode()
        parts = [self.parameters] if self.rule is None else [self.parameters, self.rule]
        body = b"".join(np.ascontiguousarray(part, dtype="<f4").tobytes() for part in parts)
        return struct.pack("<I", len(head)) + head + body

    @classmethod
    def from_bytes(cls, data: bytes, *, ledger_seq: int, ledger_head: str) -> Self:
        """What `to_bytes` wrote.

        Raises:
            WireError: the bytes are damaged.
        """
        try:
            (length,) = struct.unpack_from("<I", data)
            head = json.loads(data[4 : 4 + length])
            parameters, rule = np.frombuffer(data, dtype="<f4", offset=4 + length), None
            if "rule" in head:
                size = int(head.pop("rule"))
                if not 0 < size < parameters.size:
                    raise ValueError
                parameters, rule = parameters[:-size], parameters[-size:]
            return cls(**head, ledger_seq=ledger_seq, ledger_head=ledger_head, parameters=parameters, rule=rule)
        except (struct.error, ValueError, TypeError):
            raise WireError("the stored reply is damaged; it was not sent", Refusal.LEDGER_CONFLICT) from None


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(_Body):
    """Score `model` on held-out data. Answered with numbers in simulation only."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "model"})

    run_id: str = _public(str, "names the run")
    round: int = _public(int, "0 before the first round", 0, 1_000_000)
    part: str = _public(str, "validation or test")
    samples: int = _public(int, "forecasts drawn per window; 0: point forecast only", 0, 10_000)
    source: str = _public(str, "digest of the code that asks")
    scenario: str = _public(str, "digest of the scenario")
    ledger_seq: int = _head_number("last ledger entry of this client that the server saw")
    ledger_head: str = _head_hash("hash of that entry; empty before the first")
    model: ArrayRecord

    def to_record(self) -> RecordDict:
        """For Flower; `model` is shared, not copied."""
        record = self._scalars()
        record["model"] = self.model
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        values = cls._parse(record)
        if values["part"] not in ("validation", "test"):
            raise WireError("field part is neither validation nor test")
        model = record["model"]
        if not isinstance(model, ArrayRecord):
            raise WireError("EvaluateRequest: `model` is a record of another type")
        return cls(**values, model=model)

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides the reply; two requests with it are the same request."""
        parts = [SCHEMA, self.run_id, self.round, self.part, self.samples, self.source, self.scenario]
        total = hashlib.sha256(json.dumps(parts).encode())
        for name in self.model:
            total.update(self.model[name].data)
        return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class EvaluateReply(_Body):
    """Scores on held-out private data: exact sums in simulation only, noisy means where the ledger was charged."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "sums"})
    optional: ClassVar[frozenset[str]] = frozenset({"released"})
    sums_basis: ClassVar[Basis] = Basis.SIMULATION_ONLY
    released_basis: ClassVar[Basis] = Basis.EVENT

    run_id: str = _public(str, "echo of the request")
    round: int = _public(int, "echo of the request", 0, 1_000_000)
    part: str = _public(str, "echo of the request")
    withheld: int = _public(int, "1: this client does not send exact scores", 0, 1)
    ledger_seq: int = _head_number("number of the client's newest ledger entry, where one was made for this; else 0")
    ledger_head: str = _head_hash("hash of that entry")
    sums: Mapping[str, float] = field(
        default_factory=dict[str, float]
    )  # see fedpriv.metrics; keys begin with a model's name
    released: Mapping[str, float] = field(default_factory=dict[str, float])  # noisy means, see fedpriv.releases

    def to_record(self) -> RecordDict:
        """For Flower.

        Raises:
            WireError: a key or value that the wire does not carry, or sums in a withheld reply.
        """
        record = self._scalars()
        record["sums"] = MetricRecord({name: float(value) for name, value in self.sums.items()})
        _check_sums(cast(MetricRecord, record["sums"]), withheld=bool(self.withheld))
        if self.released:
            record["released"] = MetricRecord({name: float(value) for name, value in self.released.items()})
            _check_sums(cast(MetricRecord, record["released"]), withheld=False)
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        values = cls._parse(record)
        sums = record["sums"]
        if not isinstance(sums, MetricRecord):
            raise WireError("EvaluateReply: `sums` is a record of another type")
        _check_sums(sums, withheld=bool(values["withheld"]))
        released = record.get("released", MetricRecord())
        if not isinstance(released, MetricRecord):
            raise WireError("EvaluateReply: `released` is a record of another type")
        _check_sums(released, withheld=False)
        return cls(
            **values,
            sums={name: cast(float, value) for name, value in sums.items()},
            released={name: cast(float, value) for name, value in released.items()},
        )


def _check_sums(sums: MetricRecord, *, withheld: bool) -> None:
    if withheld and len(sums):
        raise WireError("a withheld evaluation carries numbers")
    if len(sums) > _MAX_SUMS:
        raise WireError(f"an evaluation has {len(sums)} sums, at most {_MAX_SUMS} are allowed")
    for name, value in sums.items():
        if not _SUM_KEY.fullmatch(name):
            raise WireError("an evaluation has a key that is not made of letters, digits and _.:/-")
        if type(value) is not float or not math.isfinite(value):
            raise WireError(f"sum {name} is not a finite float")


@dataclass(frozen=True, kw_only=True)
class CountRequest(_Numbers):
    """How many readings has this client? Answered with a noisy count, if the scenario pays for one."""

    run_id: str = _public(str, "names the run; the same after a resume")
    source: str = _public(str, "digest of the code that asks")
    scenario: str = _public(str, "digest of the scenario")
    ledger_seq: int = _head_number("last ledger entry of this client that the server saw")
    ledger_head: str = _head_hash("hash of that entry; empty before the first")

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides the reply."""
        parts = [SCHEMA, self.run_id, self.source, self.scenario]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CountReply(_Numbers):
    """A noisy count of readings: a release that the ledger charged before any of them was looked at."""

    run_id: str = _public(str, "echo of the request")
    count: float = _event(float, "noisy number of calendar steps with a reading", 0, 1e15)
    ledger_seq: int = _event(int, "number of the client's newest ledger entry", 0, 2**62)
    ledger_head: str = _event(str, "hash of that entry")


@dataclass(frozen=True, kw_only=True)
class Hello(_Numbers):
    """Who is there: the answer to `query.hello`, from public facts alone."""

    schema: int = _public(int, "version of this wire", 0, 2**31)
    client: str = _public(str, "name of the client (party with data)")
    partition: int = _public(int, "place in the simulation's roster; -1 in deployment", -1, 10_000_000)
    partitions: int = _public(int, "clients in the simulation; -1 in deployment", -1, 10_000_000)
    source: str = _public(str, "digest of the code that answers")
    mode: str = _public(str, "simulation or deployment")

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        hello = super().from_record(record)
        if hello.mode not in ("simulation", "deployment") or not hello.client:
            raise WireError("Hello: the mode is unknown or the client has no name")
        return hello


@dataclass(frozen=True, kw_only=True)
class BudgetReply(_Numbers):
    """The client's account: the answer to `query.budget`, a function of charged events and public settings."""

    client: str = _public(str, "name of the client")
    enabled: int = _public(int, "0: this run claims no privacy, the other numbers are 0", 0, 1)
    committed: float = _event(float, "epsilon of all contracts in the ledger", 0)
    nominal: float = _event(float, "epsilon of what was reserved so far", 0)
    budget: float = _public(float, "epsilon that the owner allows", 0)
    delta: float = _public(float, "delta of all three", 0, 1)
    ledger_seq: int = _event(int, "number of the newest ledger entry", 0, 2**62)
    ledger_head: str = _event(str, "hash of that entry")


# ---- helpers for both sides ----------------------------------------------------------------------------


def query(node_id: int, kind: Literal["query.hello", "query.budget"], *, ttl: float) -> Message:
    """An empty question of one of the two kinds that a client answers."""
    return Message(RecordDict(), node_id, kind, ttl=ttl)


def refusal_of(message: Message) -> Refusal:
    """Why `message`, a reply with an error, says no.

    Codes that are not ours (Flower's own: node unavailable, app not loaded ...) count as NODE_LOST; the text that
    came with them is not looked at, for it may quote an exception.
    """
    try:
        return Refusal(message.error.code)
    except ValueError:
        return Refusal.NODE_LOST


def read_train_reply(message: Message, request: TrainRequest, *, num_parameters: int) -> TrainReply:
    """The checked reply to `request`.

    Raises:
        WireError: an error reply (its `refusal` is the client's), or a reply that is not what was asked for.
    """
    if message.has_error():
        refusal = refusal_of(message)
        raise WireError(f"the client refused: {refusal.word}", refusal)
    reply = TrainReply.from_record(message.content, num_parameters=num_parameters)
    if (reply.run_id, reply.round, reply.steps) != (request.run_id, request.round, request.steps):
        raise WireError("the reply belongs to another request")
    asked = None if request.rule is None else decode_model(request.rule, num_parameters=None).size
    if (None if reply.rule is None else reply.rule.size) != asked:
        raise WireError("the reply's rule state is not of the size that was sent")
    return reply


def read_evaluate_reply(message: Message, request: EvaluateRequest) -> EvaluateReply:
    """The checked reply to `request`.

    Raises:
        WireError: an error reply, or a reply that is not what was asked for.
    """
    if message.has_error():
        refusal = refusal_of(message)
        raise WireError(f"the client refused: {refusal.word}", refusal)
    reply = EvaluateReply.from_record(message.content)
    if (reply.run_id, reply.round, reply.part) != (request.run_id, request.round, request.part):
        raise WireError("the reply belongs to another request")
    return reply


def read_hello(message: Message) -> Hello:
    """The checked answer to `query.hello`.

    Raises:
        WireError: an error reply, another schema, or a reply that is not what was asked for.
    """
    if message.has_error():
        refusal = refusal_of(message)
        raise WireError(f"the client refused: {refusal.word}", refusal)
    hello = Hello.from_record(message.content)
    if hello.schema != SCHEMA:
        raise WireError(f"the client speaks schema {hello.schema}, this server {SCHEMA}", Refusal.SOURCE_MISMATCH)
    return hello


def read_budget(message: Message) -> BudgetReply:
    """The checked answer to `query.budget`.

    Raises:
        WireError: an error reply, or a reply that is not what was asked for.
    """
    if message.has_error():
        refusal = refusal_of(message)
        raise WireError(f"the client refused: {refusal.word}", refusal)
    return BudgetReply.from_record(message.content)


def read_count(message: Message, request: CountRequest) -> CountReply:
    """The checked answer to `request`.

    Raises:
        WireError: an error reply, or a reply that is not what was asked for.
    """
    if message.has_error():
        refusal = refusal_of(message)
        raise WireError(f"the client refused: {refusal.word}", refusal)
    reply = CountReply.from_record(message.content)
    if reply.run_id != request.run_id:
        raise WireError("the reply belongs to another request")
    return reply
