"""One scenario, one seed, three engines: the same final model, bit for bit.

The tolerance is zero because nothing differs: clients run on one thread everywhere, their random streams are named
by seed, client and round, models travel as float32 bytes, and the server adds updates in partition order in float64.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time

import numpy as np
import pytest

from fedpriv.errors import InputError
from fedpriv.messages import Refusal
from fedpriv.privacy.ledger import Ledger
from fedpriv.reports.folder import RunFolder
from simulations.launch import simulate
from simulations.processes import marked


def final(run):
    found = run.folder.load_checkpoint()
    assert found is not None
    return found[1]["model"]


@pytest.fixture
def inline(tiny):
    return simulate(tiny("inline"), engine="inline")


def test_inline_twice_and_its_folder(tiny, inline):
    again = simulate(tiny("again"), engine="inline")
    assert np.array_equal(final(inline), final(again))
    assert not np.array_equal(final(inline), final(simulate(tiny("other", run__seed=2))))
    for name in ("scenario.toml", "run.json", "rounds.parquet", "metrics.json", "label.json", "model.safetensors"):
        assert (inline.path / name).exists(), name
    assert inline.status["status"] == "done"
    assert inline.label["seeded"] is True
    assert 0 < inline.label["max_epsilon"] <= 8.0
    assert set(inline.label["committed"]) == {"utility-000", "utility-001", "utility-002"}
    frame = inline.metrics
    assert {"federated", "seasonal-naive", "last-value", "ledger"} <= set(frame["model"])
    assert {0, 3, 6} == set(frame[frame["split"] == "validation"]["round"])


def test_the_process_is_left_as_it_was(tiny, monkeypatch):
    import torch

    monkeypatch.delenv("FEDPRIV_SIMULATION")
    torch.set_num_threads(2)
    try:
        simulate(tiny(federation__rounds=1))
        assert torch.get_num_threads() == 2
        assert "FEDPRIV_SIMULATION" not in os.environ
    finally:
        torch.set_num_threads(1)


def test_threads_of_the_process_do_not_change_the_result(tiny, run_inline):
    """A client sets its one thread for every message: what ran in the process before does not matter."""
    import torch

    alone, _ = run_inline(tiny("alone"))
    torch.set_num_threads(2)
    try:
        again, _ = run_inline(tiny("again"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    assert np.array_equal(alone, again)


@pytest.mark.slow
def test_ray_gives_the_same_model(tiny, inline):
    ray = pytest.importorskip("ray")
    run = simulate(tiny("ray", run__workers=2), engine="ray")
    assert np.array_equal(final(run), final(inline))
    assert run.metrics[run.metrics["model"] != "ledger"].equals(inline.metrics[inline.metrics["model"] != "ledger"])
    assert not ray.is_initialized()


@pytest.mark.slow
def test_flower_gives_the_same_model_and_leaves_no_process(tiny, inline, monkeypatch):
    pytest.importorskip("ray")
    mark = f"{os.getpid()}-{time.monotonic_ns()}"  # other tests run such processes at the same time
    monkeypatch.setenv("FEDPRIV_TEST_RUN", mark)
    seen, processes = [], set()

    def look(progress):
        seen.append(progress.round)
        processes.update(marked("FEDPRIV_TEST_RUN", mark))

    run = simulate(tiny("flower", run__workers=2), engine="flower", progress=look)
    assert np.array_equal(final(run), final(inline))
    assert seen == sorted(seen)
    assert run.status["status"] == "done"
    if sys.platform == "linux":
        assert processes and not marked("FEDPRIV_TEST_RUN", mark)


def personal_of(run):
    return [
        run.folder.ledger_path(c).with_name(f"{c}.personal.safetensors").read_bytes().split(b"}}", 1)[1]
        for c in ("utility-000", "utility-001")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ridge", "gaussian"])
def test_a_warm_start_is_the_same_on_every_engine(tiny, kind):
    """Its released statistics, its fit, and the rounds from there; with models of the clients' own beside it."""
    pytest.importorskip("ray")
    changes = {
        "model__warm_start": kind, "task__context": 72, "partition__clients": 2, "federation__rounds": 2,
        "personal__kind": "private", "personal__steps": 2, "run__workers": 1,
    }  # fmt: skip
    runs = [simulate(tiny(engine, **changes), engine=engine) for engine in ("inline", "ray", "flower")]
    references = [run.folder.load_checkpoint()[1]["reference"] for run in runs]
    assert references[0].size > 4 and np.isfinite(references[0]).all()
    scores = [run.metrics[run.metrics["model"] != "ledger"].reset_index(drop=True) for run in runs]
    for run, reference, table in zip(runs[1:], references[1:], scores[1:], strict=True):
        assert np.array_equal(reference, references[0])
        assert np.array_equal(final(run), final(runs[0]))
        assert run.label["committed"] == runs[0].label["committed"]
        assert table.equals(scores[0])
        assert personal_of(run) == personal_of(runs[0])
    assert personal_of(runs[0])[0] != personal_of(runs[0])[1]


@pytest.mark.slow
def test_refusals_travel_through_flower(tiny):
    """A run that every client refuses ends with the ServerApp's own words."""
    from fedpriv.errors import BudgetExceeded

    scenario = tiny("flower", privacy__noise_multiplier=0.5, federation__rounds=2)
    with pytest.raises(BudgetExceeded, match="no client's privacy budget"):
        simulate(scenario, engine="flower")
    assert RunFolder.open(scenario.run.out).status["status"] == "refused"


@pytest.mark.slow
class TestRayGrid:
    """With a ClientApp that misbehaves on request; one Ray for all."""

    APP = textwrap.dedent(
        """
        import os, signal, time
        from pathlib import Path
        from clients.client_app import app as real

        def app(message, context):
            mark = Path(os.environ["HOME_OF_MARKS"] if "HOME_OF_MARKS" in os.environ else %r)
            for what in ("die", "raise", "sleep"):
                file = mark / f"{what}-{message.metadata.group_id}-{message.metadata.dst_node_id}"
                if file.exists() and message.metadata.message_type == "train":
                    file.unlink()
                    if what == "die":
                        real(message, context)
                        os.kill(os.getpid(), signal.SIGKILL)
                    if what == "raise":
                        raise RuntimeError("SECRET-4711")
                    time.sleep(13)
            return real(message, context)
        """
    )

    @pytest.fixture
    def misbehaving(self, tmp_path, monkeypatch):
        pytest.importorskip("ray")
        marks, code = tmp_path / "marks", tmp_path / "code"
        marks.mkdir()
        code.mkdir()
        (code / "misbehaving.py").write_text(self.APP % str(marks))
        monkeypatch.syspath_prepend(str(code))
        return marks

    def run(self, scenario, listener=None):
        from simulations.ray_grid import RayGrid
        from strategies.federation import federation

        folder = RunFolder.create(scenario.run.out, scenario)
        with RayGrid(3, scenario.flat(), workers=2, app="misbehaving:app") as grid:
            before = grid.pids()
            model = federation(grid, scenario, folder, listener=listener)
            return model, folder, before, grid.pids()

    def test_deaths_exceptions_and_late_replies(self, tiny, inline, misbehaving, capfd):
        (misbehaving / "die-2-3").touch()
        (misbehaving / "raise-4-2").touch()
        scenario = tiny("ray", federation__quorum=2)
        seen = []
        _, folder, before, after = self.run(scenario, lambda p: seen.append(p.report) if p.report else None)
        assert len(set(before) & set(after)) == 1  # one actor was replaced
        assert [len(r.valid) for r in seen] == [3, 3, 3, 2, 3, 3]
        assert seen[3].refused == {"utility-000": Refusal.INTERNAL}
        assert "SECRET" not in "".join(capfd.readouterr())
        with Ledger.open(folder.ledger_path("utility-001"), readonly=True) as ledger:
            assert ledger.spent_tokens(str(folder.status["run_id"])) == 6

    def test_a_death_changes_nothing(self, tiny, inline, misbehaving):
        (misbehaving / "die-2-3").touch()
        (misbehaving / "die-5-2").touch()
        model, _, _, _ = self.run(tiny("ray"))
        assert np.array_equal(model, final(inline))

    def test_a_late_reply_is_thrown_away(self, tiny, misbehaving):
        (misbehaving / "sleep-2-3").touch()
        seen = []
        # the first round loads data and models in each actor: a deadline that a busy machine keeps
        late = tiny("late", federation__quorum=2, federation__deadline=10.0, federation__rounds=4)
        start = time.monotonic()
        self.run(late, lambda p: seen.append(p.report) if p.report else None)
        assert ("utility-001",) in [r.missing for r in seen]
        assert seen[-1].counted
        assert time.monotonic() - start < 300

    def test_an_unknown_cluster_is_bad_input(self, tiny):
        pytest.importorskip("ray")
        with pytest.raises(InputError, match="cannot be used"):
            simulate(tiny("ray"), {"run.ray_address": "127.0.0.1:1"}, engine="ray")
