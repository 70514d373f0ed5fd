"""The database file of a ledger on its disk: schema, connection, errors in words, and the high-water mark beside it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote

from fedpriv.errors import LedgerError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None

APPLICATION_ID = 0x66647076  # "fdpv"
SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0
_MARK_BYTES = 128

# In Python, not in a .sql file: Flower's bundle carries no .sql.
SCHEMA = f"""
CREATE TABLE chain (
  seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, run_id TEXT, round INTEGER, tokens INTEGER NOT NULL CHECK (tokens >= 0),
  spent INTEGER NOT NULL CHECK (spent >= 0), body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL UNIQUE
) STRICT;
CREATE UNIQUE INDEX one_reservation ON chain (run_id, round) WHERE kind = 'reserve';
CREATE UNIQUE INDEX one_reply ON chain (run_id, round) WHERE kind = 'reply';
CREATE UNIQUE INDEX one_refusal ON chain (run_id, round) WHERE kind = 'refused';
CREATE UNIQUE INDEX one_contract ON chain (run_id) WHERE kind = 'contract';
CREATE INDEX by_run ON chain (run_id, kind, seq);
CREATE TRIGGER chain_no_update BEFORE UPDATE ON chain BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER chain_no_delete BEFORE DELETE ON chain BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER chain_in_order BEFORE INSERT ON chain
  WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM chain)
    OR NEW.prev <> coalesce((SELECT hash FROM chain ORDER BY seq DESC LIMIT 1), '')
  BEGIN SELECT RAISE(ABORT, 'the row does not continue the chain'); END;
CREATE TABLE outbox (
  id INTEGER PRIMARY KEY, run_id TEXT NOT NULL, round INTEGER NOT NULL, seq INTEGER NOT NULL, reply BLOB NOT NULL
) STRICT;
CREATE INDEX outbox_by_run ON outbox (run_id, seq);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


def connect(path: Path, *, readonly: bool) -> sqlite3.Connection:
    """An open connection with every safety setting, each verified where SQLite may silently decline."""
    mode = "rw" if not readonly else "ro"
    if readonly and not Path(f"{path}-wal").exists():
        mode = "ro&immutable=1"  # works in folders that cannot be written, too
    uri = f"file:{quote(str(path.resolve()))}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)
    try:
        db.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        db.execute("PRAGMA trusted_schema = OFF")
        if not readonly:
            journal = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            db.execute("PRAGMA synchronous = FULL")
            for pragma in ("fullfsync", "checkpoint_fullfsync", "foreign_keys", "recursive_triggers"):
                db.execute(f"PRAGMA {pragma} = ON")
            if journal != "wal" or db.execute("PRAGMA synchronous").fetchone()[0] != 2:
                raise LedgerError(f"{path}: this file system refuses a durable write-ahead log; nothing was read.")
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def guard(path: Path, what: str) -> Generator[None]:
    """SQLite's and the system's errors as one paragraph."""
    try:
        yield
    except FileExistsError:
        raise
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger {path} {what} ({error}); the client stops and nothing was released.") from error
    except OSError as error:
        raise LedgerError(
            f"the ledger {path} {what} ({error.strerror or type(error).__name__}); the client stops and nothing was "
            "released."
        ) from error


def mark_path(path: Path) -> Path:
    """Where the high-water mark of a ledger lies."""
    return path.with_name(f"{path.name}-mark")


def write_mark(path: Path, head: tuple[int, str], *, sync: bool = False) -> None:
    """Notes how far a ledger has come; with `sync` so that a power cut does not undo it."""
    # One short write in place: whole or not at all on any page cache. An older mark is harmless for opening a ledger.
    text = json.dumps({"seq": head[0], "hash": head[1]}).ljust(_MARK_BYTES - 1) + "\n"
    file = os.open(mark_path(path), os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.pwrite(file, text.encode(), 0)
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


def read_mark(path: Path) -> tuple[int, str] | None:
    """(sequence number, hash) that the ledger had reached; None where the mark is missing or unreadable."""
    try:
        mark = json.loads(mark_path(path).read_text())
        return int(mark["seq"]), str(mark["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def sole_maker(path: Path) -> Generator[None]:
    """Keeps other processes from making the ledger at `path` at the same time; its mark is safe to write inside.

    Raises:
        FileExistsError: there is a ledger already; its mark was not touched.
    """
    if path.exists():
        raise FileExistsError(path)
    file = os.open(mark_path(path), os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the descriptor
        if path.exists():
            raise FileExistsError(path)
        yield
    finally:
        os.close(file)


def sync_directory(path: Path) -> None:
    """Makes names in a directory survive a power cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
