"""Options and arguments that more than one command has, or that are long."""

from pathlib import Path
from typing import Annotated

import typer

WiringOption = Annotated[
    Path, typer.Option("--wiring", envvar="SR_WIRING", help="Wiring profile (YAML).", show_default=False)
]
PolicyOption = Annotated[
    Path, typer.Option("--policy", envvar="SR_POLICY", help="Policy profile (YAML).", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
JsonOfManyOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; of many, one JSON object a line.")
]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
LocalOption = Annotated[bool, typer.Option("--local", help="Show times in the zone of this machine.")]
LinesOption = Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")]
LogLevelOption = Annotated[str, typer.Option(help="debug, info, warning or error.")]
LogFormatOption = Annotated[
    str, typer.Option(help="auto, json or text; auto is text on a terminal, and JSON otherwise.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN_ID", help="A run id or its beginning, a run equivalence key, or a message id.")
]
ReasonOption = Annotated[str, typer.Option(help="Only this reason code.", show_default=False)]
SinceOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only since then: 2026-01-31T17:30:00Z, 2026-01-31, or 2h ago as 2h.")
]
UntilOption = Annotated[str | None, typer.Option(metavar="TIME", help="Only before then.")]
AfterOption = Annotated[
    str, typer.Option(metavar="CURSOR", help="Go on where a page ended, which its end says.", show_default=False)
]
LimitOption = Annotated[int, typer.Option(min=1, max=100_000, help="Most to list.")]
CheckPolicyOption = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="Send nothing that intake would refuse under it.")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the verdict, which is then the exit code.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", min=0.0, metavar="SECONDS", help="Longest wait; exit 3 when it ends without a verdict."),
]
WatchedArgument = Annotated[
    str | None, typer.Argument(metavar="RUN_ID", help="A run, as for status; the runs on their way if none.")
]
IntervalOption = Annotated[float, typer.Option(min=0.05, metavar="SECONDS", help="Time between two looks.")]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A run request as JSON; '-' reads standard input.")]
OptionalFileArgument = Annotated[
    str | None, typer.Argument(metavar="FILE", help="A run request as JSON; '-' reads standard input.")
]
ManyOption = Annotated[
    str | None, typer.Option("--jsonl", metavar="FILE", help="Many requests, one a line; '-' reads standard input.")
]
