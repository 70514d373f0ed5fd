from __future__ import annotations

import json

import numpy as np
import pytest

from fedpriv.data.heterogeneity import Card
from fedpriv.errors import InputError
from fedpriv.reports.atomic import plain
from fedpriv.reports.heterogeneity import FILE, stored
from fedpriv.reports.page import write_report
from simulations.launch import simulate

TINY = {
    "data.days": 90,
    "partition.clients": 2,
    "federation.rounds": 3,
    "model.depth": 0,
    "evaluation.windows": 4,
    "evaluation.samples": 4,
    "privacy.enabled": False,
}


def test_every_run_of_several_clients_has_a_card_and_its_page_shows_it(tmp_path):
    run = simulate(None, TINY, out=tmp_path / "run", page=False)
    found = stored(run.path)
    assert found is not None
    card, picture = found
    assert [facts.client for facts in card.clients] == ["utility-000", "utility-001"]
    assert "<svg" in picture.svg and (run.path / "figures" / "heterogeneity.png").exists()
    html = write_report(run.path).read_text()
    assert 'id="differences"' in html and "as only a simulation can" in html
    written = json.loads((run.path / FILE).read_text())
    assert written["simulation_only"] is True
    again = Card.from_dict(json.loads(json.dumps(plain(card.to_dict()))))
    assert again.summary == pytest.approx(dict(card.summary), nan_ok=True)
    for name, matrix in card.pairs.items():
        np.testing.assert_allclose(again.pairs[name], matrix)

    (run.path / FILE).write_text('{"part": "train"}')
    with pytest.raises(InputError, match="not a heterogeneity card"):
        write_report(run.path)


def test_one_client_differs_from_nobody(tmp_path):
    run = simulate(None, {**TINY, "partition.clients": 1}, out=tmp_path / "run", page=False)
    assert stored(run.path) is None
    assert "How the clients differ" not in write_report(run.path).read_text()
