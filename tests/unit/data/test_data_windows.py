from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fedpriv.config import DataConfig, TaskConfig
from fedpriv.data.client_data import ClientData, client_data
from fedpriv.data.sources.base import Parts, Series
from fedpriv.data.tasks import (
    NORMALISED_LIMIT,
    drawn_kinds,
    make_examples,
    mask_kinds,
    seasonal_baseline,
    task_masks,
)
from fedpriv.data.windows import (
    CALENDAR_FEATURES,
    Windows,
    calendar_features,
    cut,
    day_steps,
    even_starts,
    held_starts,
    season_steps,
    split,
)
from fedpriv.errors import InputError
from fedpriv.seeding import stream

START, HOUR = pd.Timestamp("2024-01-01"), pd.Timedelta(hours=1)
DATA = DataConfig()


def series(values, start=START, step=HOUR):
    values = np.asarray(values, dtype=float)
    m, _, c = values.shape
    meters, channels = tuple(f"m{i}" for i in range(m)), tuple(f"c{i}" for i in range(c))
    return Series(values, start, step, meters, channels, "MW", "local")


def client(meters=2, steps=900, channels=1, seed=1) -> ClientData:
    values = stream(seed, "x").normal(100, 10, size=(meters, steps, channels))
    values[0, 40:43] = np.nan
    return client_data("c", series(values), DATA, context=48, horizon=24)


def windows(values, observed=None) -> Windows:
    """Values [B, L] or [B, L, C]; NaN is not observed."""
    values = np.asarray(values, dtype=np.float32)
    values = values[..., None] if values.ndim == 2 else values
    seen = np.isfinite(values) if observed is None else observed
    calendar = torch.zeros(*values.shape[:2], CALENDAR_FEATURES)
    return Windows(torch.from_numpy(np.where(seen, values, 0)), torch.from_numpy(seen), calendar)


def last(n, like: Windows):
    target = torch.zeros_like(like.observed)
    target[:, -n:] = True
    return target


def test_split_leaves_a_window_between_the_parts():
    train, validation, test = split(1000, window=50, start=START, step=HOUR)
    assert (train, validation, test) == (slice(0, 600), slice(650, 800), slice(850, 1000))


def test_split_by_stamps():
    options = {"window": 24, "start": START, "step": HOUR}
    by_stamp = split(500, train_until="2024-01-06", validation_until="2024-01-11T00:00", **options)
    assert by_stamp == (slice(0, 120), slice(144, 240), slice(264, 500))
    bounded = split(500, train_until="2024-01-06", validation_until="2024-01-11", test_until="2024-01-16", **options)
    assert bounded[2] == slice(264, 360)
    # between two steps: the first step at or after the stamp begins the next part
    assert split(500, train_until="2024-01-06 00:30", validation_until="2024-01-11", **options)[0] == slice(0, 121)
    only_train = split(500, train_until="2024-01-11", train_fraction=0.5, validation_fraction=0.25, **options)
    assert only_train[1] == slice(264, 370)
    with pytest.raises(InputError, match="not in order"):
        split(500, train_until="2024-01-11", validation_until="2024-01-06", **options)
    with pytest.raises(InputError, match=r"data\.train_until='soon'"):
        split(500, train_until="soon", **options)


def test_even_starts_are_inside_distinct_and_reach_both_ends():
    part = slice(100, 200)
    starts = even_starts(part, 24, 10)
    assert len(set(starts.tolist())) == 10 and starts[0] == 100 and starts[-1] + 24 == 200
    assert len(even_starts(part, 24, 1000)) == 77 and len(even_starts(part, 24, 1)) == 1
    with pytest.raises(ValueError, match="holds no window"):
        even_starts(part, 101, 1)


def test_steps_in_a_day():
    assert [day_steps(HOUR * f) for f in (1, 0.5, 0.25, 24, 48)] == [24, 48, 96, 1, 1]
    with pytest.raises(InputError, match="whole number"):
        day_steps(pd.Timedelta(hours=5))
    assert season_steps(0, HOUR) == 24 and season_steps(168, HOUR) == 168


def test_calendar_is_a_function_of_the_stamp():
    table = calendar_features(pd.date_range("2024-01-01", periods=24 * 8, freq="h"))
    assert table.shape == (192, CALENDAR_FEATURES) and table.dtype == np.float32 and np.abs(table).max() <= 1
    np.testing.assert_allclose(table[:24, :2], table[24:48, :2], atol=1e-6)
    np.testing.assert_allclose(table[:24, 2:4], table[168:, 2:4], atol=1e-6)
    assert table[:, 6].reshape(8, 24).mean(axis=1).tolist() == [0, 0, 0, 0, 0, 1, 1, 0]


def test_cut_gathers_what_the_client_has():
    data = client()
    meter, start = np.array([0, 1, 0]), np.array([0, 7, 30])
    w = cut(data, meter, start, 72)
    assert w.values.shape == (3, 72, 1) and w.calendar.shape == (3, 72, CALENDAR_FEATURES) and len(w) == 3
    for i in range(3):
        raw = data.values[meter[i], start[i] : start[i] + 72]
        np.testing.assert_array_equal(w.observed[i].numpy(), np.isfinite(raw))
        np.testing.assert_array_equal(w.values[i].numpy(), np.nan_to_num(raw))
        np.testing.assert_array_equal(w.calendar[i].numpy(), calendar_features(data.index)[start[i] : start[i] + 72])
    assert not w.observed[0, 40:43].any()
    w.values.zero_()  # a copy: the client's readings cannot be changed through a window
    assert np.isfinite(data.values[1]).all() and data.values[1].min() > 0


@pytest.mark.parametrize(("meter", "start"), [(0, -1), (0, 829), (2, 0), (-1, 0)])
def test_cut_refuses_what_is_not_there(meter, start):
    with pytest.raises(ValueError, match=r"calendar|meters"):
        cut(client(), np.array([meter]), np.array([start]), 72)


def test_cut_of_nothing():
    w = cut(client(), np.array([], dtype=np.int64), np.array([], dtype=np.int64), 72)
    examples = make_examples(w, task_masks(TaskConfig(), w.observed, stream(1, "m")), period=24, scaling=DATA)
    assert len(examples) == 0 and examples.values.shape == (0, 72, 1)


def test_client_repr_holds_no_reading():
    data = client()
    assert "values" not in repr(data) and str(data.values[1, 0, 0]) not in repr(data)
    assert not data.values.flags.writeable


def test_window_longer_than_series_and_parts_without_windows():
    ones = np.ones((1, 300, 1))
    with pytest.raises(InputError, match=r"client c: the window of 310 steps.*longer than the series of 300"):
        client_data("c", series(ones), DATA, context=290, horizon=20)
    with pytest.raises(InputError, match=r"client c has no usable window in its validation part: 0 steps remain"):
        client_data("c", series(ones), DATA, context=50, horizon=20)
    ones[:, 240:] = np.nan
    with pytest.raises(InputError, match=r"no usable window in its test part: nowhere are there readings"):
        client_data("c", series(ones), DATA, context=10, horizon=5)


def test_own_split_beats_the_customary_one():
    parts = Parts("2024-01-06", "2024-01-11", "2024-01-16")
    ones = series(np.ones((1, 500, 1)))
    assert client_data("c", ones, DATA, context=4, horizon=2, parts=parts).train == slice(0, 120)
    own = DataConfig(train_fraction=0.5)
    assert client_data("c", ones, own, context=4, horizon=2, parts=parts).train == slice(0, 250)
    dated = DataConfig(train_until="2024-01-03", validation_until="2024-01-04")
    assert client_data("c", ones, dated, context=4, horizon=2, parts=parts).train == slice(0, 48)


def test_channels_and_resampling():
    data = DataConfig(channels=("c1",), frequency="2h")
    values = np.stack([np.arange(600.0), 10 * np.arange(600.0)], axis=1)[None]
    c = client_data("c", series(values), data, context=4, horizon=2)
    assert c.channels == ("c1",) and c.step == HOUR * 2 and c.values.shape == (1, 300, 1)
    np.testing.assert_array_equal(c.values[0, :3, 0], [5, 25, 45])
    with pytest.raises(InputError, match="no channel 'c7'"):
        client_data("c", series(values), DataConfig(channels=("c7",)), context=4, horizon=2)


# ---- examples -----------------------------------------------------------------------------------


def test_forecast_is_scaled_by_its_context_and_starts_from_yesterday():
    x = np.tile(np.sin(np.arange(24) / 24 * 2 * np.pi) * 3 + 10, 4)[None]
    w = windows(x)
    e = make_examples(w, last(24, w), period=24, scaling=DATA)
    given = x[0, :-24]
    assert e.loc[0, 0, 0] == pytest.approx(given.mean()) and e.scale[0, 0, 0] == pytest.approx(given.std(), rel=1e-5)
    np.testing.assert_allclose((e.values * e.scale + e.loc)[0, :, 0], x[0], rtol=1e-5)
    np.testing.assert_allclose(e.baseline, e.values, atol=1e-5)  # a periodic series repeats itself
    assert e.given[0, :-24].all() and not e.given[0, -24:].any() and torch.equal(e.target, ~e.given)


def test_targets_are_what_was_read_unless_generating():
    x = np.arange(1.0, 49.0)[None].repeat(2, axis=0)
    x[1, 30:33] = np.nan
    x[1, 5] = np.nan
    w = windows(x)
    scored = make_examples(w, last(24, w), period=12, scaling=DATA)
    assert scored.target[0].sum() == 24 and scored.target[1].sum() == 21 and not scored.target[1, 30:33].any()
    assert (scored.values[1, 30:33] == 0).all() and not (scored.given & scored.target).any()
    generated = make_examples(w, last(24, w), period=12, scaling=DATA, require_observed=False)
    assert torch.equal(generated.target, ~generated.given) and generated.target[1].sum() == 25


def test_declared_bounds():
    w = windows([[0.0, 50.0, 100.0, 25.0]])
    e = make_examples(w, last(1, w), period=1, scaling=DataConfig(scaling="bounds", low=0, high=100))
    assert e.values[0, :, 0].tolist() == [-1, 0, 1, -0.5] and e.loc.item() == 50 and e.scale.item() == 50


@pytest.mark.parametrize("kind", ["window", "bounds"])
def test_extreme_windows_stay_finite(kind):
    length = 48
    rows = np.stack(
        [
            np.full(length, np.nan),  # nothing read
            np.where(np.arange(length) < 24, np.nan, 5.0),  # nothing given
            np.zeros(length),
            np.full(length, 7.0),
            np.full(length, 1e30),
            np.where(np.arange(length) == 3, 1e30, 1.0),
            np.where(np.arange(length) >= 24, 3e38, 0.0),
            np.where(np.arange(length) % 2 == 0, 3e38, -3e38),
            np.where(np.arange(length) == 3, 1e-30, np.nan),
        ]
    )
    w = windows(rows)
    e = make_examples(w, last(24, w), period=24, scaling=DataConfig(scaling=kind))
    for name in ("values", "baseline", "loc", "scale"):
        assert torch.isfinite(getattr(e, name)).all(), name
    assert (e.scale > 0).all() and e.values.abs().max() <= NORMALISED_LIMIT
    if kind == "window":
        assert e.loc[:2].tolist() == [[[0.0]], [[0.0]]] and e.scale[:3].flatten().tolist() == [1, 1, 1]
        assert e.values[0].abs().max() == 0 and e.baseline[1].abs().max() == 0
        # a constant window is scaled by a share of its level, not by nothing
        assert e.scale[3].item() == pytest.approx(0.07)


# ---- baseline -----------------------------------------------------------------------------------


def baseline(values, given, period):
    v = np.asarray(values, dtype=np.float32)[None, :, None]
    g = np.asarray(given, dtype=bool)[None, :, None]
    return seasonal_baseline(np.where(g, v, np.float32(0)), g, period)[0, :, 0]


def test_horizon_longer_than_a_season_repeats_the_last_season():
    given = np.arange(20) < 12
    np.testing.assert_array_equal(baseline(np.arange(20), given, 4)[12:], [8, 9, 10, 11, 8, 9, 10, 11])


def test_season_that_does_not_divide_the_window():
    given = np.arange(20) < 12
    np.testing.assert_array_equal(baseline(np.arange(20), given, 7)[12:], [5, 6, 7, 8, 9, 10, 11, 5])


def test_long_inner_gap_is_between_the_seasons_by_distance():
    given = np.ones(40, dtype=bool)
    given[12:28] = False
    values = np.arange(40.0)
    # period 8: step 12 has 4 one season before and 28 two seasons after
    assert baseline(values, given, 8)[12] == pytest.approx(4 + (28 - 4) / 3)
    assert baseline(values, given, 8)[20] == pytest.approx(4 + (28 - 4) * 2 / 3)


def test_short_inner_gap_is_a_line():
    given = np.ones(30, dtype=bool)
    given[10:16] = False
    values = np.where(np.arange(30) < 13, 2.0, 9.0)
    np.testing.assert_allclose(baseline(values, given, 5)[10:16], 2 + np.arange(1, 7), rtol=1e-6)
    given[16] = False  # seven steps are not short
    assert baseline(values, given, 10)[10] == 5.5  # between 2 and 9, a season away on either side


def test_without_the_phase_the_last_given_entry_then_the_next_then_zero():
    given = np.zeros(30, dtype=bool)
    given[10] = True
    values = np.full(30, 3.0)
    assert set(baseline(values, given, 30).tolist()) == {3.0}
    assert set(baseline(values, np.zeros(30, dtype=bool), 30).tolist()) == {0.0}
    given[20] = True
    values[20] = 5.0
    filled = baseline(values, given, 30)
    assert filled[15] == 3.0 and filled[25] == 5.0 and filled[2] == 3.0


def test_later_season_alone():
    given = np.arange(24) >= 12
    np.testing.assert_array_equal(baseline(np.arange(24), given, 12)[:12], np.arange(12, 24))
    with pytest.raises(ValueError, match="period=0"):
        baseline(np.arange(24), given, 0)


# ---- masks --------------------------------------------------------------------------------------


def masks(batch=400, length=192, channels=2, seed=1, **task):
    hidden = task_masks(TaskConfig(**task), torch.ones(batch, length, channels, dtype=torch.bool), stream(seed, "mask"))
    assert hidden.shape == (batch, length, channels) and hidden.dtype == torch.bool
    assert torch.equal(hidden[..., 0], hidden[..., 1])  # whole steps
    return hidden[..., 0].numpy()


def test_forecast_hides_the_horizon():
    hidden = masks(batch=3, horizon=24)
    assert hidden[:, -24:].all() and not hidden[:, :-24].any()


def test_random_masks():
    share = masks(kind="imputation", mask="random").mean(axis=1)
    assert share.min() >= 0.1 - 0.5 / 192 and share.max() <= 0.5 + 0.5 / 192
    assert share.min() < 0.13 and share.max() > 0.47 and abs(share.mean() - 0.3) < 0.03


def test_block_masks():
    hidden = masks(kind="imputation", mask="block")
    count = hidden.sum(axis=1)
    assert count.min() == 24 and count.max() == 96
    np.testing.assert_array_equal(hidden, np.arange(192) >= 192 - count[:, None])


def test_block_masks_leave_history():
    hidden = masks(kind="imputation", mask="block", length=26, context=2, horizon=24)
    assert not hidden[:, 0].any()


def test_stride_masks():
    hidden = masks(kind="imputation", mask="stride").astype(int)
    starts = np.diff(np.pad(hidden, ((0, 0), (1, 0))), axis=1) == 1
    blocks = starts.sum(axis=1)
    assert set(blocks.tolist()) == {4, 5, 6, 7, 8}
    for row, n in zip(hidden, blocks, strict=True):
        stride = 192 // n
        assert row.sum() == n * (stride // 2)
        first = np.flatnonzero(row)[0]
        assert 0 <= first <= stride - stride // 2
        expected = [s for j in range(n) for s in range(first + j * stride, first + j * stride + stride // 2)]
        np.testing.assert_array_equal(np.flatnonzero(row), expected)


def test_gap_masks():
    hidden = masks(kind="imputation", mask="gap", batch=2000)
    count = hidden.sum(axis=1)
    assert count.min() == 19 and count.max() == 96  # 0.1 and 0.5 of 192
    first = hidden.argmax(axis=1)
    step = np.arange(192)
    np.testing.assert_array_equal(hidden, (step >= first[:, None]) & (step < (first + count)[:, None]))
    assert first.min() == 1 and (first + count).max() == 191  # readings on both sides
    middle = (first - 1) / (190 - count)
    assert abs(middle.mean() - 0.5) < 4 * 0.2887 / 2000**0.5


def test_any_and_mixed_use_all_families():
    hidden = masks(kind="imputation", mask="any", batch=900)
    suffix = np.array([row[-row.sum() :].all() for row in hidden])
    assert 0.28 < suffix.mean() < 0.39
    mixed = masks(kind="mixed", mask="random", batch=900)
    forecast = (mixed == (np.arange(192) >= 168)).all(axis=1)
    assert 0.44 < forecast.mean() < 0.56


SHAPES = {
    "forecast": lambda row: row[-24:].all() and row.sum() == 24,
    "random": lambda row: 19 <= row.sum() <= 96,
    "block": lambda row: row[-row.sum() :].all() and 24 <= row.sum() <= 96,
    "stride": lambda row: (np.diff(np.pad(row.astype(int), 1)) == 1).sum() in (4, 5, 6, 7, 8),
    "gap": lambda row: (np.diff(np.pad(row.astype(int), 1)) == 1).sum() == 1 and not row[0] and not row[-1],
}


@pytest.mark.parametrize("kind", ["forecast", "imputation", "mixed"])
@pytest.mark.parametrize("mask", ["random", "block", "stride", "gap", "any"])
def test_kinds_are_those_of_the_masks(kind, mask):
    task = TaskConfig(kind=kind, mask=mask)
    found = drawn_kinds(task, 300, stream(1, "mask"))
    assert set(found) == set(mask_kinds(task))
    for row, name in zip(masks(batch=300, kind=kind, mask=mask), found, strict=True):
        assert SHAPES[str(name)](row), name


@pytest.mark.parametrize("mask", ["random", "block", "stride", "gap", "any"])
@pytest.mark.parametrize("length", [3, 4, 5, 9])
def test_short_windows_keep_something_and_hide_something(mask, length):
    hidden = masks(kind="imputation", mask=mask, length=length, context=2, horizon=length - 2)
    assert hidden.any(axis=1).all() and not hidden.all(axis=1).any()


def test_masks_do_not_look_at_the_data():
    task = TaskConfig(kind="mixed")
    full, empty = torch.ones(8, 192, 1, dtype=torch.bool), torch.zeros(8, 192, 1, dtype=torch.bool)
    assert torch.equal(task_masks(task, full, stream(3, "m")), task_masks(task, empty, stream(3, "m")))


def test_windows_of_a_part_that_is_mostly_another_clients_are_those_that_it_holds():
    read = np.zeros(1000, dtype=bool)
    read[300:380] = read[700:780] = True
    part = slice(100, 1000)
    starts = held_starts(read, part, 24, 12)
    assert len(starts) == 12 and (np.diff(starts) > 0).all()
    held = np.array([read[s : s + 24].mean() for s in starts])
    assert (held >= 0.95).all() and (starts < 400).any() and (starts > 600).any()
    assert not len(held_starts(np.zeros(1000, dtype=bool), part, 24, 12))
    # a part that is read as a whole is treated as ever
    for other in (np.ones(1000, dtype=bool), np.arange(1000) != 500):
        np.testing.assert_array_equal(
            held_starts(other, slice(100, 1000), 24, 12), even_starts(slice(100, 1000), 24, 12)
        )
    few = np.zeros(1000, dtype=bool)
    few[500:526] = True
    assert 1 <= len(held_starts(few, slice(100, 1000), 24, 12)) <= 12
