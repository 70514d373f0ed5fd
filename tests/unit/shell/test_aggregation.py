"""Server optimisers against the papers' formulae and Flower's own FedAvgM."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvgM as FlowerFedAvgM
from hypothesis import given
from hypothesis import strategies as st

from fedpriv.errors import InputError
from simulations.flower_internals import become_server
from strategies.aggregation import (
    OPTIMIZERS,
    FedAdam,
    FedAvg,
    FedAvgM,
    make_optimizer,
    mean_delta,
    moving_average,
    public_weights,
)

RNG = np.random.default_rng(5)
MODEL = RNG.normal(size=11).astype(np.float32)
UPDATES = [MODEL + RNG.normal(size=11).astype(np.float32) for _ in range(4)]


def test_mean_delta_is_the_weighted_mean_of_differences():
    expected = np.mean([u.astype(np.float64) - MODEL for u in UPDATES], axis=0)
    np.testing.assert_allclose(mean_delta(MODEL, UPDATES), expected, rtol=1e-14)
    weights = [1.0, 2.0, 3.0, 4.0]
    expected = np.average([u.astype(np.float64) - MODEL for u in UPDATES], axis=0, weights=weights)
    np.testing.assert_allclose(mean_delta(MODEL, UPDATES, weights), expected, rtol=1e-13)


def test_mean_delta_refuses_nothing_and_bad_weights():
    with pytest.raises(ValueError, match="no updates"):
        mean_delta(MODEL, [])
    for weights in ([1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, float("nan")], [1.0, 1.0, 1.0, -1.0]):
        with pytest.raises(ValueError, match="weights"):
            mean_delta(MODEL, UPDATES, weights)


def test_identical_updates_are_returned_exactly_by_fedavg():
    new, state = FedAvg().step(MODEL, mean_delta(MODEL, [UPDATES[0]] * 3), {})
    assert np.array_equal(new, UPDATES[0])
    assert state == {}


def test_fedavgm_by_hand_over_three_rounds():
    optimizer = FedAvgM(momentum=0.9, server_learning_rate=0.5)
    state = optimizer.init(11)
    model, velocity = MODEL, np.zeros(11)
    deltas = [RNG.normal(size=11) for _ in range(3)]
    for delta in deltas:
        velocity = 0.9 * velocity + delta
        expected = (model + 0.5 * velocity).astype(np.float32)
        model, state = optimizer.step(model, delta, state)
        assert np.array_equal(model, expected)
        assert np.array_equal(state["velocity"], velocity)


def test_fedavgm_agrees_with_flower():
    """Flower 1.41's FedAvgM through its own verbs, equal weights, two rounds."""
    become_server()
    theirs = FlowerFedAvgM(server_learning_rate=0.7, server_momentum=0.8)
    ours, state, model = FedAvgM(server_learning_rate=0.7, momentum=0.8), FedAvgM().init(11), MODEL
    theirs.current_arrays = ArrayRecord([MODEL])
    for round_ in (1, 2):
        updates = [model + RNG.normal(size=11).astype(np.float32) for _ in range(3)]
        request = Message(RecordDict(), 2, "train")
        replies = [
            Message(RecordDict({"a": ArrayRecord([u]), "m": MetricRecord({"num-examples": 1})}), reply_to=request)
            for u in updates
        ]
        arrays, _ = theirs.aggregate_train(round_, replies)
        assert arrays is not None
        model, state = ours.step(model, mean_delta(model, updates), state)
        np.testing.assert_allclose(arrays.to_numpy_ndarrays()[0], model, rtol=3e-6, atol=3e-6)


def test_fedadam_by_hand():
    """Reddi et al., algorithm 2: v starts at tau^2, no bias correction."""
    optimizer = FedAdam(server_learning_rate=0.1, beta1=0.9, beta2=0.99, tau=1e-3)
    state, model = optimizer.init(11), MODEL
    m, v = np.zeros(11), np.full(11, 1e-6)
    for delta in (RNG.normal(size=11), RNG.normal(size=11)):
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        expected = (model + 0.1 * m / (np.sqrt(v) + 1e-3)).astype(np.float32)
        model, state = optimizer.step(model, delta, state)
        np.testing.assert_allclose(model, expected, rtol=1e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_steps_do_not_change_their_arguments(name):
    optimizer = make_optimizer(name, {})
    state = optimizer.init(11)
    before = {k: a.copy() for k, a in state.items()}
    model, delta = MODEL.copy(), RNG.normal(size=11)
    kept = delta.copy()
    new, after = optimizer.step(model, delta, state)
    assert new.dtype == np.float32
    assert np.array_equal(model, MODEL)
    assert np.array_equal(delta, kept)
    assert all(np.array_equal(state[k], before[k]) for k in before)
    assert after.keys() == before.keys()


@given(st.permutations(range(4)))
def test_order_matters_only_in_the_last_bits(order):
    np.testing.assert_allclose(mean_delta(MODEL, [UPDATES[i] for i in order]), mean_delta(MODEL, UPDATES), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fedsgd", {}, "fedavg"),
        ("fedavg", {"momentum": 0.5}, "not an option of fedavg"),
        ("fedavgm", {"momentum": 1.0}, "[0, 1)"),
        ("fedavgm", {"momentum": "much"}, "not a number"),
        ("fedavgm", {"server_learning_rate": 0.0}, "not positive"),
        ("fedadam", {"tau": -1.0}, "not positive"),
    ],
)
def test_bad_options_are_named(name, options, said):
    with pytest.raises(InputError) as caught:
        make_optimizer(name, options)
    assert said in str(caught.value)


def test_public_weights():
    assert public_weights("") == {} == public_weights("equal")
    assert public_weights("A:2;B-1:0.5") == {"A": 2.0, "B-1": 0.5}
    for text in ("A", "A:x", "A:0", ":3", "A:1;;"):
        with pytest.raises(InputError):
            public_weights(text)


def test_the_moving_average_by_hand():
    """Decay min(0.9, (1 + n)/(10 + n)) after n models: 2/11, then 3/12."""
    first = moving_average(None, np.float32([1.0, 2.0]), 0.9, 0)
    second = moving_average(first, np.float32([3.0, 2.0]), 0.9, 1)
    assert second.tolist() == pytest.approx([2 / 11 * 1.0 + 9 / 11 * 3.0, 2.0])
    third = moving_average(second, np.float32([3.0, 0.0]), 0.9, 2)
    assert third[1] == pytest.approx(0.25 * 2.0)
    late = moving_average(np.array([1.0]), np.float32([2.0]), 0.9, 10_000)
    assert late.tolist() == pytest.approx([1.1]) and late.dtype == np.float64
