"""What every source must hold; a new one is covered by adding it to the registry."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fedpriv.config import Scenario
from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.data.sources import SOURCES
from fedpriv.data.windows import cut, even_starts
from fedpriv.errors import InputError


@pytest.fixture(params=sorted(set(SOURCES) - {"nodes"}))  # a server's view of nodes has no readings
def scenario(request, tmp_path) -> Scenario:
    changes: dict = {"data.source": request.param, "partition.clients": 2}
    if request.param == "csv":
        index = pd.date_range("2024-01-01", periods=24 * 90, freq="h", name="time")
        pd.DataFrame({"a": 1.0, "b": 2.0, "c": 3.0}, index=index).to_csv(tmp_path / "x.csv")
        changes["data.path"] = str(tmp_path / "x.csv")
    elif request.param != "synthetic":
        changes["data.dir"] = str(request.getfixturevalue("data_root"))
    return Scenario().override(changes)


def test_roster_and_clients_agree(scenario):
    people = roster(scenario)
    assert len(people.names) == 2 and people.source == scenario.data.source and people.licence
    for name in people.names:
        client = load_client(scenario, name)
        meters, steps, channels = client.values.shape
        assert client.name == name and client.step == people.step and client.unit == people.unit
        assert (len(client.meters), len(client.channels)) == (meters, channels) and len(client.index) == steps
        assert client.channels == people.channels and client.num_meters == meters
        assert client.values.dtype == np.float32 and not client.values.flags.writeable
        assert not np.isinf(client.values).any() and np.isfinite(client.values).any()
        window = scenario.task.window
        assert client.train.stop + window <= client.validation.start
        assert client.validation.stop + window <= client.test.start
        for part in ("train", "validation", "test"):
            starts = even_starts(client.part(part), window, 5)
            assert cut(client, np.zeros(len(starts), dtype=np.int64), starts, window).observed.any()
        assert load_client(scenario, name) is client


def test_fewer_clients_are_the_first_ones(scenario):
    assert roster(scenario.override({"partition.clients": 1})).names == roster(scenario).names[:1]


def test_named_clients_are_those(scenario):
    names = roster(scenario).names[::-1]
    assert roster(scenario.override({"data.clients": list(names)})).names == names


def test_unknown_client_is_refused(scenario):
    with pytest.raises(InputError, match="unknown client 'no-such'"):
        roster(scenario.override({"data.clients": ["no-such"]}))
