"""Kills a client's ledger process again and again, and checks that nothing was ever released unpaid.

    python benchmarks/ledger_kill.py 10000

Each kill is a SIGKILL to a child that opens the ledger, reserves rounds, "releases" (appends to a log) and stores
replies: half of them at a fault point (before or after a commit, between commit and high-water mark, between
reservation and release), half at a random moment from outside. After every kill the file must open or say why not,
its chain must verify, the tokens must be within the contract, every release must have a reservation with the same
request, and no round may have been released with two different results. Prints one JSON object; exits 1 on a breach.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dp_accounting import dp_event

from fedpriv.errors import BudgetExceeded, LedgerError
from fedpriv.privacy import ledger_store
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.events import encode_event
from fedpriv.privacy.ledger import Ledger

TOKENS = 120
PER_FILE = 60  # kills before a fresh file, so that chains stay short
POINTS = ("before-commit", "after-commit", "before-mark", "after-mark", "after-reserve", "after-release", "after-reply")


def die() -> None:
    """The end, without any clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class Faulty:
    """A connection that dies at the n-th commit."""

    def __init__(self, inner: Any, point: str, countdown: int) -> None:
        self._inner, self._point, self._countdown = inner, point, countdown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, sql: str, *args: Any) -> Any:
        """Runs the statement; dies around a commit when it is time."""
        due = sql == "COMMIT" and self._tick()
        if due and self._point == "before-commit":
            die()
        result = self._inner.execute(sql, *args)
        if due and self._point == "after-commit":
            die()
        return result

    def _tick(self) -> bool:
        self._countdown -= 1
        return self._countdown == 0


def contract(run_id: str = "kill") -> Contract:
    """A contract of `TOKENS` steps."""
    event = encode_event(dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(2.0)))
    return Contract(
        run_id=run_id, event=event, steps_total=TOKENS, unit="reading", relation="zero-out", delta=1e-5, epsilon=8.0
    )


def work(path: Path, log: Path, point: str, countdown: int, rng: random.Random) -> None:
    """What a client does, until it dies or the contract is used up."""
    ledger = Ledger.open(path, dataset="kill-test")
    store = ledger._store  # pyright: ignore[reportPrivateUsage]
    store._db = Faulty(store._db, point, countdown)  # pyright: ignore
    if point in ("before-mark", "after-mark"):
        real, left = ledger_store.write_mark, [countdown]  # pyright: ignore[reportPrivateUsage]

        def marked(where: Path, head: tuple[int, str], **options: bool) -> None:
            left[0] -= 1
            if left[0] == 0 and point == "before-mark":
                die()
            real(where, head, **options)
            if left[0] == 0:
                die()

        ledger_store.write_mark = marked  # pyright: ignore[reportPrivateUsage]
    ledger.enrol(contract())
    out = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    last = max((r["round"] for r in ledger.rows() if r["kind"] == "reserve"), default=0)
    for step, round in enumerate(range(max(last, 0), last + 50), start=1):
        steps = (
            rng.randint(1, 3)
            if round > last
            else next((r["tokens"] for r in ledger.rows() if r["kind"] == "reserve" and r["round"] == round), 1)
        )
        digest = hashlib.sha256(f"request {round} {steps}".encode()).hexdigest()
        try:
            reservation = ledger.reserve(run_id="kill", round=round, steps=steps, request_digest=digest)
        except BudgetExceeded:
            break
        if point == "after-reserve" and step == countdown:
            die()
        if reservation.repeated:
            if reservation.stored is None:
                continue  # paid for, reply lost: never compute again
            reply = reservation.stored
        else:
            reply = os.urandom(rng.choice([40, 4000]))
            ledger.store_reply(reservation, reply)
        if point == "after-reply" and step == countdown:
            die()
        os.write(out, f"{round} {digest} {hashlib.sha256(reply).hexdigest()}\n".encode())
        if point == "after-release" and step == countdown:
            die()


def check(path: Path, log: Path) -> list[str]:
    """Breaches, in words."""
    try:
        ledger = Ledger.open(path, dataset="kill-test")
    except LedgerError as error:
        return [f"does not open: {error}"]
    with ledger:
        problems = ledger.verify()
        rows = ledger.rows()
    reserved = {r["round"]: r["body"]["request"] for r in rows if r["kind"] == "reserve"}
    spent = sum(r["tokens"] for r in rows if r["kind"] == "reserve")
    if spent > TOKENS:
        problems.append(f"overspent: {spent} > {TOKENS}")
    results: dict[str, str] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        round, digest, reply = line.split()
        if reserved.get(int(round)) != digest:
            problems.append(f"round {round} was released without its reservation")
        if results.setdefault(round, reply) != reply:
            problems.append(f"round {round} was released twice, differently")
    return problems


def campaign(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Runs `kills` kills and returns what was found."""
    rng, breaches, killed = random.Random(seed), list[str](), Counter[str]()
    path, log = folder / "ledger.sqlite", folder / "released.log"
    begun, files = time.monotonic(), 0
    total = 0
    while total < kills:
        if total % PER_FILE == 0 or not path.exists():
            for old in folder.iterdir():
                old.unlink()
            Ledger.create(
                path, dataset="kill-test", budget_epsilon=8.0, delta=1e-5, unit="reading", relation="zero-out",
                mode="deployment",
            ).close()  # fmt: skip
            files += 1
        outside = rng.random() < 0.5
        point, countdown = ("outside", -1) if outside else (rng.choice(POINTS), rng.randint(1, 4))
        child = os.fork()
        if child == 0:
            try:
                work(path, log, point, countdown, random.Random(rng.random()))
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(3)
            os._exit(0)
        if outside:
            time.sleep(rng.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            total += 1
            killed[point] += 1
        elif os.WEXITSTATUS(status):
            breaches.append(f"a child failed with status {os.WEXITSTATUS(status)} at {point}")
        found = check(path, log)
        breaches += found
        if found or not os.WIFSIGNALED(status):
            path.unlink(missing_ok=True)  # used up or broken: start afresh
        if len(breaches) > 20:
            break
    return {
        "kills": total,
        "at": dict(killed),
        "files": files,
        "breaches": breaches,
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kills", nargs="?", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="a directory on the disk to test; default: a temporary one")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ledger-kill-", dir=options.dir))
    try:
        result = campaign(options.kills, options.seed, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))
    return 1 if result["breaches"] else 0


if __name__ == "__main__":
    sys.exit(main())
