"""Pad → Conv: a Conv pads by itself, and on integers it pads with its zero point at no cost."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk


def run(model: ir.Model) -> int:
    """Move the zeros that an explicit Pad puts around an image into the pads of the Conv behind it.

    A Pad that names its axes gets amounts for all of them: ONNX Runtime, which turns Pad nodes between integer layers
    to its own order of axes, does not read the names.

    Returns:
        How many Pad nodes were changed or went away.
    """
    names = walk.Names(model)
    nodes = [node for node in walk.all_nodes(model.graph) if node.domain == ""]
    spelled = sum(_name_no_axes(node, names) for node in nodes if node.op_type == "Pad")
    return spelled + sum(_merge(node) for node in nodes if node.op_type == "Conv")


def _name_no_axes(pad: ir.Node, names: walk.Names) -> bool:
    amounts, axes = walk.const_array(walk.input_at(pad, 1)), walk.const_array(walk.input_at(pad, 3))
    rank, old = walk.rank(pad.inputs[0]), walk.input_at(pad, 3)
    if amounts is None or axes is None or rank is None or old is None:
        return False
    spread = np.zeros((2, rank), np.int64)
    spread[:, axes] = amounts.reshape(2, -1)
    edit.set_constant(pad, 1, spread.reshape(-1), names, f"{pad.name}_pads")
    pad.resize_inputs(3 if walk.input_at(pad, 2) is not None else 2)
    edit.drop_unused_initializer(old)
    return True


def _merge(conv: ir.Node) -> bool:
    source = conv.inputs[0]
    pad = source.producer() if source is not None else None
    if pad is None or source is None or pad.op_type != "Pad" or pad.domain != "" or walk.only_use(source) is not conv:
        return False
    amounts = _zeros_around_the_image(pad)
    own = _own_pads(conv)
    if amounts is None or own is None or len(own) != len(amounts):
        return False
    joined = [a + b for a, b in zip(own, amounts, strict=True)]
    conv.attributes["pads"] = ir.AttrInt64s("pads", joined)
    conv.attributes.pop("auto_pad", None)
    conv.replace_input_with(0, pad.inputs[0])
    edit.remove_node(pad)
    return True


def _zeros_around_the_image(pad: ir.Node) -> list[int] | None:
    """[begins…, ends…] over the spatial axes; None where the Pad does anything else."""
    if walk.attr_str(pad, "mode", "constant") != "constant" or walk.input_at(pad, 3) is not None:
        return None
    if walk.input_at(pad, 2) is not None:
        value = walk.const_array(pad.inputs[2])
        if value is None or value.size != 1 or float(value.reshape(())) != 0.0:
            return None
    pads = walk.const_array(walk.input_at(pad, 1))
    if pads is None or pads.size < 6 or pads.size % 2 or (pads < 0).any():
        return None
    rank = pads.size // 2
    begins, ends = pads[:rank].tolist(), pads[rank:].tolist()
    if any(begins[:2]) or any(ends[:2]):
        return None
    return [*begins[2:], *ends[2:]]


def _own_pads(conv: ir.Node) -> list[int] | None:
    if walk.attr_str(conv, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    pads = walk.attr_ints(conv, "pads", ())
    if pads:
        return list(pads)
    weight = walk.dims(conv.inputs[1])
    return None if weight is None else [0] * 2 * (len(weight) - 2)
