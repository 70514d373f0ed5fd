from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

from fedpriv.config import Scenario
from fedpriv.data import registry
from fedpriv.data.clients import load_client
from fedpriv.data.generator import draw_utility, generate
from fedpriv.data.registry import datasets
from fedpriv.data.roster import roster
from fedpriv.data.sources.synthetic import write_csv
from fedpriv.errors import InputError


def scenario(source, **data):
    clients = data.pop("partition", 0)
    return Scenario().override({"data": {"source": source, **data}, "partition.clients": clients})


def publish(monkeypatch, key, form, files):
    """Makes `files` (name -> bytes) the registered content of a form, so that small stand-ins verify."""
    known = dict(datasets())
    old = {f.name: f for f in known[key].forms[form]}
    new = tuple(
        replace(old[n], sha256=hashlib.sha256(b).hexdigest(), size=len(b), gz_sha256="", gz_size=0)
        for n, b in files.items()
    )
    forms = MappingProxyType({**known[key].forms, form: new})
    known[key] = replace(known[key], forms=forms)
    monkeypatch.setattr(registry, "datasets", lambda: known)


# ---- synthetic ----------------------------------------------------------------------------------


def test_a_utility_does_not_depend_on_how_many_there_are():
    few, many = scenario("synthetic", partition=2, days=90), scenario("synthetic", partition=5, days=90)
    assert roster(many).names[:2] == roster(few).names == ("utility-000", "utility-001")
    one, other = load_client(few, "utility-001"), load_client(many, "utility-001")
    np.testing.assert_array_equal(one.values, other.values)
    reseeded = load_client(scenario("synthetic", partition=2, days=90, seed=21), "utility-001")
    assert not np.array_equal(one.values, reseeded.values, equal_nan=True)


def test_utilities_are_heterogeneous_and_plausible():
    truth = [draw_utility(20, k) for k in range(12)]
    assert len({u.climate for u in truth}) >= 3
    assert max(u.size for u in truth) / min(u.size for u in truth) > 10
    for u in truth[:4]:
        load = generate(u, days=365, meters=1, seed=20).load[0]
        assert 0.7 * u.size < np.nanmean(load) < 1.6 * u.size and np.nanmin(load) > 0
        assert 0.05 < np.nanstd(load) / np.nanmean(load) < 0.35
        assert 0 < np.isnan(load).mean() < 0.05


def test_meters_add_up_and_have_heavy_tails():
    u = draw_utility(20, 1)
    load = generate(u, days=120, meters=40, seed=20).load
    assert load.shape == (40, 120 * 24)
    means = np.nanmean(load, axis=1)
    assert 0.6 * u.size < means.sum() < 1.8 * u.size
    assert means.max() > 4 * np.median(means)
    standard = (load - means[:, None]) / np.nanstd(load, axis=1)[:, None]
    assert np.nanmedian(np.nanmax(np.abs(standard), axis=1)) > 5


def test_synthetic_names():
    assert load_client(scenario("synthetic", clients=["utility-007"], days=90), "utility-007").meters == (
        "utility-007",
    )
    for wrong in ("utility-7", "utility-0007", "PJM"):
        with pytest.raises(InputError, match="unknown client"):
            roster(scenario("synthetic", clients=[wrong]))
    with pytest.raises(InputError, match="no end"):
        roster(scenario("synthetic", partition=0))


def test_unknown_and_doubled_clients():
    with pytest.raises(InputError, match="unknown client 'PJM-AEE' of source eia930; the nearest is 'PJM-AE"):
        roster(scenario("eia930", clients=["PJM-AEE"]))
    with pytest.raises(InputError, match="names a client twice"):
        roster(scenario("eia930", clients=["SOCO", "SOCO"]))
    with pytest.raises(InputError, match="not in this scenario; the nearest is 'utility-000'"):
        load_client(scenario("synthetic", partition=1), "utility-001")
    with pytest.raises(InputError, match=r"partition\.clients=3, but the source has 2 \(ETTh1, ETTh2\)"):
        roster(scenario("ett", partition=3))


def test_written_csv_is_read_back(tmp_path):
    paths = write_csv(tmp_path, clients=2, days=90, seed=20)
    assert [p.name for p in paths] == ["utilities.csv", "utilities.json"]
    truth = json.loads(paths[1].read_text())
    assert truth["utilities"]["utility-001"] == draw_utility(20, 1).knobs()
    back = load_client(scenario("csv", path=str(paths[0]), unit="MW"), "utility-001")
    direct = load_client(scenario("synthetic", partition=2, days=90), "utility-001")
    np.testing.assert_allclose(back.values, direct.values, rtol=1e-6)
    assert (back.train, back.test, back.unit) == (direct.train, direct.test, "MW")


def test_written_meters_are_read_back(tmp_path):
    write_csv(tmp_path, clients=2, days=90, meters=3, seed=20)
    s = scenario("csv", path=str(tmp_path / "utilities"))
    assert roster(s).names == ("utility-000", "utility-001")
    back = load_client(s, "utility-000")
    direct = load_client(scenario("synthetic", partition=2, days=90, meters=3), "utility-000")
    assert back.meters == direct.meters and back.values.shape == (3, 2160, 1)
    np.testing.assert_allclose(back.values, direct.values, rtol=1e-6)
    with pytest.raises(InputError, match="meters=0"):
        write_csv(tmp_path, clients=1, days=1, meters=0, seed=1)


# ---- the user's own -----------------------------------------------------------------------------


@pytest.fixture
def frame():
    index = pd.date_range("2024-01-01", periods=24 * 80, freq="h", name="time")
    k = np.arange(len(index), dtype=float)
    return pd.DataFrame({"north": k, "south": 2 * k}, index=index)


def test_csv_wide(tmp_path, frame):
    frame.to_csv(tmp_path / "x.csv.gz")
    s = scenario("csv", path=str(tmp_path / "x.csv.gz"), unit="kW")
    r = roster(s)
    assert r.names == ("north", "south") and r.step == pd.Timedelta("1h") and r.unit == "kW"
    assert any("column names" in text for text in r.simulated_public)
    c = load_client(s, "south")
    assert c.values.shape == (1, 1920, 1) and c.values[0, 5, 0] == 10 and c.start == pd.Timestamp("2024-01-01")
    with pytest.raises(InputError, match=r"unknown client 'nord'.*nearest is 'north'"):
        roster(scenario("csv", path=str(tmp_path / "x.csv.gz"), clients=["nord"]))


def test_csv_long_names_are_scanned_only_if_not_given(tmp_path, frame):
    frame.reset_index().melt(id_vars="time", var_name="who", value_name="v").to_csv(tmp_path / "l.csv", index=False)
    options = {"path": str(tmp_path / "l.csv"), "client_column": "who"}
    scanned = roster(scenario("csv", **options))
    assert scanned.names == ("north", "south") and any("scan of column 'who'" in t for t in scanned.simulated_public)
    given = scenario("csv", clients=["south"], **options)
    assert roster(given).names == ("south",) and not any("scan" in t for t in roster(given).simulated_public)
    assert load_client(given, "south").values[0, 5, 0] == 10
    assert roster(given).channels == load_client(given, "south").channels == ("v",)
    absent = scenario("csv", clients=["west"], **options)
    assert roster(absent).names == ("west",)
    with pytest.raises(InputError, match="no rows with who=west"):
        load_client(absent, "west")


def test_csv_directory(tmp_path, frame):
    frame.to_csv(tmp_path / "one.csv")
    (frame + 1).to_parquet(tmp_path / "two.parquet")
    s = scenario("csv", path=str(tmp_path), time_column="time")
    assert roster(s).names == ("one", "two")
    c = load_client(s, "two")
    assert c.meters == ("north", "south") and c.values.shape == (2, 1920, 1) and c.values[1, 5, 0] == 11
    channelled = scenario("csv", path=str(tmp_path), time_column="time", channels=["south", "north"])
    c = load_client(channelled, "one")
    assert c.channels == ("south", "north") and c.values.shape == (1, 1920, 2) and c.values[0, 5].tolist() == [10, 5]
    (tmp_path / "one.csv.gz").write_bytes(gzip.compress(b"time,a\n"))
    with pytest.raises(InputError, match="'one' in two formats"):
        roster(s.override({"data.unit": "x"}))


def test_csv_file_with_channels(tmp_path, frame):
    frame.to_csv(tmp_path / "station.csv")
    s = scenario("csv", path=str(tmp_path / "station.csv"), channels=["north", "south"], frequency="2h")
    s = s.override({"task.context": 24})
    assert roster(s).names == ("station",) and roster(s).step == pd.Timedelta("2h")
    assert load_client(s, "station").values.shape == (1, 960, 2)
    with pytest.raises(InputError, match="no column 'nord'; the nearest is 'north'"):
        roster(s.override({"data.channels": ["nord"]}))


def test_csv_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"data\.path=.*does not exist"):
        roster(scenario("csv", path=str(tmp_path / "x.csv")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no"):
        roster(scenario("csv", path=str(tmp_path / "empty")))


def test_a_changed_file_is_read_anew(tmp_path, frame):
    frame.to_csv(tmp_path / "x.csv")
    s = scenario("csv", path=str(tmp_path / "x.csv"))
    first = load_client(s, "north")
    assert load_client(s, "north") is first
    (frame + 7).rename(columns={"south": "west"}).to_csv(tmp_path / "x.csv")
    assert roster(s).names == ("north", "west") and load_client(s, "north").values[0, 0, 0] == 7


# ---- published forms, on small stand-ins --------------------------------------------------------


def csv_bytes(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


@pytest.fixture
def eia():
    index = pd.date_range("2020-01-01", "2024-12-31 23:00", freq="h").strftime("%Y-%m-%d %H:%M")
    k = np.arange(len(index)) % 97 + 100
    joined = csv_bytes(pd.DataFrame({"date_time": index, "SOCO": k, "TVA": k * 2}))
    flags = b"date_time,entity,category,raw_mw\n2020-01-01 02:00,SOCO,MISSING,\n2020-01-01 03:00,TVA,DELTA,5\n"
    return {"eia930_2020_2024_cleaned_mw.csv": joined, "eia930_2020_2024_flags.csv": flags}


def test_eia930_flags(monkeypatch, tmp_path, eia):
    publish(monkeypatch, "eia930", "joined", eia)
    (tmp_path / "eia930").mkdir()
    for name, content in eia.items():
        (tmp_path / "eia930" / f"{name}.gz").write_bytes(gzip.compress(content))
    s = scenario("eia930", dir=str(tmp_path), clients=["SOCO", "TVA"])
    c = load_client(s, "SOCO")
    assert np.isnan(c.values[0, :, 0]).nonzero()[0].tolist() == [2] and c.values[0, 3, 0] == 103
    assert (c.train, c.timezone) == (slice(0, 26304), "UTC")
    kept = load_client(s.override({"data.drop_flagged": False}), "SOCO")
    assert np.isfinite(kept.values).all()
    with pytest.raises(InputError, match="no column 'DUK'"):
        load_client(scenario("eia930", dir=str(tmp_path), clients=["DUK"]), "DUK")


def test_eia930_publishers_own_files(monkeypatch, tmp_path):
    index = pd.date_range("2020-01-01", "2024-12-31 23:00", freq="h")
    n = len(index)
    raw, category, clean = np.full(n, 50.0), np.full(n, "OKAY", dtype=object), np.full(n, 50.0)
    category[1], raw[1], clean[1] = "MISSING", np.nan, 51.0  # imputed
    category[2], raw[2], clean[2] = "MISSING", np.nan, 0.0  # never imputed
    names = ["date_time", "raw demand (MW)", "category", "cleaned demand (MW)"]
    content = csv_bytes(pd.DataFrame(dict(zip(names, [index, raw, category, clean], strict=True))))
    publish(monkeypatch, "eia930", "entities", {"SOCO.csv": content})
    (tmp_path / "SOCO.csv").write_bytes(content)
    s = scenario("eia930", dir=str(tmp_path), clients=["SOCO"])
    assert np.isnan(load_client(s, "SOCO").values[0, :4, 0]).tolist() == [False, True, True, False]
    kept = load_client(s.override({"data.drop_flagged": False}), "SOCO")
    assert np.isnan(kept.values[0, :4, 0]).tolist() == [False, False, True, False] and kept.values[0, 1, 0] == 51


def test_eia930_order_is_spread_over_regions_with_faulty_ones_last():
    names = roster(scenario("eia930")).names
    assert len(names) == len(set(names)) == 118 and "AEC" not in names
    assert names[-3:] == ("CISO-VEA", "SPA", "PSEI")
    regions = datasets()["eia930"].regions
    assert len({regions[n] for n in names[:13]}) == 13
    assert names[:8] == ("BANC", "CPLE", "SWPP-CSWS", "FMPP", "PJM-AE", "AECI", "ISNE-4001", "NYIS-ZONA")


def test_missing_files_and_flags(tmp_path, eia):
    s = scenario("eia930", dir=str(tmp_path), clients=["SOCO"])
    with pytest.raises(InputError, match="fedpriv data download eia930"):
        load_client(s, "SOCO")
    (tmp_path / "eia930_2020_2024_cleaned_mw.csv").write_bytes(eia["eia930_2020_2024_cleaned_mw.csv"])
    with pytest.raises(InputError, match=r"eia930_2020_2024_flags\.csv"):
        load_client(s, "SOCO")
    (tmp_path / "eia930_2020_2024_flags.csv").write_bytes(eia["eia930_2020_2024_flags.csv"])
    with pytest.raises(InputError, match="wrong checksum"):  # unverified bytes are never loaded
        load_client(s, "SOCO")


def test_pjm_is_sorted_repaired_and_cut(monkeypatch, tmp_path):
    index = pd.date_range("2013-05-01", "2018-08-03", freq="h")
    frame = pd.DataFrame({"Datetime": index, "AEP_MW": np.arange(len(index)) + 1000.0})
    frame = frame[frame.Datetime != "2014-03-09 03:00:00"]  # spring
    autumn = pd.DataFrame({"Datetime": [pd.Timestamp("2014-11-02 02:00")], "AEP_MW": [0.0]})
    at = frame.Datetime == "2014-11-02 02:00:00"
    autumn.AEP_MW = frame.loc[at, "AEP_MW"].to_numpy() + 10  # the repeated hour
    frame.loc[frame.Datetime == "2015-01-01 00:00:00", "AEP_MW"] = 0.0  # a placeholder
    frame = pd.concat([frame, autumn]).sample(frac=1, random_state=1)
    content = csv_bytes(frame)
    publish(monkeypatch, "pjm", "upstream", {"AEP_hourly.csv": content})
    (tmp_path / "AEP_hourly.csv").write_bytes(content)
    c = load_client(scenario("pjm", dir=str(tmp_path), clients=["AEP"]), "AEP")
    assert c.start == pd.Timestamp("2013-06-01 01:00") and c.values.shape == (1, 45335, 1)
    gaps = c.index[np.isnan(c.values[0, :, 0])]
    assert list(gaps) == [pd.Timestamp("2014-03-09 03:00"), pd.Timestamp("2015-01-01 00:00")]
    k = c.index.get_loc(pd.Timestamp("2014-11-02 02:00"))
    assert c.values[0, k, 0] == c.values[0, k + 1, 0] - 1 + 5
    assert c.index[c.train.stop] == pd.Timestamp("2016-08-01")


@pytest.mark.parametrize("name", ["NI", "PJM_Load"])
def test_pjm_files_that_are_no_clients(name):
    with pytest.raises(InputError, match=f"{name} cannot be a client"):
        roster(scenario("pjm", clients=[name]))


def test_channels_are_known_before_any_reading():
    assert roster(scenario("ett", channels=["OT", "HUFL"])).channels == ("OT", "HUFL")
    with pytest.raises(InputError, match="source ett has no channel 'OTT'; the nearest is 'OT'"):
        roster(scenario("ett", channels=["OTT"]))


def test_ett_resolutions():
    assert roster(scenario("ett")).names == ("ETTh1", "ETTh2")
    quarter = roster(scenario("ett", frequency="15min"))
    assert quarter.names == ("ETTm1", "ETTm2") and quarter.step == pd.Timedelta("15min")
    assert roster(scenario("ett", clients=["ETTm2"])).step == pd.Timedelta("15min")
    with pytest.raises(InputError, match="mixes hourly and quarter-hourly"):
        roster(scenario("ett", clients=["ETTh1", "ETTm2"]))
