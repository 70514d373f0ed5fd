"""`fedpriv forecast` and `fedpriv impute`: files in, files out, and every example of their help."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedpriv.cli import main, use_options

PNG = b"\x89PNG\r\n\x1a\n"


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    frame = pd.read_csv(path)
    return frame.assign(**{frame.columns[0]: pd.to_datetime(frame.iloc[:, 0])})


@pytest.fixture
def long_of():
    """long_of(frame) -> a row per reading; what was not read has no row."""

    def make(frame: pd.DataFrame) -> pd.DataFrame:
        stacked = frame.reset_index().melt("when", var_name="meter", value_name="kwh").dropna()
        return stacked.sample(frac=1, random_state=0)  # in no order

    return make


def test_forecast_of_a_csv(forecaster, load, write_table, tmp_path, capsys) -> None:
    source, out = write_table(load, tmp_path / "load.csv"), tmp_path / "out.csv"
    before = source.read_bytes()
    assert (
        main(["forecast", str(forecaster.path), "--input", str(source), "--output", str(out), "--samples", "20"]) == 0
    )
    said = capsys.readouterr()
    assert "3 series, 2024-06-12 00:00:00 to 2024-06-12 23:00:00 (24 steps of 1h)" in said.out
    assert said.err == ""
    found = read(out)
    assert list(found.columns) == ["when", "series", "mean", "q05", "q25", "q50", "q75", "q95"]
    assert source.read_bytes() == before
    expected = forecaster.forecast(load, samples=20)
    np.testing.assert_array_equal(found.iloc[:, 2:].to_numpy(), expected.iloc[:, 2:].to_numpy())


def test_parquet_gzip_and_json(forecaster, load, write_table, tmp_path, capsys) -> None:
    source = write_table(load, tmp_path / "load.parquet")
    words = ["forecast", str(forecaster.path), "--input", str(source), "--samples", "5", "--json"]
    out = tmp_path / "out.parquet"
    assert main([*words, "--output", str(out), "--plot", str(tmp_path / "out.png")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["series"] == list(load.columns) and summary["steps"] == 24 and summary["skipped"] == {}
    assert summary["first"] == "2024-06-12 00:00:00"
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)
    assert main([*words, "--output", str(tmp_path / "out.csv.gz")]) == 0
    with gzip.open(tmp_path / "out.csv.gz", "rt") as stream:
        packed = pd.read_csv(stream)
    np.testing.assert_array_equal(packed["mean"], pd.read_parquet(out)["mean"])


def test_long_format_gives_the_same_forecast(forecaster, load, long_of, tmp_path) -> None:
    wide, long = tmp_path / "wide.csv", tmp_path / "long.parquet"
    load.to_csv(wide)
    long_of(load).to_parquet(long)
    common = ["forecast", str(forecaster.path), "--samples", "5"]
    assert main([*common, "--input", str(wide), "--output", str(tmp_path / "a.csv")]) == 0
    options = ["--time-column", "when", "--client-column", "meter", "--value-column", "kwh"]
    options += [word for name in load for word in ("--series", name)]
    assert main([*common, "--input", str(long), "--output", str(tmp_path / "b.csv"), *options]) == 0
    one, two = read(tmp_path / "a.csv"), read(tmp_path / "b.csv")
    assert list(two.columns)[:2] == ["when", "meter"]
    pd.testing.assert_frame_equal(one, two.rename(columns={"meter": "series"}))


def test_impute_returns_the_file_with_its_gaps_filled(filler, gappy, write_table, tmp_path, capsys) -> None:
    source = write_table(gappy.drop(gappy.index[50:53]), tmp_path / "load.csv")  # missing rows are gaps too
    out = tmp_path / "out.csv"
    words = ["impute", str(filler.path), "--input", str(source), "--output", str(out), "--samples", "10"]
    assert main([*words, "--plot", str(tmp_path / "out.png")]) == 0
    said = capsys.readouterr()
    assert "1 gap left open" in said.out and "left open: feeder B" in said.err
    found = read(out).set_index("when")
    assert list(found.columns[:3]) == list(gappy.columns)
    assert list(found.index) == list(gappy.index)
    given = gappy.copy()
    given.iloc[50:53] = np.nan
    mask = given.notna().to_numpy()
    assert (found[list(gappy.columns)].to_numpy()[mask] == given.to_numpy()[mask]).all(), "bit by bit through CSV"
    assert found["feeder A"].notna().all() and found["feeder A.q05"].notna().sum() == (~mask[:, 0]).sum()
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_impute_in_long_format(filler, gappy, long_of, tmp_path, capsys) -> None:
    long_of(gappy).to_csv(tmp_path / "long.csv", index=False)
    words = ["impute", str(filler.path), "--input", str(tmp_path / "long.csv"), "--output", str(tmp_path / "out.csv")]
    words += ["--client-column", "meter", "--value-column", "kwh", "--samples", "5", "--json"]
    assert main(words) == 0
    summary = json.loads(capsys.readouterr().out)
    found = read(tmp_path / "out.csv")
    assert list(found.columns) == ["when", "meter", "kwh", "kwh.q05", "kwh.q25", "kwh.q50", "kwh.q75", "kwh.q95"]
    wide = found.pivot(index="when", columns="meter", values="kwh")[list(gappy.columns)]
    read_ = gappy.notna().to_numpy()
    assert (wide.to_numpy()[read_] == gappy.to_numpy()[read_]).all()
    assert summary["filled"] == int((gappy.isna().to_numpy() & wide.notna().to_numpy()).sum())
    assert [gap["series"] for gap in summary["left"]] == ["feeder B"]


def test_files_are_never_lost(forecaster, load, write_table, tmp_path, capsys) -> None:
    source, out = write_table(load, tmp_path / "load.csv"), tmp_path / "out.csv"
    words = ["forecast", str(forecaster.path), "--samples", "5", "--input", str(source), "--output"]
    out.write_text("mine")
    assert main([*words, str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "mine"
    before = source.read_bytes()
    (tmp_path / "link.csv").symlink_to(source)
    for same in (source, tmp_path / "link.csv", tmp_path / "." / "load.csv"):
        assert main([*words, str(same), "--overwrite"]) == 2
        assert "never overwritten" in capsys.readouterr().err
    assert source.read_bytes() == before
    for path, reason in (("out.txt", "does not end in"), ("no/out.csv", "does not exist")):
        assert main([*words, str(tmp_path / path)]) == 2
        assert reason in capsys.readouterr().err
    assert main([*words, str(tmp_path / "new.csv"), "--plot", str(tmp_path / "p.svg")]) == 2
    assert not (tmp_path / "new.csv").exists()
    assert main([*words, str(out), "--overwrite"]) == 0
    assert len(read(out)) == 72


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ("when,a\n2024-01-01,1\n2024-01-01,2\n", [], "--duplicates mean"),
        ("n,a\n1,1\n2,2\n", [], "--time-column"),
        ("when,a\n2024-01-01,x\n2024-01-02,2\n", [], "holds text"),
        ("when,a\n", [], "nothing was loaded"),
        ("when,a\n2024-01-01,1\n", ["--series", "b"], "no column 'b'"),
        ("when,m,x,y\n2024-01-01,1,2,3\n", ["--client-column", "m"], "--value-column"),
        ("when,a\n2024-01-01,1\n", ["--channel", "load"], "CHANNEL=COLUMN"),
        ("when,a\n2024-01-01T00:00,1\n2024-01-01T00:30,2\n", [], "--resample"),
        ("when,a\n2024-01-01T00:00,1\n2024-01-01T01:00,2\n", ["--channel", "lode=a"], "no channel 'lode'"),
        ("when,a\n2024-01-01T00:00,1\n2024-01-01T01:00,2\n", ["--channel", "load=b"], "nearest is 'a'"),
        ("when,a\n2024-01-01T00:00,1\n2024-01-01T01:00,2\n", [], "at least 24 are needed"),
    ],
)
def test_bad_files_are_one_paragraph_and_exit_2(forecaster, tmp_path, capsys, content, options, reason) -> None:
    (tmp_path / "bad.csv").write_text(content)
    words = ["--input", str(tmp_path / "bad.csv"), "--output", str(tmp_path / "out.csv")]
    assert main(["forecast", str(forecaster.path), *words, *options]) == 2
    said = capsys.readouterr()
    assert reason in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "out.csv").exists()


def test_sampling_is_changed_by_its_keys_alone(filler, gappy, write_table, tmp_path, capsys) -> None:
    source = write_table(gappy, tmp_path / "load.csv")
    for use_, extra in (("forecast", []), ("impute", ["--samples", "4"])):
        words = [use_, str(filler.path), "--input", str(source), *extra]
        assert main([*words, "--output", str(tmp_path / f"{use_}.csv"), "--set", "diffusion.solver=ddim"]) == 0
        capsys.readouterr()
        for change, said in (
            ("model.ema=0.5", "model.ema is not a setting of how samples"),
            ("nag", "is not KEY=VALUE"),
        ):
            assert main([*words, "--output", str(tmp_path / "no.csv"), "--set", change]) == 2
            assert said in capsys.readouterr().err and not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize("text", [use_options.FORECAST, use_options.IMPUTE], ids=["forecast", "impute"])
def test_every_example_of_the_help_runs(forecaster, filler, load, gappy, text, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    impute = text is use_options.IMPUTE
    (gappy if impute else load).to_csv("load.csv")
    load.to_csv("north.csv")
    fine = load if impute else load.resample("15min").interpolate()
    long = fine.reset_index().melt("when", var_name="meter", value_name="kwh")
    long.to_csv("meters.csv", index=False)
    examples = [line.strip() for line in text.splitlines() if line.startswith("  fedpriv ")]
    assert len(examples) >= 3
    for line in examples:
        words = shlex.split(line)[1:]
        words[1] = str((filler if impute else forecaster).path)
        if "--personal" in words:
            words[words.index("--personal") + 1] = "utility-000"
        assert main(words) == 0, line
        assert Path(words[words.index("--output") + 1]).stat().st_size > 0
        if "--plot" in words:
            assert Path(words[words.index("--plot") + 1]).read_bytes().startswith(PNG)
            Path(words[words.index("--plot") + 1]).unlink()
        Path(words[words.index("--output") + 1]).unlink()
