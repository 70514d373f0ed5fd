"""Progress of a run on standard error: a live bar on a terminal, plain lines elsewhere (logs, CI)."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_EVERY = 10.0  # seconds between plain lines


class Report(Protocol):
    """The part of a round's report that is shown."""

    @property
    def refused(self) -> Mapping[str, object]:
        """Client -> why it refused."""
        ...


class Event(Protocol):
    """What a run tells its listener (`strategies.progress.Progress`), as far as it is shown."""

    @property
    def stage(self) -> str: ...  # noqa: D102
    @property
    def round(self) -> int: ...  # noqa: D102
    @property
    def rounds(self) -> int: ...  # noqa: D102
    @property
    def clients(self) -> int: ...  # noqa: D102
    @property
    def report(self) -> Report | None: ...  # noqa: D102
    @property
    def epsilon(self) -> float | None: ...  # noqa: D102
    @property
    def rows(self) -> Sequence[Mapping[str, object]]: ...  # noqa: D102


def make_progress() -> Plain | Live:
    """The live bar where standard error is a terminal, plain lines otherwise."""
    return Live() if sys.stderr.isatty() else Plain()


class _Shown:
    """The words about the run so far: epsilon, refusals, error against seasonal naive."""

    def __init__(self) -> None:
        self._epsilon: float | None = None
        self._refused = 0
        self._ratio: float | None = None

    def update(self, event: Event) -> str:
        """`, epsilon 3.21 so far, error 0.86 of naive`, as far as there is something to say."""
        self._epsilon = event.epsilon if event.epsilon is not None else self._epsilon
        if event.report is not None:
            self._refused = len(event.report.refused)
        self._ratio = error_ratio(event.rows) or self._ratio
        text = f", epsilon {self._epsilon:.3g} so far" if self._epsilon is not None else ""
        text += f", error {self._ratio:.3g} of naive" if self._ratio is not None else ""
        return text + (f", {self._refused} refused" if self._refused else "")


class Plain:
    """One line at the start, one every ten seconds, one at the end."""

    def __init__(self) -> None:
        self._words = _Shown()
        self._first: int | None = None
        self._began = self._said = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Takes one event of the run."""
        words, now = self._words.update(event), time.monotonic()
        if self._first is None:
            self._first, self._began, self._said = event.round, now, now
            before = f", {event.round} done before" if event.round else ""
            self.note(f"{event.clients} clients, {event.rounds} rounds{before}")
        elif event.stage == "done":
            self.note(f"{event.rounds} rounds done{words}, {clock(now - self._began)}")
        elif now - self._said >= _EVERY:
            self._said = now
            left = (now - self._began) / max(1, event.round - self._first) * (event.rounds - event.round)
            self.note(f"round {event.round}/{event.rounds}{words}, about {clock(left)} left")

    def note(self, text: str) -> None:
        """Prints a sentence worth reading."""
        print(f"fedpriv: {text}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Nothing is left open."""


class Live:
    """A bar with rounds, epsilon so far and time left."""

    def __init__(self) -> None:
        self._words = _Shown()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Takes one event of the run."""
        if self._bar is None:
            self._bar, self._task = self._show(event)
        assert self._task is not None
        self._bar.update(self._task, completed=event.round, details=self._words.update(event))
        if event.stage == "done":
            self.finish()

    def _show(self, event: Event) -> tuple[RichProgress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("rounds{task.fields[details]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        bar.start()
        word = "client" if event.clients == 1 else "clients"
        return bar, bar.add_task(f"{event.clients} {word}", total=event.rounds, completed=event.round, details="")

    def note(self, text: str) -> None:
        """Prints a sentence worth reading, above the bar."""
        if self._bar is None:
            print(f"fedpriv: {text}", file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def finish(self) -> None:
        """Leaves the bar as it stands; harmless when there is none."""
        if self._bar is not None:
            self._bar.stop()


def error_ratio(rows: Sequence[Mapping[str, object]]) -> float | None:
    """Mean squared error of the federated model over that of seasonal naive, both means over clients."""
    totals = {"federated": 0.0, "seasonal-naive": 0.0}
    for row in rows:
        whole = row.get("split") in (None, "validation", "test")  # not those of one kind of windows alone
        if row.get("metric") == "mse" and row.get("model") in totals and whole:
            totals[str(row["model"])] += float(str(row["value"]))
    ours, naive = totals["federated"], totals["seasonal-naive"]
    return ours / naive if ours > 0 and naive > 0 else None


def clock(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
