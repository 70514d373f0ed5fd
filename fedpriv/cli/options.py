"""Options that several commands share, with one help text each."""

from __future__ import annotations

from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the scenario, such as privacy.epsilon=4; repeat for more. Unknown keys are refused.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
ScenarioArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[SCENARIO]",
        help="A name (`fedpriv scenarios` lists them) or a TOML file; without it, the embedded synthetic default.",
        show_default=False,
    ),
]
