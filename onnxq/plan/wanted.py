"""What a calibration run has to gather for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.stats.statistics import Statistics


@dataclass(frozen=True)
class Wanted:
    """What a calibration run has to gather.

    Attributes:
        values: values that need a range.
        image_means: inputs of convolutions, whose channel means correct biases.
        row_means: inputs of Gemm layers, likewise.
        second_moments: inputs of layers whose weights are rounded by them, and how many channels they have.
        channel_peaks: those whose channel magnitudes are needed too.
    """

    values: tuple[str, ...]
    image_means: tuple[str, ...] = ()
    row_means: tuple[str, ...] = ()
    second_moments: Mapping[str, int] = field(default_factory=dict)
    channel_peaks: tuple[str, ...] = ()

    def without(self, known: Statistics) -> Wanted:
        """What is not known yet."""
        return Wanted(
            tuple(name for name in self.values if name not in known),
            tuple(name for name in self.image_means if name not in known.means),
            tuple(name for name in self.row_means if name not in known.means),
            {
                name: count
                for name, count in self.second_moments.items()
                if name not in known.moments and name not in known.later
            },
            tuple(name for name in self.channel_peaks if name not in known.peaks),
        )
