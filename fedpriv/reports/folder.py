"""The run folder: every file of a run, written so that a kill at any moment loses at most the round at work.

```
scenario.toml  run.json  rounds.parquet  metrics.json  label.json  examples.npz  model.safetensors
checkpoint.safetensors  ledgers/CLIENT.sqlite  figures/  report.html
```
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fedpriv.config import Scenario
from fedpriv.errors import InputError
from fedpriv.provenance import source_digest
from fedpriv.reports.atomic import plain, read_json, replace_file, write_json, write_text
from fedpriv.reports.checkpoints import Arrays, Checkpoint
from fedpriv.reports.forecasts import ForecastExamples
from fedpriv.reports.locking import FolderLock
from fedpriv.reports.rows import Rows

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["running", "done", "interrupted", "failed", "refused"]
STATUSES: tuple[Status, ...] = ("running", "done", "interrupted", "failed", "refused")

_PACKAGES = ("fedpriv", "flwr", "ray", "torch", "opacus", "dp-accounting", "diffusers", "numpy", "pandas", "pyarrow")
_SYNC_EVERY = 10.0  # seconds between checkpoints that also survive a power cut
_FLUSH_ROWS = 400  # fewer unwritten rows than this travel in the checkpoint


class RunFolder:
    """One run on disk. Make it with `create` or `open`; nothing in a folder is ever deleted.

    Attributes:
        path: the folder.
        scenario: what is (or was) run.
        finished: True when the run is complete, so that a resume has nothing left to do.
    """

    def __init__(self, path: Path, scenario: Scenario, *, rows: Rows) -> None:
        self.path = path
        self.scenario = scenario
        self._rows = rows
        self._status = read_json(path / "run.json")
        self._synced = 0.0

    # ---- making and opening -------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path | str, scenario: Scenario, resume: bool = False) -> RunFolder:
        """Starts a run folder, or (with `resume`) goes on with an interrupted one.

        With `resume` and a finished run of the same scenario the folder is returned with `finished` True;
        with `resume` and no folder yet, a new one is started. Rows of rounds after the checkpoint are dropped,
        because those rounds will be run again.

        Raises:
            InputError: the path is something else, belongs to another scenario, or holds a run and `resume` is off.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, not a folder; choose another with --out. Nothing was started.")
        if (path / "scenario.toml").exists():
            return cls._reuse(path, scenario, resume=resume)
        if path.is_dir() and any(p.name != ".lock" for p in path.iterdir()):
            raise InputError(
                f"{path} holds files that are not a run of fedpriv; choose an empty or new folder with --out. "
                "Nothing was started or changed."
            )
        try:
            (path / "ledgers").mkdir(parents=True, exist_ok=True, mode=0o700)
            (path / "figures").mkdir(exist_ok=True)
            write_text(path / "scenario.toml", scenario.to_toml())
        except OSError as error:
            raise InputError(f"the run folder {path} cannot be made ({error}); nothing was started.") from None
        folder = cls(path, scenario, rows=Rows())
        folder.update_status(
            status="running",
            name=scenario.run.name,
            digest=scenario.digest(),
            created=_now(),
            engine=scenario.run.engine,
            device=scenario.run.device,
            seeds={"run": scenario.run.seed, "data": scenario.data.seed},
            versions=versions(),
            source_digest=source_digest(),
        )
        return folder

    @classmethod
    def _reuse(cls, path: Path, scenario: Scenario, *, resume: bool) -> RunFolder:
        found = cls.open(path)
        if found.scenario.digest() != scenario.digest():
            raise InputError(
                f"{path} holds a run of another scenario ({_differences(found.scenario, scenario)}); "
                "choose another folder with --out. Nothing was started or changed."
            )
        if found.finished and not resume:
            raise InputError(
                f"{path} holds this very run, finished: see {path / 'report.html'}. To run it again choose another "
                "folder with --out, or another seed with --set run.seed=2. Nothing was started."
            )
        if not resume:
            raise InputError(
                f"{path} holds this run, {found.status.get('status', 'interrupted')} after round {found.last_round} of "
                f"{scenario.federation.rounds}; add --resume to go on with it, or choose another folder with --out. "
                "Nothing was started."
            )
        found.scenario = scenario  # same digest; engine, device or workers may differ
        if not found.finished:
            found.load_checkpoint()
            found.update_status(
                status="running",
                engine=scenario.run.engine,
                device=scenario.run.device,
                versions=versions(),
                resumed=[*cast("list[object]", found.status.get("resumed", [])), _now()],
            )
        return found

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Opens an existing run folder for reading.

        Raises:
            InputError: no folder, not a run folder, or a damaged file in it.
        """
        path = Path(path)
        if not (path / "scenario.toml").is_file():
            kind = "is not a run folder (no scenario.toml in it)" if path.exists() else "does not exist"
            raise InputError(f"{path} {kind}; runs are written by `fedpriv simulate`. Nothing was changed.")
        scenario = Scenario.from_toml(path / "scenario.toml")
        return cls(path, scenario, rows=Rows.load(path / "rounds.parquet"))

    def lock(self) -> FolderLock:
        """A context manager that only one process can hold; stale locks are taken over.

        Raises:
            InputError: on entry, when another living process works here.
        """
        return FolderLock(self.path / ".lock")

    # ---- status -------------------------------------------------------------------------------

    @property
    def status(self) -> dict[str, object]:
        """The content of run.json."""
        return dict(self._status)

    @property
    def finished(self) -> bool:
        """Whether the run came to its planned end."""
        return self._status.get("status") == "done"

    def update_status(self, **fields: object) -> None:
        """Sets keys of run.json, such as `status`, `source_digest`, `timings`, `engine`; the rest stays."""
        if fields.get("status", "running") not in STATUSES:
            raise ValueError(f"status={fields['status']!r} is not one of {STATUSES}")
        converted = plain(fields)
        assert isinstance(converted, dict)
        self._status = {"format": 1, **self._status, **converted, "updated": _now()}
        write_json(self.path / "run.json", self._status)

    # ---- rows ---------------------------------------------------------------------------------

    def append_rows(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Takes rows {round, client, split, model, metric, value}; written at `flush` or with a checkpoint."""
        self._rows.add(rows)
        # Rewriting costs time in proportion to all rows: wait until a good part of them is new.
        if self._rows.pending_count > max(_FLUSH_ROWS, len(self._rows) // 4):
            self.flush()

    def flush(self) -> None:
        """Rewrites rounds.parquet if there is anything new."""
        if self._rows.pending_count or not (self.path / "rounds.parquet").exists():
            self._rows.save(self.path / "rounds.parquet")

    def rounds(self) -> pd.DataFrame:
        """All rows so far: round, client, split, model, metric, value."""
        import pandas as pd

        return pd.DataFrame(self._rows.columns())

    # ---- checkpoints --------------------------------------------------------------------------

    @property
    def last_round(self) -> int:
        """The last round that a resume need not repeat; 0 before the first checkpoint."""
        if self.finished:
            return self.scenario.federation.rounds
        found = self._checkpoint()
        return found.round if found else 0

    def checkpoint(self, round: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, object]) -> None:
        """Replaces the checkpoint: state after `round`, with the rows not yet in rounds.parquet.

        Args:
            round: the last complete round.
            arrays: name -> array of any shape; safetensors keeps dtype and shape.
            meta: JSON-ready (floats keep every bit).
        """
        durable = time.monotonic() - self._synced > _SYNC_EVERY
        found = Checkpoint(round, dict(arrays), dict(meta), self._rows.pending())
        found.save(self.path / "checkpoint.safetensors", digest=self.scenario.digest(), durable=durable)
        if durable:
            self._synced = time.monotonic()

    def load_checkpoint(self) -> tuple[int, Arrays, dict[str, Any]] | None:
        """(round, arrays, meta) of the newest checkpoint, None without one; drops rows of later rounds.

        Raises:
            InputError: the file is damaged or belongs to another scenario.
        """
        found = self._checkpoint()
        if found is None:
            self._rows = Rows()
            return None
        self._rows.restore(found.rows)
        self._rows.drop_after(found.round)
        return found.round, found.arrays, found.meta

    def _checkpoint(self) -> Checkpoint | None:
        return Checkpoint.load(self.path / "checkpoint.safetensors", digest=self.scenario.digest())

    def heads(self) -> dict[str, tuple[int, str]]:
        """Client -> (number, hash) of the newest ledger entry that it told in this run; empty before a checkpoint."""
        found = self._checkpoint()
        told = found.meta.get("heads", {}) if found is not None else {}
        return {client: (int(seq), str(head)) for client, (seq, head) in told.items()}

    # ---- results ------------------------------------------------------------------------------

    def write_metrics(self, rows: Iterable[Mapping[str, object]]) -> None:
        """metrics.json: the final table, one row {client, model, split, metric, value} per number."""
        write_json(self.path / "metrics.json", {"final": list(rows)})

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.json; empty before the end of a run."""
        return cast("list[dict[str, Any]]", read_json(self.path / "metrics.json").get("final", []))

    def write_label(self, label: Mapping[str, object]) -> None:
        """label.json: what is promised, for whom, by which mechanism."""
        write_json(self.path / "label.json", label)

    def label(self) -> dict[str, Any]:
        """The content of label.json; empty when there is none."""
        return read_json(self.path / "label.json")

    def write_model(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """model.safetensors: the final global model, all parameters by name."""
        from safetensors.numpy import save_file

        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        header = {"digest": self.scenario.digest(), "name": self.scenario.run.name}
        replace_file(self.path / "model.safetensors", lambda t: save_file(contiguous, t, metadata=header))

    def model(self) -> Arrays:
        """Name -> array of the final model.

        Raises:
            InputError: there is none (the run did not finish) or it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.path / "model.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read ({error}); has the run finished?") from None

    def write_examples(self, examples: ForecastExamples) -> None:
        """examples.npz: held-out windows for the report."""
        examples.save(self.path / "examples.npz")

    @property
    def examples(self) -> ForecastExamples | None:
        """What `write_examples` wrote; None when nothing was."""
        path = self.path / "examples.npz"
        return ForecastExamples.load(path) if path.exists() else None

    def ledger_path(self, client: str) -> Path:
        """Where the ledger of `client` lies: ledgers/CLIENT.sqlite, odd characters replaced, names kept apart."""
        name = client
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", client):
            slug = re.sub(r"[^A-Za-z0-9_-]+", "-", client).strip("-")[:60] or "client"
            name = f"{slug}-{hashlib.sha256(client.encode()).hexdigest()[:8]}"
        return self.path / "ledgers" / f"{name}.sqlite"


def versions() -> dict[str, str]:
    """Package -> version of what is installed here, with Python and the platform."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _differences(old: Scenario, new: Scenario) -> str:
    """The first few keys in which two scenarios differ, as text."""
    before, after = old.flat(), new.flat()
    ignored = ("run.out", "run.engine", "run.workers", "run.name", "run.device", "data.dir")
    words = [
        f"{key}: {before[key]!r} there, {after[key]!r} asked"
        for key in before
        if before[key] != after[key] and key not in ignored
    ]
    return "; ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
