"""Row i of everything that follows from a window is a function of window i alone: the ground of the privacy proof."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpriv.config import DataConfig, TaskConfig
from fedpriv.data.tasks import (
    NORMALISED_LIMIT,
    SHORT_GAP,
    drop_context,
    make_examples,
    seasonal_baseline,
    task_masks,
)
from fedpriv.data.windows import CALENDAR_FEATURES, Windows, even_starts, split
from fedpriv.seeding import stream

READINGS = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([0.0, np.nan, 1e30, -1e30, 3e38, 1e-30, np.float32(1e-40)]),
)
KINDS = st.sampled_from(["forecast", "imputation", "mixed"])


@st.composite
def batches(draw):
    b, length, c = draw(st.integers(1, 5)), draw(st.integers(4, 30)), draw(st.integers(1, 2))
    values = draw(arrays(np.float32, (b, length, c), elements=READINGS, fill=st.just(np.float32(3.5))))
    task = TaskConfig(kind=draw(KINDS), context=max(2, length - 3), horizon=draw(st.integers(1, length - 2)))
    return values, task, draw(st.integers(1, length + 3)), draw(st.sampled_from(["window", "bounds"]))


def windows(values) -> Windows:
    seen = np.isfinite(values)
    calendar = torch.zeros(*values.shape[:2], CALENDAR_FEATURES)
    return Windows(torch.from_numpy(np.where(seen, values, np.float32(0))), torch.from_numpy(seen), calendar)


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_other_rows_change_nothing(batch, random):
    values, task, period, kind = batch
    w = windows(values)
    scaling = DataConfig(scaling=kind)
    target = task_masks(task, w.observed, stream(1, "m"))
    examples = make_examples(w, target, period=period, scaling=scaling)
    order = list(range(len(w)))
    random.shuffle(order)
    index = torch.tensor(order)
    permuted = make_examples(w.rows(index), target[index], period=period, scaling=scaling)
    # every other row becomes something else, with another mask
    keep = random.randrange(len(w))
    other = np.full_like(values, 1e30)
    other[keep] = values[keep]
    masks = ~target
    masks[keep] = target[keep]
    replaced = make_examples(windows(other), masks, period=period, scaling=scaling)
    alone = make_examples(w.rows(slice(keep, keep + 1)), target[keep : keep + 1], period=period, scaling=scaling)
    for field in fields(examples):
        whole = getattr(examples, field.name)
        assert torch.equal(getattr(permuted, field.name), whole[index]), field.name
        assert torch.equal(getattr(replaced, field.name)[keep], whole[keep]), field.name
        assert torch.equal(getattr(alone, field.name)[0], whole[keep]), field.name


@given(batches())
@settings(max_examples=60)
def test_always_finite_and_given_entries_alone_decide(batch):
    values, task, period, kind = batch
    w = windows(values)
    scaling = DataConfig(scaling=kind)
    target = task_masks(task, w.observed, stream(2, "m"))
    e = make_examples(w, target, period=period, scaling=scaling)
    for name in ("values", "baseline", "loc", "scale"):
        assert torch.isfinite(getattr(e, name)).all(), name
    assert (e.scale > 0).all() and (e.values.abs() <= NORMALISED_LIMIT).all()
    assert not (e.given & e.target).any() and torch.equal(e.given | e.target, w.observed)
    torch.testing.assert_close(e.baseline[e.given], e.values[e.given], rtol=0, atol=0)
    # what is hidden does not reach scale or baseline
    hidden = np.where(target.numpy(), np.float32(-77.0), values)
    other = make_examples(windows(hidden), target, period=period, scaling=scaling)
    assert torch.equal(other.baseline, e.baseline)
    assert torch.equal(other.loc, e.loc) and torch.equal(other.scale, e.scale)


def slow_baseline(values, given, period):
    """The definition, entry by entry."""
    out = np.zeros_like(values)
    length = len(values)
    for t in range(length):
        if given[t]:
            out[t] = values[t]
            continue
        left = next((s for s in range(t - 1, -1, -1) if given[s]), None)
        right = next((s for s in range(t + 1, length) if given[s]), None)
        earlier = next((s for s in range(t - period, -1, -period) if given[s]), None)
        later = next((s for s in range(t + period, length, period) if given[s]), None)
        if left is not None and right is not None and right - left - 1 <= SHORT_GAP:
            out[t] = values[left] + (values[right] - values[left]) * (t - left) / (right - left)
        elif earlier is not None and later is not None:
            out[t] = values[earlier] + (values[later] - values[earlier]) * (t - earlier) / (later - earlier)
        elif earlier is not None or later is not None:
            out[t] = values[earlier if earlier is not None else later]
        elif left is not None or right is not None:
            out[t] = values[left if left is not None else right]
    return out


@given(st.integers(1, 40), st.integers(1, 45), st.integers(1, 3), st.floats(0.02, 0.98), st.integers(0, 2**32))
@settings(max_examples=80)
def test_baseline_is_what_its_definition_says(length, period, channels, share, seed):
    rng = stream(seed, "baseline")
    values = rng.normal(size=(2, length, channels)).astype(np.float32)
    seen = rng.random((2, length, channels)) < share
    fast = seasonal_baseline(np.where(seen, values, np.float32(0)), seen, period)
    for b in range(2):
        for c in range(channels):
            np.testing.assert_allclose(fast[b, :, c], slow_baseline(values[b, :, c], seen[b, :, c], period), atol=1e-5)


@given(st.integers(1, 3000), st.integers(1, 300), st.floats(0.05, 0.9), st.floats(0.05, 0.9), st.integers(1, 50))
def test_windows_of_different_parts_share_no_reading(steps, window, first, second, count):
    import pandas as pd

    if first + second >= 1:
        return
    parts = split(
        steps,
        window=window,
        start=pd.Timestamp("2024-01-01"),
        step=pd.Timedelta(hours=1),
        train_fraction=first,
        validation_fraction=second,
    )
    stop = 0
    for k, part in enumerate(parts):
        assert stop <= part.start <= part.stop <= steps
        if k and part.stop > part.start:
            assert part.start - stop >= window
        stop = max(stop, part.stop)
        if part.stop - part.start >= window:
            starts = even_starts(part, window, count)
            assert starts.min() >= part.start and starts.max() + window <= part.stop
            assert len(set(starts.tolist())) == len(starts) == min(count, part.stop - part.start - window + 1)


@given(st.integers(1, 6), st.integers(3, 60), st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_rows_mask_comes_from_its_own_draws(batch, length, seed):
    task = TaskConfig(kind="mixed", context=2, horizon=max(1, length - 2))
    seen = torch.ones(batch, length, 1, dtype=torch.bool)
    all_rows = task_masks(task, seen, stream(seed, "m"))
    first = task_masks(task, seen[:1], stream(seed, "m"))
    assert torch.equal(all_rows[:1], first)  # row 0 has the same draws, whatever follows
    assert all_rows.any(dim=1).all() and not all_rows.all(dim=1).any()


@given(batches(), st.floats(0.05, 0.95), st.integers(0, 100))
@settings(max_examples=30)
def test_a_row_loses_its_context_by_its_own_coin(batch, probability, seed):
    """The same coins whatever the readings, one per row; only `given` changes."""
    values, task, period, kind = batch
    w = windows(values)
    examples = make_examples(
        w, task_masks(task, w.observed, stream(1, "m")), period=period, scaling=DataConfig(scaling=kind)
    )
    dropped = drop_context(examples, probability, stream(seed, "d"))
    coins = stream(seed, "d").random(len(examples)) < probability
    for i, lost in enumerate(coins):
        assert torch.equal(dropped.given[i], torch.zeros_like(examples.given[i]) if lost else examples.given[i])
    for f in fields(examples):
        if f.name != "given":
            assert getattr(dropped, f.name) is getattr(examples, f.name)
    untouched = stream(seed, "d")
    assert drop_context(examples, 0.0, untouched) is examples
    assert untouched.random() == stream(seed, "d").random()  # no draw: runs without it are what they were
