"""The options of a recipe by keyword, as the public functions take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class RecipeOptions(TypedDict, total=False):
    """Options of `onnxq.quantize` that a recipe can hold as well; None, or nothing, leaves what the recipe says.

    The names are those of `onnxq.Recipe` and of the command line.

    Attributes:
        format: "qdq" or "qoperator".
        range: "minmax", "percentile", "entropy", "mse" or "average".
        percentile: share of the values in percent that the range "percentile" keeps.
        per_channel: weight scales by output channel.
        symmetric: activations, and packed weights, with zero in the middle of the grid.
        bias_correct: take what rounding the weights adds to a layer's mean from its bias; done by default.
        equalize: even out the weights of neighbouring layers channel by channel before they are quantized.
        smooth: SmoothQuant's α in 0…1, or "auto" for the best of a few by output error; needs samples.
        outliers: magnitude from which a layer's input channels are float, where activations have a scale a row.
        adaround: learn for each weight whether to round it up or down; needs samples and time.
        reconstruct: let blocks learn weights' rounding, activations' grids and biases; needs samples and PyTorch.
        finetune: let the quantized model learn end to end from the float model; needs samples and PyTorch.
        minutes: time that either learning may take; 4 by default.
        epochs: passes of finetuning over the samples; by their number by default.
        learning_rate: of finetuning, as a share of scales and grids; 0.002 by default.
        seed: of the order of the samples in finetuning, and of what ``generate`` draws.
        device: that finetuning runs on, "cpu" or "cuda".
        fuse: model type (bert, gpt2, …) that `onnxruntime.transformers` fuses before planning, or "auto".
        include: patterns; only nodes that match are quantized.
        op_types: only these operators are quantized.
        bits: bits of a packed weight: 2, 3, 4 or 8.
        block_size: elements of a packed weight that share a scale; 0 for one scale a column.
        algorithm: how packed weights are rounded.
        sequential: round them in the order of the graph, each by what the quantized layers before it give.
        accuracy_level: of MatMulNBits: 0 computes in float32, 4 rounds activations to int8 inside the kernel.
        target_bits: average bits a weight that packed weights may take, scales and zero points included.
        float_type: "float16" or "bfloat16" for what computes in float, with the presets w8, w4, w2.
        store_only: store weights in that type and compute in float32.
        keep_io: inputs and outputs keep their types; done by default.
        fix_dims: ``"name=number"`` for each symbolic dimension that gets a fixed size everywhere.
        float_outputs: operator types whose results stay float where they are outputs, for targets that quantize those.
        drop_tail: take post-processing off (non-maximum suppression, TopK and what depends on them); the model gives
            what that read, and a warning says what.
        opset: operator set of the model that is written.
        max_memory: GiB for second moments; without samples, a model above a quarter of it is quantized by layers.
        kv_cache: what a decoder's caches of keys and values hold: "float", "int8" or "int4"; missing ones are added.
        rotate: turn the residual stream and heads of values by orthogonal matrices folded into the weights (QuaRot).
        learn_rotation: let these learn from the samples (SpinQuant).
    """

    format: str | None
    range: str | None
    percentile: float | None
    per_channel: bool | None
    symmetric: bool | None
    bias_correct: bool | None
    equalize: bool | None
    smooth: float | str | None
    outliers: float | None
    adaround: bool | None
    reconstruct: bool | None
    finetune: bool | None
    minutes: float | None
    epochs: int | None
    learning_rate: float | None
    seed: int | None
    device: str | None
    fuse: str | None
    include: Sequence[str]
    op_types: Sequence[str]
    bits: int | None
    block_size: int | None
    algorithm: str | None
    sequential: bool | None
    accuracy_level: int | None
    target_bits: float | None
    float_type: str | None
    store_only: bool | None
    keep_io: bool | None
    fix_dims: Sequence[str]
    float_outputs: Sequence[str]
    drop_tail: bool | None
    opset: int | None
    max_memory: float | None
    kv_cache: str | None
    rotate: bool | None
    learn_rotation: bool | None
