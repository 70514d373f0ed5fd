"""The whole audit in one call, and its command."""

import json

import pytest
import torch

from fedpriv.errors import InputError
from fedpriv.privacy.audit import run
from fedpriv.privacy.audit.run import audit


def test_all_suites_pass_on_this_program():
    torch.set_num_threads(1)
    before, told = torch.random.get_rng_state(), []
    report = audit((8.0,), canaries=2000, seed=5, progress=lambda name, share: told.append((name, share)))
    assert report.passed, [s for s in report.suites if not s.passed]
    names = ["D1 sensitivity", "D2 noise", "D3 sampler", "D1, D2 every rule", "engine agreement"]
    assert [s.name for s in report.suites][:5] == names
    assert told[0] == ("D1 sensitivity", 0.0) and told[-1][1] == 1.0
    assert [share for _, share in told] == sorted(share for _, share in told)
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["passed"] and content["settings"]["randomness"] == "seed 5"
    assert content["suites"][5]["numbers"]["t3"] >= 0.6 * 8
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_repeated_seed_repeats_the_audit():
    one, two = (audit((4.0,), canaries=400, seed=6).suites[5].numbers for _ in range(2))
    timed = {"seconds", "suite_seconds"}
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}


@pytest.mark.parametrize("epsilons, significance", [((0.0,), 1e-3), ((float("nan"),), 1e-3), ((1.0,), 0.0)])
def test_impossible_settings_are_refused(epsilons, significance):
    with pytest.raises(InputError):
        audit(epsilons, significance=significance)


def test_the_command_tells_failure_by_its_exit_code(monkeypatch, capsys):
    typer = pytest.importorskip("typer")
    from fedpriv.cli import audit as command
    from fedpriv.privacy.audit.verdict import SuiteResult

    def report(passed):
        numbers = {"t3": 7.5, "status": "ok" if passed else "fail"}
        suite = SuiteResult("D4 canaries, epsilon 8", passed, "found", numbers)
        return run.AuditReport((suite,), 1.0, {})

    asked = []

    def fake(epsilons, **options):
        asked.append((epsilons, options["canaries"]))
        return report(passed=len(asked) == 1)

    monkeypatch.setattr(run, "audit", fake)
    command.audit(quick=True)
    assert asked == [((2.0, 8.0), 2000)]
    assert "7.50" in capsys.readouterr().out
    with pytest.raises(typer.Exit) as stopped:
        command.audit(epsilons=[1.0], as_json=True)
    assert stopped.value.exit_code == 1 and asked[1] == ((1.0,), 10_000)
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_the_attack_on_a_whole_federation_is_asked_for_and_informs(monkeypatch, capsys):
    pytest.importorskip("typer")
    from fedpriv.cli import audit as command
    from fedpriv.privacy.audit.verdict import SuiteResult
    from simulations import end_to_end

    asked = []

    def attack(*, seed, progress):
        asked.append(seed)
        progress(0.5)
        return SuiteResult(end_to_end.NAME, True, "found", {"status": "information", "t3": 6.25})

    def fake(epsilons, **options):
        results = tuple(suite(lambda share: None) for _, suite in options["more"])
        return run.AuditReport(results, 1.0, {})

    monkeypatch.setattr(run, "audit", fake)
    monkeypatch.setattr(end_to_end, "end_to_end", attack)
    command.audit(quick=True)
    assert not asked
    command.audit(quick=True, whole=True, seed=4)
    assert asked == [4]
    assert "info" in capsys.readouterr().out
    command.audit(quick=True, whole=True, as_json=True)
    suite = json.loads(capsys.readouterr().out)["suites"][0]
    assert suite["name"] == end_to_end.NAME and suite["numbers"]["status"] == "information"


def test_suites_that_are_added_are_run_last_and_cannot_be_lost():
    from fedpriv.privacy.audit.verdict import SuiteResult

    report = audit((), seed=5, more=[("more", lambda tell: SuiteResult("more", False, "bad"))])
    assert report.suites[-1].name == "more" and not report.passed
