"""Progress of a sweep on standard error: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from fedpriv.cli.progress import clock

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_BUSY = 1.25  # times longer than on an idle machine: worth a word
_EVERY = 10.0  # seconds between plain lines
NAMES = {
    "checking": "combinations checked", "timing": "kinds of runs timed", "tuning": "tuning runs", "running": "runs",
    "done": "runs",
}  # fmt: skip


class Estimate(Protocol):
    """How long it will take (`simulations.sweep.estimate.Estimate`)."""

    @property
    def seconds(self) -> float: ...  # noqa: D102
    @property
    def idle(self) -> float: ...  # noqa: D102
    @property
    def work(self) -> float: ...  # noqa: D102
    @property
    def jobs(self) -> int: ...  # noqa: D102
    @property
    def runs(self) -> int: ...  # noqa: D102
    @property
    def kinds(self) -> int: ...  # noqa: D102
    @property
    def timed(self) -> int: ...  # noqa: D102
    @property
    def remembered(self) -> int: ...  # noqa: D102


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
    @property
    def estimate(self) -> Estimate | None: ...  # noqa: D102


def make_progress() -> Plain | Live:
    """The live bar where standard error is a terminal, plain lines otherwise."""
    return Live() if sys.stderr.isatty() else Plain()


def words(state: State) -> str:
    """`, about 12 min 3 s left, 1 failed`, as far as there is something to say."""
    text = f", about {clock(state.left)} left" if state.left is not None and state.stage != "done" else ""
    return text + (f", {state.failed} failed" if state.failed else "")


def estimate_words(found: Estimate) -> str:
    """`about 9 min 20 s with 2 workers: 128 runs of 8.7 s on average (4 kinds of runs, 4 timed just now)`."""
    sources = [f"{found.timed} timed just now"] if found.timed else []
    sources += [f"{found.remembered} known from earlier"] if found.remembered else []
    guessed = found.kinds - found.timed - found.remembered
    sources += [f"{guessed} guessed from these"] if guessed else []
    busy = found.seconds > _BUSY * found.idle
    return (
        f"about {clock(found.idle)} with {_several(found.jobs, 'worker')}"
        + (f" on a quiet machine, {clock(found.seconds)} with what else it does now" if busy else "")
        + f": {_several(found.runs, 'run')} of {found.work / found.runs:.1f} s each on average "
        f"({_several(found.kinds, 'kind')} of runs, {', '.join(sources)})"
    )


def _several(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


class Plain:
    """A line for each stage, one every ten seconds, one at the end."""

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
                case "timing":
                    self._say(f"timing {state.total} kinds of runs, a few rounds of each")
                case "estimated":
                    if state.estimate is not None:
                        self._say(estimate_words(state.estimate))
                case "tuning" | "running":
                    before = f", {state.done} done before" if state.done else ""
                    self._say(f"{state.total} different {NAMES[state.stage]}{before}")
                case _:
                    self._say(f"{state.done}/{state.total} runs{words(state)}, {clock(now - self._began)}")
        elif now - self._said >= _EVERY:
            self._said = now
            self._say(f"{state.done}/{state.total} {NAMES[state.stage]}{words(state)}")

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
            self._checking(state.done, state.total)
            return
        if state.stage in ("timing", "estimated"):
            self._before(state)
            return
        if self._stage != state.stage and state.stage != "done":
            self._open("tuning" if state.stage == "tuning" else "runs", state.stage)
        assert self._bar is not None and self._task is not None
        self._bar.update(
            self._task, total=1.0, completed=state.share, details=f"{state.done}/{state.total} runs{words(state)}"
        )
        if state.stage == "done":
            self.finish()

    def _before(self, state: State) -> None:
        """Lines between the checks and the first run."""
        self.finish()
        self._stage = state.stage
        if state.stage == "timing":
            print(f"fedpriv: timing {state.total} kinds of runs, a few rounds of each", file=sys.stderr, flush=True)
        elif state.estimate is not None:
            print(f"fedpriv: {estimate_words(state.estimate)}", file=sys.stderr, flush=True)

    def _checking(self, done: int, total: int) -> None:
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
