"""The synthetic utilities behave as demand does: the day before is a fair forecast and a linear model beats it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedpriv.data.generator import draw_utility, generate

CONTEXT, HORIZON = 168, 24


def scores(load):
    """MSE on scaled data of seasonal naive, weekly naive, last value and ridge from 168 to 24 steps."""
    x = pd.Series(load).interpolate(limit_direction="both").to_numpy()
    n = len(x)
    train, test = int(0.6 * n), int(0.8 * n)
    z = (x - x[:train].mean()) / x[:train].std()
    windows = np.lib.stride_tricks.sliding_window_view(z, CONTEXT + HORIZON)
    windows = windows - windows[:, CONTEXT - 1 : CONTEXT]  # relative to the last value
    learn, judge = windows[: train - CONTEXT - HORIZON], windows[test:]
    given, wanted = learn[:, :CONTEXT], learn[:, CONTEXT:]
    weights = np.linalg.solve(given.T @ given + 10 * np.eye(CONTEXT), given.T @ wanted)
    given, wanted = judge[:, :CONTEXT], judge[:, CONTEXT:]
    guesses = (given[:, -HORIZON:], given[:, :HORIZON], np.zeros_like(wanted), given @ weights)
    return [float(((g - wanted) ** 2).mean()) for g in guesses]


def test_day_ahead_is_meaningful_and_beatable():
    table = np.array([scores(generate(draw_utility(20, k), days=730, meters=1, seed=20).load[0]) for k in range(8)])
    naive, weekly, last, linear = table.mean(axis=0)
    # the real sets: naive 0.19 to 0.26, weekly 0.5 to 0.6, last value 0.85 to 0.9, linear 33 to 44 % below naive
    assert 0.12 < naive < 0.35 and naive < weekly < last
    assert 0.20 < 1 - linear / naive < 0.45
    assert (table[:, 3] < 0.85 * table[:, 0]).all()
