"""audit: does the privacy code do what it says? Canaries through the code that trains, and checks of its parts."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json

if TYPE_CHECKING:
    from fedpriv.privacy.audit.run import Suite
    from fedpriv.privacy.audit.verdict import SuiteResult

HELP = """Test the privacy code itself on this machine: no data of anybody is read.

D1 sensitivity, D2 noise, D3 sampler, every rule of the registry through the whole private step of the real model, the
gradient engine against one row at a time for every rule and model variant, and for each epsilon D4: thousands of
planted readings go through the sampler, clipping and noise that train, and an attacker who sees every release shows
how much epsilon really is. D5, with
--ledger: the same for what a ledger records, against the epsilon it reports. With --end-to-end, a real federation
whose server attacks days planted in the files of its clients: information beside what the ledgers claim, never a
reason to fail. Exit code 1 when a check fails.

\b
Examples:
  fedpriv audit --quick
  fedpriv audit --epsilon 1 --epsilon 8 --canaries 20000
  fedpriv audit --quick --ledger runs/eia-8/ledgers/PJM-AE.sqlite
  fedpriv audit --quick --end-to-end --json
"""
_ALL, _QUICK = (1.0, 2.0, 4.0, 8.0, 10.0), (2.0, 8.0)
_CANARIES, _FEW = 10_000, 2000


def audit(
    epsilons: Annotated[
        list[float] | None,
        typer.Option(
            "--epsilon", help="Epsilon to test; repeat for more. Default: 1, 2, 4, 8, 10.", show_default=False
        ),
    ] = None,
    canaries: Annotated[
        int | None,
        typer.Option(min=100, help="Planted readings; epsilon of 1 needs 10000, the default.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Epsilon 2 and 8 with 2000 canaries: under a minute.")] = False,
    ledgers: Annotated[
        list[Path] | None,
        typer.Option("--ledger", help="Also audit what this ledger reports; repeat for more.", show_default=False),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--end-to-end", help="Also attack a whole federation (half a minute); information only.")
    ] = False,
    engine: Annotated[str, typer.Option(help="Gradient engine, as in privacy.engine.")] = "auto",
    clipper: Annotated[str, typer.Option(help="Clipping rule, as in privacy.clipper.")] = "flat",
    seed: Annotated[
        int | None,
        typer.Option(help="Repeat an audit; without it, randomness is the operating system's.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Runs the suites and prints one line each."""
    from fedpriv.cli.text import table
    from fedpriv.privacy.audit.run import audit as run_audit
    from simulations.auditing import model_subject, variants

    report = run_audit(
        tuple(epsilons or (_QUICK if quick else _ALL)),
        canaries=canaries or (_FEW if quick else _CANARIES),
        seed=seed,
        engine=engine,
        clipper=clipper,
        ledgers=tuple(ledgers or ()),
        subjects=(model_subject(),),
        models=variants(),
        more=_whole(seed) if whole else (),
        progress=_Lines(),
    )
    if as_json:
        state.emit(report.to_json())
    else:
        rows = [
            (suite.name, _word(suite), _shown(suite, "t3"), _shown(suite, "t2"), suite.detail)
            for suite in report.suites
        ]
        state.say(table(("suite", "result", "T3", "T2", "what was found"), rows))
        state.say(f"{'passed' if report.passed else 'FAILED'} in {report.seconds:.0f} s")
    if not report.passed:
        raise typer.Exit(1)


def _whole(seed: int | None) -> list[tuple[str, Suite]]:
    """The end-to-end suite; a simulated federation is always seeded, here by the operating system if not told."""
    from simulations.end_to_end import NAME, end_to_end

    chosen = secrets.randbits(32) if seed is None else seed
    return [(NAME, lambda tell: end_to_end(seed=chosen, progress=tell))]


def _word(suite: SuiteResult) -> str:
    if suite.numbers.get("status") == "information":
        return "info"
    return "ok" if suite.passed else "weak" if suite.numbers.get("status") == "weak" else "FAILED"


def _shown(suite: SuiteResult, bound: str) -> str:
    value = suite.numbers.get(bound)
    return f"{value:.2f}" if isinstance(value, float) else ""


class _Lines:
    """One line on standard error as each suite begins."""

    def __init__(self) -> None:
        self._now = ""

    def __call__(self, name: str, share: float) -> None:
        if name != self._now:
            self._now = name
            print(f"fedpriv: {name} ({share:.0%} done)", file=sys.stderr, flush=True)
