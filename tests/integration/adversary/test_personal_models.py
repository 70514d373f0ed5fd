"""A deployed client keeps its own model: nothing of it is sent, and private fine-tuning is paid for once."""

from __future__ import annotations

import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpriv.messages import Refusal, encode_model, refusal_of

LOCAL = {"personal__kind": "local", "personal__steps": 3}
PRIVATE = {"personal__kind": "private", "personal__steps": 3}


def trained(server):
    """The honest rounds; the arguments of the last evaluation."""
    seq, head, parameters = 0, "", server.worker.initial_parameters()
    for round in range(1, 7):
        reply = server.trained(round=round, ledger_seq=seq, ledger_head=head, model=encode_model(parameters))
        seq, head, parameters = reply.ledger_seq, reply.ledger_head, reply.parameters.copy()
    return {"round": 6, "part": "test", "ledger_seq": seq, "ledger_head": head, "model": encode_model(parameters)}


def kept(owner):
    return owner.ledger.with_name(f"{owner.client}.personal.safetensors")


def test_a_local_model_stays_beside_the_ledger_and_costs_nothing(owner, server):
    honest = server(**LOCAL)
    last = trained(honest)
    before = owner.paid()
    reply = honest.evaluated(**last)
    assert reply.withheld == 1 and not reply.sums and not reply.released and reply.ledger_seq == 0
    assert owner.paid() == before == 6
    weights = load_file(kept(owner))
    assert stat.S_IMODE(kept(owner).stat().st_mode) == 0o600
    assert all(np.isfinite(array).all() for array in weights.values())
    sent = honest.evaluate(**last).content  # asked again: the same empty answer
    assert set(sent) == {"numbers", "words", "sums"} and not len(sent["sums"])


@pytest.mark.parametrize("how", ["overflow", "no readings", "nowhere to write"])
def test_whether_a_local_model_could_be_made_is_not_seen_in_the_answer(owner, server, monkeypatch, how):
    # Nobody pays for its steps, so nothing that depends on readings may be seen of them, not even a failure.
    honest = server(**LOCAL)
    last = trained(honest)
    if how == "overflow":  # as with weights of 1e20 and some readings
        nowhere = np.full(honest.worker.num_parameters, np.nan, np.float32)
        monkeypatch.setattr("clients.evaluation.personalise", lambda *_, **__: nowhere)
    elif how == "no readings":
        monkeypatch.setattr("fedpriv.training.worker.load_client", lambda *_, **__: 1 / 0)
    else:
        kept(owner).mkdir()
    reply = honest.evaluated(**last)
    assert reply.withheld == 1 and not reply.sums and not reply.released and reply.ledger_seq == 0
    assert not kept(owner).is_file() and owner.paid() == 6


def test_private_fine_tuning_is_reserved_before_it_is_made_and_only_once(owner, server, no_data):
    honest = server(**PRIVATE)
    last = trained(honest)
    reply = honest.evaluated(**last)
    assert not reply.sums and not reply.released
    assert owner.paid() == 6 + 3
    first = kept(owner).read_bytes()
    assert stat.S_IMODE(kept(owner).stat().st_mode) == 0o600
    heads = {"ledger_seq": reply.ledger_seq, "ledger_head": reply.ledger_head}
    no_data()
    honest.evaluated(**last)  # the very same request: stored, not made again
    assert kept(owner).read_bytes() == first and owner.paid() == 9
    other = encode_model(np.full(honest.worker.num_parameters, 0.1, np.float32))
    refusal = refusal_of(honest.evaluate(**{**last, **heads, "model": other}))
    assert refusal is Refusal.LEDGER_CONFLICT
    assert kept(owner).read_bytes() == first and owner.paid() == 9


@pytest.mark.parametrize("asked", [{"round": 5, "part": "test"}, {"round": 6, "part": "validation"}])
def test_nothing_is_made_before_the_end(owner, server, no_data, asked):
    honest = server(**PRIVATE)
    last = trained(honest)
    no_data()
    assert not honest.evaluated(**{**last, **asked}).sums
    assert not kept(owner).exists() and owner.paid() == 6


def test_fine_tuning_that_the_budget_does_not_allow_is_refused_with_the_run(owner, server, no_data):
    evil = server(**{**PRIVATE, "personal__steps": 5000}, privacy__noise_multiplier=1.5, privacy__epsilon=1e6)
    no_data()
    assert evil.refused() is Refusal.BUDGET_EXCEEDED
    assert [row["kind"] for row in owner.rows()] == ["genesis", "refused"]
