from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedpriv.data.files import header, read_columns, read_table
from fedpriv.data.inspect import inspect_file
from fedpriv.data.table import group_means, infer_step, parse_stamps, parse_step, regular_table, step_text
from fedpriv.errors import InputError

HOUR = pd.Timedelta(hours=1)


def hourly(values, start="2024-01-01", name="a"):
    return pd.DataFrame({name: values}, index=pd.date_range(start, periods=len(values), freq="h"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_gaps_stay_missing_and_rows_are_sorted():
    frame = hourly(np.arange(6.0)).drop(index=pd.Timestamp("2024-01-01 02:00")).iloc[::-1]
    table = regular_table(frame, where="x", unit="MW")
    assert table.start == pd.Timestamp("2024-01-01") and table.step == HOUR and table.unit == "MW"
    np.testing.assert_array_equal(table.values[:, 0], [0, 1, np.nan, 3, 4, 5])
    assert table.frame().index.equals(table.index)


def test_same_row_twice_is_repaired_and_conflicting_rows_are_not():
    frame = hourly([1.0, 2.0, 3.0])
    again = pd.concat([frame, frame.iloc[[1]]])
    np.testing.assert_array_equal(regular_table(again, where="x").values[:, 0], [1, 2, 3])
    conflict = pd.concat([frame, frame.iloc[[1]] + 10])
    with pytest.raises(InputError, match=r"x: 1 stamps are there more than once.*duplicates=mean"):
        regular_table(conflict, where="x")
    np.testing.assert_array_equal(regular_table(conflict, where="x", duplicates="mean").values[:, 0], [1, 7, 3])


def test_average_of_repeats_ignores_what_is_missing():
    frame = pd.concat([hourly([1.0, np.nan, 3.0]), hourly([1.0, 5.0, 3.0])])
    np.testing.assert_array_equal(regular_table(frame, where="x", duplicates="mean").values[:, 0], [1, 5, 3])


def test_wrong_frequency():
    frame = hourly([1.0, 2.0, 3.0, 4.0, 5.0])
    shifted = frame.set_axis([*frame.index[:4], frame.index[4] + pd.Timedelta(minutes=20)], axis=0)
    with pytest.raises(InputError, match="wrong frequency; 1 of 5 stamps"):
        regular_table(shifted, where="x")
    with pytest.raises(InputError, match="wrong frequency; the stamps are 1h apart, expected 30min"):
        regular_table(frame, where="x", step=HOUR / 2)


def test_a_stray_stamp_does_not_make_an_endless_calendar():
    frame = pd.concat([hourly(np.arange(50.0)), hourly([1.0], start="2224-01-01")])
    with pytest.raises(InputError, match="do not fill a calendar"):
        regular_table(frame, where="x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "abc", "3"], r"column 'a' holds text where numbers are expected in 1 rows, first in data row 2"),
        ([1.0, np.inf, 3.0], "infinite or too large value, first in data row 2"),
        ([1.0, 1e39, 3.0], "infinite or too large value"),
        ([True, False, True], "true/false"),
    ],
)
def test_what_is_not_a_number(values, message):
    with pytest.raises(InputError, match=message) as caught:
        regular_table(hourly(values), where="x")
    assert "abc" not in str(caught.value)  # readings stay out of messages


def test_empty_and_single_row():
    with pytest.raises(InputError, match="no readings"):
        regular_table(hourly([]), where="x")
    with pytest.raises(InputError, match="fewer than two different stamps"):
        regular_table(hourly([1.0]), where="x")


def test_stamps_with_offsets_become_utc():
    index, zone = parse_stamps(pd.Series(["2024-03-31T01:30:00+01:00", "2024-03-31T03:30:00+02:00"]), where="x")
    assert zone == "UTC" and list(index) == [pd.Timestamp("2024-03-31 00:30"), pd.Timestamp("2024-03-31 01:30")]
    index, zone = parse_stamps(pd.Series(["2024-01-01T00:00Z", "2024-01-01T01:00Z"]), where="x")
    assert zone == "UTC" and index[1] == pd.Timestamp("2024-01-01 01:00")
    aware = pd.Series(pd.date_range("2024-01-01", periods=2, freq="h", tz="Europe/Berlin"))
    index, zone = parse_stamps(aware, where="x")
    assert zone == "UTC" and index[0] == pd.Timestamp("2023-12-31 23:00")


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        (["2024-01-01 00:00", "never"], "first is in data row 2"),
        (["2024-01-01 00:00", None], "first is in data row 2"),
        (["31.01.2024 13:00", "31.01.2024 14:00"], "2 values of the time column"),
        ([1704067200, 1704070800], "holds numbers"),
        (["2024-01-01T00:00Z", "2024-01-01 01:00"], r"others \(first in data row 2\) do not"),
    ],
)
def test_what_is_not_a_stamp(stamps, message):
    with pytest.raises(InputError, match=message):
        parse_stamps(pd.Series(stamps, name="t"), where="x")


def test_steps():
    assert parse_step("1h") == HOUR and parse_step("h") == HOUR and parse_step("15min") == HOUR / 4
    for wrong in ("", "soon", "0h", "-1h", "24"):
        with pytest.raises(InputError, match=r"data\.frequency"):
            parse_step(wrong)
    assert [step_text(pd.Timedelta(t)) for t in ("1h", "30min", "1D", "10s")] == ["1h", "30min", "1d", "10s"]
    assert infer_step(pd.DatetimeIndex(["2024-01-01", "2024-01-01 01:00", "2024-01-01 05:00"]), where="x") == HOUR


def test_groups_have_a_mean_only_when_complete():
    half = pd.Timedelta(minutes=30)
    values = np.array([1.0, 2.0, 4.0, np.nan, 6.0, 7.0, 9.0])[:, None]
    means, start = group_means(values, pd.Timestamp("2024-01-01 00:30"), half, HOUR, where="x")
    assert start == pd.Timestamp("2024-01-01 00:00")
    np.testing.assert_array_equal(means[:, 0], [np.nan, 3.0, np.nan, 8.0])
    with pytest.raises(InputError, match="cannot be resampled to 45min"):
        group_means(values, pd.Timestamp("2024-01-01"), half, half * 1.5, where="x")


def test_wide_long_and_parquet_give_the_same(tmp_path):
    wide = pd.DataFrame({"a": [1.0, 2.0, np.nan], "b": [4.0, 5.0, 6.0]})
    wide.insert(0, "time", pd.date_range("2024-01-01", periods=3, freq="h").strftime("%Y-%m-%d %H:%M"))
    wide.to_csv(tmp_path / "w.csv.gz", index=False)
    wide.to_parquet(tmp_path / "w.parquet", index=False)
    long = wide.melt(id_vars="time", var_name="meter", value_name="kw").sample(frac=1, random_state=1)
    long.to_csv(tmp_path / "l.csv", index=False)
    first = read_table(tmp_path / "w.csv.gz", unit="kW")
    for other in (
        read_table(tmp_path / "w.parquet", unit="kW"),
        read_table(tmp_path / "l.csv", client_column="meter", unit="kW", ids=("a", "b")),
    ):
        np.testing.assert_array_equal(first.values, other.values)
        assert other.columns == ("a", "b") and other.start == first.start and other.unit == "kW"
    assert read_table(tmp_path / "w.csv.gz", columns=["b"]).columns == ("b",)
    assert len(read_table(tmp_path / "w.csv.gz", frequency="3h")) == 1
    assert header(tmp_path / "w.parquet") == ("time", "a", "b")
    assert len(read_columns(tmp_path / "w.csv.gz", ["b"], rows=2)) == 2


def test_parquet_with_datetime_index(tmp_path):
    frame = hourly([1.0, 2.0, 3.0]).rename_axis("stamp")
    frame.to_parquet(tmp_path / "x.parquet")
    table = read_table(tmp_path / "x.parquet", time_column="stamp")
    np.testing.assert_array_equal(table.values[:, 0], [1, 2, 3])


def test_long_file_with_another_span_per_series(tmp_path):
    path = write(
        tmp_path / "l.csv",
        "t,id,v\n2024-01-01 00:00,7,1\n2024-01-01 01:00,7,2\n2024-01-02 00:00,8,3\n2024-01-02 01:00,8,4\n",
    )
    only = read_table(path, client_column="id", ids=("8",))
    assert only.start == pd.Timestamp("2024-01-02") and len(only) == 2
    both = read_table(path, client_column="id")
    assert both.columns == ("7", "8") and len(both) == 26
    with pytest.raises(InputError, match="no rows with id=9"):
        read_table(path, client_column="id", ids=("9",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_column": "stamp"}, "no column 'stamp'; the nearest is"),
        ({"columns": ["lod"]}, "no column 'lod'; the nearest is 'load'"),
        ({"client_column": "cliemt"}, "no column 'cliemt'; the nearest is 'client'"),
        ({"client_column": "client"}, "2 columns beside.*data.value_column"),
        ({"client_column": "client", "value_column": "lood"}, "the nearest is 'load'"),
    ],
)
def test_missing_columns(tmp_path, options, message):
    path = write(tmp_path / "x.csv", "time,client,load,temp\n2024-01-01 00:00,a,1,2\n2024-01-01 01:00,a,1,2\n")
    with pytest.raises(InputError, match=message):
        read_table(path, **options)


def test_damaged_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is empty"):
        read_table(write(tmp_path / "e.csv", ""))
    with pytest.raises(InputError, match="no column of readings"):
        read_table(write(tmp_path / "t.csv", "time\n2024-01-01\n"))
    with pytest.raises(InputError, match="no readings"):
        read_table(write(tmp_path / "h.csv", "time,a\n"))
    with pytest.raises(InputError, match="well-formed") as caught:
        read_table(write(tmp_path / "r.csv", "time,a\n2024-01-01 00:00,1\n2024-01-01 01:00,1,666,7\n"))
    assert "666" not in str(caught.value)
    (tmp_path / "b.csv").write_bytes(b"time,a\n2024-01-01 00:00,\xff\xfe\n")
    with pytest.raises(InputError, match=r"UTF-8|text|well-formed"):
        read_table(tmp_path / "b.csv")
    rows = "".join(f"2024-01-01 {h:02d}:00,{h * 7919 % 1000}\n" for h in range(24)) * 50
    packed = gzip.compress(("time,a\n" + rows).encode())
    (tmp_path / "g.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match="truncated or damaged gzip"):
        read_table(tmp_path / "g.csv.gz")
    (tmp_path / "n.csv.gz").write_bytes(b"time,a\n")
    with pytest.raises(InputError, match="truncated or damaged gzip"):
        read_table(tmp_path / "n.csv.gz")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"well-formed|cannot be read"):
        read_table(tmp_path / "p.parquet")


def test_text_in_numbers_names_column_and_row(tmp_path):
    path = write(tmp_path / "x.csv", "time,a\n2024-01-01 00:00,1\n2024-01-01 01:00,secret\n2024-01-01 02:00,3\n")
    with pytest.raises(InputError, match=r"column 'a' holds text.*data row 2") as caught:
        read_table(path)
    assert "secret" not in str(caught.value)


def test_inspect_reports_instead_of_refusing(tmp_path):
    rows = [f"2024-01-01 {h:02d}:00,{h},{'' if h in (5, 6, 7) else 1}" for h in range(24) if h != 12]
    rows += ["2024-01-01 03:00,99,1", "2024-01-01 20:30,1,1"]
    path = write(tmp_path / "x.csv", "time,a,b\n" + "\n".join(rows) + "\n")
    summary, table = inspect_file(path)
    assert summary["step"] == "1h" and summary["rows"] == 25 and summary["series"] == 2
    assert summary["repeated_stamps"] == 1 and summary["off_grid"] == 1 and summary["sorted"] is False
    assert len(summary["problems"]) == 2
    assert table.loc["a", "missing"] == 1 and table.loc["a", "longest_gap"] == 1 and table.loc["a", "high"] == 23
    assert table.loc["b", "missing"] == 4 and table.loc["b", "gaps"] == 2 and table.loc["b", "longest_gap"] == 3
    assert table.loc["b", "longest_flat"] == 11 and table.loc["a", "zeros"] == 1


def test_inspect_a_clean_long_file(tmp_path):
    text = "time,id,v\n" + "".join(f"2024-01-0{1 + h // 24} {h % 24:02d}:00,{i},{h}\n" for i in "xy" for h in range(48))
    summary, table = inspect_file(write(tmp_path / "l.csv", text), client_column="id")
    assert summary["problems"] == [] and summary["format"] == "long" and list(table.index) == ["x", "y"]
    assert summary["sorted"] is True and (table["steps"] == 48).all()
    with pytest.raises(InputError, match="text"):
        inspect_file(write(tmp_path / "t.csv", "time,a\n2024-01-01 00:00,x\n2024-01-01 01:00,1\n"))


def test_inspect_says_what_a_calendar_lacks(tmp_path):
    hours = pd.date_range("2024-01-01", periods=1920, freq="h").strftime("%Y-%m-%d %H").tolist()
    short = write(tmp_path / "s.csv", "time,a\n" + "".join(f"{h}:00,1\n" for h in hours[:48]))
    assert inspect_file(short)[0]["problems"] == [] and "48 steps are too few" in str(inspect_file(short)[0]["remarks"])
    long = write(tmp_path / "l.csv", "time,a\n" + "".join(f"{h}:00,1\n" for h in hours))
    assert inspect_file(long)[0]["remarks"] == []
    wild = write(tmp_path / "w.csv", "time,a\n" + "".join(f"{h}:{i * i * 7 % 60:02d},1\n" for i, h in enumerate(hours)))
    with pytest.raises(InputError, match="no regular step"):
        inspect_file(wild)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_separator_is_named(tmp_path, mark):
    path = write(tmp_path / "x.csv", f"time{mark}a\n2024-01-01 00:00{mark}1,5\n")
    with pytest.raises(InputError, match="commas are expected"):
        read_table(path)


def test_decimal_commas_are_not_cut_off(tmp_path):
    path = write(tmp_path / "x.csv", "time,a\n2024-01-01 00:00,1,5\n2024-01-01 01:00,2,5\n")
    with pytest.raises(InputError, match="well-formed"):
        read_table(path)


def test_two_columns_of_one_name(tmp_path):
    with pytest.raises(InputError, match="two columns named 'a'"):
        read_table(write(tmp_path / "x.csv", "time,a,a\n2024-01-01 00:00,1,5\n"))


def test_ids_keep_their_zeros(tmp_path):
    path = write(tmp_path / "x.csv", "t,id,v\n2024-01-01 00:00,007,1\n2024-01-01 01:00,007,2\n")
    assert read_table(path, client_column="id").columns == ("007",)
