"""``python -m benchmarks.learned``: what learning wins back, where 8-bit activations cost accuracy or bits are few.

Models: the zoo's, those that people ship, the project's own. All are quantized with ``w8`` and ``w8a8``. Those that
lose more than 0.5 % of their metric or 3 dB between the two, and those named with ``--task``, are also quantized in
every way to learn; the digits networks with fewer bits as well, transformers with dynamic activations. Each row is a
process of its own, so that its peak memory is its own, and is written once it is there: a run that was stopped goes on
with the next row.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import learned_tables, quark_peer, wild, workloads
from benchmarks.command import RESULTS
from benchmarks.jobs import ROOT
from benchmarks.kept_rows import Row, add_choice, chosen, keep, rows_in
from benchmarks.learned_tables import loses
from benchmarks.rows import Opened, facts, opened, quantized
from benchmarks.tables import without_paths
from benchmarks.transformers import ATTENTION_TASKS
from benchmarks.workloads import Workload

MINUTES = 4.0
"""Of computing that a way to learn may take, unless told."""

LIMIT = 900
"""Seconds on the clock after which a row is given up, unless told."""

PLAIN = ("w8", "w8a8")
"""What every model is quantized with."""

LEARNED: dict[str, dict[str, Any]] = {
    "AdaRound": {"adaround": True},
    "reconstruction": {"reconstruct": True},
    "finetuning": {"finetune": True},
}
"""Ways to learn, by what the tables call them."""

DYNAMIC: dict[str, dict[str, Any]] = {
    "w8a8-dynamic": {"preset": "w8a8-dynamic"},
    "w8a8-dynamic LKD": {"preset": "w8a8-dynamic", "adaround": True},
    "w8a8-token": {"preset": "w8a8-token"},
    "zeroquant": {"preset": "zeroquant"},
}
"""What transformers are tried with: scales told at inference, without and with layers that learn."""

FEW_BITS: dict[str, dict[str, Any]] = {
    "W4A8": {"preset": "w8a8", "bits": 4},
    "W4A4": {"preset": "w4a4"},
    "W3A8": {"preset": "w8a8", "bits": 3},
    "W2A8": {"preset": "w8a8", "bits": 2},
}
"""Widths that the digits networks are tried with; every layer runs on integers."""


def find(zoo: Path) -> list[Workload]:
    """All workloads with data."""
    return [*(task for task in workloads.find(zoo)[0] if task.group != "shapes"), *wild.find(zoo)[0]]


def ways(minutes: float, *, peers: bool) -> dict[str, dict[str, Any]]:
    """What a model can be quantized with, by name: the options of `onnxq.quantize`, or a peer's configuration.

    Args:
        minutes: of computing that a way to learn may take.
        peers: Quark's too.
    """
    found: dict[str, dict[str, Any]] = {name: {"preset": name} for name in PLAIN}
    for name, how in LEARNED.items():
        found[f"w8a8 {name}"] = {"preset": "w8a8", "minutes": minutes, **how}
    if peers:
        found |= {f"quark {name}": {"config": name} for name in quark_peer.CONFIGS}
    found |= {name: {**how, "minutes": minutes} for name, how in DYNAMIC.items()}
    for width, options in FEW_BITS.items():
        # w8a8 takes fewer bits with learning alone
        for name, how in ({"plain": {}, **LEARNED} if width == "W4A4" else LEARNED).items():
            found[f"{width} {name}"] = {**options, "include": ["*"], "minutes": minutes, **how}
    return found


class Run:
    """One run over some models: which rows are missing, and how each is measured."""

    def __init__(self, options: argparse.Namespace, path: Path) -> None:
        """Prepare.

        Args:
            options: the command line.
            path: file of the rows.
        """
        self._options, self._path = options, path
        self._ways = ways(options.minutes, peers=options.peers and quark_peer.interpreter() is not None)

    @cached_property
    def _private(self) -> list[Path]:
        return [self._options.zoo.resolve(), ROOT, Path(sys.prefix), Path(tempfile.gettempdir()), Path.home()]

    def measure(self, workload: Workload, render: Callable[[dict[str, Any]], str]) -> Iterator[Row]:
        """Measure what is missing of a model; each row is in the file once it is given."""
        with tempfile.TemporaryDirectory() as folder:
            task: Opened | None = None
            common: dict[str, Any] = {}
            for way in self._ways:
                if not self._is_asked(workload, way):
                    continue
                if task is None:
                    print(f"{workload.name} ...", file=sys.stderr, flush=True)
                    task = opened(workload, Path(folder, "work"))
                    known = facts(workload, task.model)
                    common = {key: known[key] for key in ("group", "metric", "higher_is_better")}
                    common |= {"float": known["float"]["metric"], "samples": len(task.feeds)}
                row = self._row(task, way)
                print(f"  {way}: {row['error'] or row['score']}", file=sys.stderr, flush=True)
                found = without_paths({"model": workload.name, "way": way, **common, **row}, self._private)
                keep(found, self._path, "way", render)
                yield found

    def _is_asked(self, workload: Workload, way: str) -> bool:
        asked = self._options
        if asked.way and way not in asked.way:
            return False
        rows = {row["way"]: row for row in rows_in(self._path)["rows"] if row["model"] == workload.name}
        minutes = self._ways[way].get("minutes")
        if way in rows and not asked.again and rows[way]["minutes"] == minutes:
            return False
        few = any(way.startswith(width) for width in FEW_BITS)
        if few and not workload.name.startswith("digits_"):
            return False
        if way in DYNAMIC and workload.name not in ATTENTION_TASKS:
            return False
        if way in PLAIN or few or asked.task:
            return True
        return loses(*(rows.get(name) for name in PLAIN))

    def _row(self, task: Opened, way: str) -> Row:
        how, folder = self._ways[way], task.feed_folder.parent
        if "config" in how:
            row = quantized("quark", how["config"], task.model, task.feed_folder, folder, limit=self._options.limit)
        else:
            given = {"force": True, "benchmark": False, **how}
            row = quantized("onnxq", way, task.model, task.feed_folder, folder, given, limit=self._options.limit)
        task.judge([row])
        Path(row.pop("file")).unlink(missing_ok=True)
        row["score"] = row.pop("metric", None)
        return {**row, "minutes": how.get("minutes")}


def main(arguments: Sequence[str] | None = None, path: Path = RESULTS / "learned.json") -> int:
    """Run the command line; the status is 2 where a task or a way is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learned", description=__doc__)
    add_choice(parser)
    parser.add_argument("--way", action="append", metavar="NAME", help="only this column, such as 'W4A8 finetuning'")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of computing for each way to learn")
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="SECONDS", help="after which a row is given up")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already too")
    peers = argparse.BooleanOptionalAction
    parser.add_argument(
        "--peers", action=peers, default=True, help=f"measure Quark, where {quark_peer.VARIABLE} is set"
    )
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.way or ()) - set(known := ways(options.minutes, peers=True))):
        print(f"no way {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    tasks = chosen(find(options.zoo.resolve()), options)
    if isinstance(tasks, int):
        return tasks
    run = Run(options, path)
    for workload in tasks:
        for _ in run.measure(workload, learned_tables.render):
            pass
    print(learned_tables.render(rows_in(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
