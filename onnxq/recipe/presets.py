"""Named ways to quantize, as data: what ``--preset`` takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A named way to quantize.

    Attributes:
        name: what ``--preset`` takes.
        description: one line.
        activations: "static" (calibrated), "dynamic" (one scale for each tensor, found at inference), "token" (one for
            each row, found at inference); None where they stay float.
        weights: "integer" for kernels that multiply integers, "storage" for integers dequantized to float at load,
            "blocks" for blockwise kernels (MatMulNBits), "codebook" for tables of values (NF4, FP4, k-means), "float"
            where no weight becomes an integer.
        needs_data: whether calibration data is needed.
        bits: bits of a weight.
        codebook: table of a "codebook" preset: "nf4", "fp4" or "kmeans".
        smooth: SmoothQuant's α, or "auto"; None does not smooth.
        outliers: magnitude from which input channels of a layer are computed in float; None for none.
        distill: learn the rounding of weights layer by layer from the float model.
        reconstruct: let blocks of the network learn together from the float model, in PyTorch.
        activation_bits: bits of calibrated activations.
        float8: weights and calibrated activations are floating-point numbers of 8 bits (e4m3).
        float_type: what computes in float becomes this type, "float16" or "bfloat16"; None leaves it float32.
    """

    name: str
    description: str
    activations: str | None
    weights: str
    needs_data: bool
    bits: int = 8
    codebook: str | None = None
    smooth: float | str | None = None
    outliers: float | None = None
    distill: bool = False
    reconstruct: bool = False
    float_type: str | None = None
    activation_bits: int = 8
    float8: bool = False


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "auto",
            "the fastest int8 forms, layer by layer, as measured here, that keep accuracy; else float unchanged",
            None,
            "storage",
            False,
        ),
        Preset(
            "w8a8",
            "static: 8-bit weights and calibrated 8-bit activations on integer kernels",
            "static",
            "integer",
            True,
        ),
        Preset(
            "w8a8-dynamic",
            "8-bit weights, and activations quantized at inference with one scale a tensor; for Transformers and LSTMs",
            "dynamic",
            "integer",
            False,
        ),
        Preset(
            "w8a8-token",
            "as w8a8-dynamic with one scale a row of activations: more exact, a little slower",
            "token",
            "integer",
            False,
        ),
        Preset(
            "w8a8-smooth",
            "w8a8 with channels of activations evened out by SmoothQuant first; for Transformers with outliers",
            "static",
            "integer",
            True,
            smooth="auto",
        ),
        Preset(
            "w8a8-learned",
            "w8a8 whose blocks learn from the float model: rounding, grids and biases together; needs PyTorch",
            "static",
            "integer",
            True,
            reconstruct=True,
        ),
        Preset(
            "w8a16",
            "static: 8-bit weights and calibrated 16-bit activations, for NPUs; a CPU has no kernels for them",
            "static",
            "integer",
            True,
            activation_bits=16,
        ),
        Preset(
            "w4a16",
            "static: 4-bit weights between Q and DQ and calibrated 16-bit activations, for NPUs",
            "static",
            "integer",
            True,
            4,
            activation_bits=16,
        ),
        Preset(
            "w4a4",
            "static: weights and calibrated activations on 16 steps, in 8-bit types; shows what 4 bits would cost",
            "static",
            "integer",
            True,
            4,
            activation_bits=4,
        ),
        Preset(
            "fp8",
            "static: weights and calibrated activations in 8-bit floating point (e4m3), for GPUs that multiply it",
            "static",
            "integer",
            True,
            float8=True,
        ),
        Preset(
            "llm-int8",
            "as w8a8-token, and input channels that reach a magnitude of 6 are computed in float (LLM.int8())",
            "token",
            "integer",
            True,
            outliers=6.0,
        ),
        Preset(
            "zeroquant",
            "as w8a8-token, with weights that learn from the float model layer by layer how to round (ZeroQuant)",
            "token",
            "integer",
            True,
            distill=True,
        ),
        Preset(
            "w8",
            "8-bit weights: in blocks for large MatMul and Gemm, else stored and dequantized to float32 at load",
            None,
            "blocks",
            False,
        ),
        Preset("w4", "4-bit weights in blocks of 32, unpacked by the kernel that multiplies", None, "blocks", False, 4),
        Preset("w2", "2-bit weights in blocks of 32, unpacked by the kernel that multiplies", None, "blocks", False, 2),
        Preset("nf4", "4-bit NormalFloat weights in blocks of 64 (QLoRA's)", None, "codebook", False, 4, "nf4"),
        Preset("fp4", "4-bit floating-point weights in blocks of 64", None, "codebook", False, 4, "fp4"),
        Preset(
            "lut4",
            "weights as one of 16 values fitted to each channel by k-means, looked up at load: float speed",
            None,
            "codebook",
            False,
            4,
            "kmeans",
        ),
        Preset(
            "lut8",
            "weights as one of 256 values fitted to each tensor by k-means, looked up at load: float speed",
            None,
            "codebook",
            False,
            8,
            "kmeans",
        ),
        Preset(
            "fp16",
            "float16: weights, and what is computed between inputs and outputs, where it stays in range",
            None,
            "float",
            False,
            16,
            float_type="float16",
        ),
        Preset(
            "bf16",
            "bfloat16: the range of float32 with 8 bits of precision; what the target has no kernels for is stored so",
            None,
            "float",
            False,
            16,
            float_type="bfloat16",
        ),
        Preset(
            "float",
            "nothing is quantized: the float model rewritten to run faster, or with --kv-cache or --rotate alone",
            None,
            "float",
            False,
            32,
        ),
    )
}

SYNONYMS: dict[str, str] = {
    "int8": "w8a8", "uint8": "w8a8", "8bit": "w8a8", "8-bit": "w8a8", "static": "w8a8", "w8a8-static": "w8a8",
    "ptq": "w8a8", "dynamic": "w8a8-dynamic", "int8-dynamic": "w8a8-dynamic", "dynamic-int8": "w8a8-dynamic",
    "smoothquant": "w8a8-smooth", "smooth": "w8a8-smooth", "token": "w8a8-token", "llm.int8": "llm-int8",
    "llm.int8()": "llm-int8", "weight-only": "w8", "w8a32": "w8", "a16w8": "w8a16", "int4": "w4", "uint4": "w4",
    "4bit": "w4", "4-bit": "w4", "q4": "w4", "a16w4": "w4a16", "a4w4": "w4a4", "int2": "w2", "2bit": "w2",
    "2-bit": "w2", "q8": "w8",
    "kmeans": "lut4", "float16": "fp16", "half": "fp16", "f16": "fp16", "bfloat16": "bf16", "q4f16": "w4",
    "float8": "fp8", "e4m3": "fp8", "f8": "fp8",
}  # fmt: skip
"""What other tools and papers call presets, for the suggestion in a message."""
