"""Samples joined to batches, where a graph gives for them what it gives for each alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.parameters import as_tensor
from onnxq.qat.torch_ops.call import NodeError, Tensor

Batch = tuple[dict[str, Tensor], "Tensor | None"]


def batches(feeds: Sequence[Feed], labels: Sequence[Array] | None, size: int, student: GraphModule) -> list[Batch]:
    """Feeds joined along their first axis where the graph gives for them what it gives for each alone."""
    tensors = [{name: as_tensor(array) for name, array in feed.items()} for feed in feeds]
    classes = None
    if labels is not None:
        classes = [torch.from_numpy(np.asarray(part, np.int64)) for part in labels]
    count = size if _joins(tensors, student) else 1
    found: list[Batch] = []
    for start in range(0, len(tensors), count):
        group = tensors[start : start + count]
        if len({_shapes(feed) for feed in group}) > 1:
            found += [(feed, None if classes is None else classes[start + i]) for i, feed in enumerate(group)]
            continue
        joined = {
            name: torch.cat([feed[name] for feed in group]) if group[0][name].ndim else group[0][name]
            for name in group[0]
        }
        found.append((joined, None if classes is None else torch.cat(classes[start : start + count])))
    return found


def _shapes(feed: Mapping[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(value.shape) for value in feed.values())


def _joins(feeds: Sequence[Mapping[str, Tensor]], student: GraphModule) -> bool:
    """Whether two feeds can be run as one."""
    if len(feeds) < 2 or _shapes(feeds[0]) != _shapes(feeds[1]) or any(not v.ndim for v in feeds[0].values()):
        return False
    device = next((held.device for held in (*student.buffers(), *student.parameters())), torch.device("cpu"))
    pair = [{name: value.to(device) for name, value in feed.items()} for feed in feeds[:2]]
    with torch.no_grad():
        try:
            both = student({name: torch.cat([pair[0][name], pair[1][name]]) for name in pair[0]})
            alone = [student(feed) for feed in pair]
        except (NodeError, RuntimeError):
            return False
    for name, value in both.items():
        parts = [one[name] for one in alone]
        if not parts[0].ndim or value.shape[0] != sum(part.shape[0] for part in parts):
            return False
        if not torch.allclose(
            value.double(), torch.cat(parts).double(), rtol=1e-2, atol=1e-2 * float(value.double().abs().max())
        ):
            return False
    return True
