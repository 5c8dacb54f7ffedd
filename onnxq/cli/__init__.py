"""The command line: one file a command, each a thin reading of one function of ``onnxq.api``.

Importing this package imports nothing heavy: click when the program starts, a command's module when it is asked for,
``onnxq.api`` (and with it onnxruntime) when a command runs, rich when there is something to draw.

Exit codes: 0 done, 1 the work failed, 2 wrong usage, 3 verification failed and nothing was written, 130 interrupted.
Errors are one line on standard error. With ``--json`` standard output holds exactly one JSON object: the result, or
``{"error": {"type", "message", "exit_code"}}``.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the program ``onnxq`` with the arguments of the process, and exit."""
    try:
        from onnxq.cli._app import app, prepare_process

        prepare_process()
        app.main(prog_name="onnxq")
    except KeyboardInterrupt:  # before or after the guarded part, such as during an import
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
