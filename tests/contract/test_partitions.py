"""What every partitioner must hold; a new one is covered by an entry in `CASES`, which must name every kind."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpriv.config import PartitionConfig, Scenario
from fedpriv.data.clients import describe, held_of, load_client, owners
from fedpriv.data.partition import PARTITIONERS, Calendar, Division, Pool, Public, assemble
from fedpriv.data.partitions.base import numbered
from fedpriv.data.roster import roster
from fedpriv.data.sources import Series
from fedpriv.data.tasks import make_examples, task_masks
from fedpriv.data.windows import cut, even_starts
from fedpriv.errors import InputError
from fedpriv.evaluation import by_owner, held_out, join_owners
from fedpriv.training import LocalWorker

WINDOW = 48
DAYS = 900
# every kind, with its variants
CASES: dict[str, list[dict]] = {
    "natural": [{}],
    "pooled": [{}],
    "iid": [{}, {"unit": "block"}, {"unit": "meter"}],
    "dirichlet": [{}, {"by": "season"}, {"unit": "block", "alpha": 0.05}, {"alpha": 100.0}],
    "quantity": [{}, {"unit": "block", "skew": 3.0}],
    "temporal": [{}, {"by": "year"}],
    "feature": [{"by": "sampling"}, {"by": "channels"}, {"by": "covariates"}],
    "scale": [{}, {"skew": 2.0}],
    "missingness": [{"by": "outages"}],
    "clusters": [{}, {"unit": "block"}],
}
ALL = [(kind, options) for kind, many in CASES.items() for options in many]
WHOLE = [(kind, options) for kind, options in ALL if kind not in ("feature", "missingness") and "skew" not in options]
IDS = [f"{kind}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for kind, options in ALL]


@lru_cache(maxsize=128)
def toy(name: str, meters: int, late: bool) -> Series:
    """A series of its own shape and size; `late`: it starts ten days after the others."""
    k = int(name[1:])
    rng = np.random.default_rng(k)
    index = pd.date_range("2021-03-01 05:00", periods=24 * DAYS, freq="h")
    hour = index.hour.to_numpy()
    shape = 2 + np.cos(2 * np.pi * (hour - 6 * (k % 4)) / 24)
    values = (1 + k) * shape[None, :, None] * (1 + 0.1 * rng.random((meters, len(index), 2)))
    values[:, rng.integers(0, len(index), 50)] = np.nan
    first = 240 if late else 0
    names = tuple(f"m{i}" for i in range(meters))
    return Series(values[:, first:], index[first], pd.Timedelta(hours=1), names, ("load", "other"), "MW", "UTC")


def pool(kind: str, options: dict, *, series: int = 8, clients: int = 3, seed: int = 0, meters: int = 1) -> Pool:
    config = PartitionConfig.model_validate({"kind": kind, "clients": clients, "seed": seed, **options})
    names = tuple(f"s{k}" for k in range(series))
    if kind in ("natural", "pooled", "feature", "missingness") and not config.series:
        names = names[:clients]
    return Pool(
        Scenario().data, config, names, window=WINDOW, read=lambda name: toy(name, meters, name == "s1" and meters == 1)
    )


def test_every_kind_has_its_cases():
    assert set(CASES) == set(PARTITIONERS)


@pytest.mark.parametrize(("kind", "options"), ALL, ids=IDS)
class TestContract:
    """Holds for every kind of partition."""

    def test_names_need_no_readings_and_match_the_division(self, kind, options):
        p = pool(kind, options)
        public = Public(p.data, p.config, p.available)
        names = PARTITIONERS[kind].names(public)
        assert len(names) == len(set(names)) == (1 if kind == "pooled" else 3)
        assert tuple(PARTITIONERS[kind].divide(p).holdings) == names
        # reversing what is available must not make anybody up
        back = Public(p.data, p.config, p.available[::-1])
        assert len(PARTITIONERS[kind].names(back)) == len(names)

    def test_every_reading_has_one_owner(self, kind, options):
        p = pool(kind, options)
        assert_partition(PARTITIONERS[kind].divide(p), p)

    def test_it_is_repeatable_and_the_seed_matters_only_where_something_is_drawn(self, kind, options):
        one, two = (PARTITIONERS[kind].divide(pool(kind, options)) for _ in range(2))
        assert one.holdings == two.holdings and one.classes == two.classes
        other = [PARTITIONERS[kind].divide(pool(kind, options, seed=s)).holdings for s in (1, 2, 3)]
        drawn = kind in ("iid", "dirichlet", "quantity")
        assert any(o != one.holdings for o in other) == drawn or kind == "clusters"

    def test_clients_are_valid(self, kind, options):
        p = pool(kind, options)
        rule = PARTITIONERS[kind]
        division = rule.divide(p)
        for name in division.holdings:
            before = assemble(division, name, p.read)
            series = rule.alter(name, before, p)
            assert series.values.shape == before.values.shape and series.values.shape[2] == 2
            assert len(series.meters) == len(set(series.meters)) == series.values.shape[0]
            assert series.start == before.start and series.step == before.step
            assert np.isfinite(series.values).any()
            # nothing is seen that the client does not hold
            assert not (np.isfinite(series.values) & ~np.isfinite(before.values)).any()
            if not options.get("skew"):
                seen = np.isfinite(series.values)
                np.testing.assert_array_equal(series.values[seen], before.values[seen])
            # altering twice gives the same, and leaves its input alone
            np.testing.assert_array_equal(rule.alter(name, before, p).values, series.values)
            assert 0 < division.fill(name) <= 1
            calendar = Calendar(series.start, series.step, series.values.shape[1])
            parts = p.slices(calendar)
            readings = [np.isfinite(series.values[:, part]).sum() for part in parts]
            assert min(readings) > 0, "every client has readings to train, to validate and to test on"

    def test_the_description_counts_all_units(self, kind, options):
        division = PARTITIONERS[kind].divide(pool(kind, options))
        told = division.describe()
        assert list(told) == list(division.holdings)
        assert sum(c["units"] for c in told.values()) == sum(map(len, division.holdings.values()))
        for client in told.values():
            assert sum(client["classes"].values()) in (0, client["units"])

    def test_too_many_clients_are_refused(self, kind, options):
        # with unit = auto, more clients than series means blocks
        cut = kind in ("iid", "dirichlet", "quantity", "clusters", "temporal") and options.get("unit") != "meter"
        many = 30 if options.get("by") == "year" else 9000 if cut else 9
        p = pool(kind, {**options, "clients": many}, series=8, clients=8)
        with pytest.raises(InputError, match=r"partition\.clients=.*[Nn]othing was started"):
            PARTITIONERS[kind].divide(p)

    def test_it_runs_from_a_scenario(self, kind, options):
        source = {"data.days": 700, "partition.clients": 2}
        if options.get("by") in ("channels", "covariates"):
            pytest.skip("synthetic utilities have one channel")
        if options.get("unit") == "meter":
            source["data.meters"] = 3
        scenario = Scenario().override(
            {**source, "partition.kind": kind, **{f"partition.{k}": v for k, v in options.items()}}
        )
        people = roster(scenario)
        assert len(people.names) == (1 if kind == "pooled" else 2)
        disclosed = " ".join(people.simulated_public)
        assert ("simulation only" in disclosed) == (
            kind in ("clusters", "scale") or (kind == "dirichlet" and options.get("by") != "season")
        )
        for name in people.names:
            client = load_client(scenario, name)
            assert client.name == name and client.channels == people.channels and client.step == people.step
            assert load_client(scenario.override({"run.seed": 99}), name) is client, "independent of run.seed"
            assert not client.values.flags.writeable
            for part in ("train", "validation", "test"):
                assert len(even_starts(client.part(part), scenario.task.window, 5)) == 5
        told = describe(scenario)
        assert list(told["clients"]) == list(people.names) and told["units"] >= 2


def assert_partition(division: Division, p: Pool) -> None:
    """Every reading of every series that is used belongs to exactly one client, with its own value."""
    read = {name: p.read(name) for name in p.available}
    calendar = Calendar.of(list(read.values()))
    owners = {(n, m): np.zeros(calendar.length, dtype=int) for n, s in read.items() for m in range(len(s.meters))}
    for client, units in division.holdings.items():
        assert units, f"{client} has nothing"
        series = assemble(division, client, p.read)
        at = int((series.start - calendar.start) / calendar.step)
        for row, meter in enumerate(series.meters):
            name, _, own = meter.partition("/")
            if name not in read:  # one whole series keeps its own meters' names
                name, own = units[0].series, meter
            source = read[name]
            m = source.meters.index(own) if own else 0
            full = np.full((calendar.length, 2), np.nan)
            offset = calendar.offset(source)
            full[offset : offset + source.values.shape[1]] = source.values[m]
            seen = np.isfinite(series.values[row, :, 0])
            part = full[at : at + series.values.shape[1]]
            np.testing.assert_array_equal(series.values[row][seen], part[seen])
            owners[name, m][at : at + len(seen)] += seen
    for (name, m), count in owners.items():
        source = read[name]
        finite = np.zeros(calendar.length, dtype=int)
        offset = calendar.offset(source)
        finite[offset : offset + source.values.shape[1]] = np.isfinite(source.values[m, :, 0])
        np.testing.assert_array_equal(count, finite, err_msg=f"{name} meter {m}")


@pytest.mark.parametrize(("kind", "options"), WHOLE, ids=[i for i, c in zip(IDS, ALL, strict=True) if c in WHOLE])
@settings(max_examples=12)
@given(data=st.data())
def test_any_size_and_seed_is_a_partition(kind, options, data):
    clients = data.draw(st.integers(1, 6), label="clients")
    series = data.draw(st.integers(clients, 9), label="series")
    meters = data.draw(st.sampled_from([1, 2]), label="meters")
    seed = data.draw(st.integers(0, 2**40), label="seed")
    clients = min(clients, 3) if options.get("by") == "year" else clients
    p = pool(kind, options, series=series, clients=clients, seed=seed, meters=meters)
    division = PARTITIONERS[kind].divide(p)
    assert tuple(division.holdings) == PARTITIONERS[kind].names(p) and len(division.holdings) == (
        1 if kind == "pooled" else clients
    )
    assert_partition(division, p)


# ---- natural stays as it is -------------------------------------------------------------------------


def test_natural_is_the_sources_own_series():
    p = pool("natural", {})
    division = PARTITIONERS["natural"].divide(p)
    assert tuple(division.holdings) == ("s0", "s1", "s2")
    assert assemble(division, "s1", p.read) is p.read("s1")


def test_natural_takes_what_was_chosen_whatever_the_number():
    public = Public(Scenario().data, PartitionConfig(clients=2), ("a", "b", "c"), chosen=True)
    assert PARTITIONERS["natural"].names(public) == ("a", "b", "c")


def test_natural_complains_about_too_many():
    public = Public(Scenario().data, PartitionConfig(clients=4), ("a", "b", "c"))
    with pytest.raises(InputError, match=r"partition\.clients=4, but the source has 3"):
        PARTITIONERS["natural"].names(public)


@pytest.mark.parametrize(
    ("by", "least", "some"), [("region", 13, "Florida"), ("parent", 50, "PJM"), ("time-zone", 4, "Eastern")]
)
def test_natural_by_published_labels(by, least, some):
    scenario = Scenario().override({"data.source": "eia930", "partition": {"kind": "natural", "by": by, "clients": 0}})
    names = roster(scenario).names
    assert some in names and len(names) >= least and "AEC" not in names


def test_natural_by_label_needs_labels():
    scenario = Scenario().override({"partition.by": "region"})
    with pytest.raises(InputError, match=r"partition\.by=region needs the published labels"):
        roster(scenario)


def test_clients_of_one_region_are_meters_of_one(data_root):
    scenario = Scenario().override(
        {
            "data": {"source": "eia930", "dir": str(data_root), "clients": ["PJM-AE", "SOCO", "PJM-AP"]},
            "partition": {"by": "parent", "clients": 2},
        }
    )
    assert roster(scenario).names == ("PJM", "SOCO")
    client = load_client(scenario, "PJM")
    assert client.meters == ("PJM-AE", "PJM-AP")
    alone = load_client(scenario.override({"partition.by": ""}), "PJM-AP")
    np.testing.assert_array_equal(client.values[1], alone.values[0])


# ---- what each kind is for --------------------------------------------------------------------------


def held(kind: str, **options) -> Division:
    return PARTITIONERS[kind].divide(pool(kind, options, series=options.pop("series", 8), clients=options.pop("n", 3)))


def sizes(division: Division) -> list[int]:
    return sorted(len(units) for units in division.holdings.values())


def test_iid_is_even_and_quantity_is_not():
    assert sizes(held("iid", series=9)) == [3, 3, 3]
    counts = sizes(held("quantity", series=80, n=4, skew=2.0))
    ideal = np.array([1, 1 / 4, 1 / 9, 1 / 16])[::-1]
    np.testing.assert_allclose(counts, 80 * ideal / ideal.sum(), atol=1)
    assert sizes(held("quantity", series=9, skew=0.0)) == [3, 3, 3]


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity"])
def test_one_series_for_each_client_is_dealt_out_in_blocks(kind):
    # given whole, eight series to eight clients would be the natural division under other names
    division = held(kind, series=8, n=8)
    assert all(unit.span is not None for units in division.holdings.values() for unit in units)
    assert max(len({u.series for u in units}) for units in division.holdings.values()) > 1
    assert all(unit.span is None for units in held(kind, series=16, n=8).holdings.values() for unit in units)


def spread(division: Division) -> float:
    """Largest share that one client has of a class, averaged over classes."""
    told = division.describe().values()
    classes = sorted({c for client in told for c in client["classes"]})
    counts = np.array([[client["classes"].get(c, 0) for c in classes] for client in told])
    return float((counts.max(axis=0) / counts.sum(axis=0)).mean())


def test_dirichlet_concentrates_with_small_alpha():
    few = [spread(held("dirichlet", series=80, n=4, alpha=0.05, seed=s)) for s in range(5)]
    many = [spread(held("dirichlet", series=80, n=4, alpha=1000.0, seed=s)) for s in range(5)]
    assert np.mean(few) > 0.75 > 0.4 > np.mean(many)


def test_dirichlet_classes_are_the_planted_shapes():
    division = held("dirichlet", series=40, n=4)
    shapes = {unit.series: label for unit, label in division.classes.items()}
    for k in range(40):  # toy series k peaks at one of four hours
        assert shapes[f"s{k}"] == shapes[f"s{k % 4}"]
    assert len(set(shapes.values())) == 4


def test_seasons_are_those_of_the_calendar():
    division = held("dirichlet", by="season")
    assert division.calendar is not None
    for unit, label in division.classes.items():
        month = division.calendar.index[sum(unit.span) // 2].month
        assert label == {12: "winter", 1: "winter", 2: "winter", 6: "summer", 7: "summer"}.get(month, label)
    assert set(division.classes.values()) == {"winter", "spring", "summer", "autumn"}


def test_clusters_find_the_planted_shapes():
    division = held("clusters", series=40, n=4)
    groups = [{int(u.series[1:]) % 4 for u in units} for units in division.holdings.values()]
    assert all(len(group) == 1 for group in groups) and set.union(*groups) == {0, 1, 2, 3}


def test_temporal_clients_hold_consecutive_periods():
    p = pool("temporal", {})
    division = PARTITIONERS["temporal"].divide(p)
    parts = [assemble(division, name, p.read) for name in division.holdings]
    for one, two in pairwise(parts):
        assert one.start + one.values.shape[1] * one.step == two.start and two.start.hour == 0
        assert len(one.meters) == len(two.meters) == 8
    years = PARTITIONERS["temporal"].divide(pool("temporal", {"by": "year"}, clients=2))
    starts = [assemble(years, name, p.read).start for name in years.holdings]
    assert starts[1].year == 2023 and (starts[1].month, starts[1].day, starts[1].hour) == (1, 1, 0)


def test_temporal_refuses_common_dates():
    scenario = Scenario().override({"partition.kind": "temporal", "data.train_until": "2022-01-01"})
    with pytest.raises(InputError, match=r"data\.train_until='2022-01-01' cannot hold"):
        roster(scenario)


def test_sampling_rates_differ_and_keep_the_clock():
    p = pool("feature", {"by": "sampling"}, clients=6)
    rule, division = PARTITIONERS["feature"], PARTITIONERS["feature"].divide(p)
    rates = []
    for name in division.holdings:
        series = rule.alter(name, assemble(division, name, p.read), p)
        index = pd.date_range(series.start, periods=series.values.shape[1], freq=series.step)
        hours = sorted(set(index.hour[np.isfinite(series.values[0, :, 0])]))
        rates.append(24 // len(hours))
        assert hours == list(range(0, 24, rates[-1]))
    assert set(rates) == {1, 2, 3, 4}


def test_channels_are_hidden_whole_and_none_from_all():
    for by in ("channels", "covariates"):
        p = pool("feature", {"by": by, "skew": 0.9}, clients=6)
        rule, division = PARTITIONERS["feature"], PARTITIONERS["feature"].divide(p)
        kept = np.array(
            [
                np.isfinite(rule.alter(name, assemble(division, name, p.read), p).values).any(axis=(0, 1))
                for name in division.holdings
            ]
        )
        assert kept.any(axis=1).all() and not kept.all()
        assert kept.any(axis=0).all() if by == "channels" else kept[:, 0].all()


def test_one_channel_cannot_be_hidden():
    scenario = Scenario().override({"partition.kind": "feature", "partition.by": "channels", "data.days": 60})
    with pytest.raises(InputError, match=r"partition\.by=channels hides channels"):
        load_client(scenario, roster(scenario).names[0])


def test_scale_orders_clients_by_size():
    p = pool("scale", {"skew": 2.0})
    rule, division = PARTITIONERS["scale"], PARTITIONERS["scale"].divide(p)
    plain = [np.nanmean(assemble(division, n, p.read).values) for n in division.holdings]
    skewed = [np.nanmean(rule.alter(n, assemble(division, n, p.read), p).values) for n in division.holdings]
    assert plain == sorted(plain)
    np.testing.assert_allclose(np.array(skewed) / plain, [0.1, 1, 10])


def test_synthetic_outages_have_the_stated_shares():
    p = pool("missingness", {"by": "outages", "skew": 0.3}, clients=5)
    rule, division = PARTITIONERS["missingness"], PARTITIONERS["missingness"].divide(p)
    shares = []
    for name in division.holdings:
        before = assemble(division, name, p.read).values[:, :, 0]
        after = rule.alter(name, assemble(division, name, p.read), p).values[:, :, 0]
        shares.append(1 - np.isfinite(after).sum() / np.isfinite(before).sum())
    np.testing.assert_allclose(sorted(shares), 0.3 * 50.0 ** -np.linspace(1, 0, 5), rtol=0.35, atol=0.003)


def test_real_flag_runs_are_replayed_at_their_stamps(data_root):
    base = {"data": {"source": "eia930", "dir": str(data_root), "clients": ["SOCO", "DUK", "TVA"]}}
    natural = Scenario().override(base)
    skewed = natural.override({"partition.kind": "missingness", "partition.clients": 3})
    missing = []
    for name in roster(skewed).names:
        before, after = (np.isnan(load_client(s, name).values[0, :, 0]) for s in (natural, skewed))
        assert not (before & ~after).any()
        missing.append((after & ~before).mean())
    flags = pd.read_csv(data_root / "eia930" / "eia930_2020_2024_flags.csv.gz")
    counts = flags[flags["entity"] != "AEC"].groupby("entity").size() / 43_848
    # the three donors are the entities at one third, two thirds and the end of the order
    assert abs(max(missing) - counts.max()) < 0.02 and min(missing) < counts.median() + 1e-3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "iid", "by": "region"}, "by='region' does not fit kind=iid"),
        ({"kind": "dirichlet", "by": "season", "unit": "series"}, "needs calendar blocks"),
        ({"kind": "dirichlet", "skew": 1.0}, "skew=1 has no meaning for kind=dirichlet"),
        ({"kind": "missingness", "by": "flags", "skew": 0.1}, "skew=0.1 has no meaning for kind=missingness, by=flags"),
        ({"kind": "missingness", "skew": 0.9}, "skew=0.9 is outside 0.001 to 0.6"),
        ({"kind": "temporal", "unit": "meter"}, "unit=meter does not apply to kind=temporal"),
        ({"kind": "dirichlet", "alpha": 0}, "alpha=0"),
        ({"kind": "shards"}, "kind='shards'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, text):
    with pytest.raises(InputError, match=text):
        Scenario().override({"partition": changes})


def test_blocks_shorter_than_a_window_are_refused():
    scenario = Scenario().override({"partition": {"kind": "iid", "unit": "block", "block_days": 7}})
    with pytest.raises(InputError, match=r"partition\.block_days=7 is 168 steps, shorter than a window of 192"):
        load_client(scenario, "client-000")


def test_windows_of_others_have_no_targets_and_the_denominator_stays_public():
    """What a client does not hold is in no loss, and the expected batch follows from its public calendar."""
    scenario = Scenario().override(
        {"partition": {"kind": "iid", "unit": "block", "clients": 2, "series": 1}, "data.days": 700}
    )
    client = load_client(scenario, "client-000")
    natural = load_client(Scenario().override({"data.days": 700, "partition.clients": 1}), "utility-000")
    assert client.train == natural.train and client.num_meters == natural.num_meters
    task, length = scenario.task, scenario.task.window
    starts = np.arange(client.train.start, client.train.stop - length + 1)
    windows = cut(client, np.zeros(len(starts), dtype=np.int64), starts, length)
    target = task_masks(task, windows.observed, np.random.default_rng(0))
    examples = make_examples(windows, target, period=24, scaling=scenario.data)
    owned = np.isfinite(client.values[0, :, 0])
    for i, start in enumerate(starts):
        context, horizon = owned[start : start + task.context], owned[start + task.context : start + length]
        expected = int(horizon.sum()) if context.any() else 0  # without a context there is no scale
        assert int(examples.target[i].sum()) == expected
    assert 0 < (examples.target.sum(dim=(1, 2)) == 0).float().mean() < 1


def test_numbered_names():
    assert numbered(2) == ("client-000", "client-001")


# ---- a trusted curator ------------------------------------------------------------------------------


def test_a_curator_holds_what_the_natural_clients_would():
    natural = Scenario().override({"data.days": 700, "partition.clients": 3, "data.meters": 2})
    pooled = natural.override({"partition.kind": "pooled"})
    people = roster(natural)
    assert roster(pooled).names == ("curator",) and owners(pooled) == people.names and owners(natural) == ()
    curator = load_client(pooled, "curator")
    held = held_of(pooled, curator)
    assert tuple(held) == people.names and curator.num_meters == sum(one.num_meters for one in held.values())
    for name, one in held.items():
        alone = load_client(natural, name)
        np.testing.assert_array_equal(one.values, alone.values)
        assert (one.name, one.meters, one.train, one.test) == (name, alone.meters, alone.train, alone.test)


def test_scores_of_a_curator_are_scores_of_each_owner():
    """The same untrained model scores every owner exactly as the natural partition scores it."""
    small = {
        "data.days": 200, "task.context": 48, "evaluation.windows": 8, "partition.clients": 3, "model.depth": 0,
        "privacy.enabled": False,
    }  # fmt: skip
    natural = Scenario().override(small)
    pooled = natural.override({"partition.kind": "pooled"})
    worker, central = LocalWorker(natural), LocalWorker(pooled)
    model = worker.initial_parameters()
    found = by_owner("curator", central.evaluate("curator", model, part="test", samples=2), owners(pooled))
    for name in roster(natural).names:
        assert found[name] == worker.evaluate(name, model, part="test", samples=2)


def test_sums_of_owners_keep_apart():
    joined = join_owners([{"a/x": 1.0}, {"a/x": 2.0, "b:c/y": 3.0}])
    assert by_owner("curator", joined, ("one", "two")) == {"one": {"a/x": 1.0}, "two": {"a/x": 2.0, "b:c/y": 3.0}}
    assert by_owner("me", {"a/x": 1.0}, ()) == {"me": {"a/x": 1.0}}


def test_a_client_of_blocks_is_scored_on_what_it_holds():
    changes = {"partition": {"kind": "iid", "unit": "block", "clients": 4, "series": 4}, "evaluation.windows": 16}
    scenario, gained = Scenario().override(changes | {"data.days": 700}), 0
    for name in roster(scenario).names:
        client = load_client(scenario, name)
        examples, meter, start = held_out(client, scenario, part="test", count=16, held=True)
        scored = examples.target.flatten(1).any(dim=1).numpy()
        assert len(meter) == len(start) == len(examples) and scored.mean() > 0.75
        plain, _, _ = held_out(client, scenario, part="test", count=16)
        gained += int(scored.sum()) - int(plain.target.flatten(1).any(dim=1).sum())
    assert gained > 16, "most of the calendar is somebody else's"
