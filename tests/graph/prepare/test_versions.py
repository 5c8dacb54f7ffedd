"""No operator changes its meaning when a model is raised: each one, in each version before a change, is run before and
after.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import onnx
import pytest

from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from tests.graph.build import Array, build, feeds_for, run, same, session, weights
from tests.runtime_version import needs_runtime

SHAPE = "float[2,4,6,6]"
TARGETS = (13, 21)
NEWEST = 20


def _int64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


CONSTANTS: dict[str, Array] = {
    "i64_5": _int64(5), "idx": _int64(1, 0, 2), "nidx": _int64(-1, 0), "ax": _int64(2), "ax1": np.array(1, np.int64),
    "st": _int64(1), "en": _int64(4), "sp": _int64(1, 3), "axs": _int64(2, 3), "m1": _int64(-1),
    "sh": _int64(2, 4, 36), "sh2": _int64(0, -1, 6), "s386": _int64(6, 8, 6), "sbox": _int64(2, 36, 4),
    "rep": _int64(1, 2, 1, 1), "pads": _int64(0, 0, 1, 1, 0, 0, 1, 0), "pads2": _int64(1, 1, 0, 2),
    "sz": _int64(2, 4, 9, 5), "sz59": _int64(5, 9), "nd": np.array([[0, 1], [1, 3]]), "bi": _int64(0, 1),
    "gi": np.zeros((2, 4, 6, 6), np.int64), "oh": np.array(4), "ohv": np.array([0, 1], np.float32),
    "s": np.array([1, 1, 2, 2], np.float32), "s15": np.array([1, 1, 1.5, 1.5], np.float32),
    "s06": np.array([1, 1, 0.6, 0.6], np.float32), "s22": np.array([0.5, 0.5], np.float32),
    "es": np.zeros(0, np.float32), "roi": np.array([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.9], np.float32),
    "rois": np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32), "p15": np.array(1.5, np.float32),
    "lo": np.array(-0.3, np.float32), "hi": np.array(0.4, np.float32), "ra": np.array(0.4, np.float32),
    "sc": np.array(0.02, np.float32), "zp": np.array(120, np.uint8), "tr": np.array(False),
    "cond": weights(2, 1, 6, 6) > 0, "cnd": np.array([True, False, True, False]), "c2": weights(2),
    "c4": weights(4, low=0.5), "e2": weights(6) * 0 + 3, "e36": weights(3, 6), "neg": -weights(4, 1, 1, low=0.1),
    "sup": weights(2, 1, 6, 6), "sup2": weights(2, 4, 6, 2), "upd": weights(2, 6, 6), "grid": weights(2, 3, 3, 2),
    "w": weights(6, 5), "wc": weights(5, 4, 3, 3), "wt": weights(4, 5, 3, 3), "gb": weights(5, seed=2),
    "gw144": weights(5, 144), "lw": weights(1, 20, 6, seed=5), "lr": weights(1, 20, 5, seed=6),
    "lb": weights(1, 40, seed=7), "gw": weights(1, 15, 6), "gr": weights(1, 15, 5), "gbb": weights(1, 30),
    "rw": weights(1, 5, 6), "rr": weights(1, 5, 5),
}  # fmt: skip

# By the first operator set in which they can be written so: nodes of x that give y.
CASES: dict[int, list[str]] = {
    7: [
        "y = Softmax (x)",
        "y = LogSoftmax (x)",
        "y = Hardmax (x)",
        "y = Softmax <axis=0> (x)",
        "y = LogSoftmax <axis=0> (x)",
        "y = Hardmax <axis=0> (x)",
        "y = Softmax <axis=1> (x)",
        "y = LogSoftmax <axis=1> (x)",
        "y = Hardmax <axis=1> (x)",
        "y = Softmax <axis=2> (x)",
        "y = LogSoftmax <axis=2> (x)",
        "y = Hardmax <axis=2> (x)",
        "y = Softmax <axis=3> (x)",
        "y = LogSoftmax <axis=3> (x)",
        "y = Hardmax <axis=3> (x)",
        "y = Softmax <axis=-1> (x)",
        "y = LogSoftmax <axis=-1> (x)",
        "y = Hardmax <axis=-1> (x)",
        "y = Softmax <axis=-2> (x)",
        "y = LogSoftmax <axis=-2> (x)",
        "y = Hardmax <axis=-2> (x)",
        "y = Flatten (x)",
        "y = Flatten <axis=0> (x)",
        "y = Flatten <axis=1> (x)",
        "y = Flatten <axis=3> (x)",
        "y = Flatten <axis=-2> (x)",
        "y = Abs (x)",
        "y = Ceil (x)",
        "y = Exp (x)",
        "y = Floor (x)",
        "y = Neg (x)",
        "y = Relu (x)",
        "y = Sigmoid (x)",
        "y = Sign (x)",
        "a = Abs (x) y = Sqrt (a)",
        "y = Tanh (x)",
        "y = Identity (x)",
        "y = Reciprocal (x)",
        "a = Abs (x) y = Log (a)",
        "y = Erf (x)",
        "y = Softplus (x)",
        "y = Softsign (x)",
        "y = Selu (x)",
        "y = Elu (x)",
        "y = LeakyRelu (x)",
        "y = HardSigmoid (x)",
        "y = Sin (x)",
        "y = Cos (x)",
        "y = Tan (x)",
        "y = ThresholdedRelu (x)",
        "y = MeanVarianceNormalization (x)",
        "y = MeanVarianceNormalization <axes=[1,2]> (x)",
        "y = Add (x, sup)",
        "y = Sub (x, sup)",
        "y = Mul (x, sup)",
        "y = Div (x, sup)",
        "a = Abs (x) y = Pow (a,sup)",
        "y = Max (x, sup)",
        "y = Min (x, sup)",
        "y = Sum (x, sup)",
        "y = Mean (x, sup)",
        "y = Max (x)",
        "y = Min (x, sup, x)",
        "y = Mean (x,x,sup)",
        "y = PRelu (x, neg)",
        "y = PRelu (x, e2)",
        "a = Abs (x) y = ReduceSum <axes=[1]> (a)",
        "a = Abs (x) y = ReduceSum <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceSum (a)",
        "a = Abs (x) y = ReduceSum <keepdims=0> (a)",
        "a = Abs (x) y = ReduceMean <axes=[1]> (a)",
        "a = Abs (x) y = ReduceMean <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceMean (a)",
        "a = Abs (x) y = ReduceMean <keepdims=0> (a)",
        "a = Abs (x) y = ReduceMax <axes=[1]> (a)",
        "a = Abs (x) y = ReduceMax <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceMax (a)",
        "a = Abs (x) y = ReduceMax <keepdims=0> (a)",
        "a = Abs (x) y = ReduceMin <axes=[1]> (a)",
        "a = Abs (x) y = ReduceMin <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceMin (a)",
        "a = Abs (x) y = ReduceMin <keepdims=0> (a)",
        "a = Abs (x) y = ReduceProd <axes=[1]> (a)",
        "a = Abs (x) y = ReduceProd <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceProd (a)",
        "a = Abs (x) y = ReduceProd <keepdims=0> (a)",
        "a = Abs (x) y = ReduceL1 <axes=[1]> (a)",
        "a = Abs (x) y = ReduceL1 <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceL1 (a)",
        "a = Abs (x) y = ReduceL1 <keepdims=0> (a)",
        "a = Abs (x) y = ReduceL2 <axes=[1]> (a)",
        "a = Abs (x) y = ReduceL2 <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceL2 (a)",
        "a = Abs (x) y = ReduceL2 <keepdims=0> (a)",
        "a = Abs (x) y = ReduceSumSquare <axes=[1]> (a)",
        "a = Abs (x) y = ReduceSumSquare <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceSumSquare (a)",
        "a = Abs (x) y = ReduceSumSquare <keepdims=0> (a)",
        "a = Abs (x) y = ReduceLogSum <axes=[1]> (a)",
        "a = Abs (x) y = ReduceLogSum <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceLogSum (a)",
        "a = Abs (x) y = ReduceLogSum <keepdims=0> (a)",
        "a = Abs (x) y = ReduceLogSumExp <axes=[1]> (a)",
        "a = Abs (x) y = ReduceLogSumExp <axes=[-1,1],keepdims=0> (a)",
        "a = Abs (x) y = ReduceLogSumExp (a)",
        "a = Abs (x) y = ReduceLogSumExp <keepdims=0> (a)",
        "y = ArgMax (x)",
        "y = ArgMax <axis=2,keepdims=0> (x)",
        "q = Floor (x) y = ArgMax <axis=-1> (q)",
        "y = ArgMin (x)",
        "y = ArgMin <axis=2,keepdims=0> (x)",
        "q = Floor (x) y = ArgMin <axis=-1> (q)",
        "y = AveragePool <kernel_shape=[3,3],strides=[2,2]> (x)",
        "y = AveragePool <kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]> (x)",
        "y = AveragePool <kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1],count_include_pad=1> (x)",
        'y = AveragePool <kernel_shape=[3,3],strides=[2,2],auto_pad="SAME_UPPER"> (x)',
        "y = AveragePool <kernel_shape=[2,2],strides=[3,3],pads=[0,0,1,1],ceil_mode=1> (x)",
        "y = AveragePool <kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1],ceil_mode=1,count_include_pad=1> (x)",
        "y = MaxPool <kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]> (x)",
        "y = LpPool <kernel_shape=[3,3],p=2> (x)",
        'y = LpPool <kernel_shape=[3,3],strides=[2,2],auto_pad="SAME_LOWER",p=3> (x)',
        "y = GlobalLpPool <p=3> (x)",
        "y = BatchNormalization (x,c4,c4,c4,c4)",
        "y = BatchNormalization <epsilon=0.1,momentum=0.3> (x,c4,c4,c4,c4)",
        "y = BatchNormalization <spatial=1> (x,c4,c4,c4,c4)",
        "y = InstanceNormalization (x,c4,c4)",
        "y = LRN <size=3,alpha=0.1,beta=0.5> (x)",
        "y = LpNormalization <axis=1,p=1> (x)",
        "y = Cast <to=6> (x)",
        "a = Cast <to=10> (x) y = Cast <to=1> (a)",
        "a = Cast <to=9> (x) y = Cast <to=1> (a)",
        "a = Cast <to=11> (x) y = Cast <to=1> (a)",
        "k = Mul (x,x) a = Cast <to=2> (k) y = Cast <to=1> (a)",
        "y = Clip <min=-0.3,max=0.4> (x)",
        "y = Clip <min=-0.3> (x)",
        "y = Clip (x)",
        "y = Concat <axis=1> (x,x)",
        "y = Conv <pads=[1,1,1,1]> (x,wc,gb)",
        'y = Conv <auto_pad="SAME_LOWER",strides=[2,2]> (x,wc)',
        "y = ConvTranspose <strides=[2,2]> (x,wt,gb)",
        'y = ConvTranspose <strides=[2,2],auto_pad="SAME_UPPER"> (x,wt)',
        'y = ConvTranspose <strides=[2,2],auto_pad="SAME_LOWER"> (x,wt)',
        "y = ConvTranspose <strides=[2,2],output_shape=[12,12]> (x,wt)",
        "y = DepthToSpace <blocksize=2> (x)",
        "y = SpaceToDepth <blocksize=2> (x)",
        "y = Dropout (x)",
        "y = Dropout <ratio=0.3> (x)",
        "k = Cast <to=6> (x) y = Equal (k,k)",
        "y = Greater (x,sup)",
        "y = Less (x,sup)",
        "y = Gather <axis=2> (x,idx)",
        "f = Reshape (x,sh) r = Flatten (x) y = Gemm <alpha=0.5,beta=2.0,transB=1> (r,gw144,gb)",
        "y = MatMul (x,w)",
        "y = Pad <pads=[0,0,1,1,0,0,1,0],value=1.5> (x)",
        'y = Pad <mode="reflect",pads=[0,0,1,1,0,0,1,0]> (x)',
        'y = Pad <mode="edge",pads=[0,0,1,1,0,0,1,0]> (x)',
        "y = Pad <pads=[0,0,-1,1,0,0,-1,0]> (x)",
        "y = Reshape (x,sh)",
        "y = Reshape (x,sh2)",
        'y = Upsample <mode="nearest",scales=[1.0,1.0,2.0,2.0]> (x)',
        'y = Upsample <mode="linear",scales=[1.0,1.0,2.0,2.0]> (x)',
        "y = Shape (x)",
        "y = Size (x)",
        "y = Slice <axes=[2],starts=[1],ends=[-1]> (x)",
        "y = Slice <starts=[1],ends=[9]> (x)",
        "y,z = Split <axis=1> (x)",
        "y,z = Split <axis=1,split=[1,3]> (x)",
        "y,z = Split (x)",
        "u = Unsqueeze <axes=[0,2]> (x) y = Squeeze <axes=[0,2]> (u)",
        "u = Unsqueeze <axes=[0,2]> (x) y = Squeeze (u)",
        "y = Tile (x,rep)",
        "y,i = TopK <k=3,axis=1> (x)",
        "y,i = TopK <k=3> (x)",
        "y = Transpose (x)",
        "t = Reshape (x,s386) y,h,c = LSTM <hidden_size=5> (t,lw,lr,lb)",
        "t = Reshape (x,s386) y,h = GRU <hidden_size=5> (t,gw,gr,gbb)",
        "t = Reshape (x,s386) y,h = GRU <hidden_size=5,linear_before_reset=1> (t,gw,gr,gbb)",
        "t = Reshape (x,s386) y,h = RNN <hidden_size=5> (t,rw,rr)",
        't = Reshape (x,s386) y,h,c = LSTM <hidden_size=5,direction="reverse",clip=1.0> (t,lw,lr,lb)',
    ],
    8: [
        "y,i = MaxPool <kernel_shape=[3,3],strides=[2,2]> (x)",
        "y,i = MaxPool <kernel_shape=[3,3],storage_order=1> (x)",
        "sh3 = Constant <value=int64[4]{2,4,6,6}> () y = Expand (sup,sh3)",
    ],
    9: [
        "a = Cast <to=8> (x) y = Cast <to=1> (a)",
        "y = Compress <axis=1> (x,cnd)",
        "z = Shape (x) y = ConstantOfShape (z)",
        "z = IsNaN (x) y = Not (z)",
        "y = NonZero (x)",
        "k = Abs (x) i = Cast <to=7> (k) y = OneHot (i,oh,ohv)",
        "k = Abs (x) i = Cast <to=7> (k) y = OneHot <axis=1> (i,oh,ohv)",
        'y = Upsample <mode="linear"> (x,s15)',
        'y = Upsample <mode="nearest"> (x,s15)',
        "y = Scatter <axis=1> (x,gi,x)",
        "y = Where (cond,x,sup)",
        "y = EyeLike <k=1> (e36)",
    ],
    10: [
        "y = MaxPool <kernel_shape=[2,2],dilations=[2,2],ceil_mode=1> (x)",
        "q = QuantizeLinear (x,sc,zp) y = DequantizeLinear (q,sc,zp)",
        "y,m = Dropout <ratio=0.3> (x)",
        "y = IsInf (x)",
        "y = Mod <fmod=1> (x,sup)",
        'y = Resize <mode="nearest"> (x,s)',
        'y = Resize <mode="linear"> (x,s)',
        'y = Resize <mode="nearest"> (x,s15)',
        'y = Resize <mode="linear"> (x,s06)',
        "y = RoiAlign <output_height=2,output_width=2,sampling_ratio=2> (x,rois,bi)",
        'y = RoiAlign <output_height=2,output_width=2,sampling_ratio=2,mode="max"> (x,rois,bi)',
        "y = Slice (x,st,en,ax)",
        "y = Slice (x,st,en)",
        "y,i = TopK <axis=2> (x,i64_5)",
        "r = Reshape (x,sbox) t = ReduceMax <axes=[2],keepdims=0> (r) z = Unsqueeze <axes=[1]> (t) "
        "mo = Constant <value=int64[1]{3}> () y = NonMaxSuppression (r,z,mo)",
    ],
    11: [
        "y = Clip (x,lo,hi)",
        "y = Clip (x,,hi)",
        "y = Concat <axis=-1> (x,sup2)",
        "y = CumSum (x,ax1)",
        "y = CumSum <exclusive=1,reverse=1> (x,ax1)",
        'y = DepthToSpace <blocksize=2,mode="CRD"> (x)',
        "y = Gather <axis=-2> (x,nidx)",
        "y = GatherElements (x,gi)",
        "y = GatherND (x,nd)",
        "r = Flatten (x) y = Gemm <transB=1> (r,gw144)",
        "y = Pad (x,pads)",
        'y = Pad <mode="reflect"> (x,pads)',
        "y = Pad (x,pads,p15)",
        'y = Resize <mode="nearest"> (x,roi,s)',
        'y = Resize <mode="cubic"> (x,roi,s)',
        'y = Resize <mode="linear",coordinate_transformation_mode="align_corners"> (x,roi,s)',
        'y = Resize <mode="linear",coordinate_transformation_mode="pytorch_half_pixel"> (x,roi,s)',
        'y = Resize <mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="ceil"> (x,roi,s)',
        'y = Resize <mode="linear",coordinate_transformation_mode="tf_crop_and_resize",'
        "extrapolation_value=0.7> (x,roi,s)",
        'y = Resize <mode="nearest",coordinate_transformation_mode="tf_half_pixel_for_nn"> (x,roi,s)',
        'y = Resize <mode="linear"> (x,roi,es,sz)',
        "y = ScatterElements <axis=1> (x,gi,x)",
        "y = ScatterND (x,nd,upd)",
        "y,z = Split <axis=-1> (x)",
        "u = Unsqueeze <axes=[-1]> (x) y = Squeeze <axes=[-1]> (u)",
        "y,i = TopK <axis=2,largest=0,sorted=1> (x,i64_5)",
    ],
    12: [
        "k = Cast <to=7> (x) l = Constant <value_int=0> () y = Clip (k,l)",
        "y = Dropout (x,ra,tr)",
        "y = Dropout (x,ra)",
        "y = GreaterOrEqual (x,sup)",
        "y = GatherND <batch_dims=1> (x,nd)",
        'y = Einsum <equation="abcd,de->abce"> (x,w)',
        "y = Celu (x)",
    ],
    13: [
        'y = Resize <mode="linear"> (x,,,sz)',
        "y,z = Split <axis=1> (x,sp)",
    ],
    14: [
        "y = HardSwish (x)",
        "y = Reshape <allowzero=1> (x,sh)",
        "y = Trilu (x)",
        "y,m,v = BatchNormalization <training_mode=1> (x,c4,c4,c4,c4)",
        "y = BatchNormalization <training_mode=0> (x,c4,c4,c4,c4)",
    ],
    15: [
        "y = Shape <start=1,end=-1> (x)",
    ],
    16: [
        "y = GridSample (x,grid)",
        'y = GridSample <mode="bicubic",padding_mode="border",align_corners=1> (x,grid)',
        'y = GridSample <mode="nearest",padding_mode="reflection"> (x,grid)',
    ],
    17: [
        "y = LayerNormalization <axis=3> (x,e2)",
        "f = Constant <value_int=6> () y0 = Unsqueeze (x,m1) y = DFT <axis=3> (y0)",
    ],
    18: [
        "y = GroupNormalization <num_groups=2> (x,c2,c2)",
        "y = LpPool <kernel_shape=[2,2],dilations=[2,2],ceil_mode=1> (x)",
        'y = Resize <mode="linear",axes=[2,3],antialias=1> (x,,s22)',
        'y = Resize <mode="linear",axes=[2,3],keep_aspect_ratio_policy="not_larger"> (x,,,sz59)',
        "y = Pad (x,pads2,,axs)",
        "y = ReduceMean (x,axs)",
        "y = ReduceMean <noop_with_empty_axes=1> (x)",
    ],
}

_STAY = {"ThresholdedRelu", "MeanVarianceNormalization", "GroupNormalization"}
"""Operators that onnx cannot convert from some version: the model keeps its own, with a note."""


@cache
def _changes(op_type: str) -> frozenset[int]:
    schemas = onnx.defs.get_all_schemas_with_history()
    return frozenset(s.since_version for s in schemas if s.name == op_type and s.domain in ("", "ai.onnx"))


def _model(nodes: str, opset: int) -> onnx.ModelProto:
    used = {n: array for n, array in CONSTANTS.items() if re.search(rf"[(,]\s*{n}\s*[,)]", nodes)}
    proto = build(f"g ({SHAPE} x) => (float[a] y) {{ {nodes} }}", opset=opset, ir=6 if opset < 15 else 8, **used)
    output = proto.graph.output[0]
    output.ClearField("type")
    found = onnx.shape_inference.infer_shapes(proto).graph.output[0].type
    if found.WhichOneof("value") is None:
        found.tensor_type.elem_type = onnx.TensorProto.FLOAT
    output.type.CopyFrom(found)
    return proto


@needs_runtime("1.32", "computes some old versions of operators otherwise than the new ones")
@pytest.mark.parametrize(("since", "nodes"), [(since, nodes) for since in CASES for nodes in CASES[since]])
def test_the_meaning_stays(since: int, nodes: str) -> None:
    operators = set(re.findall(r"= (\w+)", nodes))
    changes = frozenset().union(*(_changes(op_type) for op_type in operators))
    run_at = 0
    for opset in range(since, NEWEST):
        if opset + 1 not in changes and opset != since:
            continue
        try:
            proto = _model(nodes, opset)
            content = proto.SerializeToString()
            feeds = feeds_for(session(content))
            expected = run(content, feeds)
        except Exception:  # this runtime has no such kernel, or the nodes mean nothing in this version
            continue
        run_at += 1
        model = io.load(proto)
        report = prepare(model, min_opset=TARGETS[opset >= TARGETS[0]])
        assert not report.notes or operators & _STAY, report.notes
        same(expected, run(io.to_bytes(model), feeds), 1e-5)
    assert run_at


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", ["", "<axis = 2>", "<axis = 3>", "<axis = -1>"])
def test_where_the_rank_is_not_known(op_type: str, axis: str) -> None:
    nodes = f"h = com.microsoft.Gelu (x) y = {op_type} {axis} (h)"
    proto = build(f"g ({SHAPE} x) => ({SHAPE} y) {{ {nodes} }}", opset=11, ir=6, imports=', "com.microsoft": 1')
    feeds = feeds_for(session(proto.SerializeToString()))
    model = io.load(proto)
    prepare(model)
    same(run(proto.SerializeToString(), feeds), run(io.to_bytes(model), feeds), 1e-5)


def test_hardmax_along_the_last_axis_stays_one_node() -> None:
    proto = build(f"g ({SHAPE} x) => ({SHAPE} y) {{ y = Hardmax <axis = 3> (x) }}", opset=11, ir=6)
    model = io.load(proto)
    prepare(model)
    assert [node.op_type for node in model.graph] == ["Hardmax"]
