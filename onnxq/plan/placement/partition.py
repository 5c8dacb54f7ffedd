"""Which nodes run on integers: the cheapest choice, conversions included, found as a minimum cut.

Each node has a time as float and a time as integers, and each value that crosses from one side to the other has to be
converted once, however many nodes read it there. Choosing sides so that the sum is smallest is the minimum s-t cut of a
network in which the source side is "integer" and the sink side "float" (Greig, Porteous and Seheult 1989).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_INFINITE = 1 << 60


@dataclass(frozen=True)
class Link:
    """A value between nodes.

    Attributes:
        producer: the node that writes it; None where it comes as float from outside.
        consumers: nodes that read it and can take it either way.
        float_consumer: whether something reads it that only takes float.
        quantize: cost of converting it to integers.
        dequantize: cost of converting it to float.
    """

    producer: int | None
    consumers: tuple[int, ...]
    float_consumer: bool
    quantize: float
    dequantize: float


def partition(
    float_cost: Sequence[float],
    int_cost: Sequence[float],
    links: Sequence[Link],
    forced: dict[int, bool] | None = None,
) -> list[bool]:
    """Choose for each node whether it runs on integers.

    Args:
        float_cost: microseconds of each node as float.
        int_cost: microseconds of each node on integers.
        links: the values between the nodes.
        forced: nodes whose side is given: True for integers.

    Returns:
        One bool a node, True for integers; among choices of equal cost the one with the most integer nodes.
    """
    forced = forced or {}
    count = len(float_cost)
    flow = _Network(count + 2 + 2 * len(links))
    source, sink = count, count + 1
    for i in range(count):
        flow.edge(source, i, _INFINITE if forced.get(i) is True else _units(float_cost[i]))
        flow.edge(i, sink, _INFINITE if forced.get(i) is False else _units(int_cost[i]))
    helper = count + 2
    for link in links:
        # The integer form is on the source side as soon as one integer node reads it.
        for consumer in link.consumers:
            flow.edge(consumer, helper, _INFINITE)
        flow.edge(helper, sink if link.producer is None else link.producer, _units(link.quantize))
        # The float form is on the sink side as soon as one float node reads it.
        if link.producer is not None:
            for consumer in link.consumers:
                flow.edge(helper + 1, consumer, _INFINITE)
            if link.float_consumer:
                flow.edge(helper + 1, sink, _INFINITE)
            flow.edge(link.producer, helper + 1, _units(link.dequantize))
        helper += 2
    flow.saturate(source, sink)
    float_side = flow.reaching(sink)
    return [i not in float_side for i in range(count)]


def _units(cost: float) -> int:
    return max(0, round(cost * 1000))


class _Network:
    """A flow network with Dinic's algorithm (1970) on integer capacities."""

    def __init__(self, size: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(size)]
        self._head: list[int] = []
        self._capacity: list[int] = []

    def edge(self, tail: int, head: int, capacity: int) -> None:
        """An arc and its empty reverse; arc ``e`` has its reverse at ``e ^ 1``."""
        self._edges[tail].append(len(self._head))
        self._edges[head].append(len(self._head) + 1)
        self._head += [head, tail]
        self._capacity += [capacity, 0]

    def saturate(self, source: int, sink: int) -> None:
        """Send as much as fits from source to sink."""
        while True:
            level = self._levels(source)
            if level[sink] < 0:
                return
            position = [0] * len(self._edges)
            while self._augment(source, sink, level, position):
                pass

    def reaching(self, sink: int) -> set[int]:
        """Vertices from which the sink can still be reached."""
        seen, queue = {sink}, deque([sink])
        while queue:
            head = queue.popleft()
            for e in self._edges[head]:
                tail = self._head[e]
                if tail not in seen and self._capacity[e ^ 1] > 0:
                    seen.add(tail)
                    queue.append(tail)
        return seen

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self._edges)
        level[source] = 0
        queue = deque([source])
        while queue:
            tail = queue.popleft()
            for e in self._edges[tail]:
                head = self._head[e]
                if self._capacity[e] > 0 and level[head] < 0:
                    level[head] = level[tail] + 1
                    queue.append(head)
        return level

    def _augment(self, source: int, sink: int, level: list[int], position: list[int]) -> bool:
        # One path by depth-first search without recursion: networks can be thousands of vertices deep.
        path: list[int] = []
        vertex = source
        while vertex != sink:
            edges = self._edges[vertex]
            while position[vertex] < len(edges):
                e = edges[position[vertex]]
                if self._capacity[e] > 0 and level[self._head[e]] == level[vertex] + 1:
                    break
                position[vertex] += 1
            else:
                if not path:
                    return False
                e = path.pop()
                vertex = self._head[e ^ 1]
                position[vertex] += 1
                continue
            path.append(e)
            vertex = self._head[e]
        amount = min(self._capacity[e] for e in path)
        for e in path:
            self._capacity[e] -= amount
            self._capacity[e ^ 1] += amount
        return True
