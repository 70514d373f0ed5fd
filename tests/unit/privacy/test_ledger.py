from __future__ import annotations

import json
import multiprocessing as mp
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dp_accounting import dp_event

from fedpriv.errors import BudgetExceeded, InputError, LedgerError
from fedpriv.privacy import ledger_store
from fedpriv.privacy.accounting import epsilon
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.dominance import dominates
from fedpriv.privacy.events import decode_event, encode_event
from fedpriv.privacy.laws import binomial_law, event_of_law
from fedpriv.privacy.ledger import KEPT_REPLIES, Ledger, verify_file
from fedpriv.privacy.ledger_restore import chain_of, restore
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import event_unit

ROOT = Path(__file__).parents[3]
BINDING = {"budget_epsilon": 8.0, "delta": 1e-5, "unit": "reading", "relation": "zero-out"}


def poisson(p: float, sigma: float) -> dp_event.DpEvent:
    return dp_event.PoissonSampledDpEvent(p, dp_event.GaussianDpEvent(sigma))


def contract(run_id: str = "run", *, steps: int = 10, sigma: float = 2.0, **changes) -> Contract:
    fields = {
        "run_id": run_id,
        "event": encode_event(poisson(0.1, sigma)),
        "steps_total": steps,
        "unit": "reading",
        "relation": "zero-out",
        "delta": 1e-5,
        "epsilon": 8.0,
        "terms": '{"sampler": "random-phase-tiling", "sampling_prob": 0.1, "clipper": "auto-s"}',
    }
    return Contract(**{**fields, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.sqlite"


@pytest.fixture
def ledger(path: Path):
    with Ledger.create(path, dataset="meters-1", mode="deployment", **BINDING) as made:
        made.enrol(contract())
        yield made


def reserve(ledger: Ledger, round: int, *, steps: int = 1, digest: str = "", **asked):
    return ledger.reserve(run_id="run", round=round, steps=steps, request_digest=digest or f"digest-{round}", **asked)


# ---- the ordinary life ----------------------------------------------------------------------------


def test_a_round_is_paid_once_and_answered_with_the_same_bytes(ledger: Ledger):
    first = reserve(ledger, 1, steps=2)
    assert (first.repeated, first.stored) == (False, None)
    assert first.head == ledger.head()
    ledger.store_reply(first, b"update")
    ledger.store_reply(first, b"update")
    again = reserve(ledger, 1, steps=2)
    assert (again.repeated, again.stored, again.head) == (True, b"update", first.head)
    assert ledger.spent_tokens("run") == 2
    assert ledger.head() == first.head  # a reply row may be lost in a power cut, so it is never the head
    assert ledger.verify() == []


def test_epsilons_are_derived_from_events(ledger: Ledger):
    assert ledger.committed() == epsilon(poisson(0.1, 2.0), 10, 1e-5, "zero-out")
    assert ledger.nominal() == 0.0
    reserve(ledger, 0, steps=3)
    assert ledger.nominal() == epsilon(poisson(0.1, 2.0), 3, 1e-5, "zero-out")


def test_conflicting_requests_are_refused(ledger: Ledger):
    reserve(ledger, 1, steps=2)
    before = ledger.head()
    for asked in ({"digest": "other", "steps": 2}, {"steps": 1}):
        with pytest.raises(LedgerError, match="another request"):
            reserve(ledger, 1, **asked)
    assert ledger.head() == before


def test_a_cap_that_is_no_number_allows_nothing(ledger: Ledger):
    with pytest.raises(BudgetExceeded):
        ledger.enrol(contract("other", steps=1000, sigma=0.7, epsilon=1e6), cap=float("nan"))
    with pytest.raises(BudgetExceeded):
        ledger.enrol(contract("small", steps=1), cap=float("nan"))
    assert [c.run_id for c in ledger.agreements()] == ["run"]


def test_tokens_end(ledger: Ledger):
    reserve(ledger, 1, steps=9)
    with pytest.raises(BudgetExceeded, match="11 > 10"):
        reserve(ledger, 2, steps=2)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, 2, steps=2)
    assert [r["kind"] for r in ledger.rows()] == ["genesis", "contract", "reserve", "refused"]
    reserve(ledger, 3, steps=1)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, 4, steps=1)
    assert ledger.spent_tokens("run") == 10
    assert ledger.verify() == []


@pytest.mark.parametrize("steps", [0, -1, 1.0, True, "1", 1 << 60])
def test_steps_are_positive_whole_numbers(ledger: Ledger, steps):
    before = ledger.head()
    with pytest.raises(InputError):
        reserve(ledger, 1, steps=steps)
    assert ledger.head() == before


def test_strangers_are_refused(ledger: Ledger):
    with pytest.raises(LedgerError, match="no contract"):
        ledger.reserve(run_id="other", round=1, steps=1, request_digest="x")


def test_reply_needs_its_reservation(ledger: Ledger):
    first = reserve(ledger, 1)
    ledger.store_reply(first, b"a")
    with pytest.raises(LedgerError, match="another reply"):
        ledger.store_reply(first, b"b")
    with pytest.raises(LedgerError, match="never reserved"):
        ledger.store_reply(type(first)("run", 9, 1, "x", (1, "y")), b"b")


def test_a_lost_reply_is_never_made_again_in_deployment(ledger: Ledger):
    reserve(ledger, 1)
    again = reserve(ledger, 1)
    assert again.repeated
    assert again.stored is None
    with pytest.raises(LedgerError, match="second release"):
        ledger.store_reply(again, b"fresh noise")


def test_a_simulation_may_repeat_the_same_bytes_only(path: Path):
    with Ledger.create(path, dataset="d", mode="simulation", **BINDING) as ledger:
        ledger.enrol(contract())
        reserve(ledger, 1)
        again = reserve(ledger, 1)
        ledger.store_reply(again, b"seeded")
        with pytest.raises(LedgerError):
            ledger.store_reply(reserve(ledger, 1), b"not the same")
        assert ledger.verify() == []


def test_only_the_newest_replies_are_kept(ledger: Ledger):
    for round in range(1, 8):
        ledger.store_reply(reserve(ledger, round), bytes([round]) * 100)
    stored = [reserve(ledger, round).stored is not None for round in range(1, 8)]
    assert stored == [False] * (7 - KEPT_REPLIES) + [True] * KEPT_REPLIES
    assert ledger.verify() == []


# ---- contracts ------------------------------------------------------------------------------------


def test_all_contracts_together_stay_within_the_budget(ledger: Ledger):
    ledger.enrol(contract())  # the same again
    big = contract("second", steps=600)
    own = epsilon(poisson(0.1, 2.0), 600, 1e-5, "zero-out")
    assert own < 8.0 < epsilon(poisson(0.1, 2.0), 1210, 1e-5, "zero-out")
    ledger.enrol(big)
    with pytest.raises(BudgetExceeded, match=r"all contracts would be .* > 8"):
        ledger.enrol(contract("third", steps=600))
    assert [c.run_id for c in ledger.contracts()] == ["run", "second"]
    assert ledger.committed() <= 8.0
    assert ledger.rows()[-1]["kind"] == "refused"
    with pytest.raises(LedgerError, match="no contract"):
        ledger.reserve(run_id="third", round=0, steps=1, request_digest="x")
    assert ledger.verify() == []


def test_a_contract_keeps_its_own_promise(ledger: Ledger):
    with pytest.raises(BudgetExceeded, match="of the contract would be"):
        ledger.enrol(contract("second", steps=600, epsilon=2.0))
    with pytest.raises(LedgerError, match="another contract"):
        ledger.enrol(contract(steps=11))
    for changed in ({"unit": "day"}, {"relation": "replace-one"}, {"delta": 1e-6}):
        with pytest.raises(InputError):
            ledger.enrol(contract("other", **changed))
    with pytest.raises(InputError):
        contract(event='{"@type":"Unsupported"}')
    with pytest.raises(InputError):
        contract(steps_total=0)


def test_requests_must_be_dominated(ledger: Ledger):
    reserve(ledger, 1, noise_multiplier=2.0, sampling_prob=0.1, event=poisson(0.1, 2.0), terms={"clipper": "auto-s"})
    reserve(ledger, 2, noise_multiplier=2.5, sampling_prob=0.05, event=poisson(0.05, 2.5))
    for round, asked in enumerate(
        [
            {"noise_multiplier": 0.0},
            {"noise_multiplier": 1.999},
            {"noise_multiplier": float("nan")},
            {"sampling_prob": 0.2},
            {"sampling_prob": -0.1},
            {"event": poisson(0.1, 1.9)},
            {"event": dp_event.NonPrivateDpEvent()},
            {"terms": {"clipper": "psasc"}},
            {"terms": {"bound": 1e9}},
        ],
        start=3,
    ):
        with pytest.raises(BudgetExceeded, match="refused"):
            reserve(ledger, round, **asked)
    assert ledger.spent_tokens("run") == 2


def test_steps_per_round_are_capped(path: Path):
    with Ledger.create(path, dataset="d", mode="deployment", **BINDING) as ledger:
        ledger.enrol(contract(steps_per_round=2))
        reserve(ledger, 1, steps=2)
        with pytest.raises(BudgetExceeded, match="in one round"):
            reserve(ledger, 2, steps=3)


def test_domination_is_an_order_that_epsilon_respects():
    tiling = [RandomPhaseTiling(24, p).amplify(dp_event.GaussianDpEvent(s), event_unit(30), "zero-out")
              for p, s in [(0.2, 2.0), (0.1, 2.0), (0.1, 3.0), (0.2, 3.0)]]  # fmt: skip
    mixed = [event_of_law(dp_event.GaussianDpEvent(2.0), binomial_law(k, 0.05)) for k in (2, 3, 6)]
    events = [poisson(0.1, 2.0), poisson(0.1, 3.0), poisson(0.3, 3.0), dp_event.GaussianDpEvent(2.0), *tiling, *mixed]
    pairs = 0
    for upper in events:
        assert dominates(upper, upper)
        assert dominates(upper, dp_event.NoOpDpEvent())
        assert not dominates(upper, dp_event.NonPrivateDpEvent())
        assert not dominates(upper, dp_event.LaplaceDpEvent(9.0))
        for lower in events:
            if dominates(upper, lower):
                pairs += upper != lower
                assert epsilon(lower, 20, 1e-5, "zero-out") <= epsilon(upper, 20, 1e-5, "zero-out") + 1e-6
    assert pairs > 10


def test_contracts_have_one_text():
    a, b = contract(terms='{"b": 1, "a": 2}'), contract(terms='{"a":2,"b":1}')
    assert a == b
    assert a.digest() == b.digest()
    assert Contract.from_json(json.loads(json.dumps(a.to_json()))) == a
    assert isinstance(decode_event(a.event), dp_event.PoissonSampledDpEvent)
    with pytest.raises(InputError):
        Contract.from_json({"run_id": "x"})


# ---- the file -------------------------------------------------------------------------------------


def test_file_is_private_durable_and_bound(ledger: Ledger, path: Path):
    reserve(ledger, 1)
    for name in (path, Path(f"{path}-wal"), ledger_store.mark_path(path)):
        assert stat.S_IMODE(name.stat().st_mode) == 0o600
    db = ledger._store._db
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
    for sql in ("UPDATE chain SET tokens = 0", "DELETE FROM chain", "DELETE FROM chain WHERE seq = 3"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(sql)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT OR REPLACE INTO chain SELECT seq, kind, run_id, round, 0, 0, body, prev, hash FROM chain")
    with pytest.raises(LedgerError, match="another data set"):
        Ledger.open(path, dataset="meters-2")
    with pytest.raises(LedgerError, match="for deployment"):
        Ledger.open(path, dataset="meters-1", mode="simulation")
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, dataset="meters-1", mode="deployment", **BINDING)
    with pytest.raises(InputError, match="without the identity"):
        Ledger.open(path)
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]


def test_missing_ledger_fails_closed(tmp_path: Path):
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger.open(tmp_path / "none.sqlite", dataset="d")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LedgerError):
        Ledger.create(tmp_path / "no" / "dir.sqlite", dataset="d", mode="deployment", **BINDING)


def closed(ledger: Ledger, rounds: int = 3) -> None:
    for round in range(1, rounds + 1):
        ledger.store_reply(reserve(ledger, round), b"reply")
    ledger.close()


def test_damage_is_refused(ledger: Ledger, path: Path):
    closed(ledger)
    whole = path.read_bytes()
    cases = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "foreign": b"not a database at all, but long enough to look at" * 100,
        "flipped": whole[:5000] + bytes([b ^ 255 for b in whole[5000:9000]]) + whole[9000:],
    }
    for name, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(LedgerError) as caught:
            Ledger.open(path, dataset="meters-1")
        assert "\n" not in str(caught.value), name
        assert verify_file(path), name
    path.write_bytes(whole)
    assert verify_file(path) == []


def tamper(path: Path, sql: str) -> None:
    db = sqlite3.connect(path)
    db.executescript("DROP TRIGGER chain_no_update; DROP TRIGGER chain_no_delete; DROP TRIGGER chain_in_order;" + sql)
    db.close()


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("", "triggers"),
        ("UPDATE chain SET tokens = 0 WHERE kind = 'reserve'", "chain is broken at row 3"),
        ("UPDATE chain SET body = replace(body, 'digest-1', 'digest-x')", "chain is broken"),
        ("DELETE FROM chain WHERE seq = 4", "chain is broken"),
        ("DELETE FROM chain WHERE seq > 3", "older copy"),
        ("UPDATE outbox SET reply = x'00'", "stored reply"),
        ("PRAGMA user_version = 0", "schema has version 0"),
        ("PRAGMA application_id = 7", "not a fedpriv ledger"),
    ],
)
def test_tampering_is_seen(ledger: Ledger, path: Path, sql: str, says: str):
    closed(ledger)
    tamper(path, sql)
    with pytest.raises(LedgerError, match=says):
        Ledger.open(path, dataset="meters-1")
    assert says.split()[0] in " ".join(verify_file(path))


def test_read_only_is_refused_for_writing_but_can_be_shown(ledger: Ledger, path: Path):
    closed(ledger)
    path.chmod(0o400)
    with pytest.raises(LedgerError, match="read-only"):
        Ledger.open(path, dataset="meters-1")
    with Ledger.open(path, readonly=True) as shown:
        assert shown.spent_tokens("run") == 3
        assert len(shown.export().splitlines()) == len(shown.rows()) == 8
        with pytest.raises(LedgerError):
            shown.reserve(run_id="run", round=9, steps=1, request_digest="x")
    path.chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        Ledger.open(path, dataset="meters-1")


def test_disk_full_is_refused_and_nothing_is_lost(ledger: Ledger, path: Path):
    reserve(ledger, 1)
    db = ledger._store._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(LedgerError, match="full"):
        ledger.store_reply(reserve(ledger, 2), b"x" * 200_000)
    db.execute("PRAGMA max_page_count = 1000000")
    assert ledger.spent_tokens("run") == 2  # paid, not released
    assert ledger.verify() == []


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 1 MB of its own; the test is skipped where none may be mounted."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
def test_a_disk_that_is_really_full(small_disk: Path):
    path = small_disk / "client.sqlite"
    with Ledger.create(path, dataset="d", mode="deployment", **BINDING) as ledger:
        ledger.enrol(contract(steps=600, epsilon=8.0))
        round, paid = 0, 0
        with pytest.raises(LedgerError, match=r"full|No space|I/O") as caught:
            for round in range(1, 600):
                reservation = reserve(ledger, round)
                paid = round
                ledger.store_reply(reservation, os.urandom(60_000))
        assert "\n" not in str(caught.value)
        assert ledger.spent_tokens("run") in (paid, round)
    with pytest.raises(LedgerError):
        Ledger.create(small_disk / "other.sqlite", dataset="d", mode="deployment", **BINDING)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True, capture_output=True)
    with Ledger.open(path, dataset="d") as ledger:  # space again: everything that was paid is still there
        assert ledger.verify() == []
        assert ledger.spent_tokens("run") >= paid
        reserve(ledger, 599)


def test_clock_set_back_changes_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    reserve(ledger, 1)
    monkeypatch.setattr(time, "gmtime", lambda *_: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    monkeypatch.setattr(time, "monotonic_ns", lambda: 0)
    reserve(ledger, 2)
    assert ledger.rows()[-1]["body"]["at"] == "1970-01-01T00:00:00Z"
    assert ledger.verify() == []
    with pytest.raises(LedgerError):
        reserve(ledger, 1, digest="other")


# ---- freshness ------------------------------------------------------------------------------------


def test_an_older_copy_is_refused(ledger: Ledger, path: Path):
    reserve(ledger, 1)
    ledger.close()
    shutil.copy(path, f"{path}.old")
    with Ledger.open(path, dataset="meters-1") as opened:
        reserve(opened, 2)
        head = opened.head()
    shutil.copy(f"{path}.old", path)
    with pytest.raises(LedgerError, match="older copy"):
        Ledger.open(path, dataset="meters-1")
    # The whole folder put back, mark included: only the server's memory of the head tells.
    ledger_store.write_mark(path, (3, json.loads(ledger_store.mark_path(path).read_text())["hash"]))
    with pytest.raises(LedgerError):
        Ledger.open(path, dataset="meters-1")
    ledger_store.mark_path(path).unlink()
    with pytest.raises(LedgerError, match="high-water mark is missing"):
        Ledger.open(path, dataset="meters-1")
    restore(path, dataset="meters-1", reason="restored from backup")
    with Ledger.open(path, dataset="meters-1") as restored:
        with pytest.raises(LedgerError, match="older copy was put back"):
            restored.check_descends(head)
        with pytest.raises(BudgetExceeded):  # everything that was left counts as spent
            reserve(restored, 3)
        assert restored.nominal() == restored.committed()
        assert restored.verify() == []


def test_a_ledger_copied_while_in_use_is_no_fresh_one(ledger: Ledger, path: Path, tmp_path: Path):
    # What was spent is still in the write-ahead log: the main file alone holds the first row and nothing else.
    reserve(ledger, 1)
    alone = Path(shutil.copy(path, tmp_path / "alone.sqlite"))
    assert len(chain_of(alone)) == 1
    for readonly in (False, True):
        with pytest.raises(LedgerError, match="high-water mark is missing"):
            Ledger.open(alone, dataset="meters-1", readonly=readonly)
    shutil.copy(ledger_store.mark_path(path), ledger_store.mark_path(alone))
    with pytest.raises(LedgerError, match="rows were lost"):
        Ledger.open(alone, dataset="meters-1")


def test_a_ledger_has_its_mark_before_it_has_its_name(path: Path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger_store.os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        Ledger.create(path, dataset="meters-1", mode="deployment", **BINDING)
    monkeypatch.undo()
    assert ledger_store.mark_path(path).exists() and not path.exists()
    with Ledger.create(path, dataset="meters-1", mode="deployment", **BINDING) as made:
        made.enrol(contract())
    before = ledger_store.mark_path(path).read_bytes()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, dataset="meters-1", mode="deployment", **BINDING)
    assert ledger_store.mark_path(path).read_bytes() == before  # a refused creation does not lower it
    with Ledger.open(path, dataset="meters-1") as found:
        assert found.verify() == []


def _create(path: str, gate, results) -> None:
    gate.wait()
    try:
        with Ledger.create(path, dataset="meters-1", mode="deployment", **BINDING) as made:
            made.enrol(contract())
        results.put("made")
    except LedgerError as error:
        results.put("refused" if "exists already" in str(error) else str(error))
    except BaseException as error:
        results.put(repr(error))


def test_of_six_processes_that_create_a_ledger_one_does(path: Path):
    fork = mp.get_context("fork")
    gate, results = fork.Barrier(6), fork.Queue()
    children = [fork.Process(target=_create, args=(str(path), gate, results)) for _ in range(6)]
    for child in children:
        child.start()
    outcomes = sorted(results.get(timeout=120) for _ in children)
    for child in children:
        child.join(timeout=120)
    assert outcomes == ["made"] + ["refused"] * 5
    with Ledger.open(path, dataset="meters-1") as made:
        assert len(made.agreements()) == 1 and made.verify() == []


def test_a_fork_is_seen_by_the_echoed_head(ledger: Ledger, path: Path, tmp_path: Path):
    early = reserve(ledger, 1).head
    ledger.close()
    other = tmp_path / "copy.sqlite"
    shutil.copy(path, other)
    shutil.copy(ledger_store.mark_path(path), ledger_store.mark_path(other))
    with Ledger.open(path, dataset="meters-1") as a, Ledger.open(other, dataset="meters-1") as b:
        head = reserve(a, 2).head
        reserve(b, 2, digest="elsewhere")
        b.check_descends(None)
        b.check_descends((0, ""))
        b.check_descends(early)
        a.check_descends(head)
        with pytest.raises(LedgerError, match="two copies"):
            b.check_descends(head)


CHILD = """
import os, signal, sys
from fedpriv.privacy.ledger import Ledger
ledger = Ledger.open(sys.argv[1], dataset="meters-1")
for round in range(1, 6):
    r = ledger.reserve(run_id="run", round=round, steps=1, request_digest=f"digest-{round}")
    ledger.store_reply(r, b"reply")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_truncated_log_is_refused(ledger: Ledger, path: Path):
    ledger.close()
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    wal = Path(f"{path}-wal")
    whole = wal.read_bytes()
    copy = path.parent / "copy.sqlite"
    for name in ("", "-wal", "-mark"):
        shutil.copy(f"{path}{name}", f"{copy}{name}")
    with Ledger.open(copy, dataset="meters-1") as sound:  # untouched, it recovers completely
        assert sound.spent_tokens("run") == 5
    wal.write_bytes(whole[: len(whole) // 2])
    Path(f"{path}-shm").unlink(missing_ok=True)
    with pytest.raises(LedgerError, match="rows were lost"):
        Ledger.open(path, dataset="meters-1")
    wal.unlink(missing_ok=True)
    with pytest.raises(LedgerError):
        Ledger.open(path, dataset="meters-1")


# ---- many processes -------------------------------------------------------------------------------


def _contend(path: str, name: int, gate, results) -> None:
    ledger = Ledger.open(path, dataset="meters-1")
    gate.wait()
    try:
        ledger.reserve(run_id="run", round=100 + name, steps=1, request_digest=f"{name}")
        results.put("won")
    except BudgetExceeded:
        results.put("refused")
    except BaseException as error:
        results.put(repr(error))


def test_eight_processes_and_one_last_token(ledger: Ledger, path: Path):
    reserve(ledger, 1, steps=9)
    ledger.close()
    fork = mp.get_context("fork")
    gate, results = fork.Barrier(8), fork.Queue()
    children = [fork.Process(target=_contend, args=(str(path), i, gate, results)) for i in range(8)]
    for child in children:
        child.start()
    outcomes = sorted(results.get(timeout=300) for _ in children)
    for child in children:
        child.join(timeout=300)
    assert outcomes == ["refused"] * 7 + ["won"]
    with Ledger.open(path, dataset="meters-1") as after:
        assert after.spent_tokens("run") == 10
        assert after.verify() == []


@pytest.mark.parametrize("kills", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_killed_again_and_again(kills: int, tmp_path: Path):
    script = [sys.executable, "benchmarks/ledger_kill.py", str(kills), "--dir", str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == kills
    assert result["breaches"] == []
