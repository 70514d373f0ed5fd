"""What the command at work has said about itself: whether it speaks JSON, and which run folder it fills."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

run_folder: Path | None = None
_words: tuple[str, ...] = ()


def reset(words: Sequence[str]) -> None:
    """Starts a new command with these words."""
    global run_folder, _words
    run_folder, _words = None, tuple(words)


def set_run_folder(path: Path) -> None:
    """Names the folder in which a log of a failure belongs."""
    global run_folder
    run_folder = path


def wants_json() -> bool:
    """Whether standard output is to hold one JSON object."""
    return "--json" in _words


def emit(content: Mapping[str, object]) -> None:
    """Prints the one object on standard output."""
    from fedpriv.reports.atomic import plain

    json.dump(plain(content), sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line for the person at the terminal: standard output, or standard error when that holds JSON."""
    print(text, file=sys.stderr if wants_json() else sys.stdout)
