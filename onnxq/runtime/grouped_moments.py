"""Second moments of more values than fit in memory: group by group, running the samples again for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxq.data.feeds import Feed
from onnxq.graph.views.outputs import Model
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.stats.second_moment import moment_bytes
from onnxq.stats.statistics import Statistics


def in_groups(channels: Mapping[str, int], budget: float) -> list[list[str]]:
    """Cut values, in their order, into runs whose second moments fit a budget together.

    Args:
        channels: channels of each value.
        budget: bytes; a value that is larger by itself is a group of its own.
    """
    groups: list[list[str]] = []
    left = 0.0
    for name, count in channels.items():
        needed = moment_bytes(count)
        if not groups or needed > left:
            groups.append([])
            left = budget
        groups[-1].append(name)
        left -= needed
    return groups


class GroupedMoments:
    """Gives second moments by value, of one group at a time; asking in the groups' order runs each group once."""

    def __init__(
        self,
        model: Model,
        groups: list[list[str]],
        reader: Iterable[Feed],
        run: Run,
    ) -> None:
        """Remember what to run; nothing is run yet.

        Args:
            model: as for `calibrate`; must not be changed until the last group has been asked for.
            groups: names of values, as `in_groups` gives them.
            reader: feeds that can be read any number of times.
            run: as for `calibrate`.
        """
        self._model = model
        self._groups = {name: group for group in groups for name in group}
        self._reader = reader
        self._run = run
        self.runs = 0

    def __call__(self, name: str) -> Statistics:
        """Run the samples for the group of a value, which has to be in one.

        Raises:
            CalibrationError: as for `calibrate`.
        """
        group = self._groups[name]
        self.runs += 1
        return calibrate(
            self._model,
            (),
            self._reader,
            self._run,
            moments=group,
            peaks=group,
        )
