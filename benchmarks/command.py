"""The command line that the benchmarks share: choose tasks, measure one after another, write the tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, tables
from benchmarks.jobs import ROOT
from benchmarks.workloads import DEFAULT_ZOO, Workload

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Settings:
    """How much to measure; both forms measure the same things, the quick one fewer and shorter."""

    quick: bool
    peers: bool

    @property
    def latency_seconds(self) -> float:
        """How long one alternation lasts."""
        return 3.0 if self.quick else 12.0

    @property
    def repeats(self) -> int:
        """How often calibration is timed."""
        return 1 if self.quick else 3


@dataclass(frozen=True)
class Command:
    """One benchmark.

    Attributes:
        name: of its module and of its results.
        description: what it does, for ``--help``.
        quick: what ``--quick`` leaves out.
        find: all workloads, and a line for each that cannot be measured here; the argument is the zoo's folder.
        measure: everything about one workload, given an empty folder for models and feeds.
        render: the Markdown of all results, see `tables.render`.
        has_peers: other tools are measured too, unless ``--no-peers`` is given.
    """

    name: str
    description: str | None
    quick: str
    find: Callable[[Path], tuple[list[Workload], list[str]]]
    measure: Callable[[Workload, Path, Settings], dict[str, Any]]
    render: Callable[[dict[str, Any]], str]
    has_peers: bool = True

    def run(self, arguments: Sequence[str] | None = None, results_folder: Path = RESULTS) -> int:
        """Run the command line; the status is 2 where a task is unknown."""
        options = self._parser().parse_args(arguments)
        zoo = options.zoo.resolve()
        workloads, left_out = self.find(zoo)
        known = [workload.name for workload in workloads]
        if options.list:
            print("\n".join(known))
            return 0
        unknown = sorted(set(options.task or ()) - set(known))
        if unknown:
            print(f"no task {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        chosen = [workload for workload in workloads if not options.task or workload.name in options.task]
        settings = Settings(options.quick, options.peers)
        is_whole = not options.task and not options.quick and options.peers == self.has_peers
        results: dict[str, Any] = {
            "machine": machine.facts(),
            "settings": {**asdict(settings), "threads": 1},
            "left_out": left_out,
            "workloads": [],
        }
        stem = self.name if is_whole else f"{self.name}-partial"
        paths = [zoo, ROOT, Path(sys.prefix), Path(tempfile.gettempdir()), Path.home()]
        text = ""
        for workload in chosen:
            print(f"{workload.name} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                private = [Path(folder, "work"), Path(folder), *paths]
                try:
                    measured = self.measure(workload, Path(folder, "work"), settings)
                except ImportError as problem:  # the zoo's data may need a library that is not there
                    left_out.append(f"{workload.name} is left out: {problem}")
                    continue
                results["workloads"].append(tables.without_paths(measured, private))
            text = tables.write(results, results_folder, stem, self.render)
        print(text or "\n".join(left_out))
        return 0

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.description)
        parser.add_argument("--task", action="append", metavar="NAME", help="only this one; can be given again")
        parser.add_argument("--quick", action="store_true", help=self.quick)
        if self.has_peers:
            peers = argparse.BooleanOptionalAction
            parser.add_argument("--peers", action=peers, default=True, help="measure the peer too")
        else:
            parser.set_defaults(peers=False)
        parser.add_argument("--zoo", type=Path, default=DEFAULT_ZOO, metavar="FOLDER", help="the folder with zoo.py")
        parser.add_argument("--list", action="store_true", help="show the tasks and stop")
        return parser
