"""Every rule through a whole federation: it runs, it is resumed to the same bit, and its ledger holds the total."""

import numpy as np
import pytest

from fedpriv.privacy.filters import FILTERS
from fedpriv.privacy.iterate_rules import GRADIENT_RULES
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.recipe import CONTROLLERS
from fedpriv.reports.folder import RunFolder
from fedpriv.training import LocalWorker

ROUNDS, CLIENTS = 4, 2
COMMON = {
    "partition__clients": CLIENTS,
    "federation__rounds": ROUNDS,
    "federation__local_steps": 2,
    "evaluation__every": ROUNDS,
    "evaluation__windows": 2,
    "privacy__noise_multiplier": 2.0,
    "privacy__epsilon": 100.0,
    "optimizer__learning_rate": 0.1,
}
RULES = (
    [{"privacy__clipper": name} for name in (*CONTROLLERS, *GRADIENT_RULES)]
    + [{"privacy__filter": name} for name in FILTERS]
    + [
        {"privacy__clipper": "quantile", "privacy__gradient_rule": "error-feedback", "privacy__filter": "ema"},
        {"privacy__controller": "dynamic", "privacy__clipper": "psasc", "privacy__gradient_rule": "inner-momentum"},
        {"optimizer__name": "lamb"},
    ]
)


@pytest.mark.parametrize("changes", RULES, ids=lambda c: "+".join(c.values()))
def test_a_run_and_its_resume_agree_to_the_bit(tiny, run_inline, changes):
    whole, folder = run_inline(tiny("whole", **COMMON, **changes), clients=CLIENTS)
    assert np.isfinite(whole).all()
    scenario = tiny("cut", **COMMON, **changes)

    def dies(progress):
        if progress.stage == "round" and progress.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_inline(scenario, listener=dies, clients=CLIENTS)
    assert RunFolder.open(scenario.run.out).last_round == 2
    resumed, _ = run_inline(scenario, resume=True, clients=CLIENTS)
    assert np.array_equal(resumed, whole)
    worker = LocalWorker.for_scenario(scenario)
    _, arrays, _ = folder.load_checkpoint()
    if worker.rule_state_size:
        assert arrays["rule"].shape == (worker.rule_state_size,)
        assert not np.array_equal(arrays["rule"], worker.initial_rule_state())  # it moved
    else:
        assert "rule" not in arrays
    with Ledger.open(folder.ledger_path("utility-000"), readonly=True) as ledger:
        assert ledger.spent_tokens(str(folder.status["run_id"])) == 2 * ROUNDS and ledger.verify() == []
        assert ledger.nominal() == ledger.committed()  # all rounds done, whatever the schedule


@pytest.mark.parametrize("changes", [{}, {"privacy__clipper": "flat"}])
def test_runs_without_memory_send_what_they_always_sent(tiny, changes):
    worker = LocalWorker.for_scenario(tiny(**COMMON, **changes))
    trained = worker.train("utility-000", worker.initial_parameters(), round=1, steps=1, mode="simulation")
    assert worker.rule_state_size == 0 and worker.initial_rule_state() is None and trained.rule_state is None
