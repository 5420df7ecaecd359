"""The command: thin over the Python API. Results go to stdout, progress and prose to stderr."""

from __future__ import annotations

import signal
import sys
import traceback

import typer

from .commands.check import bench, verify
from .commands.graphs import build, export, optimize
from .commands.lint import lint
from .commands.machine import clean, doctor, models, schema, targets
from .commands.ship import ship
from .console import explain
from .errors import Exit, Interrupted, UsageError

app = typer.Typer(
    name="graphwright",
    help="A transformer in PyTorch or ONNX, to the fastest artifact a target can run, with proof of parity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS = (ship, export, optimize, build, verify, bench, lint, models, targets, doctor, schema, clean)
LATER = ("localize", "run", "bundle")


def _not_yet(name: str) -> None:
    @app.command(name, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, hidden=True)
    def later() -> None:
        raise UsageError(f"`graphwright {name}` is not in this version.")


for _command in COMMANDS:
    app.command()(_command)
for _name in LATER:
    _not_yet(_name)


def main() -> None:
    """Run the command line; every error ends in one paragraph and its exit code."""
    # not as KeyboardInterrupt: once that has passed through an exec of text, which dataclasses and torch use, Python
    # ends by the signal itself, whatever exit code was asked for
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        app()  # ends in SystemExit: 0, 2 for usage, or what a command raised as typer.Exit
    except Interrupted as error:
        sys.exit(error.code)
    except Exception as error:  # noqa: BLE001 - the last place: each becomes a message and an exit code
        if "--debug" in sys.argv:
            traceback.print_exc()
        sys.exit(explain(error))


def _interrupted(number: int, _: object) -> None:
    raise Interrupted(Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED)


if __name__ == "__main__":
    main()
