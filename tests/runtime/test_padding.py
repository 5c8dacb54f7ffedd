import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.padding import Masks
from onnxq.stats.statistics import Statistics
from tests.graph.build import build

TEXT = """
g ({kind}[N, S] {mask}, float[N, S, 4] x) => (float[N, S, 4] y)
{{
    h = Relu (x)
    wide = Transpose <perm = [0, 2, 1]> (h)
    image = Unsqueeze (h, axis)
    y = Neg (h)
}}
"""


def model(mask="attention_mask", kind="int64"):
    return io.load(build(TEXT.format(mask=mask, kind=kind), axis=np.array([1])))


def feed(seed, length, real, dtype=np.int64, mask="attention_mask"):
    generator = np.random.default_rng(seed)
    x = generator.uniform(0, 1, (2, length, 4)).astype(np.float32)
    ones = np.zeros((2, length), dtype)
    for row, count in enumerate(real):
        ones[row, :count] = 1
        x[row, count:] = 50 + row
    return {mask: ones, "x": x}


FEEDS = [feed(0, 6, (6, 3)), feed(1, 9, (2, 9)), feed(2, 5, (5, 5)), feed(3, 7, (0, 4))]
VALUES = ["x", "h", "wide", "image"]


def run(feeds, **names):
    return calibrate(model(**names), VALUES, feeds, Run(threads=1))


@pytest.mark.parametrize(("kind", "dtype"), [("int64", np.int64), ("bool", np.bool_), ("float", np.float32)])
@pytest.mark.parametrize("name", VALUES)
def test_padding_is_left_out_wherever_the_positions_lie(name, kind, dtype):
    feeds = [{**f, "attention_mask": f["attention_mask"].astype(dtype)} for f in FEEDS]
    found = run(feeds, kind=kind)
    real = np.concatenate([f["x"][f["attention_mask"] == 1] for f in FEEDS])
    assert found[name].high == real.max() < 1
    assert found[name].count == real.size
    assert found.masks == ("attention_mask",)


def test_shards_merge_to_the_bits_of_one_run():
    whole = run(FEEDS)
    joined = Statistics.merge(run(FEEDS[2:]), run(FEEDS[:2]))
    assert dict(whole) == dict(joined) and joined.masks == whole.masks


def test_the_file_says_which_mask_was_used(tmp_path):
    found = run(FEEDS)
    found.save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz") == found


def test_the_shape_is_that_of_the_value():
    assert run(FEEDS)["h"].shape == (2, 5, 4)


def test_a_mask_of_logits_is_none_of_tokens():
    added = {**FEEDS[0], "attention_mask": np.where(FEEDS[0]["attention_mask"] == 1, 0, -10000).astype(np.float32)}
    found = run([added], kind="float")
    assert found["h"].high == 51 and found.masks == ()


def test_an_input_of_another_name_is_none():
    found = run([feed(0, 6, (6, 3), mask="lengths")], mask="lengths")
    assert found["h"].high == 51


def test_an_axis_that_only_happens_to_be_as_long_is_left_alone():
    # Four tokens and four channels: which axis holds positions cannot be said.
    found = run([feed(0, 4, (4, 1))])
    assert found["h"].high == 51 and found["h"].count == 32


def test_a_fixed_axis_is_no_axis_of_positions():
    text = """
    g (int64[N, S] mask, float[N, 5, 3] image) => (float[N, 5, 3] y, int64[N, S] same)
    {
        y = Relu (image)
        same = Identity (mask)
    }
    """
    x = np.full((1, 5, 3), 9, np.float32)
    found = calibrate(io.load(build(text)), ["y"], [{"mask": np.array([[1, 0, 0, 0, 0]]), "image": x}], Run(threads=1))
    assert found["y"].count == 15


def test_masks_that_disagree_decide_nothing():
    masks = Masks({"a_mask": False, "b_mask": False})
    array = np.zeros((1, 3, 2), np.float32)
    both = masks.in_feed({"a_mask": np.array([[1, 1, 0]]), "b_mask": np.array([[1, 0, 0]])})
    assert both.tokens("v", array) is array
    agreed = masks.in_feed({"a_mask": np.array([[1, 1, 0]]), "b_mask": np.array([[True, True, False]])})
    assert agreed.tokens("v", array).shape == (2, 2)
