"""Tables of a page: cells with what they are sorted by, under headings that explain themselves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, what is sorted by, whether it is good news, and where it leads."""

    text: str
    value: float | None = None
    tone: str = ""
    link: str = ""


@dataclass(frozen=True)
class Head:
    """One column heading with its explanation."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of the page."""

    heads: list[Head]
    rows: list[list[Cell]]
