"""On real utilities: one private round of closed-form models beats yesterday, for every utility, at little cost."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scoringrules
import torch
from scipy import stats

from fedpriv.coherence import TAIL_DOF, TAIL_SCALE
from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.data.clients import load_client
from fedpriv.data.tasks import make_examples
from fedpriv.data.windows import cut, even_starts
from fedpriv.examples import Examples
from fedpriv.laws import crps_student
from fedpriv.models.baselines import Band, JointBand, seasonal_naive
from fedpriv.models.designs import ProfileDesign
from fedpriv.models.gaussian import GaussianBaseline
from fedpriv.models.ridge import RidgeBaseline
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.statistics import EveryWindow, StatisticsMechanism, calibrate_release
from fedpriv.privacy.units import READING, Relation
from fedpriv.seeding import stream

NAMES = ("CISO-PGAE", "BPAT", "AZPS", "ERCO-NCEN", "TVA", "FPL", "NYIS-ZONJ", "PJM-CE")
CONTEXT, HORIZON = 168, 24
COVER = EveryWindow(CONTEXT + HORIZON, 12)
BASELINES = {
    "ridge": RidgeBaseline(design=ProfileDesign(context=CONTEXT, horizon=HORIZON, period=24, weekend_shift=-6.0)),
    "gaussian": GaussianBaseline(window=CONTEXT + HORIZON, period=24),
}


def read(client: ClientData, scenario: Scenario, meter: np.ndarray, start: np.ndarray) -> Examples:
    windows = cut(client, meter, start, CONTEXT + HORIZON)
    target = torch.zeros_like(windows.observed)
    target[:, CONTEXT:] = True
    return make_examples(windows, target, period=24, scaling=scenario.data)


@pytest.fixture(scope="module")
def utilities(data_root: Path) -> list[tuple[ClientData, Examples]]:
    changes = {"data.source": "eia930", "data.dir": str(data_root), "data.clients": NAMES, "partition.clients": 8}
    changes |= {"data.train_until": "2023-01-01", "data.validation_until": "2024-01-01"}
    scenario = Scenario().override(changes)
    clients = [load_client(scenario, name) for name in NAMES]
    found = []
    for client in clients:
        starts = even_starts(client.test, CONTEXT + HORIZON, 192)
        found.append((client, read(client, scenario, np.zeros(len(starts), dtype=np.int64), starts)))
    return found


def scores(band: Band, examples: Examples, unit: float) -> tuple[float, float, float]:
    """(MSE, CRPS, coverage of 90 %) in units of the training deviation."""
    truth, hit = examples.values * examples.scale + examples.loc, examples.target
    error, spread = ((truth - band.point) / unit)[hit], (band.stddev / unit)[hit]
    if isinstance(band, JointBand):
        crps = crps_student(torch.zeros_like(error), TAIL_SCALE * spread, error, TAIL_DOF)
        width = TAIL_SCALE * float(stats.t.ppf(0.95, TAIL_DOF)) * spread
    else:
        crps = scoringrules.crps_normal(error.numpy(), 0.0, spread.numpy())
        width = 1.645 * spread
    return float(error.square().mean()), float(crps.mean()), float((error.abs() < width).float().mean())


@pytest.mark.parametrize(("name", "epsilon", "share"), [("ridge", 8, 0.7), ("ridge", 2, 0.8), ("gaussian", 2, 0.8)])
def test_one_private_round_beats_the_seasonal_naive(utilities, name: str, epsilon: float, share: float) -> None:
    sigma = calibrate_release(COVER, unit=READING, relation=Relation.ZERO_OUT, epsilon=epsilon, delta=1e-5)
    mechanism = StatisticsMechanism(
        cover=COVER,
        clipper=make_clipper("auto-s", bound=1.0),
        noise_multiplier=sigma,
        unit=READING,
        relation=Relation.ZERO_OUT,
    )
    baseline, scenario = BASELINES[name], Scenario()
    sent = [
        baseline.release(
            mechanism,
            lambda meter, start, client=client: read(client, scenario, meter, start),
            num_meters=client.num_meters,
            start=client.train.start,
            stop=client.train.stop,
            rng=stream(1, "noise", client.name),
        )
        for client, _ in utilities
    ]
    stddev = math.sqrt(sum(s.stddev**2 for s in sent))
    model = baseline.fit(baseline.aggregate([s.vector for s in sent]), stddev=stddev)
    ours, naive = [], []
    for client, examples in utilities:
        unit = float(np.nanstd(client.values[:, client.train]))
        ours.append(scores(model.forecast(examples), examples, unit))
        naive.append(scores(seasonal_naive(examples, period=24), examples, unit))
    mine, theirs = np.array(ours), np.array(naive)
    assert (mine[:, 0] < theirs[:, 0]).all()
    assert mine[:, 0].mean() < share * theirs[:, 0].mean()
    assert mine[:, 1].mean() < 0.9 * theirs[:, 1].mean()
    assert 0.84 < mine[:, 2].mean() < 0.95
