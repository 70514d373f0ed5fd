"""A ledger that is taken up again after a loss never says less than the lost one did."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from dp_accounting import dp_event
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpriv.cli import main
from fedpriv.errors import BudgetExceeded, InputError, LedgerError
from fedpriv.privacy import ledger_store
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.events import encode_event
from fedpriv.privacy.label import build_label
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.ledger_file import mark_path
from fedpriv.privacy.ledger_restore import chain_of, restore

PROMISE = {"unit": "reading", "relation": "zero-out", "delta": 1e-5}
EVENT = encode_event(dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(2.0)))


def contract(run_id: str, steps: int = 10) -> Contract:
    terms = '{"sampler": "random-phase-tiling", "sampling_prob": 0.1, "window": 192, "steps_per_day": 24}'
    return Contract(run_id=run_id, event=EVENT, steps_total=steps, epsilon=8.0, terms=terms, **PROMISE)


def reserve(ledger: Ledger, run_id: str, round: int):
    return ledger.reserve(run_id=run_id, round=round, steps=1, request_digest=f"{run_id}-{round}")


class Place:
    """A ledger with two runs, of which `copy()` takes copies as it goes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "a.sqlite"
        with Ledger.create(self.path, dataset="d", budget_epsilon=8.0, mode="deployment", **PROMISE) as ledger:
            ledger.enrol(contract("one"))
            reserve(ledger, "one", 1)

    def open(self) -> Ledger:
        return Ledger.open(self.path, dataset="d")

    def work(self, run_id: str, *rounds: int) -> None:
        with self.open() as ledger:
            ledger.enrol(contract(run_id))
            for round in rounds:
                reserve(ledger, run_id, round)

    def copy(self, name: str) -> Path:
        shutil.copy(self.path, self.folder / name)
        return self.folder / name

    def export(self, name: str) -> Path:
        with Ledger.open(self.path, readonly=True) as ledger:
            (self.folder / name).write_text(ledger.export())
        return self.folder / name

    def lose(self, *, mark: bool = False) -> None:
        for path in (self.path, *([mark_path(self.path)] if mark else [])):
            path.unlink()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def everything_is_spent(ledger: Ledger) -> bool:
    for each in ledger.agreements():
        with pytest.raises(BudgetExceeded):
            reserve(ledger, each.run_id, 99)
        assert ledger.spent_tokens(each.run_id) == each.tokens
    assert ledger.verify() == []
    return ledger.nominal() == ledger.committed()


@pytest.mark.parametrize("kind", ["copy", "export"])
def test_a_history_that_reaches_the_mark_misses_no_contract(place, kind):
    place.work("two", 1, 2)
    kept = getattr(place, kind)("kept")
    with place.open() as ledger:
        before = ledger.committed()
    place.lose()
    done = restore(place.path, kept, reason="the disk broke", dataset="d")
    assert not done.closed and done.charged == {"one": 9, "two": 8} and done.aside is None
    with place.open() as ledger:
        assert everything_is_spent(ledger) and ledger.committed() == before and not ledger.closed
        assert "the disk broke" in ledger.export()
        ledger.enrol(contract("three"))  # what is left of the budget is known
        reserve(ledger, "three", 1)
        assert ledger.committed() > before
    assert place.path.stat().st_mode & 0o777 == 0o600


def test_a_copy_that_may_miss_a_contract_closes_the_ledger(place):
    old = place.copy("old")
    place.work("two", 1)
    with place.open() as ledger:
        lost = ledger.committed()
    place.lose()
    done = restore(place.path, old, reason="r")
    assert done.closed and "rows 4 to 5 are missing" in done.why
    with place.open() as ledger:
        assert ledger.closed and everything_is_spent(ledger)
        assert ledger.committed() == ledger.budget_epsilon > lost
        with pytest.raises(BudgetExceeded, match="restored after a loss"):
            ledger.enrol(contract("three", steps=1))
    # and it stays closed, whatever is tried next
    place.lose()
    assert restore(place.path, old, reason="again").closed
    with place.open() as ledger:
        assert ledger.committed() == ledger.budget_epsilon


def test_an_export_of_later_rows_completes_an_older_copy(place):
    old = place.copy("old")
    place.work("two", 1)
    later = place.export("later")
    place.lose()
    assert not restore(place.path, old, later, reason="r").closed
    with place.open() as ledger:
        assert [each.run_id for each in ledger.agreements()] == ["one", "two"] and everything_is_spent(ledger)


def test_without_the_mark_nobody_knows_what_is_missing(place):
    kept = place.copy("kept")
    place.lose(mark=True)
    done = restore(place.path, kept, reason="r")
    assert done.closed and "mark is lost" in done.why


def test_the_file_in_its_place_is_taken_up_where_only_the_mark_is_wrong(place):
    with place.open() as ledger:
        paid = reserve(ledger, "one", 2)
        ledger.store_reply(paid, b"update")
    mark_path(place.path).unlink()
    done = restore(place.path, reason="r")
    assert done.closed and done.aside is None
    with place.open() as ledger:
        assert everything_is_spent(ledger)
        assert reserve(ledger, "one", 2).stored == b"update"  # asked again, it answers with the same bytes


def test_a_damaged_file_is_kept_aside(place):
    kept = place.copy("kept")
    place.path.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(InputError, match="no copy or export"):
        restore(place.path, reason="r")
    done = restore(place.path, kept, reason="r")
    assert done.aside is not None and done.aside.read_bytes().endswith(b"xxx") and not done.closed
    with place.open() as ledger:
        assert everything_is_spent(ledger)


def test_two_histories_are_not_made_one(place):
    old = place.copy("old")
    with place.open() as ledger:
        reserve(ledger, "one", 2)
    first = place.export("first")
    shutil.copy(old, place.path)
    mark_path(place.path).unlink()
    ledger_store.write_mark(place.path, _head(old))
    with place.open() as ledger:
        reserve(ledger, "one", 3)
    second = place.copy("second")
    place.lose()
    with pytest.raises(LedgerError, match="different histories"):
        restore(place.path, first, second, reason="r")
    with pytest.raises(LedgerError, match="another history"):
        restore(place.path, first, reason="r")
    assert not place.path.exists()


def _head(path: Path) -> tuple[int, str]:
    row = chain_of(path)[-1]
    return row.seq, row.hash


def test_what_cannot_be_restored_is_said_and_changes_nothing(place, tmp_path):
    with pytest.raises(InputError, match="sound, there is nothing to restore"):
        restore(place.path, reason="r")
    kept, export = place.copy("kept"), place.export("export.jsonl")
    place.lose()
    for copies, words in [
        ([], "does not exist, and no copy"),
        ([tmp_path / "nothing"], "cannot be read"),
        ([tmp_path], "cannot be read"),
    ]:
        with pytest.raises(InputError, match=words):
            restore(place.path, *copies, reason="r")
    with pytest.raises(InputError, match="with its reason"):
        restore(place.path, kept, reason=" ")
    for text in ("", "[]\n", "{}\n", "no json", '{"seq": 1}\n', "\xff\n"):
        (tmp_path / "odd").write_text(text)
        with pytest.raises(InputError, match="neither a ledger nor an export"):
            restore(place.path, tmp_path / "odd", reason="r")
    lines = export.read_text().splitlines()
    for broken in (lines[1:], [lines[0], lines[2]], [*lines[:2], lines[2].replace('"tokens":1', '"tokens":0')]):
        (tmp_path / "odd").write_text("\n".join(broken))
        with pytest.raises(LedgerError, match="cannot be trusted"):
            restore(place.path, tmp_path / "odd", reason="r")
    with pytest.raises(LedgerError, match="is of data set 'other'"):
        restore(place.path, kept, reason="r", dataset="other")
    assert not place.path.exists() and _head(kept) == _head(export)


def test_a_crash_in_mid_restoration_gives_nothing_back(place, monkeypatch):
    kept = place.copy("kept")
    place.lose()

    def power_cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger_store, "write_mark", power_cut)
    with pytest.raises(KeyboardInterrupt):
        restore(place.path, kept, reason="r")
    monkeypatch.undo()
    with place.open() as ledger, pytest.raises(BudgetExceeded):  # linked: already charged
        reserve(ledger, "one", 2)


def test_a_new_ledger_is_not_made_where_one_stood(place):
    place.lose()
    with pytest.raises(LedgerError, match="a ledger of 3 rows stood"):
        Ledger.create(place.path, dataset="d", budget_epsilon=8.0, mode="deployment", **PROMISE)
    assert not place.path.exists()


def test_the_label_of_a_closed_ledger_claims_its_budget_and_leaves_other_units_open(place):
    whole = build_label(None, {"a": place.path})
    assert whole["ladder"]["day"] is not None
    mark_path(place.path).unlink()
    restore(place.path, reason="r")
    label = build_label(None, {"a": place.path})
    assert label["max_epsilon"] == label["committed"]["a"] == label["ladder"]["reading"] == 8.0
    assert {k: v for k, v in label["ladder"].items() if k != "reading"} == dict.fromkeys(
        ("day", "week", "month", "meter")
    )
    assert all(v is None for v in label["ladders"]["replace-one"].values())
    assert "contracts may be missing" in label["assumptions"][-1]
    json.dumps(label, allow_nan=False)


def test_no_label_hides_a_client_whose_contracts_are_lost(place, tmp_path):
    (tmp_path / "b").mkdir()
    with Ledger.create(tmp_path / "b.sqlite", dataset="b", budget_epsilon=8.0, mode="deployment", **PROMISE) as ledger:
        empty = shutil.copy(ledger.path, tmp_path / "empty")
        ledger.enrol(contract("one"))
    (tmp_path / "b.sqlite").unlink()
    restore(tmp_path / "b.sqlite", empty, reason="r")
    with pytest.raises(InputError, match="restored without any contract"):
        build_label(None, {"a": place.path, "b": tmp_path / "b.sqlite"})


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("enrol"), st.integers(2, 4)),
        st.tuples(st.just("reserve"), st.integers(1, 4)),
        st.tuples(st.just("copy"), st.just(0)),
    ),
    max_size=8,
)


@settings(max_examples=15, deadline=None)
@given(ACTS, st.booleans(), st.sets(st.integers(0, 8), max_size=3))
def test_what_was_spent_never_becomes_less(acts, mark_is_lost, chosen):
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        copies, rounds = [place.copy("copy-0")], iter(range(2, 100))
        with place.open() as ledger:
            for act, number in acts:
                known = {each.run_id for each in ledger.agreements()}
                if act == "enrol":
                    ledger.enrol(contract(f"run-{number}"))
                elif act == "reserve" and f"run-{number}" in known:
                    reserve(ledger, f"run-{number}", next(rounds))
                elif act == "copy":
                    copies.append(place.export(f"copy-{len(copies)}"))
            committed, nominal = ledger.committed(), ledger.nominal()
            spent = {each.run_id: ledger.spent_tokens(each.run_id) for each in ledger.agreements()}
        place.lose(mark=mark_is_lost)
        done = restore(place.path, copies[0], *[c for i, c in enumerate(copies) if i in chosen], reason="r")
        with place.open() as ledger:
            known = {each.run_id for each in ledger.agreements()}
            assert ledger.committed() >= committed and ledger.nominal() >= nominal
            assert all(ledger.spent_tokens(run) >= tokens for run, tokens in spent.items() if run in known)
            assert done.closed or known == set(spent)
            assert ledger.verify() == []


# ---- the command ----------------------------------------------------------------------------------


def test_the_command_restores_and_says_what_it_did(place, capsys):
    kept = place.copy("kept")
    place.lose()
    assert main(["ledger", "restore", str(place.path), str(kept), "--reason", "the disk broke"]) == 0
    said = capsys.readouterr().out
    assert "9 of run one" in said and "allowed: the high-water mark, row 3, is reached" in said
    mark_path(place.path).unlink()
    assert main(["ledger", "restore", str(place.path), "--reason", "r", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["closed"] is True and said["committed"] == 8.0 and said["charged"] == {}
    assert main(["ledger", "verify", str(place.path)]) == 0


def test_the_command_takes_a_nodes_file_and_its_data_set(place, tmp_path, capsys):
    file = tmp_path / "node.toml"
    file.write_text(
        f'client = "North"\nledger = "{place.path}"\ndataset = "other"\nepsilon = 8.0\ndelta = 1e-5\n[data]\n'
        'source = "csv"\n'
    )
    file.chmod(0o600)
    kept = place.copy("kept")
    place.lose()
    assert main(["ledger", "restore", str(file), str(kept), "--reason", "r"]) == 3
    assert "is of data set 'other'" in capsys.readouterr().err and not place.path.exists()
    file.write_text(file.read_text().replace("other", "d"))
    assert main(["ledger", "restore", str(file), str(kept), "--reason", "r"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reason", "r"], "there is nothing to restore"),
        ([], "none was given"),
        (["/nowhere", "--reason", "r"], "there is nothing to restore"),
    ],
)
def test_the_command_refuses_in_one_paragraph(place, arguments, words, capsys):
    assert main(["ledger", "restore", str(place.path), *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and "Nothing was changed." in said and "Traceback" not in said
