"""node init | agree | check | run: one utility's own machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json

if TYPE_CHECKING:
    from clients.checkup import Fit, Report

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="One utility's node in a real federation: make it, check it, run it. docs/deployment.md goes step by step.",
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")]


@app.command("init")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new folder, on a local disk; it becomes yours alone.")
    ],
    name: Annotated[str, typer.Option("--name", help="Public name of this client in the federation.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Your readings: CSV (also .gz) or Parquet.")],
    epsilon: Annotated[float, typer.Option(help="Budget: the most that all runs together may ever cost.")],
    delta: Annotated[float, typer.Option(help="Delta of the budget.")] = 1e-5,
    unit: Annotated[str, typer.Option(help="What the budget protects: reading, day or week.")] = "reading",
    relation: Annotated[
        str, typer.Option(help="zero-out, replace-one or add-remove; see docs/privacy.md.")
    ] = "zero-out",
    scenario: Annotated[
        list[Path] | None,
        typer.Option(
            "--scenario", metavar="FILE", help="A run to agree to: the scenario.toml from the server; repeat."
        ),
    ] = None,
    any_scenario: Annotated[
        bool, typer.Option("--any-scenario", help="Agree to whatever the budget allows, instead of --scenario.")
    ] = False,
    time_column: Annotated[str, typer.Option(help="Column of time stamps; default: the first.")] = "",
    client_column: Annotated[str, typer.Option(help="Long format: the column that names the meter.")] = "",
    value_column: Annotated[str, typer.Option(help="Long format: the column of readings.")] = "",
    channels: Annotated[
        str, typer.Option(help="Columns that are the channels of one meter, as the federation orders them.")
    ] = "",
    columns: Annotated[str, typer.Option(help="Only these columns (or ids), one meter each; default: all.")] = "",
    dataset: Annotated[str, typer.Option(help="Name of the data set that the ledger guards; default: NAME.")] = "",
    as_json: Json = False,
) -> None:
    """Make a node: checks your data first, then writes keys, ledger and node.toml.

    The ledger is made here and never again: it remembers for good what your readings have spent.

    \b
    Example:
      fedpriv node init /var/lib/fedpriv/north --name North --data load.csv --epsilon 8 --scenario scenario.toml
    """
    from clients.enrolment import Owner
    from clients.enrolment import init as make

    section: dict[str, object] = {"source": "csv", "path": str(data.expanduser().resolve())}
    named = {"time_column": time_column, "client_column": client_column, "value_column": value_column}
    section |= {key: value for key, value in named.items() if value}
    section |= {"channels": _listed(channels)} if channels else {}
    section |= {"group": name, "clients": _listed(columns)} if columns else {}
    owner = Owner(
        client=name, data=section, epsilon=epsilon, delta=delta, unit=unit, relation=relation, dataset=dataset
    )
    report = make(folder, owner, scenario or [], any_scenario=any_scenario)
    if as_json:
        state.emit(_plain(report))
        return
    _print(report)
    state.say(
        "\nGive the server's operator auth.key.pub, and whoever reads your labels the label key above. Keep the folder "
        "on a local disk, and never put back an old copy of ledger.sqlite.\n"
        f"Next: fedpriv node run {report.facts['folder']} --superlink HOST:PORT --root-certificates ca.crt"
    )


@app.command("agree")
def agree(
    folder: Folder,
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="The scenario.toml from the server.")],
    as_json: Json = False,
) -> None:
    """Agree to one more run, if the budget still allows it.

    \b
    Example:
      fedpriv node agree /var/lib/fedpriv/north scenario.toml
    """
    from dataclasses import asdict

    from clients.enrolment import agree as add

    fit = add(folder, scenario)
    if as_json:
        state.emit(asdict(fit))
        return
    state.say(_runs((fit,)))


@app.command("check")
def check(folder: Folder, as_json: Json = False) -> None:
    """What would be read, what is promised, what is left; exit code 1 if something is wrong.

    Nothing is changed and nothing leaves this machine.

    \b
    Example:
      fedpriv node check /var/lib/fedpriv/north
    """
    from clients.checkup import check as look

    report = look(folder)
    if as_json:
        state.emit(_plain(report))
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(1)


@app.command("run")
def run(
    folder: Folder,
    superlink: Annotated[str, typer.Option("--superlink", metavar="HOST:PORT", help="The server.")],
    root_certificates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="ca.crt from the server's operator; default: the system's authorities."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS: for a server on this machine or a closed test network.")
    ] = False,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="The server does not ask nodes to prove who they are.")
    ] = False,
) -> None:
    """Take part, until stopped: each request is checked against ledger, budget and agreed scenarios.

    Runs the fedpriv that is installed here, never code that a server sends. Restarts by itself; stop it with Ctrl-C.

    \b
    Example:
      fedpriv node run /var/lib/fedpriv/north --superlink grid.example:8000 --root-certificates ca.crt
    """
    from clients.supernode import Link
    from clients.supernode import run as serve

    link = Link(
        address=superlink, certificates=root_certificates, insecure=insecure, authenticate=not (no_auth or insecure)
    )
    serve(folder, link, say=lambda text: typer.echo(f"fedpriv: {text}", err=True))


def _print(report: Report) -> None:
    from fedpriv import __version__
    from fedpriv.cli.text import table
    from fedpriv.reports.numbers import at_most, number, small

    facts = report.facts
    data, ledger = facts["data"], facts["ledger"]
    rows: list[tuple[str, str]] = [("client", facts["client"]), ("reads", data["settings"].get("path", ""))]
    if "calendar" in data:
        meters = f"{data['meters']} meter" + ("s" if data["meters"] != 1 else "")
        rows += [
            (
                "holds",
                f"{meters}, {', '.join(data['channels'])}, every {data['step']}, {' to '.join(data['calendar'])}",
            ),
            ("trains on", " to ".join(data["training"])),
        ]
    promise = f"{ledger['unit']} ({ledger['relation']}), delta {small(ledger['delta'])}"
    rows += [
        ("budget", f"epsilon {number(ledger['budget'])} for one {promise}, over all runs"),
        (
            "committed",
            f"{at_most(ledger['committed'])} by {ledger['runs']} contracts; spent: {at_most(ledger['nominal'])}",
        ),
        ("left", number(ledger["left"])),
        ("ledger", f"{ledger['path']} of data set {ledger['dataset']!r}"),
        ("label key", facts["label_key"] or "none: labels are not signed"),
        ("code", f"fedpriv {__version__}, source {facts['source_digest'][:16]}"),
        ("agreed to", f"{len(facts['agreed'])} scenarios" if isinstance(facts["agreed"], list) else facts["agreed"]),
    ]
    state.say(table(("what", "is"), rows))
    if report.fits:
        state.say("\n" + _runs(report.fits))
    for problem in report.problems:
        state.say(f"\nPROBLEM  {problem}")


def _runs(fits: tuple[Fit, ...]) -> str:
    from fedpriv.cli.text import table
    from fedpriv.reports.numbers import at_most

    rows = [
        (fit.name, fit.digest[:16], fit.rounds, fit.steps, at_most(fit.epsilon), at_most(fit.total), _answer(fit))
        for fit in fits
    ]
    heads = ("scenario", "digest", "rounds", "private steps", "epsilon", "with all before", "this node")
    return table(heads, rows)


def _answer(fit: Fit) -> str:
    if fit.objection:
        return f"would refuse: {fit.objection}"
    return "takes part already" if fit.joined else "would take part"


def _plain(report: Report) -> dict[str, Any]:
    from dataclasses import asdict

    return {**report.facts, "scenarios": [asdict(fit) for fit in report.fits], "problems": list(report.problems)}


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
