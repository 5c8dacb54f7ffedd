"""Which nodes could run on integers, which clamps are folded, and the reasons of the others in words."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.reading.ops import OPS
from onnxq.plan.placement.candidates import dtype_of, hidden_bodies, joined_rule, survey
from onnxq.plan.placement.select import Selection
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.targets import target_named
from tests.graph.build import build, weights
from tests.plan.planning import look_at

HEAD = "g (float[N,4,6,6] x, float[N,4,6,6] x2, float[4,4,1,1] v, float[4] p) => (float[N,M,H,W] y)"
HALF = "g (float16[N,4,6,6] x) => (float16[N,M,H,W] y)"
DOUBLE = "g (double[N,4] x) => (double[N,3] y)"
MATRIX = "g (float[N,4] x, float[N,4] x2, float[3] p) => (float[N,M] y)"
W = weights(4, 4, 1, 1)
HALVES = {"w": W.astype(np.float16), "one": np.float16(1)}


def reason(head: str, body: str, **constants: object) -> str:
    arrays = {name: np.asarray(array) for name, array in constants.items() if name in body}
    return look_at(build(f"{head} {{ {body} }}", opset=18, **arrays), widened=False).kept["t"]


REASONS = {
    "table": (
        "g (int64[N] i) => (float[N,4] y)",
        "[t] y = Gather (table, i)",
        {"table": np.ones((3, 4), np.float32)},
        "the numbers that it would quantize are constant",
    ),
    "no kernel": (HEAD, "[t] y = Sin (x)", {}, "cpu has no integer kernel for Sin"),
    "computed weight": (HEAD, "[t] y = Conv (x, v)", {}, "its weight is not constant"),
    "computed bias": (HEAD, "[t] y = Conv (x, w, p)", {"w": W}, "its bias is not constant"),
    "half": (HALF, "[t] y = Conv (x, w)", HALVES, "its input is float16; integer kernels take float32 models"),
    "half element-wise": (HALF, "[t] y = Add (x, one)", HALVES, "its input is float16"),
    "double": (DOUBLE, "[t] y = Gemm (x, w, b)", {"w": np.ones((4, 3)), "b": np.ones(3)}, "its input is double"),
    "alpha": (MATRIX, "[t] y = Gemm <alpha = 0.5> (x, x2)", {}, "alpha or beta is not 1"),
    "Gemm's computed bias": (MATRIX, "[t] y = Gemm (x, w, p)", {"w": weights(4, 3)}, "its bias is not constant"),
    "bias matrix": (
        "g (float[2,4] x) => (float[2,3] y)",
        "[t] y = Gemm (x, w, b)",
        {"w": weights(4, 3), "b": weights(2, 3)},
        "its bias of shape (2, 3) is not one value a column",
    ),
    "vector": (
        "g (float[4] x) => (float y)",
        "[t] y = MatMul (x, w)",
        {"w": weights(4)},
        "its weight of shape (4,) is no matrix",
    ),
    "left": (
        "g (float[4,N] x) => (float[3,N] y)",
        "[t] y = MatMul (w, x)",
        {"w": weights(3, 4)},
        "its left operand is constant, and so small that turning the product around costs what integers save",
    ),
    "left vector": (
        "g (float[B,4,N] x) => (float[B,N] y)",
        "[t] y = MatMul (w, x)",
        {"w": weights(4)},
        "its left operand is a constant vector, and one row is multiplied faster in float",
    ),
    "linear": (
        HEAD,
        '[t] y = Resize <mode = "linear"> (x, , s)',
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "Resize in mode 'linear' interpolates",
    ),
    "computed bounds": (HEAD, "m = ReduceMax <keepdims = 0> (x2) [t] y = Clip (x, m)", {}, "its bounds are not const"),
    "computed padding": (
        HEAD,
        "m = ReduceMax <keepdims = 0> (x2) [t] y = Pad (x, q, m)",
        {"q": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
        "its padding value is not constant",
    ),
    "padding with a number": (
        HEAD,
        "[t] y = Pad (x, q, c)",
        {"q": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "c": np.float32(0.5)},
        "it pads with a number that may lie outside the range of its input",
    ),
    "filled in": (
        HEAD,
        '[t] y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, r, s)',
        {"r": np.repeat(np.float32([0, 1]), 4), "s": np.array([1, 1, 2, 2], np.float32)},
        "it fills what lies outside the image with a real number",
    ),
    "indices as an output": (
        "g (float[N,4,6,6] x) => (float[N,M,H,W] y, int64[N,M,H,W] i)",
        "[t] y, i = MaxPool <kernel_shape = [2, 2]> (x)",
        {},
        "its second output is used",
    ),
    "counted padding": (
        HEAD,
        "[t] y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, count_include_pad = 1> (x)",
        {},
        "the integer kernel divides by another number than the float one",
    ),
    "infinite": (HEAD, "[t] y = Add (x, c)", {"c": np.float32(-np.inf)}, "an input is constant and not finite"),
    "indices": (
        HEAD,
        "[t] a, i = MaxPool <kernel_shape = [2, 2]> (x) c = Cast <to = 1> (i) y = Add (a, c)",
        {},
        "its second output is used",
    ),
    "dilated": (
        "g (float[N,4,6,6] x) => (float[N,M,H,W] y)",
        "[t] y = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (x)",
        {},
        "dilated AveragePool has no integer kernel",
    ),
    "alone": (HEAD, "[t] y = Relu (x)", {}, "no layer right before it on whose output range it could be folded"),
}


@pytest.mark.parametrize("case", REASONS)
def test_reasons_in_words(case: str) -> None:
    head, body, constants, expected = REASONS[case]
    if case == "dilated":
        proto = build(f"{head} {{ {body} }}", opset=19, ir=9)
        assert expected in look_at(proto).kept["t"]
    else:
        assert expected in reason(head, body, **constants)


def test_every_operator_that_may_be_refused_is_among_them() -> None:
    tested = " ".join(body for _, body, _, _ in REASONS.values())
    assert all(f"{op_type} " in tested for op_type, row in OPS.items() if row.refuse is not None)


def test_custom_operators_are_named_with_their_domain() -> None:
    node = onnx.helper.make_node("Gelu", ["x"], ["y"], name="t", domain="com.microsoft")
    info = [onnx.helper.make_tensor_value_info(name, 1, ["N", 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    found = look_at(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert found.kept == {"t": "cpu has no integer kernel for com.microsoft.Gelu"}


def bare_survey(proto: onnx.ModelProto, dtypes: dict[str, str]) -> tuple[set[str], dict[str, str]]:
    """Of a model that nothing was inferred about."""
    model = io.load(proto)
    for value in walk.all_values(model.graph):
        if not value.is_initializer():
            value.type = None
    names = {node.name or "": (node.name or "",) for node in model.graph}
    found = survey(model.graph, target_named("cpu"), Selection(Recipe(), names, []), dtypes, False)
    return set(found.candidates), found.kept


def test_a_type_that_is_not_known_is_what_a_run_showed() -> None:
    proto = build("g (float[N,4] x) => (float[N,3] y) { [f] a = Flatten (x) [t] y = Gemm (a, w) }", w=weights(4, 3))
    assert bare_survey(proto, {"x": "float32", "a": "float32", "y": "float32"})[0] == {"f", "t"}
    candidates, kept = bare_survey(proto, {"x": "float32"})
    assert candidates == {"f"} and kept["t"] == "the type of its input 'a' is not known"
    assert bare_survey(proto, {"x": "float16", "a": "float16"})[1]["t"].startswith("its input is float16")
    assert dtype_of(None, {}) is None


def test_shape_arithmetic_does_not_count() -> None:
    proto = build(
        "g (float[N,4,6] x) => (float[A,B] y) { s = Shape (x) [g] n = Gather (s, zero) [u] u = Unsqueeze (n, ax)"
        " [c] c = Concat <axis = 0> (u, rest) [r] y = Reshape (x, c) }",
        zero=np.array(0, np.int64), ax=np.array([0], np.int64), rest=np.array([24], np.int64),
    )  # fmt: skip
    found = look_at(proto)
    assert [node.name for node in found.order] == ["r"]
    assert list(found.candidates) == ["r"]


def test_constants_alone_are_no_work() -> None:
    # opset 6 is too old for the constants to be folded beforehand
    model = io.load(build("g (float[2] x) => (float[2] y) { [t] a = Add (c, c) [u] y = Add (x, a) }", c=weights(2)))
    names = {node.name or "": (node.name or "",) for node in model.graph}
    types = {"x": "float32", "a": "float32"}
    found = survey(model.graph, target_named("cpu"), Selection(Recipe(), names, []), types, False)
    assert found.kept == {"t": "all its inputs are constant"} and list(found.candidates) == ["u"]


def test_an_empty_operand_is_refused() -> None:
    proto = build(
        "g (float[N,2] x) => (float[N,2] y) { [t] y = Concat <axis = 0> (x, e) }", e=np.zeros((0, 2), np.float32)
    )
    assert look_at(proto).kept == {"t": "an input is empty"}


CLAMPED = "g (float[N,4,6,6] x) => (float[N,4,6,6] y) {{ [a] c = Conv (x, w) [t] r = {clamp} [b] y = Conv (r, w) }}"


def clamped(clamp: str, *, symmetric: bool = False, text: str = CLAMPED, **options: object) -> tuple[bool, object]:
    """Whether the clamp is folded into the convolution before it, and its reason where not."""
    bounds = {"lo": np.float32(-1), "hi": np.float32(1), "six": np.float32(6), "above": np.float32(0.5)}
    used = {name: np.asarray(array) for name, array in bounds.items() if name in clamp}
    found = look_at(build(text.format(clamp=clamp), w=W, **used), symmetric=symmetric, **options)
    candidate = found.candidates.get("a")
    folded = candidate is not None and candidate.clamp is not None and candidate.clamp.name == "t"
    assert "t" not in found.candidates
    assert folded == ("t" not in found.kept)
    return folded, found.kept.get("t")


@pytest.mark.parametrize(
    ("clamp", "symmetric", "folded"),
    [
        ("Relu (c)", False, True),
        ("Relu (c)", True, False),  # half of the grid lies below zero
        ("Clip (c, lo, hi)", False, True),
        ("Clip (c, lo, hi)", True, True),
        ("Clip (c, lo, six)", True, False),
        ("Clip (c, , six)", False, True),
        ("Clip (c, lo)", False, True),
        ("Clip (c)", False, True),
        ("Clip (c, above, six)", False, False),  # no grid with an exact zero begins above it
        ("Clip (c, six, lo)", False, False),
    ],
)
def test_a_clamp_is_folded_where_the_ends_of_the_grid_can_do_it(clamp: str, symmetric: bool, folded: bool) -> None:
    assert clamped(clamp, symmetric=symmetric)[0] == folded


def test_a_clamp_stays_where_something_else_sees_what_came_before_it() -> None:
    twice = CLAMPED.replace("y = Conv (r, w)", "z = Conv (r, w) [s] y = Add (z, c)")
    assert clamped("Relu (c)", text=twice) == (
        False, "no layer right before it on whose output range it could be folded",
    )  # fmt: skip
    output = CLAMPED.replace("(float[N,4,6,6] y)", "(float[N,4,6,6] y, float[N,4,6,6] c)")
    assert not clamped("Relu (c)", text=output)[0]
    assert clamped("Relu (c)", text=CLAMPED.replace("float[N,4,6,6] y)", "float[N,4,6,6] y, float[N,4,6,6] r)"))[0]


def test_the_users_word_holds_for_clamps() -> None:
    assert clamped("Relu (c)", exclude=("t",)) == (False, "excluded by --exclude")
    assert clamped("Relu (c)", include=("[ab]",)) == (True, None), "it belongs to the layer before it"
    folded, why = clamped("Relu (c)", exclude=("a",))
    assert not folded and str(why).startswith("no layer right before it")


def test_a_clamp_behind_a_move_stays() -> None:
    text = CLAMPED.replace("c = Conv (x, w)", "d = Conv (x, w) [m] c = MaxPool <kernel_shape = [1, 1]> (d)")
    assert not clamped("Relu (c)", text=text)[0]


def test_the_rule_for_the_clamp_counts_for_the_value_that_both_write() -> None:
    rules = (Rule("a", range="mse"), Rule("t", range="entropy"))
    proto = build(CLAMPED.format(clamp="Relu (c)"), w=W)
    for chosen, expected in ((rules, "entropy"), (rules[:1], "mse")):
        recipe = Recipe(rules=chosen)
        candidate = look_at(proto, rules=chosen).candidates["a"]
        names = {name: (name,) for name in "atb"}
        assert joined_rule(candidate, Selection(recipe, names, [])).range == expected
        assert [value.name for value in candidate.outputs] == ["r"]


def test_nodes_around_integers_are_left_to_their_maker() -> None:
    proto = build(
        "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { [q] q = QuantizeLinear (x, s, z)"
        " [d] d = DequantizeLinear (q, s, z) [a] c = Conv (d, w) [r] e = Relu (c) [b] y = Conv (e, w) }",
        s=np.array(0.1, np.float32), z=np.array(3, np.uint8), w=W,
    )  # fmt: skip
    found = look_at(proto)
    assert found.present == {"q", "d"}
    why = "the model is already quantized (QDQ), but not this node"  # a's weight has none
    assert found.kept == dict.fromkeys("arb", why)
    assert not found.candidates
    assert list(look_at(proto, include=("b",)).candidates) == ["b"]


def test_layers_inside_bodies_are_candidates_unless_their_values_cannot_be_seen() -> None:
    proto = build(
        """g (float[N,4] x, bool flag) => (float[N,4] y) { [outer] a = MatMul (x, w)
        [choose] y = If (flag) <then_branch = t () => (float[N,4] p) { [inner] p = MatMul (x, w) },
        else_branch = e () => (float[N,4] q) { [act] q = Relu (a) }> }""",
        w=weights(4, 4),
    )
    found = look_at(proto)
    assert [node.name for node in found.order] == ["outer", "inner", "act"]
    assert list(found.candidates) == ["outer", "inner"]
    assert found.candidates["outer"].clamp is None  # a Relu in a body is not the end of a layer outside it

    proto = build(
        """g (float[4] x, float[T,4] s, bool flag) => (float[4] y, float[T,4] z) {
        [scan] y, z = Scan <num_scan_inputs = 1, body = b (float[4] h, float[4] e) => (float[4] k, float[4] o) {
        k = Neg (h) [pick] o = If (flag) <then_branch = t () => (float[4] p) { [deep] p = MatMul (e, w) },
        else_branch = f () => (float[4] q) { q = Neg (e) }> }> (x, s) }""",
        w=weights(4, 4),
    )
    why = "If lies in the subgraph of a Scan, which hands out arrays of one shape only"
    assert look_at(proto).kept["deep"] == f"nothing in its subgraph can be calibrated: {why}"
    assert len(hidden_bodies(io.load(proto).graph)) == 2


def test_what_a_model_of_an_old_operator_set_cannot_hold_stays_float() -> None:
    text = "g (float[N,4,6,6] x) => (float[N,M,H,W] y) { [c] a = Conv (x, w) [p] m = MaxPool <kernel_shape = [2,2]> (a)"
    text += " [n] y = NoSuchOperator (m) }"  # which keeps the model from being raised
    for opset, candidates, since in ((11, {"c"}, 12), (9, set(), 10)):
        model = io.load(build(text, opset=opset, ir=4, w=W))
        names = {node.name or "": (node.name or "",) for node in model.graph}
        dtypes = dict.fromkeys("xamy", "float32")
        found = survey(model.graph, target_named("cpu"), Selection(Recipe(), names, []), dtypes, False)
        assert set(found.candidates) == candidates
        assert found.kept["p"] == (
            f"it takes integers from operator set 12 on, and the model could not be raised from {opset}"
        )
        assert since == 12 or "from operator set 10 on" in found.kept["c"]
