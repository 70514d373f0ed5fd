"""federation init | admit | run: the server side of a real federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json, ScenarioArgument, Set

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The server of a real federation: make it, admit nodes, run it. docs/deployment.md goes step by step.",
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder.")]


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder on the server.")],
    scenario: ScenarioArgument = None,
    clients: Annotated[int, typer.Option(min=1, help="Nodes that are expected.")] = 2,
    changes: Set = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    tls: Annotated[
        list[str] | None,
        typer.Option("--tls", metavar="NAME", help="Host name or IP address by which nodes reach this server; repeat."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS, nodes are not checked: this machine or a closed test network.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the server's folder: the scenario for the utilities, and certificates.

    \b
    Example:
      fedpriv federation init /srv/fedpriv eia-8 --clients 5 --host 0.0.0.0 --tls grid.example
    """
    from fedpriv.config import parse_assignments
    from fedpriv.training import LocalWorker
    from simulations.federation_setup import init as make
    from simulations.scenarios import load

    chosen = load(scenario).override(parse_assignments(changes or []))
    made = make(folder, chosen, clients=clients, host=host, port=port, tls=tls or (), insecure=insecure)
    agreed, epsilon = made.scenario, LocalWorker.for_scenario(made.scenario).commitments.planned_epsilon()
    if as_json:
        state.emit(
            {
                "folder": str(made.folder),
                "digest": agreed.digest(),
                "epsilon": epsilon,
                "scenario": str(made.folder / "scenario.toml"),
                "insecure": made.server.insecure,
            }
        )
        return
    privacy, federation = agreed.privacy, agreed.federation
    state.say(
        f"{agreed.run.name}: {federation.rounds} rounds of {federation.local_steps} private steps for {clients} nodes, "
        f"data in steps of {agreed.data.frequency}.\nEach node pays epsilon {epsilon:.4g} for one {privacy.unit} "
        f"({privacy.relation}) at delta {privacy.delta:g}; noise multiplier {privacy.noise_multiplier:g}.\n\n"
        f"Send the utilities {made.folder / 'scenario.toml'} (digest {agreed.digest()[:16]})"
        + ("." if insecure else f" and {made.server.ca}.")
        + (
            ""
            if insecure
            else f"\nAdmit each with the auth.key.pub that it sends: fedpriv federation admit {made.folder} "
            "auth.key.pub --name NAME"
        )
        + f"\nThen: fedpriv federation run {made.folder}"
    )


@app.command("admit")
def admit(
    folder: Folder,
    key: Annotated[Path, typer.Argument(metavar="KEY", help="The node's auth.key.pub.")],
    name: Annotated[str, typer.Option("--name", help="What to call it here.")],
) -> None:
    """Let a node in, by the public key that it sent.

    \b
    Example:
      fedpriv federation admit /srv/fedpriv north.pub --name North
    """
    from simulations.federation_setup import admit as let_in

    state.say(f"admitted: {let_in(folder, key, name)}")


@app.command("run")
def run(
    folder: Folder,
    superlink: Annotated[
        str | None,
        typer.Option("--superlink", metavar="HOST:PORT", help="Use this SuperLink, which runs on this machine."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run.")] = False,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for the nodes before the first round.")] = 3600.0,
    as_json: Json = False,
) -> None:
    """Wait for the nodes, train, and write model, label and report into DIR/run.

    Nodes that refuse or fall silent are named; the run goes on while federation.quorum is met.

    \b
    Example:
      fedpriv federation run /srv/fedpriv
    """
    from fedpriv.cli.progress import make_progress
    from fedpriv.reports.tables import run_summary
    from simulations.federation_launch import run as launch

    state.set_run_folder(folder / "run")
    progress = make_progress()
    try:
        finished = launch(
            folder, superlink=superlink, resume=resume, patience=wait, listener=progress, say=progress.note
        )
    finally:
        progress.finish()
    summary = run_summary(finished.path)
    if as_json:
        state.emit(summary)
        return
    state.say(f"\n{summary['answer']}\n\nReport: {finished.path / 'report.html'}")
