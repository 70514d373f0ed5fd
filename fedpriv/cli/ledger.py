"""ledger show | verify | export | label: looking at what has been spent, without changing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json

if TYPE_CHECKING:
    from fedpriv.privacy.ledger import Ledger

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show, check or export what a client's data has spent.",
)
Where = Annotated[Path, typer.Argument(metavar="PATH", help="A ledger (.sqlite) or a run folder.")]


@app.command("show")
def show(path: Where, as_json: Json = False) -> None:
    """Budget, claim and steps of every ledger.

    Committed is the claim: all contracts in full. Nominal is what the steps so far cost.

    \b
    Example:
      fedpriv ledger show runs/eia-8
    """
    from fedpriv.cli.text import table
    from fedpriv.reports.tables import at_most, number, small

    entries = [_summary(file) for file in _ledgers(path)]
    if as_json:
        state.emit({"ledgers": entries})
        return
    heads = ("client", "unit", "relation", "delta", "budget", "committed", "nominal", "steps", "runs", "mode")
    rows = [
        (
            e["client"],
            e["unit"],
            e["relation"],
            small(e["delta"]),
            number(e["budget_epsilon"]),
            at_most(e["committed"]),
            at_most(e["nominal"]),
            f"{e['steps_spent']} of {e['steps_total']}",
            e["contracts"],
            e["mode"],
        )
        for e in entries
    ]
    state.say(table(heads, rows))


@app.command("verify")
def verify(path: Where, as_json: Json = False) -> None:
    """Check chain, tokens, replies and budget; exit code 1 if broken.

    \b
    Example:
      fedpriv ledger verify runs/eia-8/ledgers/PJM-AE.sqlite
    """
    from fedpriv.privacy.ledger import verify_file

    found = {str(file): verify_file(file) for file in _ledgers(path)}
    broken = {file: problems for file, problems in found.items() if problems}
    if as_json:
        state.emit({"ok": not broken, "ledgers": found})
    else:
        for file, problems in found.items():
            state.say(f"{'BROKEN' if problems else 'ok'}  {file}")
            for problem in problems:
                state.say(f"        {problem}")
    if broken:
        raise typer.Exit(1)


@app.command("export")
def export(path: Where, as_json: Json = False) -> None:
    """Print the chain, one JSON row per line.

    This is all that another program needs to check the hashes.

    \b
    Example:
      fedpriv ledger export runs/eia-8/ledgers/PJM-AE.sqlite > PJM-AE.jsonl
    """
    files = _ledgers(path)
    for file in files:
        with _opened(file) as ledger:
            if as_json:
                continue
            typer.echo(ledger.export(), nl=False)
    if as_json:
        state.emit({"ledgers": {str(file): _rows(file) for file in files}})


@app.command("label")
def label(path: Where, as_json: Json = False) -> None:
    """Print the privacy label, made anew from the ledgers.

    What is promised, to whom, by which mechanism; a ledger of a run folder gives the label of that client alone.

    \b
    Example:
      fedpriv ledger label runs/eia-8
    """
    from fedpriv.cli.text import table
    from fedpriv.errors import InputError
    from fedpriv.privacy.label import build_label
    from fedpriv.reports.folder import RunFolder
    from fedpriv.reports.label_card import promise_rows
    from fedpriv.reports.tables import at_most

    files = _ledgers(path)
    try:
        folder = RunFolder.open(path if path.is_dir() else path.resolve().parent.parent)
    except InputError:
        raise InputError(f"{path} lies in no run folder, whose scenario a label needs. Nothing was changed.") from None
    found = build_label(folder.scenario, {file.stem: file for file in files})
    if as_json:
        state.emit(found)
        return
    rows = promise_rows(found)
    rung = ", ".join(f"{unit} {at_most(value)}" for unit, value in found["ladder"].items())
    rows.insert(3, ("Ladder", rung))
    state.say(table(("term", "what is promised"), rows))


def _summary(file: Path) -> dict[str, Any]:
    with _opened(file) as ledger:
        contracts = ledger.contracts()
        return {
            "client": file.stem,
            "path": str(file),
            "dataset": ledger.dataset,
            "unit": ledger.unit,
            "relation": ledger.relation.value,
            "delta": ledger.delta,
            "budget_epsilon": ledger.budget_epsilon,
            "committed": ledger.committed(),
            "nominal": ledger.nominal(),
            "steps_spent": sum(ledger.spent_tokens(contract.run_id) for contract in contracts),
            "steps_total": sum(contract.steps_total for contract in contracts),
            "contracts": len(contracts),
            "mode": ledger.mode,
            "head": list(ledger.head()),
        }


def _rows(file: Path) -> list[dict[str, Any]]:
    with _opened(file) as ledger:
        return ledger.rows()


def _opened(file: Path) -> Ledger:
    from fedpriv.privacy.ledger import Ledger

    return Ledger.open(file, readonly=True)


def _ledgers(path: Path) -> list[Path]:
    """The ledger itself, or all of a run folder.

    Raises:
        InputError: neither.
    """
    from fedpriv.errors import InputError

    if path.is_file():
        return [path]
    found = sorted((path / "ledgers").glob("*.sqlite")) or sorted(path.glob("*.sqlite"))
    if not found:
        kind = "has no ledgers in it" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {kind}; give a ledger (.sqlite) or a run folder. Nothing was changed.")
    return found
