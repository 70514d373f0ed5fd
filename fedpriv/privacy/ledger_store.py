"""What lies under a ledger: one SQLite database with a hash chain of rows that nobody may change.

Durability: write-ahead log with synchronous = FULL, so a committed row survives a power cut; local disks only. A row
carries the hash of the row before it. Beside the database lies a high-water mark (`NAME-mark`: last sequence number
and hash); a database behind its mark has lost rows (older copy put back, log cut off) and is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedpriv.errors import LedgerError
from fedpriv.privacy.ledger_file import (
    APPLICATION_ID,
    SCHEMA,
    SCHEMA_VERSION,
    connect,
    guard,
    mark_path,
    read_mark,
    sole_maker,
    sync_directory,
    write_mark,
)

_TRIGGERS = {"chain_no_update", "chain_no_delete", "chain_in_order"}
_COLUMNS = "seq, kind, run_id, round, tokens, spent, body, prev, hash"


@dataclass(frozen=True)
class Row:
    """One row of the chain.

    Attributes:
        seq: 1, 2, 3 ... without gaps.
        kind: genesis, contract, reserve, reply, refused or restore.
        run_id, round: what the row is about, where that applies.
        tokens: steps granted (contract) or taken (reserve, restore).
        spent: tokens taken in this run up to and including this row.
        body: canonical JSON of the rest.
        prev, hash: hex SHA-256 links.
    """

    seq: int
    kind: str
    run_id: str | None
    round: int | None
    tokens: int
    spent: int
    body: str
    prev: str
    hash: str

    @property
    def content(self) -> dict[str, Any]:
        """The body as a dictionary."""
        return json.loads(self.body)

    def columns(self) -> dict[str, Any]:
        """All columns by name."""
        return asdict(self)

    def computed_hash(self) -> str:
        """What `hash` must be."""
        text = json.dumps(
            [self.seq, self.kind, self.run_id, self.round, self.tokens, self.spent, self.body, self.prev],
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """An open ledger file. Used from one thread; several processes may have the same file open."""

    def __init__(self, path: Path, db: sqlite3.Connection, *, readonly: bool) -> None:
        self.path, self.readonly = path, readonly
        self._db = db

    # ---- opening ------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, body: Mapping[str, Any]) -> None:
        """A new file with its genesis row, mode 0600; the name appears only when everything is in it.

        Raises:
            LedgerError: the file exists already, or the mark of a ledger that is gone, or the directory cannot be
                written.
        """
        mark = read_mark(path)
        if not path.exists() and mark is not None and mark[0] > 1:
            raise LedgerError(
                f"a ledger of {mark[0]} rows stood at {path} before (its mark {mark_path(path)} is still there); put "
                "it back or restore it. Nothing was created."
            )
        # The mark comes first: a ledger whose file appeared without one would have to be taken on trust.
        _make(path, lambda store: store.append("genesis", body=body), mark_first=True)

    @classmethod
    def rebuild(cls, path: Path, fill: Callable[[Store], object]) -> Path | None:
        """A new file in the place of one that is missing or damaged, filled by `fill` before its name appears.

        Returns:
            Where the damaged file was put; None where there was none.

        Raises:
            LedgerError: the directory cannot be written.
        """
        aside: list[Path] = []

        def clear() -> None:
            if path.exists():
                number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.damaged-{n}").exists())
                aside.append(path.with_name(f"{path.name}.damaged-{number}"))
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f"{path}{suffix}", f"{aside[0]}{suffix}")

        _make(path, fill, before=clear)
        return aside[0] if aside else None

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False, check_mark: bool = True) -> Store:
        """An existing file, fully checked: schema, chain, integrity, high-water mark.

        Raises:
            LedgerError: missing, foreign, older, damaged, rolled back or not writable.
        """
        if not path.is_file():
            raise LedgerError(
                f"there is no ledger at {path}. A client without its ledger cannot know what was already spent, so it "
                "stops; put the file back, or create one explicitly if this data set was never used. Nothing was read."
            )
        if not readonly and not path.stat().st_mode & stat.S_IWUSR:
            raise LedgerError(f"the ledger {path} is read-only, so nothing can be reserved; nothing was read.")
        with guard(path, "cannot be used"):
            store = cls(path, connect(path, readonly=readonly), readonly=readonly)
            try:
                problems = store.problems(check_mark=check_mark)
                if problems:
                    raise LedgerError(f"the ledger {path} cannot be trusted: {'; '.join(problems)}. Nothing was read.")
            except BaseException:
                store.close()
                raise
        return store

    def close(self) -> None:
        """Releases the file."""
        self._db.close()

    # ---- writing ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True, mark: bool = True, sync_mark: bool = False) -> Generator[None]:
        """Read, check and append as one step; on any error nothing is written.

        Args:
            durable: survives a power cut once it returns. Otherwise it survives the end of the process, and a power
                cut may undo it up to the last durable step, never in part.
            mark: move the high-water mark; only after durable steps.
            sync_mark: the mark, too, survives a power cut. For rows of contracts: `ledger_restore` relies on it.

        Raises:
            LedgerError: the file is locked, full, read-only or damaged.
        """
        with guard(self.path, "could not be written"):
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            finally:
                self._db.execute("PRAGMA synchronous = FULL")
            if durable and mark:
                # After the commit, so that a crash in between leaves the mark behind the file and never ahead.
                write_mark(self.path, self.head(), sync=sync_mark)

    def append(
        self,
        kind: str,
        *,
        run_id: str | None = None,
        round: int | None = None,
        tokens: int = 0,
        spent: int = 0,
        body: Mapping[str, Any],
    ) -> Row:
        """Adds one row inside a transaction. The clock is noted, and never read again for any decision."""
        seq, prev = self.head()
        noted = {**body, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "monotonic_ns": time.monotonic_ns()}
        text = json.dumps(noted, sort_keys=True, separators=(",", ":"), allow_nan=False)
        row = Row(seq + 1, kind, run_id, round, tokens, spent, text, prev, "")
        row = replace(row, hash=row.computed_hash())
        self._db.execute(f"INSERT INTO chain ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)", _values(row))
        return row

    def extend(self, rows: Sequence[Row]) -> None:
        """Adds rows of a copy as they stand, inside a transaction; they must continue the chain."""
        self._db.executemany(f"INSERT INTO chain ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)", [_values(r) for r in rows])

    def put_reply(self, row: Row, reply: bytes, *, keep: int) -> None:
        """Stores the bytes of a reply; beyond `keep` of its run, in the place of the oldest one."""
        held = self._db.execute("SELECT id FROM outbox WHERE run_id = ? ORDER BY seq", (row.run_id,)).fetchall()
        if len(held) < keep:
            sql = "INSERT INTO outbox (run_id, round, seq, reply) VALUES (?,?,?,?)"
            self._db.execute(sql, (row.run_id, row.round, row.seq, reply))
        else:  # SQLite overwrites a value of equal size in place: ten times faster than delete and insert
            sql = "UPDATE outbox SET round = ?, seq = ?, reply = ? WHERE id = ?"
            self._db.execute(sql, (row.round, row.seq, reply, held[0][0]))

    # ---- reading ------------------------------------------------------------------------------

    def head(self) -> tuple[int, str]:
        """(sequence number, hash) of the last row."""
        found = self._db.execute("SELECT seq, hash FROM chain ORDER BY seq DESC LIMIT 1").fetchone()
        return (found[0], found[1]) if found else (0, "")

    def rows(self, where: str = "1", *values: object) -> list[Row]:
        """Rows in order that satisfy an SQL condition."""
        with guard(self.path, "could not be read"):
            found = self._db.execute(f"SELECT {_COLUMNS} FROM chain WHERE {where} ORDER BY seq", values)
            return [Row(*r) for r in found]

    def last(self, where: str, *values: object) -> Row | None:
        """The newest row that satisfies an SQL condition."""
        with guard(self.path, "could not be read"):
            sql = f"SELECT {_COLUMNS} FROM chain WHERE {where} ORDER BY seq DESC LIMIT 1"
            found = self._db.execute(sql, values).fetchone()
        return Row(*found) if found else None

    def reply(self, run_id: str, round: int) -> bytes | None:
        """The stored bytes, if they are still kept."""
        with guard(self.path, "could not be read"):
            sql = "SELECT reply FROM outbox WHERE run_id = ? AND round = ?"
            found = self._db.execute(sql, (run_id, round)).fetchone()
        return bytes(found[0]) if found else None

    def problems(self, *, check_mark: bool = True) -> list[str]:
        """Everything that is wrong with the file, in words; empty when it is sound."""
        application, version = (
            self._db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version")
        )
        if application != APPLICATION_ID:
            return ["it is not a fedpriv ledger"]
        if version != SCHEMA_VERSION:
            return [f"its schema has version {version}, this program writes version {SCHEMA_VERSION}"]
        damage = [r[0] for r in self._db.execute("PRAGMA quick_check").fetchmany(3)]
        if damage != ["ok"]:
            return [f"the file is damaged ({' '.join(damage[0].split())[:200]})"]
        found = {r[0] for r in self._db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")}
        missing = sorted(_TRIGGERS - found)
        problems = [f"the append-only triggers {missing} are missing"] if missing else []
        problems += chain_problems([Row(*r) for r in self._db.execute(f"SELECT {_COLUMNS} FROM chain ORDER BY seq")])
        for run_id, round, seq, reply in self._db.execute("SELECT run_id, round, seq, reply FROM outbox"):
            row = self.last("seq = ? AND kind = 'reply' AND run_id = ? AND round = ?", seq, run_id, round)
            if row is None or row.content.get("sha256") != hashlib.sha256(reply).hexdigest():
                problems.append(f"the stored reply of round {round} is not the one recorded")
        if check_mark:
            problems += self._mark_problems()
        return problems

    def _mark_problems(self) -> list[str]:
        mark, (seq, _) = read_mark(self.path), self.head()
        if mark is None:
            # Also where only the first row is there: so looks a file that was copied without its write-ahead log.
            return ["its high-water mark is missing or unreadable, so rows may be missing"]
        row = self.last("seq = ?", mark[0])
        if row is None or row.hash != mark[1]:
            return [f"it ends at row {seq} but had reached row {mark[0]} before: an older copy, or rows were lost"]
        return []


def chain_problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with a chain, in words: links, hashes, and tokens that do not add up."""
    problems: list[str] = []
    prev, spent, granted = "", dict[str, int](), dict[str, int]()
    if not rows or rows[0].kind != "genesis":
        problems.append("it has no genesis row")
    for expected, row in enumerate(rows, start=1):
        if row.seq != expected or row.prev != prev or row.hash != row.computed_hash():
            problems.append(f"the hash chain is broken at row {row.seq}")
            break
        prev, run = row.hash, row.run_id or ""
        if row.kind == "contract":
            granted[run] = row.tokens
        if row.kind in ("reserve", "restore"):
            spent[run] = spent.get(run, 0) + row.tokens
            if spent[run] != row.spent or spent[run] > granted.get(run, 0):
                problems.append(f"the tokens do not add up at row {row.seq}")
    return problems


def _values(row: Row) -> tuple[Any, ...]:
    return (row.seq, row.kind, row.run_id, row.round, row.tokens, row.spent, row.body, row.prev, row.hash)


def _make(
    path: Path,
    fill: Callable[[Store], object],
    *,
    before: Callable[[], None] = lambda: None,
    mark_first: bool = False,
) -> None:
    """Writes a new file beside `path` and links it there when it is complete; `before` runs just before that.

    `mark_first`: the mark is on disk before the file has its name; only where there is no ledger yet.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with guard(path, "was not created"):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            db = connect(temporary, readonly=False)
            store = Store(path, db, readonly=False)
            db.executescript(SCHEMA)
            with store.transaction(mark=False):
                fill(store)
            head = store.head()
            store.close()
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            before()
            if mark_first:
                with sole_maker(path):
                    write_mark(path, head, sync=True)
                    os.link(temporary, path)
            else:
                os.link(temporary, path)  # fails if the name is taken, unlike a rename
                write_mark(path, head, sync=True)
            sync_directory(path.parent)
    except FileExistsError:
        raise LedgerError(f"{path} exists already; a ledger is never overwritten. Nothing was created.") from None
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{temporary}{suffix}").unlink(missing_ok=True)
