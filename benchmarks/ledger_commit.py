"""How long a client waits for its ledger: reserving a round, and storing a reply of the size of a model.

    python benchmarks/ledger_commit.py --rounds 400 --megabytes 1.4

Prints one JSON object: milliseconds at the median and the 99th percentile for each of the two steps, and for a bare
fsync of 4 kB on the same disk, which is the floor for any durable commit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from dp_accounting import dp_event

from fedpriv.privacy.contract import Contract
from fedpriv.privacy.events import encode_event
from fedpriv.privacy.ledger import Ledger


def measure(rounds: int, size: int, folder: Path) -> dict[str, object]:
    """Times of `rounds` rounds with replies of `size` bytes."""
    event = encode_event(dp_event.PoissonSampledDpEvent(0.01, dp_event.GaussianDpEvent(5.0)))
    path = folder / "ledger.sqlite"
    reserve: list[float] = []
    store: list[float] = []
    bare: list[float] = []
    with Ledger.create(
        path, dataset="d", budget_epsilon=8.0, delta=1e-5, unit="reading", relation="zero-out", mode="deployment"
    ) as ledger:
        terms = {"unit": "reading", "relation": "zero-out", "delta": 1e-5, "epsilon": 8.0}
        ledger.enrol(Contract(run_id="r", event=event, steps_total=rounds, **terms))
        for round in range(1, rounds + 1):
            reply = os.urandom(size)
            start = time.perf_counter()
            paid = ledger.reserve(run_id="r", round=round, steps=1, request_digest=str(round))
            middle = time.perf_counter()
            ledger.store_reply(paid, reply)
            reserve.append(middle - start)
            store.append(time.perf_counter() - middle)
    file = os.open(folder / "bare", os.O_CREAT | os.O_WRONLY)
    for _ in range(rounds):
        os.write(file, b"x" * 4096)
        start = time.perf_counter()
        os.fsync(file)
        bare.append(time.perf_counter() - start)
    os.close(file)
    return {
        "rounds": rounds,
        "reply_bytes": size,
        "reserve_ms": _summary(reserve),
        "store_reply_ms": _summary(store),
        "fsync_4k_ms": _summary(bare),
    }


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))], 2) for name, q in at.items()}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--megabytes", type=float, default=1.4)
    parser.add_argument("--dir", type=Path, help="a directory on the disk to test; default: a temporary one")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ledger-commit-", dir=options.dir))
    try:
        print(json.dumps(measure(options.rounds, int(options.megabytes * 1e6), folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
