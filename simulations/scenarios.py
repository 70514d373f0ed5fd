"""Named scenarios: the TOML files beside this module, each only the differences from the default."""

from __future__ import annotations

import difflib
from pathlib import Path

from fedpriv.config import Scenario
from fedpriv.errors import InputError

FOLDER = Path(__file__).with_name("scenarios")


def names() -> list[str]:
    """The named scenarios, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def describe(name: str) -> str:
    """The comment at the head of a named scenario, its first paragraph on one line; may be empty."""
    lines: list[str] = []
    for line in (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines).split("  ")[0]


def load(which: str | Path | Scenario | None) -> Scenario:
    """A scenario by name, by path of a TOML file, as it is, or (None) the embedded default.

    Raises:
        InputError: no such name or file (the nearest name is given), or its content is not valid.
    """
    if isinstance(which, Scenario):
        return which
    if which is None:
        return Scenario()
    if isinstance(which, str) and which in names():
        return Scenario.from_toml(FOLDER / f"{which}.toml")
    path = Path(which).expanduser()
    if path.suffix == ".toml" or path.exists():
        return Scenario.from_toml(path)
    near = difflib.get_close_matches(str(which), names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names()) or 'none'}."
    raise InputError(f"there is no scenario {str(which)!r}; {hint} A path must end in .toml. Nothing was started.")
