"""Progress of a sweep on standard error: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from fedpriv.cli.progress import clock

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_EVERY = 10.0  # seconds between plain lines
NAMES = {"checking": "combinations checked", "tuning": "tuning runs", "running": "runs", "done": "runs"}


class State(Protocol):
    """What a sweep tells (`simulations.sweep.run.State`), as far as it is shown."""

    @property
    def stage(self) -> str: ...  # noqa: D102
    @property
    def done(self) -> int: ...  # noqa: D102
    @property
    def total(self) -> int: ...  # noqa: D102
    @property
    def failed(self) -> int: ...  # noqa: D102
    @property
    def share(self) -> float: ...  # noqa: D102
    @property
    def left(self) -> float | None: ...  # noqa: D102


def make_progress() -> Plain | Live:
    """The live bar where standard error is a terminal, plain lines otherwise."""
    return Live() if sys.stderr.isatty() else Plain()


def words(state: State) -> str:
    """`, about 12 min 3 s left, 1 failed`, as far as there is something to say."""
    text = f", about {clock(state.left)} left" if state.left is not None and state.stage != "done" else ""
    return text + (f", {state.failed} failed" if state.failed else "")


class Plain:
    """A line when the runs begin, one every ten seconds, one at the end."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = self._said = time.monotonic()

    def __call__(self, state: State) -> None:
        """Takes one event of the sweep."""
        now = time.monotonic()
        if state.stage != self._stage:
            self._stage, self._said = state.stage, now
            match state.stage:
                case "checking":
                    self._say(f"checking {state.total} combinations before anything is run")
                case "tuning" | "running":
                    before = f", {state.done} done before" if state.done else ""
                    self._say(f"{state.total} different {NAMES[state.stage]}{before}")
                case _:
                    self._say(f"{state.done}/{state.total} runs{words(state)}, {clock(now - self._began)}")
        elif now - self._said >= _EVERY:
            self._said = now
            self._say(f"{state.done}/{state.total} {NAMES[state.stage]}{words(state)}")

    def checking(self, done: int, total: int) -> None:
        """Combinations checked."""
        if self._stage != "checking":
            self._stage = "checking"
            self._say(f"checking {total} combinations; nothing will be run")

    def _say(self, text: str) -> None:
        print(f"fedpriv: {text}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Nothing is left open."""


class Live:
    """A bar for the checks, then one for the runs, by work done."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def __call__(self, state: State) -> None:
        """Takes one event of the sweep."""
        if state.stage == "checking":
            self.checking(state.done, state.total)
            return
        if self._stage != state.stage and state.stage != "done":
            self._open("tuning" if state.stage == "tuning" else "runs", state.stage)
        assert self._bar is not None and self._task is not None
        self._bar.update(
            self._task, total=1.0, completed=state.share, details=f"{state.done}/{state.total} runs{words(state)}"
        )
        if state.stage == "done":
            self.finish()

    def checking(self, done: int, total: int) -> None:
        """Combinations checked."""
        if self._stage != "checking":
            self._open("checking", "checking")
        assert self._bar is not None and self._task is not None
        self._bar.update(self._task, total=total, completed=done, details=f"{done}/{total} combinations")

    def _open(self, title: str, stage: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.finish()
        self._stage = stage
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[details]}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._bar.start()
        self._task = self._bar.add_task(title, total=1.0, details="")

    def finish(self) -> None:
        """Leaves the bar as it stands; harmless when there is none."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
