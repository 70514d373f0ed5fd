"""The messages of side releases: declared, checked, and refused when they are anything else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord

from fedpriv.messages import Basis, CountReply, CountRequest, EvaluateReply, EvaluateRequest, WireError, encode_model


def count(**changes) -> CountReply:
    return CountReply(**{"run_id": "r", "count": 812.5, "ledger_seq": 3, "ledger_head": "h", **changes})


def scores(**changes) -> EvaluateReply:
    return EvaluateReply(**{"run_id": "r", "round": 3, "part": "test", "withheld": 1, **changes})


def test_there_and_back():
    assert CountReply.from_record(count().to_record()) == count()
    asked = CountRequest(run_id="r", source="s", scenario="d")
    assert CountRequest.from_record(asked.to_record()) == asked
    noisy = scores(released={"window-mse": 0.5, "window-mae": 0.25})
    assert EvaluateReply.from_record(noisy.to_record()) == noisy
    assert "released" not in scores().to_record()
    assert EvaluateReply.from_record(scores().to_record()).released == {}


def test_their_basis_is_an_event():
    assert CountReply.declared()["count"].basis is Basis.EVENT
    assert EvaluateReply.released_basis is Basis.EVENT
    assert EvaluateReply.sums_basis is Basis.SIMULATION_ONLY


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 5, "5", True])
def test_counts_that_are_none(bad):
    with pytest.raises(WireError):
        count(count=bad).to_record()


@pytest.mark.parametrize("released", [{"a": math.nan}, {"a": math.inf}, {"": 1.0}, {"x y": 1.0}, {"\n": 1.0}])
def test_released_scores_that_are_none(released):
    with pytest.raises(WireError):
        scores(released=released).to_record()
    record = scores().to_record()
    record["released"] = MetricRecord(released)
    with pytest.raises(WireError):
        EvaluateReply.from_record(record)


def test_other_records_are_refused():
    record = scores().to_record()
    record["released"] = ConfigRecord({"a": 1.0})
    with pytest.raises(WireError, match="another type"):
        EvaluateReply.from_record(record)
    record = count().to_record()
    record["sums"] = MetricRecord({"secret": 1.0})
    with pytest.raises(WireError, match="records"):
        CountReply.from_record(record)


def test_the_digest_of_an_evaluation_follows_all_that_decides_it():
    def asked(**changes):
        fields = {
            "run_id": "r", "round": 1, "part": "test", "samples": 0, "source": "s", "scenario": "d",
            "model": encode_model(np.zeros(3, np.float32)),
        }  # fmt: skip
        return EvaluateRequest(**{**fields, **changes}).digest()

    changed = [{"run_id": "q"}, {"round": 2}, {"part": "validation"}, {"samples": 2}, {"scenario": "e"},
               {"model": encode_model(np.ones(3, np.float32))}]  # fmt: skip
    assert len({asked(), *(asked(**c) for c in changed)}) == len(changed) + 1
