"""Writing to the standard streams: at once, in their own encoding, and quietly where a stream is missing.

``click.echo`` writes UTF-8 to a stream that says it is ASCII; here what a stream cannot show is escaped instead (see
``prepare_process``).
"""

from __future__ import annotations

import sys


def say(text: str, *, error: bool = False) -> None:
    """Write lines to standard output, or to standard error, and flush.

    Raises:
        OSError: the stream cannot be written: its reader has gone, or the disk is full.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    if error:
        from onnxq.report.printable import printable

        text = printable(text, lines=True)
    stream.write(f"{text}\n")
    stream.flush()
