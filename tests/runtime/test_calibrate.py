from __future__ import annotations

import subprocess
import sys
import threading
import time

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data.readers import open_reader
from onnxq.errors import CalibrationError
from onnxq.graph.files import io
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.session import Session, session_of
from onnxq.stats.statistics import Statistics

VALUES = ["x", "r", "e", "y"]


def feeds(count, seed=0, batch=2):
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal((batch, 4)).astype(np.float32)} for _ in range(count)]


def expected(samples):
    statistics = Statistics()
    for sample in samples:
        x = sample["x"]
        r = np.maximum(x, 0)
        for name, array in zip(VALUES, (x, r, np.exp(r), -np.exp(r)), strict=True):
            statistics.update(name, array, len(x))
    return statistics


def test_inputs_inner_values_and_outputs_are_gathered(make):
    model = make("chain")
    before = io.to_bytes(model)
    samples = feeds(5)
    found = calibrate(model, VALUES, samples, Run(threads=1))
    wanted = expected(samples)
    assert list(found) == sorted(VALUES)
    for name in VALUES:
        assert found[name].count == 40
        assert found[name].shape == (2, 4)
        assert found[name].low == pytest.approx(wanted[name].low, rel=1e-6)
        assert found[name].high == pytest.approx(wanted[name].high, rel=1e-6)
    assert found["x"] == wanted["x"]
    assert found.samples == 5
    assert found.model_hash == io.model_hash(model)
    assert found.data_hash == open_reader(samples, io_inputs(model)).hash
    assert io.to_bytes(model) == before


def io_inputs(model):
    return session_of(model, threads=1).input_specs


@given(batches=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=5))
def test_batch_and_sequence_lengths_may_change_from_sample_to_sample(batches):
    # microsoft/onnxruntime#18792: "inhomogeneous shape"
    model = io.load(onnx.parser.parse_model(DYNAMIC))
    samples = [{"x": np.full((n, m), n + m, np.float32)} for n, m in batches]
    found = calibrate(model, ["x", "r", "y"], samples, Run(threads=1))
    assert found["r"].count == sum(n * m for n, m in batches)
    assert found["r"].high == max(n + m for n, m in batches)
    assert found["y"].count == sum(2 for _ in batches)


DYNAMIC = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,M] x) => (float[K] y) {
  r = Relu(x)
  i = NonZero(r)
  f = Cast<to=1>(i)
  axes = Constant<value_ints=[1]>()
  y = ReduceSum<keepdims=0>(f, axes)
}"""


def test_shapes_that_depend_on_the_data_may_change_too(make):
    samples = [{"x": np.eye(3, dtype=np.float32)}, {"x": np.ones((3, 3), np.float32)}]
    found = calibrate(make("indices"), ["f"], samples, Run(threads=1))
    assert found["f"].count == 2 * 3 + 2 * 9


def test_values_that_have_no_statistics_are_named(make):
    said = []
    sample = {"x": np.ones((1, 4), np.float32), "flag": np.array(True)}
    found = calibrate(make("branch"), ["r", "inner", "flag", "ghost"], [sample], Run(threads=1, warn=said.append))
    assert list(found) == ["inner", "r"]
    assert said == [
        "value 'ghost': unknown, or inside a subgraph that does not hand it out, so it has no statistics",
        "value 'flag': holds bool, not real numbers, so it has no statistics",
    ]
    said.clear()
    found = calibrate(make("chain"), ["r", "n"], feeds(1), Run(threads=1, warn=said.append))
    assert list(found) == ["r"]
    assert said == ["value 'n': holds int64, not real numbers, so it has no statistics"]


def test_only_inputs_or_nothing_wanted_needs_no_run(make):
    assert list(calibrate(make("chain"), ["x"], feeds(2), Run(threads=1))) == ["x"]
    assert calibrate(make("chain"), [], feeds(2), Run(threads=1)).samples == 2


def test_half_precision_is_gathered(make):
    model = make("g (float16[N,4] x) => (float16[N,4] y) { r = Relu(x) \n y = Neg(r) }")
    found = calibrate(model, ["x", "r"], [{"x": np.array([[-1, 0, 2, 65504]], np.float16)}], Run(threads=1))
    assert (found["x"].low, found["r"].low, found["r"].high) == (-1, 0, 65504)
    model = make("g (bfloat16[N,4] x) => (bfloat16[N,4] y) { y = Identity(x) }")
    found = calibrate(model, ["x"], [{"x": np.array([[-1, 0, 2, 3]], ml_dtypes.bfloat16)}], Run(threads=1))
    assert (found["x"].low, found["x"].high) == (-1, 3)


def test_non_finite_and_empty_samples_are_counted_and_survive(make):
    samples = [
        {"x": np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)},
        {"x": np.zeros((0, 4), np.float32)},
        {"x": np.array([[-3, 2, 1, 0]], np.float32)},
    ]
    found = calibrate(make("chain"), ["x", "r"], samples, Run(threads=1))
    assert (found["x"].nan_count, found["x"].inf_count) == (1, 2)
    assert (found["x"].low, found["x"].high) == (-3, 2)
    assert found.samples == 3


def test_shards_merge_to_what_one_run_gives(make):
    model, samples = make("chain"), feeds(7)
    whole = calibrate(model, VALUES, samples, Run(threads=1))
    parts = [calibrate(model, VALUES, part, Run(threads=1)) for part in (samples[:3], samples[3:])]
    assert Statistics.merge(*parts) == whole


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_samples_at_once_give_the_bits_of_one_after_the_other(make, threads):
    model, samples = make("chain"), [feed for n in range(1, 6) for feed in feeds(5, seed=n, batch=n)]

    def reused():
        buffer = np.empty((5, 4), np.float32)
        for sample in samples:
            part = buffer[: len(sample["x"])]
            part[:] = sample["x"]
            yield {"x": part}
        buffer[:] = np.nan

    done = []
    run = Run(threads=threads, progress=lambda at, total: done.append(at))
    found = calibrate(model, VALUES, reused(), run, row_means=["x", "r"], moments=["e"], peaks=["e"])
    plain = {"row_means": ["x", "r"], "moments": ["e"], "peaks": ["e"]}
    assert found == calibrate(model, VALUES, samples, Run(threads=1), **plain)
    assert done == list(range(1, 26))


def test_of_samples_that_fail_at_once_the_first_is_named(make):
    samples = [{"x": np.ones((2, 4 if n < 2 else 3), np.float32)} for n in range(8)]
    with pytest.raises(CalibrationError, match=r"calibration sample 2: "):
        calibrate(make("chain"), VALUES, samples, Run(threads=4))


@pytest.mark.parametrize(("memory", "expected"), [(2.0**30, 4), (4 * 3 * 96, 3), (1.0, 2)])
def test_samples_at_once_take_a_quarter_of_the_memory_or_are_two(make, monkeypatch, memory, expected):
    lock, running, most = threading.Lock(), [0], [0]
    run_one = Session.run

    def watched(self, *arguments, **more):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        result = run_one(self, *arguments, **more)
        with lock:
            running[0] -= 1
        return result

    monkeypatch.setattr(Session, "run", watched)
    calibrate(make("chain"), ["r", "e", "y"], feeds(16), Run(threads=4, memory=memory))
    assert 2 <= most[0] <= expected


def test_an_interrupted_run_is_continued_bit_for_bit(make, tmp_path):
    model, samples = make("chain"), feeds(10)
    saved = tmp_path / "stats.npz"

    def interrupted():
        yield from samples[:7]
        raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match=r"stop"):
        calibrate(
            model, VALUES, interrupted(), Run(threads=1, checkpoint=lambda state: state.save(saved), checkpoint_every=3)
        )
    state = Statistics.load(saved)
    assert state.samples == 6
    done = []
    found = calibrate(
        model, VALUES, samples, Run(threads=1, start=state, progress=lambda at, total: done.append((at, total)))
    )
    assert found == calibrate(model, VALUES, samples, Run(threads=1))
    assert done[-1] == (10, 10)


def test_a_run_is_not_continued_on_another_model_or_other_data(make):
    state = calibrate(make("chain"), VALUES, feeds(3), Run(threads=1))
    with pytest.raises(CalibrationError, match=r"saved statistics: they are of another model"):
        calibrate(make("batch2"), ["x"], feeds(3), Run(start=state))
    with pytest.raises(CalibrationError, match=r"of other data \(its first 3 samples differ\)"):
        calibrate(make("chain"), VALUES, feeds(5, seed=1), Run(start=state))
    with pytest.raises(CalibrationError, match=r"they are of 3 samples, the data has only 2"):
        calibrate(make("chain"), VALUES, feeds(2), Run(start=state))


def test_progress_knows_the_total_of_a_reader(make):
    model, said = make("chain"), []
    reader = open_reader(feeds(3), io_inputs(model))
    calibrate(model, ["r"], reader, Run(threads=1, progress=lambda done, total: said.append((done, total))))
    assert said == [(1, 3), (2, 3), (3, 3)]


def test_failures_are_one_line_errors(make):
    with pytest.raises(CalibrationError, match=r"sample 1: prepared model: onnxruntime cannot run it: .*mismatch"):
        calibrate(make("square"), ["y"], [{"x": np.ones(s, np.float32)} for s in ((2, 2), (2, 3))], Run(threads=1))
    with pytest.raises(CalibrationError, match=r"there is not one sample"):
        calibrate(make("chain"), VALUES, [])
    with pytest.raises(CalibrationError, match=r"provider 'MyProvider': not in .*; available are .*CPU"):
        calibrate(make("chain"), VALUES, feeds(1), Run(provider="MyProvider"))


MEMORY = """
import sys
import numpy as np, onnx.parser
from onnxq.graph.files import io
from onnxq.runtime.calibrate import Run, calibrate
text = '<ir_version: 8, opset_import: ["": 17]> g (float[N,M] x) => (float[N,M] y) '
text += '{ a = Relu(x) \\n b = Exp(a) \\n c = Neg(b) \\n y = Tanh(c) }'
model = io.load(onnx.parser.parse_model(text))
rng = np.random.default_rng(0)
feeds = ({"x": rng.standard_normal((4 + i % 3, 100_000), np.float32)} for i in range(int(sys.argv[1])))
calibrate(model, ["x", "a", "b", "c", "y"], feeds, Run(threads=1))
with open("/proc/self/status") as file:  # not getrusage: a child starts with the peak of its parent
    print(next(line.split()[1] for line in file if line.startswith("VmHWM:")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_does_not_depend_on_the_number_of_samples():
    # microsoft/onnxruntime#10503, #21979; a run that kept its batches would hold 8 MB more for each sample
    peaks = []
    for samples in (16, 64):
        done = subprocess.run([sys.executable, "-c", MEMORY, str(samples)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.05 * peaks[0]
