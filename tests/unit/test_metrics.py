"""Metrics by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch

from fedpriv.errors import InputError
from fedpriv.metrics import Score, score


def _score(truth, point, samples=None, unit: float | torch.Tensor = 1.0, mask=None):
    y, p = torch.tensor(truth).reshape(1, -1, 1), torch.tensor(point).reshape(1, -1, 1)
    x = None if samples is None else torch.tensor(samples).reshape(len(samples), 1, -1, 1)
    keep = torch.ones_like(y, dtype=torch.bool) if mask is None else torch.tensor(mask).reshape(1, -1, 1)
    return score(y, p, x, keep, unit)


def test_point_metrics_by_hand():
    values = _score([10.0, -20.0, 5.0], [12.0, -20.0, 99.0], unit=2.0, mask=[True, True, False]).finalize()
    assert values == pytest.approx(
        {"mse": 0.5, "mae": 0.5, "rmse": 0.5**0.5, "nmae": 2 / 30, "mape": 0.1, "r2": 1 - 4 / 450}
    )


def test_the_percentage_error_of_a_tiny_reading_is_floored():
    assert _score([0.0], [1.0], unit=5.0).finalize(["mape"]) == {"mape": 2.0}  # 1 / (0.1 x 5)


def test_r2_is_zero_for_the_mean_and_absent_for_a_constant():
    assert _score([1.0, 3.0], [2.0, 2.0]).finalize(["r2"]) == {"r2": 0.0}
    assert _score([0.1, 0.1, 0.1], [0.2, 0.1, 0.1]).finalize(["r2"]) == {}


def test_crps_of_two_samples_by_hand():
    # E|X - y| = (1 + 3)/2 = 2 and E|X - X'| over different samples = 4, so 2 - 4/2 = 0; then 2 - 2/2 = 1, in units of 4
    assert _score([0.0], [0.0], [[-1.0], [3.0]]).finalize(["crps"]) == pytest.approx({"crps": 0.0})
    assert _score([0.0], [0.0], [[1.0], [3.0]], unit=4.0).finalize(["crps"]) == pytest.approx({"crps": 0.25})


def test_the_energy_score_of_one_entry_is_the_crps():
    values = _score([0.3], [0.0], [[1.0], [3.0], [-2.0], [0.5]]).finalize(["crps", "energy-score"])
    assert values["crps"] == pytest.approx(values["energy-score"])


def test_coverage_counts_the_right_share():
    samples = [[float(i)] for i in range(1, 20)]  # quantile p is 20 p
    inside = [_score([y], [0.0], samples).finalize(["coverage50", "coverage90"]) for y in (0.9, 1.0, 4.9, 5.0, 15.0)]
    assert [v["coverage90"] for v in inside] == [0, 1, 1, 1, 1]
    assert [v["coverage50"] for v in inside] == [0, 0, 0, 1, 1]


def test_units_per_channel():
    truth, point = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    values = score(truth, point, None, torch.ones(2, 3, 2, dtype=torch.bool), torch.tensor([1.0, 2.0])).finalize()
    assert values["mse"] == pytest.approx((1 + 0.25) / 2)
    assert "nmae" not in values  # the truth sums to zero


def test_hidden_entries_may_be_anything():
    nan = float("nan")
    values = _score([1.0, nan], [2.0, nan], [[1.0, nan], [2.0, nan]], mask=[True, False]).finalize()
    assert values["mse"] == 1.0 and all(v == v for v in values.values())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: _score([1.0], [float("nan")]), "not finite"),
        (lambda: _score([1.0], [1.0], [[1.0], [float("inf")]]), "sample is not finite"),
        (lambda: _score([1.0], [1.0], [[1.0]]), "at least 2"),
        (lambda: _score([1.0], [1.0], unit=0.0), "not positive"),
        (lambda: Score().finalize(["smape"]), "unknown metric 'smape'"),
        (lambda: Score.from_dict({"sum.entries": 1.0}), "lacks a finite"),
        (lambda: Score.from_dict({**Score().to_dict(), "sum.crps": float("nan")}), "lacks a finite sum.crps"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
