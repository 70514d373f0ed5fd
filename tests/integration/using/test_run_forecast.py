"""Forecasting and gap filling of a user's table with a trained run, from Python."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest

import fedpriv
from fedpriv import forecasting, imputation
from fedpriv.errors import InputError
from fedpriv.trained import Trained, level_names

QUANTILES = ["q05", "q25", "q50", "q75", "q95"]


def test_a_run_forecasts_a_frame(forecaster, load) -> None:
    found = forecaster.forecast(load, samples=50)
    assert list(found.columns) == ["time", "series", "mean", *QUANTILES] == ["time", "series", "mean", *level_names()]
    assert len(found) == 3 * 24
    assert list(dict.fromkeys(found["series"])) == list(load.columns)
    assert found["time"].min() == load.index[-1] + pd.Timedelta("1h")
    assert np.isfinite(found.select_dtypes("number").to_numpy()).all()
    assert (np.diff(found[QUANTILES].to_numpy(), axis=1) >= 0).all(), "quantiles are ordered"
    # each series in its own size: 200 to 400, 4 to 8, 2e6 to 4e6
    means = found.groupby("series", sort=False)["mean"].mean()
    assert means.to_numpy() == pytest.approx([300, 6, 3e6], rel=0.1)


def test_the_same_seed_gives_the_same_forecast(forecaster, load) -> None:
    one, same, other = (forecaster.forecast(load, samples=10, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same)
    assert not one["q05"].equals(other["q05"])
    pd.testing.assert_series_equal(one["mean"], other["mean"])


def test_samples_are_written_if_asked(forecaster, load) -> None:
    found = forecaster.forecast(load, samples=4, keep_samples=True)
    drawn = found[[f"sample_{i:03d}" for i in range(1, 5)]].to_numpy()
    assert drawn.shape == (72, 4)
    assert (drawn.min(axis=1) <= found["q50"]).all() and (found["q50"] <= drawn.max(axis=1)).all()


@pytest.mark.parametrize("horizon", [1, 5, 24, 25, 60])
def test_any_horizon(forecaster, load, horizon: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = forecaster.forecast(load[["feeder A"]], horizon=horizon, samples=20)
    assert len(found) == horizon
    assert np.isfinite(found[QUANTILES].to_numpy()).all()
    assert (np.diff(found[QUANTILES].to_numpy(), axis=1) >= 0).all()


def test_a_longer_horizon_begins_with_the_trained_one_and_spreads(forecaster, load) -> None:
    short = forecaster.forecast(load, samples=200)
    with pytest.warns(UserWarning, match=r"rolled forward in 4 blocks"):
        long = forecaster.forecast(load, horizon=96, samples=200)
    first = long.groupby("series", sort=False).head(24)
    pd.testing.assert_frame_equal(first.reset_index(drop=True), short)
    width = (long["q95"] - long["q05"]).to_numpy().reshape(3, 4, 24).mean(axis=2)
    assert (width[:, 3] > width[:, 0]).all(), "the fourth day is less certain than the first"


def test_gaps_in_the_context_are_fine(forecaster, load) -> None:
    holes = load.copy()
    holes.iloc[-60:-50, 0] = np.nan
    holes.iloc[-3:, 0] = np.nan  # the end of one series is missing; the others say where the forecast begins
    found = forecaster.forecast(holes, samples=20).groupby("series", sort=False)
    whole = forecaster.forecast(load, samples=20).groupby("series", sort=False)
    assert np.isfinite(found.get_group("feeder A")[QUANTILES].to_numpy()).all()
    assert found.get_group("feeder A")["time"].min() == load.index[-1] + pd.Timedelta("1h")
    pd.testing.assert_series_equal(found.get_group("feeder B")["mean"], whole.get_group("feeder B")["mean"])


def test_a_column_without_readings_is_left_out_with_the_reason(forecaster, load) -> None:
    empty = load.assign(gone=np.nan, ended=load["feeder A"])
    empty.iloc[-80:, empty.columns.get_loc("ended")] = np.nan
    with pytest.warns(UserWarning, match=r"gone was left out: 0 readings in the 72 steps.*at least 24"):
        found = forecaster.forecast(empty, samples=5)
    assert list(dict.fromkeys(found["series"])) == list(load.columns)
    with pytest.raises(InputError, match=r"no series can be forecast; ended: 0 readings"):
        forecasting.forecast(
            forecaster.trained, empty[["ended", "gone", "feeder A"]].iloc[:, :2].assign(x=np.nan), at="2024-06-12"
        )


def test_trailing_rows_without_readings_do_not_move_the_origin(forecaster, load) -> None:
    longer = load.reindex(pd.date_range(load.index[0], periods=len(load) + 30, freq="1h"))
    pd.testing.assert_frame_equal(forecaster.forecast(longer, samples=5), forecaster.forecast(load, samples=5))


def test_a_short_table_is_enough_if_a_season_was_read(forecaster, load) -> None:
    with pytest.warns(UserWarning, match="less than half of the context of 72 steps"):
        found = forecaster.forecast(load.iloc[-30:], samples=5)
    assert len(found) == 72
    with pytest.raises(InputError, match=r"20 readings in the 72 steps before the forecast, at least 24"):
        forecaster.forecast(load.iloc[-20:])


def test_forecasting_as_of_a_stamp_does_not_see_what_came_after(forecaster, load) -> None:
    then = "2024-06-03T06:00"
    changed = load.copy()
    changed.loc[then:] = 1e7
    one, two = (forecaster.forecast(table, samples=5, at=then) for table in (load, changed))
    pd.testing.assert_frame_equal(one, two)
    assert one["time"].min() == pd.Timestamp(then)
    with pytest.raises(InputError, match="not a whole number of steps"):
        forecaster.forecast(load, at="2024-06-03T06:10")
    with pytest.raises(InputError, match="is not a stamp"):
        forecaster.forecast(load, at="tomorrow")


def test_another_step_is_refused_and_resampling_offered(forecaster, load) -> None:
    quarter = load.reindex(pd.date_range(load.index[0], periods=4 * len(load), freq="15min")).ffill()
    with pytest.raises(InputError, match=r"step is 15min.*trained on steps of 1h.*resample") as refused:
        forecaster.forecast(quarter)
    assert refused.value.exit_code == 2
    # an hour of which a quarter is missing has no mean: the forecast begins with it
    found = forecaster.forecast(quarter.iloc[:-3], samples=5, resample=True)
    pd.testing.assert_frame_equal(found, forecaster.forecast(load.iloc[:-1], samples=5))
    with pytest.raises(InputError, match=r"step is 1d.*cannot be made of 1d"):
        forecaster.forecast(load.resample("1D").mean(), resample=True)


def test_utc_stamps_come_back_as_utc(forecaster, load) -> None:
    utc = load.tz_localize("Europe/Berlin", nonexistent="shift_forward", ambiguous="NaT")
    with pytest.warns(UserWarning, match="the model's clock is local time"):
        found = forecaster.forecast(utc, samples=5)
    assert str(found["time"].dt.tz) == "Europe/Berlin", "the zone of the table"
    assert str(forecasting.forecast(forecaster.trained, utc, samples=5).frame()["time"].dt.tz) == "UTC"
    assert found["time"].min() == utc.index[-1] + pd.Timedelta("1h")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forecaster.forecast(utc, samples=5, timezone="Europe/Berlin")
    with pytest.raises(InputError, match="not a known time zone"):
        forecaster.forecast(utc, timezone="Europe/Bonn")


def test_no_forecast_is_made_for_an_hour_that_does_not_exist(forecaster, load) -> None:
    local = load.copy()
    local.index = pd.date_range(end="2025-03-29 23:00", periods=len(load), freq="h", name="when")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = forecaster.forecast(local, samples=4, timezone="Europe/Berlin")
        plain = forecaster.forecast(local, samples=4)
    hour = pd.Timestamp("2025-03-30 02:00")
    assert (plain["time"] == hour).sum() == 3 and len(plain) == 3 * 24
    expected = plain[plain["time"] != hour].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected)
    with pytest.warns(UserWarning, match=r"leave out 2025-03-30 02:00"):
        forecaster.forecast(local, samples=4, timezone="Europe/Berlin")


def test_what_is_not_a_table_is_refused(forecaster, load) -> None:
    with pytest.raises(InputError, match="DataFrame with a DatetimeIndex"):
        forecaster.forecast(load.reset_index())
    with pytest.raises(InputError, match="holds text"):
        forecaster.forecast(load.assign(region="north"))
    with pytest.raises(InputError, match="samples=1 is not 2 to"):
        forecaster.forecast(load, samples=1)
    with pytest.raises(InputError, match="horizon=-1"):
        forecaster.forecast(load, horizon=-1)


# ---- gaps ----------------------------------------------------------------------------------------------


def test_filling_returns_what_was_read_bit_by_bit(filler, gappy) -> None:
    with pytest.warns(UserWarning, match=r"left open: feeder B, 2024-05-13 .* longer than 71 steps|longer than"):
        filled = filler.impute(gappy)
    assert filled.shape == gappy.shape and list(filled.columns) == list(gappy.columns)
    before, after = gappy.to_numpy(), filled.to_numpy()
    read = ~np.isnan(before)
    assert (before[read].view(np.int64) == after[read].view(np.int64)).all()
    week = np.zeros_like(read)
    week[300:468, 1] = True
    assert np.isfinite(after[~week]).all()
    assert np.isnan(after[week & ~read]).all()


def test_filled_values_are_near_the_truth(filler, gappy, load) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        filled = filler.impute(gappy)
    for name in load:
        made = gappy[name].isna() & filled[name].notna()
        error = (filled[name] - load[name])[made].abs().mean()
        assert error < 0.5 * load[name].std(), "about the noise of the series, far below its daily swing"


def test_quantiles_of_gaps(filler, gappy) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        filled = filler.impute(gappy, samples=40, seed=1)
        again = filler.impute(gappy, samples=40, seed=1)
    pd.testing.assert_frame_equal(filled, again)
    for name in gappy:
        bands = filled[[f"{name}.{level}" for level in QUANTILES]].to_numpy()
        made = (gappy[name].isna() & filled[name].notna()).to_numpy()
        assert np.isnan(bands[~made]).all() and np.isfinite(bands[made]).all()
        assert (np.diff(bands[made], axis=1) >= 0).all()


def test_an_hour_that_the_clocks_left_out_is_no_gap(filler, load) -> None:
    local = load.copy()
    local.index = pd.date_range("2025-03-20", periods=len(load), freq="h", tz="UTC", name="when")
    local.index = local.index.tz_convert("Europe/Berlin").tz_localize(None)
    local = local.iloc[: 21 * 24]  # in spring alone: 02:00 of the 30th does not exist
    hole = local.copy()
    hole.iloc[50:53, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = imputation.impute(filler.trained, hole, timezone="Europe/Berlin", samples=4)
        plain = imputation.impute(filler.trained, hole, samples=4)
    out = found.frame(uncertainty=True)
    assert list(out.index) == list(local.index) and found.filled.sum() == 3
    assert found.quantiles.shape == (5, 3) and out["feeder A.q50"].notna().sum() == 3
    read = hole["feeder A"].notna()
    np.testing.assert_array_equal(out["feeder A"].to_numpy()[read], hole["feeder A"].to_numpy()[read])
    # without a zone nobody knows, and the hour is a gap like any other
    assert pd.Timestamp("2025-03-30 02:00") in plain.frame().index and plain.filled.sum() == 6


def test_a_limit_can_be_set(filler, gappy) -> None:
    found = imputation.impute(filler.trained, gappy, longest_gap=3)
    lost = {(gap.series, gap.steps) for gap in found.left if gap.steps > 20}
    assert ("feeder A", 24) in lost or ("feeder A", 25) in lost
    assert all(gap.steps > 3 for gap in found.left)
    with pytest.raises(InputError, match="longest_gap=96 is not in 1 to 95"):
        filler.impute(gappy, longest_gap=96)


def test_a_table_without_gaps_comes_back(filler, load) -> None:
    with pytest.warns(UserWarning, match="no gaps"):
        pd.testing.assert_frame_equal(filler.impute(load), load)


def test_a_table_shorter_than_the_window(filler, load) -> None:
    short = load.iloc[:48].copy()
    short.iloc[20:23] = np.nan
    filled = filler.impute(short)
    assert np.isfinite(filled.to_numpy()).all()
    found = imputation.impute(filler.trained, load.iloc[:10].mask(np.eye(10, 3, dtype=bool)))
    assert {gap.reason for gap in found.left} == {"only 9 readings in the window of 96 steps around it"}


def test_a_mixed_model_forecasts_too(filler, load) -> None:
    assert len(filler.forecast(load, samples=5)) == 72


def test_a_forecast_model_does_not_fill_gaps(forecaster, gappy) -> None:
    with pytest.raises(InputError, match=r"cannot fill gaps.*task\.kind=imputation.*Nothing was filled"):
        forecaster.impute(gappy)


def test_a_forecast_is_the_one_that_was_scored(forecaster) -> None:
    """The windows of the report, given as a user's table, are forecast as the evaluation did it."""
    shown = forecaster.folder.examples
    assert shown is not None and len(shown) == 4
    for i in range(len(shown)):
        stamps = pd.DatetimeIndex(shown.stamps[i][: shown.context.shape[1]])
        found = forecaster.forecast(pd.DataFrame({"load": shown.context[i]}, index=stamps), samples=500)
        np.testing.assert_allclose(found["mean"], shown.point[i], rtol=1e-5)
        width, drawn = found["q95"] - found["q05"], shown.quantiles[i, -1] - shown.quantiles[i, 0]
        assert np.mean(drawn / width) == pytest.approx(1, abs=0.25), "of 200 samples there"


# ---- the folder ----------------------------------------------------------------------------------------


def test_the_card_lies_beside_the_model(forecaster, filler) -> None:
    card = json.loads((forecaster.path / "model.json").read_text())
    assert card["step"] == "1h" and card["step_seconds"] == 3600 and card["channels"] == ["load"]
    assert card["task"] == {
        "kind": "forecast", "context": 72, "horizon": 24, "window": 96, "mask": None, "longest_gap": 0, "period": 24,
    }  # fmt: skip
    assert card["unit"] == "MW" and card["timezone"] == "local" and card["scaling"] == {"kind": "window"}
    assert card["scenario_digest"] == forecaster.scenario.digest()
    assert card["source_digest"] == forecaster.status["source_digest"]
    assert card["privacy"]["max_epsilon"] == forecaster.label["max_epsilon"] <= 8
    assert card["privacy"]["ladder"]["reading"] == forecaster.label["ladder"]["reading"]
    assert card["metrics"]["federated"]["mse"] > 0
    assert card["uses"]["forecast"]["possible"] and not card["uses"]["impute"]["possible"]
    text = (forecaster.path / "model_card.md").read_text()
    for words in ("## What it promises", "one reading", "## Limits", "cannot fill gaps", "Seasonal naive", "MW"):
        assert words in text
    assert json.loads((filler.path / "model.json").read_text())["uses"]["impute"] == {"possible": True, "reason": ""}


def test_three_files_are_enough(forecaster, load, tmp_path) -> None:
    for name in ("scenario.toml", "model.safetensors", "model.json"):
        shutil.copy(forecaster.path / name, tmp_path)
    found = forecasting.forecast(fedpriv.Run.open(forecaster.path).trained, load, samples=5).frame()
    alone = forecasting.forecast(Trained.load(tmp_path), load, samples=5).frame()
    pd.testing.assert_frame_equal(found, alone)


def test_an_older_run_without_a_card(forecaster, load, tmp_path) -> None:
    for name in ("scenario.toml", "model.safetensors"):
        shutil.copy(forecaster.path / name, tmp_path)
    found, known = Trained.load(tmp_path), forecaster.trained
    assert (found.step, found.channels, found.unit, found.timezone) == (known.step, known.channels, known.unit, "")
    one, two = (forecasting.forecast(model, load, samples=5).frame() for model in (found, known))
    pd.testing.assert_frame_equal(one, two)


def test_damaged_folders_are_refused(forecaster, tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Trained.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a run folder"):
        Trained.load(tmp_path)
    shutil.copy(forecaster.path / "scenario.toml", tmp_path)
    with pytest.raises(InputError, match="has not finished"):
        Trained.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((forecaster.path / "model.safetensors").read_bytes()[:100])
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        Trained.load(tmp_path)
    shutil.copy(forecaster.path / "model.json", tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        Trained.load(tmp_path)
