"""The run folder: what survives a kill, a second start, and a second process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedpriv.config import Scenario
from fedpriv.errors import InputError
from fedpriv.reports.folder import RunFolder


def row(round_: int, value: float = 1.0, client: str = "a") -> dict[str, object]:
    return {"round": round_, "client": client, "split": "test", "model": "federated", "metric": "mse", "value": value}


def test_a_new_folder_says_what_it_is(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "new" / "run", Scenario())
    status = json.loads((folder.path / "run.json").read_text())
    assert status["status"] == "running"
    assert status["digest"] == Scenario().digest()
    assert {"python", "numpy"} <= set(status["versions"])
    assert Scenario.from_toml(folder.path / "scenario.toml").digest() == Scenario().digest()


def test_scenario_toml_keeps_a_scenario_with_everything_set(tmp_path: Path) -> None:
    scenario = Scenario().override(
        {"privacy.noise_multiplier": 3.5, "privacy.clipper_options": {"r": 0.1}, "data.clients": ["a", "b"]}
    )
    RunFolder.create(tmp_path / "run", scenario)
    assert RunFolder.open(tmp_path / "run").scenario == scenario


def test_rows_come_back_and_a_repeated_key_replaces(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    folder.append_rows([row(1, 0.5), row(2, 0.4), row(2, 0.3)])
    folder.flush()
    frame = RunFolder.open(tmp_path / "run").rounds()
    assert frame["value"].tolist() == [0.5, 0.3]
    assert list(frame.columns) == ["round", "client", "split", "model", "metric", "value"]


def test_a_row_with_other_keys_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    with pytest.raises(ValueError, match="expected"):
        folder.append_rows([{"round": 1, "value": 2.0}])


def test_checkpoint_keeps_arrays_meta_and_unwritten_rows_bit_for_bit(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    arrays = {
        "x": np.random.default_rng(0).normal(size=(3, 5)),
        "n": np.arange(4),
        "none": np.zeros((0, 2), np.float32),
    }
    folder.append_rows([row(7, 0.1 + 0.2)])
    folder.checkpoint(7, arrays, {"loss": 0.1 + 0.2, "names": ["ä"]})
    again = RunFolder.create(tmp_path / "run", Scenario(), resume=True)
    found = again.load_checkpoint()
    assert found is not None
    assert found[0] == again.last_round == 7
    assert found[2] == {"loss": 0.1 + 0.2, "names": ["ä"]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[1][name], array)
        assert found[1][name].dtype == array.dtype
    assert again.rounds()["value"].tolist() == [0.1 + 0.2]


def test_resume_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    folder.append_rows([row(1), row(2)])
    folder.checkpoint(2, {}, {})
    folder.append_rows([row(3)])
    folder.flush()  # round 3 is in the file, but its checkpoint never came
    assert RunFolder.create(tmp_path / "run", Scenario(), resume=True).rounds()["round"].tolist() == [1, 2]


def test_resume_without_a_checkpoint_begins_at_the_beginning(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    folder.append_rows([row(0)])
    folder.flush()
    again = RunFolder.create(tmp_path / "run", Scenario(), resume=True)
    assert again.load_checkpoint() is None
    assert len(again.rounds()) == 0


def test_resume_where_nothing_is_starts_anew(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path / "run", Scenario(), resume=True).load_checkpoint() is None


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:-3] + b"\0\1\2", lambda b: b"", lambda b: b"\xff" * 40]
)
def test_a_damaged_checkpoint_is_named_and_left_alone(tmp_path: Path, damage) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    folder.checkpoint(3, {"x": np.ones(100, np.float32)}, {})
    path = folder.path / "checkpoint.safetensors"
    broken = damage(path.read_bytes())
    path.write_bytes(broken)
    with pytest.raises(InputError, match="checkpoint"):
        RunFolder.create(tmp_path / "run", Scenario(), resume=True)
    assert path.read_bytes() == broken


def test_an_unfinished_run_asks_for_resume_and_another_scenario_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    folder.checkpoint(4, {}, {})
    folder.update_status(status="interrupted")
    before = sorted((p.name, p.read_bytes()) for p in folder.path.iterdir() if p.is_file())
    with pytest.raises(InputError, match=r"interrupted after round 4 of 300; add --resume"):
        RunFolder.create(tmp_path / "run", Scenario())
    other = Scenario().override({"privacy.epsilon": 4.0})
    for resume in (False, True):
        with pytest.raises(InputError, match=r"another scenario \(privacy.epsilon: 8.0 there, 4.0 asked\)"):
            RunFolder.create(tmp_path / "run", other, resume=resume)
    assert before == sorted((p.name, p.read_bytes()) for p in folder.path.iterdir() if p.is_file())


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", Scenario()).update_status(status="done")
    with pytest.raises(InputError, match=r"this very run, finished"):
        RunFolder.create(tmp_path / "run", Scenario())
    again = RunFolder.create(tmp_path / "run", Scenario(), resume=True)
    assert again.finished
    assert again.status["status"] == "done"


def test_other_peoples_folders_and_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("dear")
    with pytest.raises(InputError, match="not a run of fedpriv"):
        RunFolder.create(tmp_path / "thesis", Scenario())
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    with pytest.raises(InputError, match="is a file"):
        RunFolder.create(tmp_path / "thesis" / "chapter.tex", Scenario())
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.open(tmp_path / "thesis")
    with pytest.raises(InputError, match="does not exist"):
        RunFolder.open(tmp_path / "nowhere")


def test_a_misspelt_status_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finished"):
        RunFolder.create(tmp_path / "run", Scenario()).update_status(status="finished")


def test_json_files_are_strict(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    scored = {"client": "a", "model": "federated", "split": "test", "metric": "mse"}
    folder.write_metrics([{**scored, "value": float("nan")}, {**scored, "value": np.float32(0.5)}])
    text = (folder.path / "metrics.json").read_text()
    assert "NaN" not in text
    assert [r["value"] for r in json.loads(text)["final"]] == [None, 0.5]


@pytest.mark.parametrize("names", [("a/b", "a-b"), ("../../etc", "etc"), ("", "client"), ("a b", "a-b"), (".x", "x")])
def test_ledger_paths_stay_inside_and_apart(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    paths = [folder.ledger_path(name) for name in names]
    assert len(set(paths)) == 2
    assert all(path.resolve().parent == (folder.path / "ledgers").resolve() for path in paths)
    assert folder.ledger_path("PJM-AE").name == "PJM-AE.sqlite"


def test_one_process_per_folder_and_the_lock_of_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    code = (
        "import sys, time\nfrom fedpriv.reports.folder import RunFolder\n"
        "with RunFolder.open(sys.argv[1]).lock():\n print('held', flush=True)\n time.sleep(600)\n"
    )
    root = Path(__file__).parents[3]
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"pid {other.pid}"), folder.lock():
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    deadline = time.monotonic() + 120
    while True:  # the kernel frees the lock with the process, not necessarily before wait() returns
        try:
            with folder.lock():
                break
        except InputError:
            assert time.monotonic() < deadline
    with folder.lock(), pytest.raises(InputError, match="another process"), RunFolder.open(folder.path).lock():
        pass


def test_model_and_examples_come_back(finished_run: RunFolder) -> None:
    again = RunFolder.open(finished_run.path)
    assert again.model()["skip.weight"].shape == (24, 168)
    assert again.examples is not None
    assert again.examples.is_forecast
    assert again.examples.unit == "MW"
    assert again.examples.stamps.dtype == np.dtype("datetime64[s]")


def test_a_checkpoint_is_cheap(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Scenario())
    arrays = {"x": np.zeros(4032, np.float32), "momentum": np.zeros(4032, np.float32)}
    times = []
    for round_ in range(40):
        folder.append_rows(row(round_, client=f"c{i}") for i in range(8))
        begin = time.process_time()
        folder.checkpoint(round_, arrays, {})
        times.append(time.process_time() - begin)
    assert sorted(times)[20] < 0.1, "measured 0.8 ms on two shared cores"
