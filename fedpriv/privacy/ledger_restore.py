"""Taking up a ledger again after a loss, from every copy and export that is left: what was spent is never lowered.

An act of the owner, at the owner's machine; no server can ask for it. Three rules keep the account whole:

* One history. Each copy must be the beginning of the longest one, and no high-water mark may contradict it; two
  histories of one ledger mean that both were used, and their costs would add up.
* Everything open is charged. Rows after the last known one may be missing, so all remaining tokens of every known
  contract count as spent.
* Unknown contracts are charged by the budget. A contract's row reaches the disk's high-water mark before its first
  step is reserved, so a history that reaches the mark beside the ledger misses none that was used. Any other history
  may: since all contracts together never cost more than the budget, the whole budget is then the claim, and the ledger
  is closed: it enrols nothing more.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedpriv.errors import InputError, LedgerError
from fedpriv.privacy.ledger_file import mark_path, read_mark
from fedpriv.privacy.ledger_store import Row, Store, chain_problems
from fedpriv.privacy.renyi_contract import contract_from_json

_SQLITE = b"SQLite format 3\0"
_NOTHING = "Nothing was changed."


@dataclass(frozen=True)
class Restored:
    """What a restoration found and did.

    Attributes:
        path: of the ledger.
        rows: known before it.
        charged: run -> tokens that were open and count as spent now.
        closed: whether rows may be missing, so that the whole budget is claimed.
        why: why, or how it is known that nothing is missing.
        aside: where the damaged file was put; None where there was none.
    """

    path: Path
    rows: int
    charged: dict[str, int]
    closed: bool
    why: str
    aside: Path | None = None


def restore(path: str | Path, *copies: str | Path, reason: str, dataset: str | None = None) -> Restored:
    """Brings the ledger at `path` back, from the file there and from copies and exports of it.

    End every process that uses the ledger first.

    Args:
        path: where the ledger belongs; the file may be missing, damaged or an older copy.
        copies: other copies (SQLite) and exports (`fedpriv ledger export`) of this ledger, in any order.
        reason: words for the record.
        dataset: identity that the ledger must be bound to; None: that of the copies.

    Raises:
        InputError: no reason, a copy that is not there, nothing to restore from, or nothing to restore.
        LedgerError: a copy that is damaged or of another data set, or copies that contradict each other.
    """
    path, found = Path(path), [Path(copy) for copy in copies]
    if not reason.strip():
        raise InputError(f"a restoration is written down with its reason, and none was given. {_NOTHING}")
    own, sound = _own(path)
    if sound:
        raise InputError(f"the ledger {path} is sound, there is nothing to restore. {_NOTHING}")
    chains = [chain_of(copy) for copy in found] + ([own] if own else [])
    if not chains:
        state = "cannot be read" if path.exists() else "does not exist"
        raise InputError(f"the ledger {path} {state}, and no copy or export of it was given. {_NOTHING}")
    rows = max(chains, key=len)
    _check_one_history(rows, chains, path)
    name = str(rows[0].content.get("dataset"))
    if dataset is not None and name != dataset:
        raise LedgerError(f"the ledger {path} is of data set {dataset!r}, the copies are of {name!r}. {_NOTHING}")
    closed, why = _missing(rows, path, found)
    charged: dict[str, int] = {}

    def complete(store: Store) -> None:
        store.extend(rows[store.head()[0] :])
        for row in store.rows("kind = 'contract'"):
            contract = contract_from_json(row.content["contract"])
            last = store.last("run_id = ? AND kind IN ('reserve', 'restore')", contract.run_id)
            left = contract.tokens - (last.spent if last is not None else 0)
            if left:
                charged[contract.run_id] = left
                store.append(
                    "restore", run_id=contract.run_id, tokens=left, spent=contract.tokens, body={"reason": reason}
                )
        store.append("restore", body={"reason": reason, "closed": closed, "known": len(rows), "why": why})

    aside: Path | None = None
    if own:
        with contextlib.closing(Store.open(path, check_mark=False)) as store, store.transaction(sync_mark=True):
            complete(store)
    else:
        aside = Store.rebuild(path, complete)
    return Restored(path, len(rows), charged, closed, why, aside)


def chain_of(path: Path) -> list[Row]:
    """The rows of a copy or an export, checked.

    Raises:
        InputError: there is no such file, or it is neither.
        LedgerError: the chain in it is broken.
    """
    try:
        with open(path, "rb") as file:
            copy = file.read(len(_SQLITE)) == _SQLITE
        if copy:
            with contextlib.closing(Store.open(path, readonly=True, check_mark=False)) as store:
                return store.rows()
        names = {field.name for field in fields(Row)}
        rows: list[Row] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            columns: dict[str, Any] = json.loads(line)
            if type(columns) is not dict or set(columns) != names:
                raise ValueError("rows of a ledger have other fields")
            rows.append(Row(**columns))
        if not rows:
            raise ValueError("no rows")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or type(error).__name__}). {_NOTHING}") from None
    except ValueError:
        raise InputError(f"{path} is neither a ledger nor an export of one. {_NOTHING}") from None
    if problems := chain_problems(rows):
        raise LedgerError(f"the export {path} cannot be trusted: {'; '.join(problems)}. {_NOTHING}")
    return rows


def _own(path: Path) -> tuple[list[Row], bool]:
    """The rows of the file in its place, empty if it is missing or damaged; and whether it may be used as it is."""
    if not path.is_file():
        return [], False
    try:
        with contextlib.closing(Store.open(path, check_mark=False)) as store:
            return store.rows(), not store.problems()
    except LedgerError:
        return [], False


def _check_one_history(rows: Sequence[Row], chains: Sequence[Sequence[Row]], path: Path) -> None:
    for chain in chains:
        if rows[len(chain) - 1].hash != chain[-1].hash:  # the hash of a row covers all rows before it
            raise LedgerError(
                f"the copies of the ledger {path} have different histories: two of them were used, and what both spent "
                f"adds up. They cannot be made one. {_NOTHING}"
            )


def _missing(rows: Sequence[Row], path: Path, copies: Sequence[Path]) -> tuple[bool, str]:
    """Whether rows of contracts may be missing, and why."""
    ahead = 0
    for place in (path, *copies):
        mark = read_mark(place)
        if mark is None:
            continue
        if mark[0] <= len(rows) and rows[mark[0] - 1].hash != mark[1]:
            raise LedgerError(
                f"the high-water mark {mark_path(place)} is of another history than the copies: two of them were used, "
                f"and what both spent adds up. They cannot be made one. {_NOTHING}"
            )
        ahead = max(ahead, mark[0])
    if ahead > len(rows):
        return True, f"rows {len(rows) + 1} to {ahead} are missing"
    if read_mark(path) is None:
        return True, f"the high-water mark is lost, so nobody knows of rows after {len(rows)}"
    return False, f"the high-water mark, row {ahead}, is reached"
