"""What a model can do, how a table is laid out for it, and the untrained model as a yardstick. No run is needed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpriv import forecasting, imputation
from fedpriv.config import Scenario
from fedpriv.data.table import Table
from fedpriv.data.tasks import task_masks
from fedpriv.data.user_table import UserTable
from fedpriv.data.windows import CALENDAR_FEATURES, calendar_features
from fedpriv.errors import InputError
from fedpriv.models.denoiser import build_denoiser
from fedpriv.reports.output import check_output
from fedpriv.seeding import stream
from fedpriv.trained import Trained, longest_run, refusal
from fedpriv.user_panel import Clock, lay_out

HOUR = pd.Timedelta("1h")
LEVEL_NAMES = ("", ".q05", ".q25", ".q50", ".q75", ".q95")


def untrained(channels: tuple[str, ...] = ("load",), **changes: object) -> Trained:
    settings_ = {"task.context": 72, "model.depth": 0} | {k.replace("__", "."): v for k, v in changes.items()}
    scenario = Scenario().override(settings_)
    generator = torch.Generator().manual_seed(1)
    model = build_denoiser(
        scenario, channels=len(channels), calendar_features=CALENDAR_FEATURES, generator=generator, period=24
    )
    return Trained.of(model, scenario, step=HOUR, channels=channels, unit="MW", timezone="local")


def table_of(values: np.ndarray, *columns: str, timezone: str = "local") -> Table:
    names = columns or tuple(f"s{i}" for i in range(values.shape[1]))
    return Table(pd.Timestamp("2024-03-01"), HOUR, values.astype(float), names, timezone=timezone)


def days(count: int, series: int = 1) -> np.ndarray:
    """[24 * count, series] a daily swing and noise."""
    hour = np.arange(24 * count)
    noise = np.random.default_rng(count).normal(size=(len(hour), series))
    return 300 + 80 * np.sin(2 * np.pi * hour / 24)[:, None] + 10 * noise


def test_the_untrained_model_repeats_yesterday() -> None:
    values = days(10, 3)
    found = forecasting.forecast(untrained(), table_of(values), samples=2)
    np.testing.assert_allclose(found.mean, values[-24:].T, rtol=1e-6)


def test_the_untrained_model_repeats_yesterday_on_every_rolled_day() -> None:
    values = days(10)
    found = forecasting.forecast(untrained(), table_of(values), samples=2000, horizon=72)
    np.testing.assert_allclose(found.mean[0, :24], values[-24:, 0], rtol=1e-6)
    spread = found.samples[:, 0, 24:].std(axis=0) / np.sqrt(2000)
    assert (np.abs(found.mean[0, 24:] - np.tile(values[-24:, 0], 2)) < 5 * spread).all()


def test_an_untrained_transformer_is_not_computed_and_a_trained_one_is() -> None:
    made = untrained(model__depth=1, model__trainable="all")
    assert made.model.run_transformer is False
    with torch.no_grad():
        assert made.model.transformer is not None
        made.model.transformer.output.weight[0, 0] = 0.1
    trained = Trained.of(made.model, made.scenario, step=HOUR, channels=("load",))
    assert trained.model.run_transformer is True
    found = forecasting.forecast(trained, table_of(days(10, 2)), samples=3, horizon=30)
    assert np.isfinite(found.samples).all() and found.mean.shape == (2, 30)


def test_samples_can_be_drawn_otherwise_than_the_model_was_run_with() -> None:
    made = untrained(model__depth=1, model__trainable="all", diffusion__condition_dropout=0.1)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    made, table = Trained.of(made.model, made.scenario, step=HOUR, channels=("load",)), table_of(days(10))

    def drawn(**changes: object) -> forecasting.Forecast:
        sampling = {f"diffusion.{key}": value for key, value in changes.items()}
        return forecasting.forecast(made, table, samples=4, sampling=sampling)

    plain = drawn()
    assert np.array_equal(plain.samples, drawn(solver=made.scenario.diffusion.solver).samples)
    for changes in ({"guidance": 2.0}, {"nag_scale": 5.0}, {"solver": "ddim"}, {"sampling_steps": 5}):
        other = drawn(**changes)
        assert not np.array_equal(other.samples, plain.samples), changes
        assert np.array_equal(other.mean, plain.mean), "the point forecast is the conditional mean"
    again = untrained(model__depth=1, model__trainable="all", diffusion__condition_dropout=0.1, diffusion__guidance=2.0)
    run_so = Trained.of(made.model, again.scenario, step=HOUR, channels=("load",))
    assert np.array_equal(forecasting.forecast(run_so, table, samples=4).samples, drawn(guidance=2.0).samples)
    assert made.scenario.diffusion.guidance == 1.0, "the model itself stays as it was run"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.width": 8}, "model.width is not a setting of how samples are drawn.*diffusion.nag_scale"),
        ({"diffusion.steps": 10}, "diffusion.steps is not a setting"),
        ({"diffusion.guidance": 2.0}, "train with diffusion.condition_dropout"),
        ({"diffusion.solver": "euler"}, "'ddim', 'dpm-solver\\+\\+' or 'ddpm'"),
    ],
)
def test_sampling_that_the_model_does_not_allow_is_refused(changes, said) -> None:
    for use in (forecasting.forecast, imputation.impute):
        with pytest.raises(InputError, match=said):
            use(untrained(task__kind="mixed"), table_of(days(10)), samples=4, sampling=changes)


def test_small_groups_give_what_one_group_gives(monkeypatch) -> None:
    values = days(10, 7)
    values[np.random.default_rng(0).random(values.shape) < 0.05] = np.nan
    model, mixed = untrained(), untrained(task__kind="mixed")
    whole = forecasting.forecast(model, table_of(values), samples=4, horizon=40)
    filled = imputation.impute(mixed, table_of(values), samples=4)
    monkeypatch.setattr(forecasting, "_ENTRIES", 1)
    monkeypatch.setattr(imputation, "_ENTRIES", 1)
    parts = forecasting.forecast(model, table_of(values), samples=4, horizon=40)
    np.testing.assert_allclose(parts.mean[:, :24], whole.mean[:, :24], rtol=1e-6)
    np.testing.assert_allclose(
        imputation.impute(mixed, table_of(values), samples=4).table.values, filled.table.values, rtol=1e-6
    )


# ---- what the masks covered ----------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["random", "block", "stride", "gap", "any"])
def test_the_longest_run_is_what_training_masks_hide(mask: str) -> None:
    scenario = Scenario().override({"task.kind": "imputation", "task.mask": mask})
    observed = torch.ones(2000, 192, 1, dtype=torch.bool)
    hidden = task_masks(scenario.task, observed, stream(0, "masks"))[:, :, 0].numpy()
    edges = np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1)
    longest = int((np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]).max())
    said = longest_run(scenario.task)
    # Of random masks the longest run ever seen is a matter of luck; the one to be expected is said.
    assert said == longest if mask != "random" else longest / 3 < said <= longest


@pytest.mark.parametrize(
    ("kind", "mask", "forecasts", "fills"),
    [
        ("forecast", "any", True, False),
        ("mixed", "random", True, True),
        ("imputation", "any", True, True),
        ("imputation", "block", True, True),
        ("imputation", "random", False, True),
        ("imputation", "stride", False, True),
        ("imputation", "gap", False, True),
    ],
)
def test_a_model_does_what_its_masks_covered(kind: str, mask: str, forecasts: bool, fills: bool) -> None:
    trained = untrained(task__kind=kind, task__mask=mask)
    assert (not refusal(trained.scenario.task, "forecast")) is forecasts
    assert (not refusal(trained.scenario.task, "impute")) is fills
    table = table_of(days(10))
    if forecasts:
        assert forecasting.forecast(trained, table, samples=2).mean.shape == (1, 24)
    else:
        with pytest.raises(InputError, match=r"cannot forecast: its training masks \(task\.mask="):
            forecasting.forecast(trained, table)


# ---- gaps ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data())
def test_every_gap_is_filled_or_named_and_nothing_else_changes(data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 400))
    values = days(20, 2)[:steps]
    for _ in range(data.draw(st.integers(0, 6))):
        begin, length, column = (data.draw(st.integers(0, top)) for top in (steps - 1, 150, 1))
        values[begin : begin + length, column] = np.nan
    table = table_of(values)
    found = imputation.impute(untrained(task__kind="mixed"), table, samples=2)
    missing = np.isnan(values)
    assert (found.table.values[~missing].view(np.int64) == values[~missing].view(np.int64)).all()
    left = np.zeros_like(missing)
    for gap in found.left:
        first = int((gap.start - table.start) / HOUR)
        left[first : first + gap.steps, table.columns.index(gap.series)] = True
    assert (found.filled ^ left == missing).all(), "each missing entry is filled, or named as left, not both"
    assert np.isfinite(found.table.values[found.filled]).all()
    assert found.quantiles.shape[1] == found.filled.sum()


def test_each_gap_lies_inside_one_window_with_readings_around_it() -> None:
    values = days(40)
    for begin, length in ((100, 40), (300, 1), (340, 3), (500, 90), (900, 20)):
        values[begin : begin + length] = np.nan
    panel, _ = lay_out(untrained(task__kind="mixed"), table_of(values), "impute")
    tiles, left = imputation._tiles(panel, 96, 90)
    assert not left and len(tiles) == 4, "those at 300 and 340 share one"
    for tile in tiles:
        for begin, stop in tile.gaps:
            assert tile.start <= begin - 1 and stop + 1 <= tile.start + 96


# ---- layout --------------------------------------------------------------------------------------------


def test_channels_by_name_and_by_mapping() -> None:
    trained, values = untrained(("load", "oil")), days(5, 3)
    panel, _ = lay_out(trained, table_of(values, "oil", "other", "load"), "forecast")
    assert panel.columns == (("load", "oil"),)
    np.testing.assert_array_equal(panel.values[0], values[:, [2, 0]])
    panel, _ = lay_out(trained, table_of(values, "a", "b", "c"), "forecast", channels={"load": "c", "oil": "a"})
    assert panel.columns == (("c", "a"),)
    found = forecasting.forecast(trained, table_of(values, "oil", "x", "load"), samples=2)
    assert found.series == ("load", "oil")
    with pytest.raises(InputError, match=r"needs the channels load, oil.*no column 'oil'.*--channel oil=COLUMN"):
        lay_out(trained, table_of(values, "load", "oli", "x"), "forecast")


def test_channels_of_several_meters() -> None:
    trained, values = untrained(("load", "oil"), task__kind="mixed"), days(8, 4)
    values[50:60, 2] = np.nan
    table = table_of(values, "m1/load", "m1/oil", "m2/load", "m2/oil")
    panel, _ = lay_out(trained, table, "forecast")
    assert panel.columns == (("m1/load", "m1/oil"), ("m2/load", "m2/oil")) and panel.values.shape == (2, 192, 2)
    found = imputation.impute(trained, table)
    assert found.table.columns == table.columns and found.filled.sum() == 10
    with pytest.raises(InputError, match="no column 'm2/oil'"):
        lay_out(trained, table_of(values[:, :3], "m1/load", "m1/oil", "m2/load"), "forecast")


def test_a_single_channel_model_takes_a_mapped_column_only() -> None:
    panel, _ = lay_out(untrained(), table_of(days(5, 2), "a", "b"), "forecast", channels={"load": "b"})
    assert panel.columns == (("b",),)


def test_declared_bounds_need_the_unit() -> None:
    trained = untrained(data__scaling="bounds", data__low=0, data__high=1000)
    table = table_of(days(5))
    assert lay_out(trained, table, "forecast", unit="MW")[1] == []
    with pytest.raises(InputError, match="the table is in kW, but this model takes readings in MW"):
        lay_out(trained, table, "forecast", unit="kW")
    with pytest.raises(InputError, match="120 of 120 readings lie outside the public bounds"):
        lay_out(trained, dataclasses.replace(table, values=table.values * 1000), "forecast")
    spike = table.values.copy()
    spike[7] = 5000
    assert lay_out(trained, dataclasses.replace(table, values=spike), "forecast")[1] == [
        "1 readings lie outside the model's public bounds (0 to 1000 MW)"
    ]


def test_the_clock_follows_the_zone_and_the_stamps_do_not() -> None:
    stamps = pd.date_range("2024-07-01", periods=24, freq="1h")
    two = pd.Timedelta("2h")
    np.testing.assert_array_equal(Clock().features(stamps), calendar_features(stamps))
    np.testing.assert_array_equal(Clock(1, "Europe/Berlin").features(stamps), calendar_features(stamps + two))
    np.testing.assert_array_equal(Clock(-1, "Europe/Berlin").features(stamps), calendar_features(stamps - two))
    utc = dataclasses.replace(untrained(), timezone="UTC")
    assert lay_out(utc, table_of(days(5)), "forecast")[0].clock == Clock()
    assert lay_out(utc, table_of(days(5)), "forecast", timezone="Europe/Berlin")[0].clock == Clock(-1, "Europe/Berlin")
    assert lay_out(utc, table_of(days(5), timezone="UTC"), "forecast", timezone="Europe/Berlin")[0].clock == Clock()


def test_output_paths(tmp_path) -> None:
    (tmp_path / "in.csv").write_text("x")
    check_output(tmp_path / "out.csv", input=tmp_path / "in.csv", overwrite=False)
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        check_output(tmp_path / "dir.csv", input=tmp_path / "in.csv", overwrite=True)


def test_long_files_of_several_channels_come_back_as_they_were(tmp_path) -> None:
    trained, values = untrained(("load", "oil"), task__kind="mixed"), days(8, 4)
    values[50:60, 2] = np.nan
    stamps = pd.date_range("2024-03-01", periods=len(values), freq="1h")
    meters = [
        pd.DataFrame({"t": stamps, "id": f"m{i}", "kw": values[:, 2 * i], "oil": values[:, 2 * i + 1]}) for i in (0, 1)
    ]
    long = pd.concat(meters, ignore_index=True)
    long.to_csv(tmp_path / "long.csv", index=False)
    user = UserTable.read(tmp_path / "long.csv", client_column="id", value_columns=["kw", "oil"])
    assert user.table.columns == ("m0/kw", "m0/oil", "m1/kw", "m1/oil")
    found = imputation.impute(trained, user.table, channels={"load": "kw"}, samples=4)
    back = user.laid_out(found.frame(uncertainty=True))
    assert list(back.columns) == ["t", "id", *(f"{c}{q}" for c in ("kw", "oil") for q in LEVEL_NAMES)]
    pd.testing.assert_frame_equal(back[long.columns].where(long.notna()), long, check_dtype=False)
    assert back["kw"].notna().all() and back["kw.q50"].notna().sum() == 10
