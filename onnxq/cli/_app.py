"""The program itself: the list of commands, loaded on demand, under one guard that turns failures into one line."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from onnxq._version import __version__
from onnxq.cli._guard import Interrupted, OutputClosed, State, Terminated, debugging, failure, report
from onnxq.errors import closest

_NAMES = "quantize finetune calibrate diagnose compare benchmark inspect lint diff dequantize report convert-config"
_LISTS = "presets targets"
COMMANDS = (*_NAMES.split(), *_LISTS.split())

EPILOG = """\
\b
Examples:
  onnxq quantize model.onnx -c calibration.npz
  onnxq compare model.onnx model.auto.onnx -c calibration.npz
  onnxq benchmark model.onnx model.auto.onnx

\b
Exit codes:
  0    done
  1    the work failed
  2    the command line or an option makes no sense
  3    verification failed and nothing was written
  130  interrupted and nothing was written

'onnxq COMMAND --help' has the common options of a command with examples, 'onnxq COMMAND --help-all' all options.

Every command takes --json: standard output then holds exactly one JSON object, the result or
{"error": {"type", "message", "exit_code"}}. Set ONNXQ_DEBUG=1 to see tracebacks.
"""


class OnnxqGroup(click.Group):
    """A group whose commands are modules of this package, imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"onnxq.cli.commands.cmd_{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with the nearest name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = closest(args[0], COMMANDS)
            hint = f"did you mean '{near}'?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no such command: '{args[0]}'; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. What click would treat in its own way is passed on under a name that it leaves alone."""
        try:
            return super().invoke(ctx)
        except Terminated:
            raise Interrupted(143) from None
        except KeyboardInterrupt:
            raise Interrupted(130) from None
        except BrokenPipeError:
            raise OutputClosed from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the program and exit; every failure becomes one line and an exit code."""
        arguments = list(sys.argv[1:] if args is None else args)
        place = " ".join(["onnxq", *(name for name in arguments[:1] if name in COMMANDS)])
        state = State(json="--json" in arguments, verbose=debugging(), place=place)
        try:
            with warnings.catch_warnings():
                if not debugging():
                    warnings.simplefilter("ignore")
                code = super().main(arguments, prog_name, complete_var, False, obj=state, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()
            code = code if isinstance(code, int) else 0
        except Exception as error:
            code = report(failure(error, state), state)
        if not standalone_mode:
            return code
        sys.exit(code)


@click.group(
    cls=OnnxqGroup,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", message="onnxq %(version)s")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Turn a float ONNX model into a smaller, faster one, with a verification report.

    The quantized model is checked in onnxruntime and compared with the float one before it is written; the input is
    never changed.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def _on_terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def prepare_process() -> None:
    """Set up what belongs to the process: encodings that never fail, silent libraries, a clean end on SIGTERM.

    ONNX Runtime has telemetry (1.32 under Linux too), and writes a line to standard error where it cannot keep its
    number. Models are the user's own business: it is off unless the environment says otherwise.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not debugging():
        logging.getLogger().addHandler(logging.NullHandler())
    signal.signal(signal.SIGTERM, _on_terminate)
