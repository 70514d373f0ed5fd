"""The command line: exit codes, what goes to which stream, and that nothing is loaded before it is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedpriv.cli import entry, main
from fedpriv.cli.progress import Plain, clock, error_ratio
from fedpriv.errors import BudgetExceeded, CheckFailed, InputError, LedgerError
from fedpriv.reports.folder import RunFolder

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "pandas", "numpy", "matplotlib", "pydantic", "flwr", "ray", "rich", "jinja2")


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, timeout=600)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fedpriv.cli import main\ncode = main(['--help'])\n"
        f"print(code, [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    done = python("-c", code)
    assert done.stderr.strip() == "0 []"
    for word in ("simulate", "report", "plan", "ledger", "data", "scenarios", "doctor"):
        assert re.search(rf"^  {word} ", done.stdout, re.MULTILINE), word


HELPED = ["simulate", "report", "scenarios", "plan", "calibrate-bounds", "doctor", "audit", "compare", "forecast"]
HELPED += ["impute", "data download", "node init", "federation run", "ledger label"]


@pytest.mark.parametrize("words", [words.split() for words in HELPED])
def test_every_help_teaches_with_an_example_or_says_all(words: list[str], capsys) -> None:
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) > 8
    assert "fedpriv" in text
    assert "\\" not in text  # of marks for a formatter that is not used


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("bad"), 2), (BudgetExceeded("no"), 3), (LedgerError("gone"), 3), (CheckFailed("broken"), 1)],
)
def test_errors_of_people_are_one_paragraph(monkeypatch, capsys, error: Exception, code: int) -> None:
    monkeypatch.setattr("fedpriv.cli.app.app", _raising(error))
    assert main(["simulate"]) == code
    said = capsys.readouterr()
    assert said.err == f"fedpriv: {error}\n"
    assert said.out == ""


def test_errors_with_json_are_one_object(monkeypatch, capsys) -> None:
    monkeypatch.setattr("fedpriv.cli.app.app", _raising(BudgetExceeded("epsilon would be 9 > 8")))
    assert main(["simulate", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {
        "error": {"kind": "BudgetExceeded", "message": "epsilon would be 9 > 8"},
        "exit_code": 3,
    }


def test_a_bug_is_one_line_without_a_traceback(monkeypatch, capsys) -> None:
    monkeypatch.delenv("FEDPRIV_DEBUG", raising=False)
    monkeypatch.setattr("fedpriv.cli.app.app", _raising(ZeroDivisionError("half\nof it")))
    assert main(["simulate"]) == 1
    said = capsys.readouterr().err
    assert said == "fedpriv: failed inside (ZeroDivisionError: half); FEDPRIV_DEBUG=1 shows the traceback.\n"
    monkeypatch.setenv("FEDPRIV_DEBUG", "1")
    assert main(["simulate"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_in_a_run_is_logged_there_for_the_owner_only(monkeypatch, capsys, finished_run: RunFolder) -> None:
    def broken(**_: object) -> int:
        entry.state.set_run_folder(finished_run.path)
        raise ZeroDivisionError("secret 12345")

    monkeypatch.delenv("FEDPRIV_DEBUG", raising=False)
    monkeypatch.setattr("fedpriv.cli.app.app", broken)
    assert main(["simulate"]) == 1
    log = finished_run.path / "error.log"
    assert str(log) in capsys.readouterr().err
    assert "Traceback" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys) -> None:
    monkeypatch.setattr("fedpriv.cli.app.app", _raising(KeyboardInterrupt()))
    assert main(["simulate", "eia-8", "--set", "data.dir=a b"]) == 130
    assert "fedpriv simulate eia-8 --set 'data.dir=a b' --resume" in capsys.readouterr().err


def _raising(error: BaseException):
    def app(**_: object) -> int:
        raise error

    return app


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command"),
        (["simulate", "--engine", "steam"], "inline"),
        (["simulate", "--unknown"], "--unknown"),
        (["report"], "DIR"),
        (["simulate", "eia8"], "did you mean 'eia-8'"),
        (["simulate", "nowhere.toml"], "nowhere.toml"),
        (["simulate", "--set", "privacy.epsilon"], "KEY=VALUE"),
        (["simulate", "--set", "privacy.epsilonn=3"], "privacy.epsilon"),
        (["simulate", "--set", "privacy.epsilon=0"], "privacy.epsilon"),
        (["simulate", "--set", "privacy.delta=1"], "privacy.delta"),
        (["report", "/nowhere/at/all"], "does not exist"),
        (["ledger", "show", "/nowhere/at/all"], "does not exist"),
        (["data", "list", "moon"], "moon"),
        (["data", "download", "moon"], "moon"),
        (["data", "inspect", "/nowhere.csv"], "nowhere.csv"),
        (["data", "generate", "x", "--clients", "0"], "clients"),
    ],
)
def test_bad_input_is_exit_2_on_standard_error(words: list[str], said: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == [], "nothing was started"


def test_report_writes_the_page_and_speaks_json(finished_run: RunFolder, capsys) -> None:
    assert main(["report", str(finished_run.path)]) == 0
    said = capsys.readouterr().out
    assert "7 of 8 clients" in said and "report.html" in said
    (finished_run.path / "report.html").unlink()
    assert main(["report", str(finished_run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["report"]).exists()
    assert found["comparison"]["better"] == 7


def test_scenarios_are_listed_and_shown_as_toml_that_loads(capsys, tmp_path: Path) -> None:
    assert main(["scenarios", "--json"]) == 0
    listed = {entry["name"] for entry in json.loads(capsys.readouterr().out)["scenarios"]}
    assert {"eia-8", "pjm-8", "ett-2", "sgsc-10"} <= listed
    assert main(["scenarios", "eia-8"]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out)
    from simulations.scenarios import load

    assert load(str(path)).digest() == load("eia-8").digest()


def test_synthetic_data_can_be_made_and_inspected(capsys, tmp_path: Path) -> None:
    assert main(["data", "generate", str(tmp_path / "made"), "--clients", "2", "--days", "30", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    csv = next(name for name in files if name.endswith(".csv"))
    assert main(["data", "inspect", csv]) == 0
    assert "It can be used as it is." in capsys.readouterr().out
    assert main(["data", "inspect", csv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["series"] == 2


def test_a_file_with_a_problem_is_exit_1_and_named(capsys, tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    hours = [f"2024-01-{d:02d} {h:02d}:00" for d in range(1, 8) for h in range(24)]
    path.write_text("time,a\n" + "".join(f"{s},1.5\n" for s in [*hours, hours[0]]))
    assert main(["data", "inspect", str(path)]) == 1
    assert "Problem: some stamps are there more than once" in capsys.readouterr().out


def test_downloads_copy_and_verify_offline(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FEDPRIV_DATA_DIR", str(tmp_path / "none"))
    assert main(["data", "list", "--json"]) == 0
    found = {d["name"]: d for d in json.loads(capsys.readouterr().out)["datasets"]}
    assert found["ett"]["found"] == "no"
    assert all(re.fullmatch(r"[0-9a-f]{64}", f["sha256"]) for d in found.values() for f in d["files"])
    assert main(["data", "download", "ett", "--to", str(tmp_path), "--offline", str(tmp_path)]) == 2
    assert "lacks" in capsys.readouterr().err


def test_doctor_reports_every_check(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDPRIV_DATA_DIR", raising=False)
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    names = {check["name"] for check in found["checks"]}
    assert {
        "python",
        "flwr",
        "torch",
        "ray",
        "cores",
        "devices",
        "flower environment",
        "source",
        "data",
        "run folders",
    } <= names
    assert found["ok"] == (code == 0) == all(check["level"] != "fail" for check in found["checks"])
    assert next(c for c in found["checks"] if c["name"] == "source")["level"] == "ok"


def test_doctor_fails_when_the_data_directory_is_wrong(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDPRIV_DATA_DIR", str(tmp_path / "gone"))
    assert main(["doctor"]) == 1
    assert "fail  data" in capsys.readouterr().out


def test_version(capsys) -> None:
    import fedpriv

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedpriv {fedpriv.__version__}\n"


# ---- plan and simulate ------------------------------------------------------------------------------

SMALL = ["--set", "federation.rounds=2", "--set", "evaluation.windows=4", "--set", "evaluation.samples=4"]
SMALL += ["--set", "partition.clients=2", "--set", "data.days=120"]


def test_plan_says_noise_ladder_and_what_would_help(capsys) -> None:
    words = ["plan", "--meters", "40", "--days", "90", "--set", "federation.rounds=20"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (only,) = found["plans"]
    assert only["now"]["epsilon"] == pytest.approx(8.0, abs=0.02) and only["now"]["epsilon"] <= 8.0
    rungs = only["ladders"]["zero-out"]
    assert rungs["reading"] < rungs["day"] < rungs["week"]
    assert only["cost_per_round"]["bytes_each_way"] == 4 * only["parameters"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "twice the meters" in said and "epsilon for one" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "privacy.enabled=false"], "nothing to plan"),
        (["--meters", "3"], "go together"),
        (["--set", "federation.local_steps=0"], "local_steps"),
    ],
)
def test_plan_refuses_what_it_cannot_plan(words: list[str], said: str, capsys) -> None:
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_simulate_json_resume_and_a_second_start(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    words = ["simulate", *SMALL, "--out", str(out)]
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert summary["status"] == "done" and summary["rounds"]["done"] == 2
    assert summary["privacy"]["max_epsilon"] <= 8.0
    assert Path(summary["report"]).exists()
    assert "2 clients, 2 rounds" in said.err
    assert main(words) == 2
    assert "this very run, finished" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "Report:" in capsys.readouterr().out
    assert main(["ledger", "verify", str(out)]) == 0


def test_a_run_over_budget_is_refused_with_exit_3(tmp_path: Path, capsys) -> None:
    words = ["simulate", *SMALL, "--set", "privacy.noise_multiplier=0.3", "--out", str(tmp_path / "run")]
    assert main(words) == 3
    said = capsys.readouterr()
    assert "budget" in said.err and "Traceback" not in said.err
    assert said.out == ""
    assert RunFolder.open(tmp_path / "run").status["status"] == "refused"


# ---- ledgers ----------------------------------------------------------------------------------------


@pytest.fixture
def ledgers(tmp_path: Path) -> Path:
    """A run folder's ledgers: one run of 10 steps, 4 of them spent."""
    from dp_accounting import dp_event

    from fedpriv.config import Scenario
    from fedpriv.privacy.contract import Contract
    from fedpriv.privacy.events import encode_event
    from fedpriv.privacy.ledger import Ledger

    folder = RunFolder.create(tmp_path / "run", Scenario())
    bound = {"budget_epsilon": 8.0, "delta": 1e-5, "unit": "reading", "relation": "zero-out", "mode": "simulation"}
    event = encode_event(dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(2.0)))
    for client in ("a", "b"):
        with Ledger.create(folder.ledger_path(client), dataset=client, **bound) as ledger:
            ledger.enrol(
                Contract(
                    run_id="r",
                    event=event,
                    steps_total=10,
                    unit="reading",
                    relation="zero-out",
                    delta=1e-5,
                    epsilon=8.0,
                )
            )
            ledger.reserve(run_id="r", round=1, steps=4, request_digest="d")
    return folder.path


def test_ledger_show_says_claim_and_progress(ledgers: Path, capsys) -> None:
    assert main(["ledger", "show", str(ledgers), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["ledgers"]
    assert [entry["client"] for entry in found] == ["a", "b"]
    assert found[0]["steps_spent"] == 4 and found[0]["steps_total"] == 10
    assert 0 < found[0]["nominal"] < found[0]["committed"] < 8
    assert main(["ledger", "show", str(ledgers / "ledgers" / "a.sqlite")]) == 0
    assert "4 of 10" in capsys.readouterr().out


def test_ledger_verify_is_exit_1_when_the_chain_is_broken(ledgers: Path, capsys) -> None:
    import sqlite3

    assert main(["ledger", "verify", str(ledgers)]) == 0
    assert capsys.readouterr().out.count("ok") == 2
    with sqlite3.connect(ledgers / "ledgers" / "b.sqlite") as db:
        db.execute("DROP TRIGGER chain_no_update")
        db.execute("UPDATE chain SET tokens = 1 WHERE kind = 'reserve'")
    db.close()
    assert main(["ledger", "verify", str(ledgers)]) == 1
    said = capsys.readouterr().out
    assert "BROKEN" in said and said.count("ok  ") == 1
    assert main(["ledger", "verify", str(ledgers), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_ledger_label_is_made_from_the_ledgers(ledgers: Path, capsys) -> None:
    assert main(["ledger", "label", str(ledgers), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["committed"]) == {"a", "b"}
    assert found["max_epsilon"] == max(found["committed"].values())
    assert main(["ledger", "label", str(ledgers / "ledgers" / "a.sqlite")]) == 0
    assert "not a guarantee" in capsys.readouterr().out


def test_ledger_export_is_json_lines(ledgers: Path, capsys) -> None:
    assert main(["ledger", "export", str(ledgers / "ledgers" / "a.sqlite")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["kind"] for row in rows] == ["genesis", "contract", "reserve"]
    assert [row["prev"] for row in rows[1:]] == [row["hash"] for row in rows[:-1]]


# ---- progress ---------------------------------------------------------------------------------------


def event(stage: str, round_: int, **fields: object) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "stage": stage,
            "round": round_,
            "rounds": 30,
            "clients": 4,
            "report": None,
            "epsilon": None,
            "rows": (),
            **fields,
        }
    )


def test_plain_progress_says_where_it_is(capsys, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("fedpriv.cli.progress.time.monotonic", lambda: now[0])
    tell = Plain()
    tell(event("waiting", 10))
    for round_ in range(11, 31):
        now[0] += 4.0
        refused = SimpleNamespace(refused={"a": "budget"} if round_ > 20 else {})
        tell(event("round", round_, epsilon=0.25 * round_, report=refused))
    tell(event("done", 30))
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == ""
    assert lines[0] == "fedpriv: 4 clients, 30 rounds, 10 done before"
    assert lines[1] == "fedpriv: round 13/30, epsilon 3.25 so far, about 1 min 8 s left"
    assert lines[-1] == "fedpriv: 30 rounds done, epsilon 7.5 so far, 1 refused, 1 min 20 s"
    assert len(lines) < 10


def test_live_progress_survives_any_order(monkeypatch) -> None:
    from fedpriv.cli.progress import Live

    tell = Live()
    tell.finish()
    tell(event("round", 3, epsilon=1.0))
    tell.note("[bold] is not markup here")
    tell(event("done", 30))
    tell.finish()


def test_the_error_ratio_compares_means() -> None:
    rows = [
        {"metric": "mse", "model": model, "client": client, "value": value}
        for model, client, value in (
            ("federated", "a", 1.0),
            ("federated", "b", 3.0),
            ("seasonal-naive", "a", 2.0),
            ("seasonal-naive", "b", 6.0),
            ("last-value", "a", 99.0),
        )
    ]
    assert error_ratio(rows) == 0.5
    assert error_ratio(()) is None


def test_times_are_for_people() -> None:
    assert [clock(s) for s in (4.4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 5 min"]
