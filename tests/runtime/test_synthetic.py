from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.feeds import InputSpec
from onnxq.errors import ModelError
from onnxq.runtime.session import open_session
from onnxq.runtime.synthetic import described, dummy_feed, runnable_feed


def spec(name, dtype, *shape):
    return InputSpec(name, np.dtype(dtype), shape)


def test_contents_by_type_are_safe_to_run():
    feed = dummy_feed(
        [
            spec("x", np.float16, "N", 3),
            spec("ids", np.int64, "N", None),
            spec("attention_mask", np.int64, "N", None),
            spec("flag", np.bool_),
            spec("text", np.str_, 2),
        ],
        dims=5,
    )
    assert {name: (array.dtype.name, array.shape) for name, array in feed.items() if name != "text"} == {
        "x": ("float16", (1, 3)),
        "ids": ("int64", (1, 5)),
        "attention_mask": ("int64", (1, 5)),
        "flag": ("bool", ()),
    }
    assert feed["attention_mask"].all() and not feed["ids"].any() and feed["flag"]
    assert feed["text"].tolist() == ["", ""]


def test_it_is_the_same_at_every_call_and_takes_lengths_by_name():
    inputs = [spec("x", np.float32, "N", "C", "S")]
    first, second = dummy_feed(inputs, {"N": 2, "S": 7}), dummy_feed(inputs, {"N": 2, "S": 7})
    assert first["x"].shape == (2, 1, 7)
    np.testing.assert_array_equal(first["x"], second["x"])


def valid(width: int) -> str:
    """A convolution without padding, which needs at least its width."""
    ones = ",".join(["1"] * width)
    return f"g (float[N,1,W] x) => (float[N,1,V] y) <float[1,1,{width}] w = {{{ones}}}> {{ y = Conv(x, w) }}"


@pytest.mark.parametrize(("width", "length"), [(5, 64), (100, 128), (300, 8 * 512)])
def test_a_size_that_runs_is_found(content, width, length):
    assert runnable_feed(open_session(content(valid(width)), threads=1))["x"].shape == (1, 1, length)


@pytest.mark.parametrize("length", [300, 1234])
def test_a_size_that_only_the_graph_tells_is_found(content, length):
    text = (
        f"g (float[W] x) => (float[A,B] y) {{ s = Constant<value = int64[2] {{1, {length}}}>() \n y = Reshape(x, s) }}"
    )
    assert runnable_feed(open_session(content(text), threads=1))["x"].shape == (length,)


def test_a_multiple_of_the_strides_is_found(content):
    """A U-net: what was halved and doubled again has to be as long as before."""
    text = (
        "g (float[N,1,W] x) => (float[N,1,V] y) <float[1,1,2] w = {1,1}> {"
        " a = Conv<strides = [2]>(x, w) \n b = Conv<strides = [2]>(a, w) \n c = ConvTranspose<strides = [2]>(b, w)"
        " \n y = Add(a, c) }"
    )
    assert runnable_feed(open_session(content(text), threads=1))["x"].shape[-1] % 4 == 0


def test_the_past_of_a_sequence_may_be_empty(content):
    same = "g (float[batch,S] x, float[batch,past_len] p, float[batch,S] m) => (float[batch,T] y)"
    same += " { c = Concat<axis = 1>(p, x) \n y = Add(c, m) }"
    feed = runnable_feed(open_session(content(same), threads=1))
    assert (feed["x"].shape, feed["p"].shape, feed["m"].shape) == ((1, 64), (1, 0), (1, 64))


def test_sizes_are_told():
    feed = {name: np.zeros(shape) for name, shape in {"a": (1, 64), "b": (), "c": (2,), "d": (3,)}.items()}
    assert described(feed) == "a (1, 64), b (), c (2) and 1 more"
    assert described({"x": feed["a"]}) == "x (1, 64)"


def test_a_model_that_nothing_fits_asks_for_data(content):
    with pytest.raises(ModelError, match=r"no synthetic input fits it, so pass samples"):
        runnable_feed(open_session(content("g (float[N,4] x, float[N,3] z) => (float[N,4] y) { y = MatMul(x, z) }")))


def test_an_axis_named_as_the_batch_has_its_length() -> None:
    inputs = [InputSpec("x", np.dtype("float32"), ("N", "T")), InputSpec("state", np.dtype("float32"), (2, "N", 8))]
    assert {name: array.shape for name, array in dummy_feed(inputs, 64).items()} == {"x": (1, 64), "state": (2, 1, 8)}
