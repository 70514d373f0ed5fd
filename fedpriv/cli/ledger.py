"""ledger show | verify | export | label | keygen: what has been spent and promised; restore: after a loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    from fedpriv.reports.numbers import at_most, number, small

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


@app.command("restore")
def restore(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Where the ledger belongs (.sqlite), or the node's file (.toml).")
    ],
    copies: Annotated[
        list[Path] | None,
        typer.Argument(metavar="COPY...", help="Every copy (.sqlite) and export (.jsonl) of it that is left."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is written into the ledger.")] = "",
    as_json: Json = False,
) -> None:
    """Take a lost, damaged or outdated ledger up again. Nothing that was spent is forgotten.

    Everything still open counts as spent. If rows of contracts may be missing, the whole budget does, and the ledger
    enrols nothing more. Stop the node first.

    \b
    Examples:
      fedpriv ledger restore /var/lib/fedpriv/north/node.toml --reason "power cut; the mark was lost"
      fedpriv ledger restore /var/lib/fedpriv/a.sqlite backup/a.sqlite later.jsonl --reason "disk replaced"
    """
    from dataclasses import asdict

    from fedpriv.cli.text import table
    from fedpriv.privacy.ledger_restore import restore as restored
    from fedpriv.reports.atomic import plain
    from fedpriv.reports.numbers import at_most, number

    dataset: str | None = None
    if path.suffix == ".toml" and path.is_file():
        from clients.node import operator_file

        content = operator_file(path)
        path, dataset = Path(str(content["ledger"])), str(content["dataset"])
    found = restored(path, *(copies or []), reason=reason, dataset=dataset)
    summary = _summary(path)
    if as_json:
        state.emit(cast("dict[str, Any]", plain({**asdict(found), **summary})))
        return
    charged = ", ".join(f"{tokens} of run {run}" for run, tokens in found.charged.items()) or "nothing was open"
    rows = [
        ("ledger", str(path)),
        ("rows known", str(found.rows)),
        ("charged", charged),
        ("committed", f"{at_most(summary['committed'])} of {number(summary['budget_epsilon'])}"),
        ("new runs", f"refused for good: {found.why}" if found.closed else f"allowed: {found.why}"),
    ]
    if found.aside is not None:
        rows.append(("damaged file", str(found.aside)))
    state.say(table(("", "restored"), rows))


@app.command("keygen")
def keygen(
    path: Annotated[Path, typer.Argument(metavar="KEY", help="The file to make; it must not exist.")],
    as_json: Json = False,
) -> None:
    """Make the key that signs a client's labels: Ed25519, owner-only.

    Name it in the node's file (`key = "..."`), and give its public key to those who check labels.

    \b
    Example:
      fedpriv ledger keygen /etc/fedpriv/label.key
    """
    from fedpriv.privacy.signing import make_key

    public = make_key(path)
    if as_json:
        state.emit({"key": str(path), "public_key": public})
    else:
        state.say(f"public key {public}")


@app.command("label")
def label(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A ledger (.sqlite), run folder, node's file (.toml) or label (.json)."),
    ],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write it as one page.")] = None,
    sign: Annotated[Path | None, typer.Option("--sign", metavar="KEY", help="Sign it with this key file.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write label.json here.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the signature of a label; exit code 1 if bad.")
    ] = False,
    public_key: Annotated[
        str | None, typer.Option("--public-key", metavar="HEX", help="With --verify: the key that must have signed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the privacy label, made anew from the ledgers, or check one.

    What is promised, to whom, by which mechanism. A ledger gives the label of that client alone.

    \b
    Examples:
      fedpriv ledger label runs/eia-8
      fedpriv ledger label /var/lib/fedpriv/a.sqlite --sign /etc/fedpriv/label.key --out label.json --html label.html
      fedpriv ledger label label.json --verify --public-key 1f0c...
    """
    from fedpriv.cli.text import table
    from fedpriv.privacy.signing import read_key, sign_label, verify_label
    from fedpriv.reports.atomic import plain, write_json
    from fedpriv.reports.label_card import promise_rows
    from fedpriv.reports.label_page import write_label_page
    from fedpriv.reports.numbers import rung

    if path.suffix == ".toml" and path.is_file():
        path, own = _of_node(path)
        sign = sign or own
    found = cast("dict[str, Any]", plain(_label(path)))
    if verify:
        verify_label(found, public_key=public_key)
        if not as_json:
            state.say(f"signed by {found['signature']['public_key']}")
    if sign is not None:
        found = sign_label(found, read_key(sign))
    if out is not None:
        write_json(out, found)
    if html is not None:
        write_label_page(html, found, name=path.stem)
    if as_json:
        state.emit(found)
        return
    rows = promise_rows(found)
    rung = ", ".join(f"{unit} {rung(value)}" for unit, value in found["ladder"].items())
    rows.insert(3, ("Ladder", rung))
    state.say(table(("term", "what is promised"), rows))


def _of_node(path: Path) -> tuple[Path, Path | None]:
    """(ledger, key) that a node's file names.

    Raises:
        InputError: the file is not one of a node, or others can write it.
    """
    from clients.node import operator_file

    content = operator_file(path)
    return Path(str(content["ledger"])), Path(str(content["key"])) if "key" in content else None


def _label(path: Path) -> dict[str, Any]:
    """The label of a ledger or run folder, made anew, or the one in a file as it stands.

    Raises:
        InputError: neither, or not a label.
    """
    import json

    from fedpriv.errors import InputError
    from fedpriv.privacy.label import build_label
    from fedpriv.reports.folder import RunFolder

    if path.is_file() and path.suffix == ".json":
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not {"unit", "ladder", "committed"} <= set(found):
            raise InputError(f"{path} is not a privacy label. Nothing was changed.")
        return found
    files = {file.stem: file for file in _ledgers(path)}
    try:
        folder = RunFolder.open(path if path.is_dir() else path.resolve().parent.parent)
    except InputError:
        return build_label(None, files)  # a client's own ledger: its contracts carry their terms
    told = {folder.ledger_path(client): head for client, head in folder.heads().items()}
    if path.is_dir():
        files |= {file.stem: file for file in told}  # one that is gone must not be left out
    return build_label(folder.scenario, files, heads={file.stem: head for file, head in told.items()})


def _summary(file: Path) -> dict[str, Any]:
    with _opened(file) as ledger:
        contracts = [c for c in ledger.contracts() if "side_release" not in c.public_terms]
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
            "contracts": len(ledger.agreements()),
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
