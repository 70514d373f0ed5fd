"""The wire: whitelists, bases, checks of models, refusals without text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedpriv.messages import (
    BUDGET,
    HELLO,
    SCHEMA,
    TRAIN,
    Basis,
    BudgetReply,
    CountReply,
    EvaluateReply,
    EvaluateRequest,
    Hello,
    Refusal,
    TrainReply,
    TrainRequest,
    WireError,
    decode_model,
    encode_model,
    query,
    read_budget,
    read_evaluate_reply,
    read_hello,
    read_train_reply,
    refusal_of,
)
from simulations.flower_internals import become_server

become_server()
MODEL = np.linspace(-1.0, 1.0, 7, dtype=np.float32)


def train_request(**changes: object) -> TrainRequest:
    fields = {
        "run_id": "r",
        "round": 3,
        "steps": 2,
        "source": "s",
        "scenario": "c",
        "ledger_seq": 4,
        "ledger_head": "h",
    }
    return TrainRequest(**{**fields, **changes}, model=encode_model(MODEL))  # type: ignore[arg-type]


def train_reply(**changes: object) -> TrainReply:
    fields = {"run_id": "r", "round": 3, "steps": 2, "ledger_seq": 5, "ledger_head": "h2", "parameters": MODEL}
    return TrainReply(**{**fields, **changes})  # type: ignore[arg-type]


def evaluate_reply(**changes: object) -> EvaluateReply:
    fields = {"run_id": "r", "round": 3, "part": "test", "withheld": 0, "sums": {"federated/sum.squared": 1.5}}
    return EvaluateReply(**{**fields, **changes})  # type: ignore[arg-type]


def hello(**changes: object) -> Hello:
    fields = {"schema": SCHEMA, "client": "A", "partition": 0, "partitions": 2, "source": "s", "mode": "simulation"}
    return Hello(**{**fields, **changes})  # type: ignore[arg-type]


def budget(**changes: object) -> BudgetReply:
    fields = {
        "client": "A",
        "enabled": 1,
        "committed": 8.0,
        "nominal": 2.0,
        "budget": 8.0,
        "delta": 1e-5,
        "ledger_seq": 3,
        "ledger_head": "h",
    }
    return BudgetReply(**{**fields, **changes})  # type: ignore[arg-type]


def asked(content: RecordDict, kind: str = TRAIN) -> Message:
    return Message(content, 2, kind)


BODIES = [train_reply(), evaluate_reply(), hello(), budget()]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: type(b).__name__)
def test_record_survives_flower_serialisation(body):
    record = recorddict_from_proto(recorddict_to_proto(body.to_record()))
    back = type(body).from_record(record)
    assert back.to_record() == body.to_record()


@pytest.mark.parametrize("body", BODIES, ids=lambda b: type(b).__name__)
def test_unknown_missing_and_mistyped_fields_are_refused(body):
    kind = type(body)
    for name, declaration in kind.declared().items():
        place = "words" if declaration.kind is str else "numbers"
        without = body.to_record()
        del without[place][name]
        with pytest.raises(WireError):
            kind.from_record(without)
        mistyped = body.to_record()
        mistyped[place][name] = [1] if place == "numbers" else b"x"
        with pytest.raises(WireError, match=name):
            kind.from_record(mistyped)
    more = body.to_record()
    more["numbers"]["train_loss"] = 0.1
    with pytest.raises(WireError, match="train_loss"):
        kind.from_record(more)
    record = body.to_record()
    record["extra"] = MetricRecord({"mean": 1.0})
    with pytest.raises(WireError, match="extra"):
        kind.from_record(record)


def test_every_field_declares_its_basis_and_replies_are_exactly_these():
    declared = {
        kind.__name__: {name: field.basis.value for name, field in kind.declared().items()}
        for kind in (TrainReply, EvaluateReply, CountReply, Hello, BudgetReply)
    }
    # A change here is a change of what leaves a client: think before editing.
    assert declared == {
        "TrainReply": {
            "run_id": "public",
            "round": "public",
            "steps": "public",
            "ledger_seq": "event",
            "ledger_head": "event",
        },
        "EvaluateReply": {
            "run_id": "public",
            "round": "public",
            "part": "public",
            "withheld": "public",
            "ledger_seq": "event",
            "ledger_head": "event",
        },
        "CountReply": {"run_id": "public", "count": "event", "ledger_seq": "event", "ledger_head": "event"},
        "Hello": {
            "schema": "public",
            "client": "public",
            "partition": "public",
            "partitions": "public",
            "source": "public",
            "mode": "public",
        },
        "BudgetReply": {
            "client": "public",
            "enabled": "public",
            "committed": "event",
            "nominal": "event",
            "budget": "public",
            "delta": "public",
            "ledger_seq": "event",
            "ledger_head": "event",
        },
    }
    assert EvaluateReply.sums_basis is Basis.SIMULATION_ONLY


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 0},
        {"round": True},
        {"steps": -1},
        {"steps": 10**9},
        {"run_id": "x" * 200},
        {"run_id": "a\nb"},
        {"ledger_seq": np.int64(3)},
        {"ledger_head": 5},
    ],
)
def test_own_values_are_checked_before_they_are_sent(changes):
    with pytest.raises(WireError):
        train_reply(**changes).to_record()


def test_budget_refuses_nan():
    with pytest.raises(WireError, match="nominal"):
        budget(nominal=float("nan")).to_record()


class TestModel:
    def test_round_trip_is_a_read_only_view(self):
        record = encode_model(MODEL)
        flat = decode_model(record, num_parameters=7)
        assert np.array_equal(flat, MODEL)
        assert not flat.flags.writeable
        assert np.array_equal(record["flat"].numpy(), MODEL)  # Flower's own decoder agrees

    @pytest.mark.parametrize(
        "array",
        [
            MODEL.astype(np.float64),
            MODEL.astype(np.int32),
            MODEL.reshape(1, 7),
            np.array(1.0, dtype=np.float32),
            np.zeros(0, dtype=np.float32),
            np.asfortranarray(MODEL.reshape(7, 1)),
            np.array([1, np.nan], dtype=np.float32),
            np.array([1, np.inf], dtype=np.float32),
            MODEL.astype(">f4"),
        ],
    )
    def test_other_arrays_are_refused(self, array):
        with pytest.raises(WireError):
            decode_model(ArrayRecord({"flat": Array(array)}), num_parameters=None)

    def test_length_must_be_the_expected(self):
        with pytest.raises(WireError, match="7 parameters, expected 8"):
            decode_model(encode_model(MODEL), num_parameters=8)

    def test_other_keys_are_refused(self):
        array = encode_model(MODEL)["flat"]
        for record in (ArrayRecord({"weights": array}), ArrayRecord({"flat": array, "more": array}), ArrayRecord()):
            with pytest.raises(WireError, match="one key"):
                decode_model(record, num_parameters=7)

    def test_truncated_padded_lying_and_pickled_bytes_are_refused(self):
        array = encode_model(MODEL)["flat"]
        pickled = Array(np.array([1.0], dtype=np.float32))
        pickled.data = (
            b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (7,), }".ljust(117) + b"\n"
        )
        wrong = [
            replace_data(array, array.data[:-1]),
            replace_data(array, array.data + b"\0"),
            replace_data(array, b""),
            replace_data(array, b"garbage"),
            Array("float32", (6,), array.stype, array.data),
            Array("float64", (7,), array.stype, array.data),
            pickled,
        ]
        for one in wrong:
            with pytest.raises(WireError):
                decode_model(ArrayRecord({"flat": one}), num_parameters=None)

    def test_encoding_refuses_what_is_not_a_float32_vector(self):
        with pytest.raises(WireError, match="float64"):
            encode_model(MODEL.astype(np.float64))  # type: ignore[arg-type]


def replace_data(array: Array, data: bytes) -> Array:
    return Array(array.dtype, tuple(array.shape), array.stype, data)


class TestRequests:
    def test_train_round_trip_shares_the_model(self):
        request = train_request()
        record = request.to_record()
        assert record["model"] is request.model
        assert TrainRequest.from_record(record) == request

    def test_digest_depends_on_what_decides_the_reply_only(self):
        first = train_request()
        assert first.digest() == train_request(ledger_seq=9, ledger_head="other").digest()
        for changes in ({"round": 4}, {"steps": 1}, {"run_id": "q"}, {"scenario": "d"}, {"source": "t"}):
            assert first.digest() != train_request(**changes).digest()
        other = replace(first, model=encode_model(MODEL + np.float32(1e-7)))
        assert first.digest() != other.digest()

    def test_evaluate_part_is_one_of_two(self):
        request = EvaluateRequest(
            run_id="r", round=0, part="train", samples=0, source="s", scenario="c", model=encode_model(MODEL)
        )
        with pytest.raises(WireError, match="part"):
            EvaluateRequest.from_record(request.to_record())


class TestReplies:
    def test_valid_reply(self):
        request = train_request()
        reply = Message(train_reply().to_record(), reply_to=asked(request.to_record()))
        assert np.array_equal(read_train_reply(reply, request, num_parameters=7).parameters, MODEL)

    @pytest.mark.parametrize("changes", [{"round": 2}, {"run_id": "q"}, {"steps": 1}])
    def test_reply_to_another_request_is_refused(self, changes):
        request = train_request()
        reply = Message(train_reply(**changes).to_record(), reply_to=asked(request.to_record()))
        with pytest.raises(WireError, match="another request"):
            read_train_reply(reply, request, num_parameters=7)

    def test_evaluation_echo_and_withheld(self):
        request = EvaluateRequest(
            run_id="r", round=3, part="test", samples=0, source="s", scenario="c", model=encode_model(MODEL)
        )
        message = asked(request.to_record(), "evaluate")
        good = Message(evaluate_reply().to_record(), reply_to=message)
        assert read_evaluate_reply(good, request).sums == {"federated/sum.squared": 1.5}
        other = Message(evaluate_reply(part="validation").to_record(), reply_to=message)
        with pytest.raises(WireError, match="another request"):
            read_evaluate_reply(other, request)
        with pytest.raises(WireError, match="withheld"):
            evaluate_reply(withheld=1).to_record()
        assert evaluate_reply(withheld=1, sums={}).to_record()

    @pytest.mark.parametrize("sums", [{"a b": 1.0}, {"": 1.0}, {"x": float("nan")}, {"x" * 200: 1.0}])
    def test_sums_are_checked(self, sums):
        with pytest.raises(WireError):
            evaluate_reply(sums=sums).to_record()

    def test_too_many_sums(self):
        with pytest.raises(WireError, match="40000"):
            evaluate_reply(sums={f"k{i}": 1.0 for i in range(40_000)}).to_record()

    def test_hello_of_another_schema_or_mode(self):
        message = query(2, HELLO, ttl=5.0)
        with pytest.raises(WireError) as caught:
            read_hello(Message(hello(schema=SCHEMA + 1).to_record(), reply_to=message))
        assert caught.value.refusal is Refusal.SOURCE_MISMATCH
        with pytest.raises(WireError, match="mode"):
            read_hello(Message(hello(mode="other").to_record(), reply_to=message))
        assert read_hello(Message(hello().to_record(), reply_to=message)).client == "A"

    def test_budget(self):
        reply = Message(budget().to_record(), reply_to=query(2, BUDGET, ttl=5.0))
        assert read_budget(reply).committed == 8.0

    def test_stored_bytes(self):
        stored = train_reply().to_bytes()
        back = TrainReply.from_bytes(stored, ledger_seq=9, ledger_head="new")
        assert (back.round, back.ledger_seq, back.ledger_head) == (3, 9, "new")
        assert np.array_equal(back.parameters, MODEL)
        assert stored == train_reply(ledger_seq=77, ledger_head="elsewhere").to_bytes()  # the head is not in it
        for bad in (b"", b"\xff" * 12, stored[:20], stored[:-1]):
            with pytest.raises(WireError):
                TrainReply.from_bytes(bad, ledger_seq=1, ledger_head="")


class TestRefusals:
    def test_codes_and_words(self):
        assert all(refusal >= 1000 for refusal in Refusal)
        assert len({refusal.word for refusal in Refusal}) == len(Refusal)
        for name in ("budget-exceeded", "ledger-missing", "ledger-conflict", "source-mismatch", "scenario-mismatch"):
            assert name in {refusal.word for refusal in Refusal}

    @pytest.mark.parametrize("refusal", list(Refusal))
    def test_the_wire_carries_code_and_word(self, refusal):
        reply = refusal.to_message(asked(train_request().to_record()))
        assert (reply.error.code, reply.error.reason) == (int(refusal), refusal.word)
        assert refusal_of(reply) is refusal
        with pytest.raises(WireError) as caught:
            read_train_reply(reply, train_request(), num_parameters=7)
        assert caught.value.refusal is refusal

    def test_foreign_codes_are_lost_nodes_and_their_text_is_not_repeated(self):
        reply = Message(Error(2, "SECRET-4711"), reply_to=asked(train_request().to_record()))
        assert refusal_of(reply) is Refusal.NODE_LOST
        with pytest.raises(WireError) as caught:
            read_train_reply(reply, train_request(), num_parameters=7)
        assert "SECRET" not in str(caught.value)


def test_words_record_of_another_type_is_refused():
    record = hello().to_record()
    record["words"], record["numbers"] = ConfigRecord(), ConfigRecord()
    with pytest.raises(WireError, match="another type"):
        Hello.from_record(record)


# ---- the memory of privacy rules -----------------------------------------------------------------

RULE = np.array([0.5, 2.0], dtype=np.float32)


def test_a_rule_state_goes_there_and_back():
    request = train_request(rule=encode_model(RULE))
    again = TrainRequest.from_record(request.to_record())
    assert again.rule is not None
    assert np.array_equal(decode_model(again.rule, num_parameters=2), RULE)
    reply = TrainReply.from_record(train_reply(rule=RULE).to_record(), num_parameters=7)
    assert reply.rule is not None
    assert np.array_equal(reply.rule, RULE) and np.array_equal(reply.parameters, MODEL)
    kept = TrainReply.from_bytes(reply.to_bytes(), ledger_seq=5, ledger_head="h2")
    assert kept.rule is not None
    assert np.array_equal(kept.rule, RULE) and np.array_equal(kept.parameters, MODEL)


def test_a_rule_state_is_part_of_the_request_and_absent_where_there_is_none():
    plain, other = train_request(), train_request(rule=encode_model(RULE))
    third = train_request(rule=encode_model(RULE + 1))
    assert len({plain.digest(), other.digest(), third.digest()}) == 3
    assert set(plain.to_record()) == {"numbers", "words", "model"}
    assert set(train_reply().to_record()) == {"numbers", "words", "model"}
    assert TrainReply.from_bytes(train_reply().to_bytes(), ledger_seq=5, ledger_head="h2").rule is None


@pytest.mark.parametrize("sent", [None, RULE[:1], np.array([1.0, np.nan], dtype=np.float32)])
def test_a_reply_with_another_rule_state_is_rejected(sent):
    request = train_request(rule=encode_model(RULE))
    message = Message(request.to_record(), 1, TRAIN)
    with pytest.raises(WireError):
        read_train_reply(Message(train_reply(rule=sent).to_record(), reply_to=message), request, num_parameters=7)
    with pytest.raises(WireError):
        asked = train_request()
        read_train_reply(Message(train_reply(rule=RULE).to_record(), reply_to=message), asked, num_parameters=7)
