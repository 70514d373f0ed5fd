"""Small phrases of the answer: changes, intervals, lists."""

from __future__ import annotations

from fedpriv.reports.statistics import Paired
from fedpriv.reports.verdicts import MARGIN, Verdict, between, percent

_MANY = 4  # more names than twice this are counted, not listed
_SLIGHT, _LARGE = 0.02, 0.15  # above it: shares that divide what a sure difference is called


def size_words(change: float) -> str:
    """How large a difference that is more than chance is, in words."""
    size = abs(change)
    return (
        "more than chance, but of no consequence" if size < MARGIN
        else "reliably but only slightly better" if size < _SLIGHT
        else "reliably better" if size < _LARGE
        else "reliably and much better"
    )  # fmt: skip


def change_words(change: float) -> str:
    """`4.1 % less error`."""
    return f"{percent(change)} % {'less' if change <= 0 else 'more'} error"


def interval_words(found: Paired) -> str:
    """`95 % interval: 6.9 % less to 1.2 % more`."""
    return f"{found.level * 100:g} % interval: {between(found)}"


def equal_in_practice(found: Verdict) -> tuple[str, ...]:
    """Who is beaten by the best, but by so little that no one would notice: the whole interval is within the margin."""
    return tuple(
        pair.b
        for pair in found.pairs
        if pair.a == found.best and pair.b not in found.not_worse and max(map(abs, pair.change)) < MARGIN
    )


def or_words(names: list[str]) -> str:
    """`a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}" if names else "none"


def listed(names: list[str] | tuple[str, ...]) -> str:
    """`a, b and c`; of many the first few and how many more; names with a comma in quotation marks."""
    names = [f"“{name}”" if "," in name else name for name in names]
    if len(names) > 2 * _MANY:
        return f"{', '.join(names[:_MANY])} and {len(names) - _MANY} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"
