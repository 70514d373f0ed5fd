"""Named studies: the sweep files in `simulations/studies`, and where a sweep is found by name, file or folder."""

from __future__ import annotations

import difflib
from pathlib import Path

from fedpriv.errors import InputError
from simulations.sweep.grid import combinations
from simulations.sweep.sections import Quick
from simulations.sweep.spec import Spec

FOLDER = Path(__file__).resolve().parent.parent / "studies"


def names() -> list[str]:
    """The named studies, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def describe(name: str) -> str:
    """What a study is about and how many combinations it has, counted from its grid."""
    spec = load(name)
    short = "" if spec.quick == Quick() else f"; --quick: {_size(spec.quicker())}"
    return f"{' '.join(spec.sweep.about.split())} ({_size(spec)}{short})"


def _size(spec: Spec) -> str:
    many, seeds = len(combinations(spec)), len(spec.sweep.seeds)
    return f"{many} combination{'s' if many > 1 else ''} x {seeds} seed{'s' if seeds > 1 else ''}"


def load(which: str | Path | Spec) -> Spec:
    """A sweep by name, TOML file, sweep folder, or as it is.

    Raises:
        InputError: no such study or file (the nearest is named), or its content is not valid.
    """
    if isinstance(which, Spec):
        return which
    if isinstance(which, str) and which in names():
        return Spec.from_toml(FOLDER / f"{which}.toml")
    path = Path(which).expanduser()
    if path.is_dir() and (path / "sweep.toml").is_file():
        return Spec.from_toml(path / "sweep.toml")
    if path.suffix == ".toml" or path.is_file():
        return Spec.from_toml(path)
    near = difflib.get_close_matches(str(which), names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names()) or 'none'}."
    raise InputError(f"there is no study {str(which)!r}; {hint} A path must end in .toml. Nothing was started.")
