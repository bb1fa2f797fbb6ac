"""Exit thresholds as knobs. Free of torch.

A sample leaves at the first exit whose confidence, the largest probability, reaches that exit's threshold. At 0 all
leave there, above 1 none; at the last exit all leave.
"""

from __future__ import annotations

from models.contract import Knob, Point

ALL, NONE = 0.0, 2.0


def exit_knobs(num_exits: int) -> tuple[Knob, ...]:
    """One knob for each exit but the last: ``exit_1``, ``exit_2``, ... By default the whole network runs."""
    return tuple(
        Knob(
            name=f"exit_{number}",
            default=NONE,
            low=ALL,
            high=NONE,
            grid=(ALL, 0.5, 0.9, NONE),
            summary=f"Confidence from which the answer of exit {number} is final; at 0 always, above 1 never.",
            trades="accuracy for time",
        )
        for number in range(1, num_exits)
    )


def deepest_exit(point: Point, num_exits: int) -> int:
    """Index of the deepest exit that a sample may reach at this point."""
    for index in range(num_exits - 1):
        if float(point.get(f"exit_{index + 1}", NONE)) <= ALL:
            return index
    return num_exits - 1
