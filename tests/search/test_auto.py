"""auto: what it tries, what it chooses from given times, what it gives back, and what it says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.cli._json import dumps
from onnxq.errors import RecipeError, VerificationError
from onnxq.pipeline import gate
from onnxq.pipeline.gate import Verdict
from onnxq.pipeline.job import Job
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.report.results import QuantizeResult
from onnxq.runtime.profile import KernelTime
from onnxq.search import bases, choice_cache, comparing, layers, trials
from onnxq.search.within import learned_candidates
from onnxq.verify import budget
from onnxq.verify.benchmark import Timing
from tests.graph.build import build, weights

CONVNET = """g (float[N,16,12,12] x) => (float[N,10] y) {
    [first] a = Conv <pads = [1,1,1,1]> (x, w1) [relu] b = Relu (a) [second] c = Conv <pads = [1,1,1,1]> (b, w2)
    [pool] d = GlobalAveragePool (c) [flat] e = Flatten (d) [fc] y = Gemm (e, w3) }"""
MLP = """g (float[N,64] x) => (float[N,10] y) {
    [up] a = MatMul (x, w1) [act] b = Tanh (a) [mid] c = MatMul (b, w2) [act2] d = Tanh (c)
    [down] y = MatMul (d, w3) }"""
ATTENTION = """g (float[N,8,64] x) => (float[N,8,64] y) {
    [q] q = MatMul (x, wq) [k] k = MatMul (x, wk) [v] v = MatMul (x, wv) kt = Transpose <perm = [0,2,1]> (k)
    [scores] s = MatMul (q, kt) [soft] p = Softmax <axis = -1> (s) [mix] m = MatMul (p, v) [out] o = MatMul (m, wo)
    [add] r = Add (o, x) [norm] y = LayerNormalization (r, gamma) }"""
LSTM = """g (float[12,1,32] x) => (float[12,10] y) {
    [lstm] h, hn, cn = LSTM <hidden_size = 48> (x, w, r) z = Squeeze (h, axes) [fc] y = MatMul (z, w3) }"""


def convnet() -> onnx.ModelProto:
    return build(CONVNET, w1=weights(32, 16, 3, 3), w2=weights(32, 32, 3, 3), w3=0.02 * weights(32, 10))


def mlp() -> onnx.ModelProto:
    return build(MLP, w1=weights(64, 128), w2=weights(128, 128), w3=weights(128, 10))


def attention() -> onnx.ModelProto:
    square = {name: weights(64, 64) for name in ("wq", "wk", "wv", "wo")}
    return build(ATTENTION, **square, gamma=np.ones(64, np.float32))


def lstm() -> onnx.ModelProto:
    axes = np.array([1, 2], np.int64)
    return build(LSTM, w=weights(1, 192, 32), r=weights(1, 192, 48), w3=weights(48, 10), axes=axes)


def drawn(*shape: int, count: int = 10) -> list[dict[str, np.ndarray]]:
    """Noise around a mean for each item and channel, so that items differ behind a pooling, too."""
    found = []
    for index in range(count):
        generator = np.random.default_rng(index)
        means = generator.normal(size=shape[:2] + (1,) * (len(shape) - 2)) if len(shape) > 3 else 0.0
        found.append({"x": (means + generator.normal(size=shape)).astype(np.float32)})
    return found


NETS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...]]] = {
    "convnet": (convnet, (8, 16, 12, 12)),
    "mlp": (mlp, (32, 64)),
    "attention": (attention, (2, 8, 64)),
    "lstm": (lstm, (12, 1, 32)),
}


class Times:
    """Stands in for both clocks: times of whole models and of single kernels are what a test says they are."""

    def __init__(self) -> None:
        self.models: dict[str, float] = {}
        self.kernels: dict[str, float] = {}
        self.asked: list[list[str]] = []
        self.groups: list[list[str]] = []
        self.load: Callable[[], float] = lambda: 1.0

    def benchmark(
        self, models: Mapping[str, object], feeds: Iterable[object], workload: object, **options: object
    ) -> list[Timing]:
        assert list(feeds), "there is something to run"
        self.asked.append(list(models))
        load = self.load()
        taken = {name: load * self.time_of(name) for name in models}
        return [Timing(name, ms, ms, ms, 1, taken["float"] / ms, 0) for name, ms in taken.items()]

    def time_of(self, name: str) -> float:
        """What a test does not name takes as long as float."""
        return self.models.get(name, self.models.get(name.split(" ")[0], self.models["float"]))

    def kernel_times(self, models: Mapping[str, bytes], feed: object, **options: object) -> dict[str, KernelTime]:
        self.groups.append(list(models))
        return {form: KernelTime(self.kernels.get(form, 10.0)) for form in models}


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Times:
    """Both clocks, replaced."""
    fake = Times()
    monkeypatch.setattr(trials, "measure", fake.benchmark)
    monkeypatch.setattr(layers, "kernel_times", fake.kernel_times)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Times:
    return stand_in(monkeypatch, tmp_path)


def auto(net: str, *, data: bool = True, **options: Any) -> QuantizeResult:
    make, shape = NETS[net]
    feeds = drawn(*shape) if data else None
    return onnxq.quantize(make(), calibration=feeds, threads=1, **options)


def table(result: QuantizeResult) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result.candidates}


def run(model: onnx.ModelProto | None, feed: dict[str, np.ndarray], optimize: bool = True) -> list[np.ndarray]:
    assert model is not None
    options = ort.SessionOptions()
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
@pytest.mark.parametrize("net", NETS)
def test_every_kind_of_network_runs_at_both_levels_and_keeps_the_budget(net: str, data: bool, times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 2.0, "w8a8-dynamic": 1.5, "w8a8-token": 1.6, "mixed": 1.8}
    result = auto(net, data=data)
    make, shape = NETS[net]
    feed = drawn(*shape)[-1]
    (expected,) = run(make(), feed)
    for optimize in (True, False):
        (got,) = run(result.model, feed, optimize)
        assert 10 * np.log10(np.square(expected).sum() / np.square(got - expected).sum()) > 20
    assert result.preset != "auto"
    (chosen,) = (row for row in result.candidates if row["verdict"] == "chosen")
    assert chosen["name"].partition(" ")[0] == result.preset
    assert ("w8a8" in table(result)) == data
    assert (table(result)["w8"]["sqnr_db"] is None) == (not data)
    assert any("no calibration data" in line for line in result.warnings) == (not data)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({"w8a8": 1.0, "w8a8-dynamic": 2.0, "w8a8-token": 2.0}, "w8a8"),
        ({"w8a8": 2.0, "w8a8-dynamic": 1.0, "w8a8-token": 2.0}, "w8a8-dynamic"),
        ({"w8a8": 2.0, "w8a8-dynamic": 2.0, "w8a8-token": 1.0}, "w8a8-token"),
        ({"w8a8": 9.0, "w8a8-dynamic": 9.0, "w8a8-token": 9.0, "w8": 4.05}, "w8"),
        ({"w8a8": 9.0, "w8a8-dynamic": 9.0, "w8a8-token": 9.0, "w8": 9.0}, "float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_fastest_is_chosen(models: dict[str, float], expected: str, times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, **models}
    result = auto("mlp")
    assert result.preset == expected
    assert result.latency_ratio == pytest.approx(4.0 / {"float": 4.0, **models}[expected])


def test_float_is_given_back_byte_for_byte_with_the_reason(times: Times, tmp_path: Path) -> None:
    times.models = {"float": 1.0, **dict.fromkeys(["w8", "w8a8", "w8a8-dynamic", "w8a8-token", "mixed"], 2.0)}
    model = tmp_path / "net.onnx"
    onnx.save(mlp(), model)
    result = onnxq.quantize(model, calibration=drawn(4, 64), threads=1)
    assert result.preset == "float" and result.format is None
    assert result.output == tmp_path / "net.auto.onnx"
    assert result.output.read_bytes() == model.read_bytes()
    assert result.size_after == result.size_before
    assert result.latency_ratio == 1.0 and result.sqnr_db == float("inf")
    (line,) = [line for line in result.warnings if "returning the float model unchanged" in line]
    assert "w8a8: 0.50x the speed" in line
    assert "float" in result.summary() and "outputs are equal" in result.summary()
    assert all(entry["choice"] == "float" for entry in result.choices)


def test_a_model_in_memory_is_given_back_too(times: Times) -> None:
    times.models = {"float": 1.0, **dict.fromkeys(["w8", "w8a8", "w8a8-dynamic", "w8a8-token", "mixed"], 2.0)}
    result = auto("convnet")
    assert result.preset == "float" and result.output is None
    feed = drawn(2, 16, 12, 12)[0]
    np.testing.assert_array_equal(run(convnet(), feed)[0], run(result.model, feed)[0])


def test_a_model_with_nothing_to_quantize_is_given_back() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { [e] y = Exp (x) }")
    result = onnxq.quantize(model, calibration=drawn(2, 4), threads=1)
    assert result.preset == "float"
    assert any("nothing in it can be quantized" in line for line in result.warnings)


def test_what_stays_float_for_accuracy_does_so_however_fast_integers_are(times: Times) -> None:
    """A guard against samples that 8 bits swallow holds for what measurements choose; only users override it."""
    text = """g (float[N,64] x) => (float[N,32] y) { [first] s = MatMul (x, w0) [abs] a = Abs (s)
        [mean] m = ReduceMean <axes = [1], keepdims = 1> (a) [even] e = Div (a, m) [second] h = MatMul (e, w1)
        [act] r = Relu (h) [third] y = MatMul (r, w2) }"""
    model = build(text, w0=weights(64, 64), w1=weights(64, 64, seed=1) / 8, w2=weights(64, 32, seed=2) / 8)
    loudness = 10.0 ** np.linspace(-4.0, 0, 24)
    feeds = [{"x": (factor * weights(1, 64, seed=i)).astype(np.float32)} for i, factor in enumerate(loudness)]
    times.models = {"float": 4.0, "w8a8": 3.0, "mixed": 1.0}
    times.kernels = {"float": 100.0, "w8": 100.0, "w8a8": 1.0}
    result = onnxq.quantize(model, calibration=feeds, range="minmax", threads=1)
    assert result.plan.guarded == {"first"}
    assert result.plan.nodes["first"].action in ("storage", "float")
    assert "w8a8" not in next(row for row in result.choices if row["node"] == "first")["alternatives"]
    asked = onnxq.quantize(
        model, calibration=feeds, range="minmax", threads=1, preset="w8a8", include=("*",), force=True
    )
    assert asked.plan.nodes["first"].action == "integer" and not asked.plan.guarded


def test_what_the_user_excluded_altogether_is_an_error() -> None:
    with pytest.raises(RecipeError, match="nothing in this model would be quantized"):
        auto("mlp", exclude=["*"])


def test_layers_take_their_fastest_form_and_the_report_says_why(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 2.0, "w8a8-dynamic": 2.0, "w8a8-token": 2.0, "mixed": 1.0}
    times.kernels = {"float": 30.0, "w8": 30.0, "w8a8": 20.0, "w8a8-dynamic": 10.0, "w8a8-token": 15.0}
    result = auto("lstm")
    choices = {entry["node"]: entry for entry in json.loads(dumps(result.to_dict()))["choices"]}
    assert set(choices) >= {"lstm", "fc"}
    lstm = choices["lstm"]
    assert lstm["choice"].startswith("w8a8")  # w8a8 itself runs an LSTM as w8a8-dynamic does
    assert lstm["alternatives"]["w8a8-dynamic"]["time_us"] == 10.0
    assert lstm["alternatives"]["w8"]["time_us"] == 30.0
    assert lstm["alternatives"][lstm["choice"]]["sqnr_db"] > 20
    assert lstm["alternatives"]["float"]["sqnr_db"] is None
    assert all(entry["reason"] for entry in choices.values())


def test_the_table_of_candidates_is_in_json_and_summary(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 2.0, "w8a8-dynamic": 3.0, "w8a8-token": 3.0}
    result = auto("mlp")
    rows = json.loads(dumps(result.to_dict()))["candidates"]
    assert [row["latency_ratio"] for row in rows if row["latency_ratio"]] == sorted(
        (row["latency_ratio"] for row in rows if row["latency_ratio"]), reverse=True
    )
    for row in rows:
        keys = {"name", "latency_ratio", "latency_ms", "sqnr_db", "top1_agreement", "size_bytes", "verdict"}
        keys |= {"loss", "options", "recipe", "frontier"}
        assert set(row) == keys and row["verdict"]
    assert [row["verdict"] for row in rows].count("chosen") == 1
    text = result.summary()
    assert "against float" in text and "w8a8-dynamic" in text and "chosen" in text


def test_other_presets_have_no_such_tables() -> None:
    result = auto("mlp", preset="w8", benchmark=False)
    assert result.candidates == [] and result.choices == []


def test_the_same_times_give_the_same_plan(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0}  # all others take 1.0: ties
    first, second = auto("attention"), auto("attention")
    assert first.preset == second.preset
    assert first.choices == second.choices
    assert first.model is not None and second.model is not None
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_equal_forms_are_tried_once(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 2.0}
    model = build("g (float[N,16,12,12] x) => (float[N,32,10,10] y) { [c] y = Conv (x, w) }", w=weights(32, 16, 3, 3))
    rows = table(onnxq.quantize(model, calibration=drawn(2, 16, 12, 12), threads=1))
    assert "w8a8-dynamic" not in rows, "a convolution has no such form"
    assert all("w8a8-dynamic" not in asked for asked in times.asked)


@pytest.mark.parametrize(("ms", "granularity"), [(1.0, 1), (1.98, 192)], ids=["faster", "as fast"])
def test_one_scale_a_weight_is_taken_only_where_it_is_faster(ms: float, granularity: int, times: Times) -> None:
    times.models = dict.fromkeys(["float", "w8", "w8a8", "w8a8-token", "mixed"], 4.0)
    times.models |= {"w8a8-dynamic": 2.0, "w8a8-dynamic (per tensor)": ms}
    result = auto("lstm", min_sqnr=25.0)  # the weights are random: what such a network decides is no matter here
    assert result.preset == "w8a8-dynamic" and result.model is not None
    (node,) = [node for node in result.model.graph.node if node.op_type == "DynamicQuantizeLSTM"]
    sizes = {tensor.name: list(tensor.dims) for tensor in result.model.graph.initializer}
    assert np.prod(sizes[node.input[8]]) == granularity
    assert "w8a8-dynamic (per tensor)" in table(result)


def test_what_is_clearly_slower_is_compared_on_a_few_samples(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "mixed": 4.0, "w8a8-dynamic": 0.98, "w8a8-token": 2.0}
    asked, compare = [], comparing.Judge.compare

    def spy(judge: Any, sessions: Any, seconds: float, *, briefly: bool = False) -> Any:
        (found,) = compare(judge, sessions, seconds, briefly=briefly)
        asked.append((sessions[0].label, briefly, found.samples))
        return [found]

    monkeypatch.setattr(comparing.Judge, "compare", spy)
    result = onnxq.quantize(mlp(), calibration=drawn(1, 64, count=64), threads=1)
    assert result.preset in ("w8a8", "w8a8-dynamic")
    assert [(name, count) for name, briefly, count in asked if not briefly] == [("w8a8-dynamic", 64), ("w8a8", 64)]
    assert {name: count for name, briefly, count in asked if briefly} == {"w8a8-token": 8, "w8": 8}
    assert result.comparison is not None and result.comparison.samples == 64


def test_a_brief_comparison_is_made_whole_before_a_candidate_is_chosen(
    times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest fails its verification at the end; the next was only looked at briefly, and is outside on all."""
    times.models = {"float": 4.0, "w8": 3.0, "w8a8": 1.0, "mixed": 4.0, "w8a8-dynamic": 4.0, "w8a8-token": 4.0}

    def failures(self: object, comparison: Any) -> list[str]:
        return ["outside"] if comparison.samples == 40 and stage["verified"] else []

    def verify(content: Any, job: Any, *, timed: bool, compared: Any = None) -> Verdict:
        stage["verified"] = True
        return Verdict(failures=["broken"])

    stage = {"verified": False}
    monkeypatch.setattr(budget.Limits, "failures", failures)
    monkeypatch.setattr(gate, "verify", verify)
    result = onnxq.quantize(mlp(), calibration=drawn(1, 64, count=40), threads=1, cache=False)
    assert result.preset == "float"
    assert table(result)["w8a8"]["verdict"] == "broken" and "outside" in table(result)["w8"]["verdict"]


@pytest.mark.parametrize("lost", [0.001, 0.5])
def test_where_weights_alone_cost_too_much_only_float_is_tried(
    times: Times, monkeypatch: pytest.MonkeyPatch, lost: float
) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "mixed": 1.5, "w8a8-dynamic": 3.0, "w8a8-token": 3.0}
    monkeypatch.setattr(budget.Limits, "failures", lambda self, comparison: ["outside"])
    monkeypatch.setattr(trials.Trials, "loss", staticmethod(lambda trial: lost if trial.name == "w8" else 0.02))
    names = [row["name"] for row in auto("mlp", cache=False).candidates]
    tried = [name for name in names if "minmax" in name or "percentile" in name or "gentler" in name]
    assert bool(tried) == (lost < 0.01) and any("float)" in name for name in names)


@pytest.mark.parametrize(("here", "ms", "said"), [(False, 1.0, True), (False, 3.9, False), (True, 1.0, False)])
def test_a_line_says_what_pytorch_would_try(
    times: Times, monkeypatch: pytest.MonkeyPatch, here: bool, ms: float, said: bool
) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": ms, "mixed": ms, "w8a8-dynamic": 4.0, "w8a8-token": 4.0}
    monkeypatch.setattr(budget.Limits, "failures", lambda self, comparison: ["outside"])
    monkeypatch.setattr(learned_candidates, "has_torch", lambda: here)
    monkeypatch.setattr(learned_candidates, "learned", lambda recipe, seconds: None)
    monkeypatch.setattr("onnxq.search.auto.learned", lambda recipe, seconds: None)
    lines = [line for line in auto("mlp", cache=False).warnings if "onnxq[torch]" in line]
    assert bool(lines) == said and len(lines) <= 1


def test_equal_layers_are_timed_once_and_their_errors_are_found_when_needed(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 2.0, "w8a8-dynamic": 1.5, "w8a8-token": 1.6, "mixed": 1.8}
    loose = auto("attention", min_sqnr=0.0)
    rows = {row["node"]: row["alternatives"] for row in loose.choices}
    assert len(times.groups) < sum(bool(found) for found in rows.values())
    assert rows["q"]["w8a8"]["sqnr_db"] is not None and rows["k"]["w8a8"]["sqnr_db"] is None
    assert rows["q"]["w8a8"]["time_us"] == rows["k"]["w8a8"]["time_us"] == rows["v"]["w8a8"]["time_us"]
    times.models |= {"w8a8": 1.0, "mixed": 1.0, "w8a8-dynamic": 4.0, "w8a8-token": 4.0}
    tight = auto("attention", min_sqnr=60.0, cache=False)
    rows = {row["node"]: row["alternatives"] for row in tight.choices}
    assert all(rows[name]["w8a8"]["sqnr_db"] is not None for name in "qkv")


def test_without_time_the_first_form_ships_and_a_warning_says_so(times: Times) -> None:
    times.models = {"float": 4.0, "w8a8": 2.0}
    result = auto("mlp", budget=0.0)
    assert result.preset == "w8a8"
    assert set(table(result)) == {"w8a8", "float"}
    assert any(line.startswith("--budget: time limit of 0 s reached, w8 was not tried") for line in result.warnings)


def test_limits_are_kept_by_a_slower_form(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "w8a8-dynamic": 2.0, "w8a8-token": 2.0, "mixed": 1.5}
    times.kernels = {"float": 300.0, "w8": 300.0, "w8a8": 100.0, "w8a8-dynamic": 200.0, "w8a8-token": 200.0}
    loose = auto("convnet", min_sqnr=0.0)
    limit = (loose.sqnr_db or 0.0) + 0.5
    tight = auto("convnet", min_sqnr=limit)
    assert loose.preset == "w8a8"
    assert tight.preset == "mixed" and tight.sqnr_db is not None and tight.sqnr_db >= limit
    assert table(tight)["w8a8"]["verdict"] == f"SQNR is {loose.sqnr_db:.1f} dB and --min-sqnr asks for {limit:g}"
    moved = [entry for entry in tight.choices if "missed the accuracy budget" in entry["reason"]]
    assert moved and all(entry["choice"] != "w8a8" for entry in moved)
    assert any(entry["choice"] == "w8a8" for entry in tight.choices if entry["op_type"] in ("Conv", "Gemm"))


def test_a_limit_that_no_form_reaches_gives_float_back(times: Times) -> None:
    times.models = {"float": 4.0}
    result = auto("mlp", min_sqnr=500.0)
    assert result.preset == "float"
    rows = [row for row in result.candidates if row["latency_ratio"] and row["name"] not in ("float", "cleaned")]
    assert len(rows) >= 4 and all(row["verdict"].endswith("--min-sqnr asks for 500") for row in rows)


def test_nodes_the_user_insists_on_are_never_given_back_as_float(times: Times) -> None:
    times.models = {"float": 1.0, **dict.fromkeys(["w8", "w8a8", "w8a8-dynamic", "w8a8-token", "mixed"], 2.0)}
    result = auto("mlp", include=["mid"])
    assert result.preset != "float"
    assert any("slower than float" in line for line in result.warnings)
    with pytest.raises(VerificationError, match="--min-sqnr asks for 500"):
        auto("mlp", include=["mid"], min_sqnr=500.0)


def test_excluded_nodes_stay_float_in_every_candidate(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "w8a8-dynamic": 0.5}
    times.kernels = {"float": 30.0, "w8": 30.0, "w8a8": 20.0, "w8a8-dynamic": 10.0, "w8a8-token": 10.0}
    result = auto("mlp", exclude=["mid"])
    assert result.preset == "w8a8-dynamic"
    assert result.plan.nodes["mid"].action == "float"
    (entry,) = [entry for entry in result.choices if entry["node"] == "mid"]
    assert entry["choice"] == "float" and "--exclude" in entry["reason"]
    assert result.model is not None
    names = {initializer.name for initializer in result.model.graph.initializer}
    assert "w2" in names and "w1" not in names


def test_rules_of_the_user_win(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "mixed": 0.5}
    times.kernels = {"float": 30.0, "w8": 30.0, "w8a8": 20.0, "w8a8-dynamic": 10.0, "w8a8-token": 12.0}
    result = auto("mlp", recipe=Recipe(rules=(Rule("mid", preset="w8"),)))
    choices = {entry["node"]: entry["choice"] for entry in result.choices}
    assert choices["mid"] == "w8" and choices["up"] != "w8"


def test_a_form_that_fails_does_not_take_the_others_with_it(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.pipeline.build import build as real

    def failing(job: Job) -> Any:
        if job.recipe.preset == "w8a8-token":
            raise ZeroDivisionError("no luck")
        return real(job)

    monkeypatch.setattr(bases, "build", failing)
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "w8a8-dynamic": 2.0}
    result = auto("mlp")
    assert result.preset == "w8a8"
    assert table(result)["w8a8-token"]["verdict"] == "failed: ZeroDivisionError: no luck"
    assert any("internal error" in line for line in result.warnings)


def test_the_model_that_was_measured_is_the_one_that_is_written(times: Times, tmp_path: Path, monkeypatch: Any) -> None:
    from onnxq.pipeline import gate

    seen: list[bytes] = []
    real = gate.verify

    def watching(content: bytes, *rest: Any, **options: Any) -> Any:
        seen.append(content)
        return real(content, *rest, **options)

    monkeypatch.setattr(gate, "verify", watching)
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "w8a8-dynamic": 2.0, "w8a8-token": 2.0}
    result = auto("mlp", output=tmp_path / "out.onnx")
    assert result.output is not None and [result.output.read_bytes()] == seen


def test_without_measurements_the_preset_is_that_of_the_table() -> None:
    assert auto("mlp", benchmark=False).preset == "w8a8"
    assert auto("mlp", data=False, benchmark=False).preset == "w8"


def test_without_a_sample_that_fits_nothing_is_measured(times: Times) -> None:
    """Two inputs whose lengths have to differ."""
    text = (
        "g (float[N] x, float[M] z) => (float[1,8] y) { [r] a = Reshape (x, shape) [s] b = Reshape (z, other)"
        " [m] c = MatMul (a, w) [n] d = MatMul (b, v) [p] y = Add (c, d) }"
    )
    shapes = {"shape": np.array([1, 300], np.int64), "other": np.array([1, 301], np.int64)}
    model = build(text, **shapes, w=weights(300, 8), v=weights(301, 8))
    result = onnxq.quantize(model, threads=1)
    assert result.preset == "w8" and result.latency_ratio is None
    assert any("nothing was measured" in line for line in result.warnings)
    assert times.asked == []


def test_saved_statistics_stand_for_calibration(times: Times, tmp_path: Path) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "w8a8-dynamic": 2.0, "w8a8-token": 2.0, "mixed": 2.0}
    onnxq.calibrate(mlp(), tmp_path / "s.npz", calibration=drawn(4, 64), threads=1)
    result = onnxq.quantize(mlp(), statistics=tmp_path / "s.npz", threads=1)
    assert result.preset == "w8a8"
    assert not any("no calibration data" in line for line in result.warnings)


def test_the_format_that_was_asked_for_is_kept(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "w8a8-dynamic": 2.0}
    result = auto("convnet", format="qoperator")
    assert result.preset == "w8a8" and result.format == "qoperator"
    assert result.model is not None and "QLinearConv" in {node.op_type for node in result.model.graph.node}


def test_a_mixed_plan_may_need_ranges_that_no_other_needed(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table leaves a depthwise layer float, so that its input has no range; measured, it is faster in integers."""
    runs: list[int] = []
    real = bases.complete
    monkeypatch.setattr(bases, "complete", lambda *given: (runs.append(1), real(*given)))
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 2.0, "mixed": 1.0}
    times.kernels = {"float": 300.0, "w8": 300.0, "w8a8": 100.0}
    text = """g (float[N,64,12,12] x) => (float[N,32,6,6] y) {
        [stem] a = Conv <group = 64> (x, w1) [body] y = Conv (a, w2) }"""
    model = build(text, w1=weights(64, 1, 5, 5), w2=weights(32, 64, 3, 3))
    feeds = drawn(1, 64, 12, 12)
    named = onnxq.quantize(model, calibration=feeds, preset="w8a8", benchmark=False, threads=1)
    assert named.plan.nodes["stem"].action == "storage"
    result = onnxq.quantize(model, calibration=feeds, threads=1)
    assert result.preset == "mixed" and result.plan.nodes["stem"].action == "integer"
    assert runs == [1]
    assert result.sqnr_db is not None and result.sqnr_db > 30


@pytest.mark.parametrize("seed", range(12))
def test_what_is_written_is_what_the_table_calls_chosen(
    times: Times, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    """Whatever is fast and whatever is refused: one row is chosen, it is inside the budget, and it is the file."""
    draw = np.random.default_rng(seed)
    names = ["w8", "w8a8", "w8a8-dynamic", "w8a8-token", "mixed"]
    times.models = {"float": 4.0, **{name: float(draw.uniform(1.0, 6.0)) for name in names}}
    times.kernels = {name: float(draw.uniform(5.0, 30.0)) for name in ["float", *names]}
    share = float(draw.uniform(0.0, 1.0))
    times.load = lambda: float(draw.uniform(0.2, 5.0))  # of the machine: another one in each alternation

    def failures(self: object, comparison: Any) -> list[str]:
        decibels = np.random.default_rng(int(1000 * min(comparison.sqnr_db or 0.0, 999.0)) + seed)
        return [] if decibels.uniform() < share else ["outside"]

    monkeypatch.setattr(budget.Limits, "failures", failures)
    output = tmp_path / "out.onnx"
    result = auto("mlp" if seed % 2 else "convnet", output=output)
    (row,) = [row for row in result.candidates if row["verdict"] == "chosen"]
    assert row["name"].split(" ")[0] == result.preset
    assert output.stat().st_size == row["size_bytes"] == result.size_after
    shown = result.latency_ms["float"] / result.latency_ms["quantized"]
    assert (
        row["latency_ratio"] == pytest.approx(shown, rel=1e-3) == pytest.approx(result.latency_ratio or 0.0, rel=1e-3)
    )
    assert table(result)["float"]["latency_ms"] == result.latency_ms["float"]
    if result.preset != "float":
        assert result.comparison is not None and failures(None, result.comparison) == []


def test_float_cleaned_up_is_taken_before_a_search_and_remembered(
    times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failures(self: object, comparison: Any) -> list[str]:
        return [] if (comparison.sqnr_db or 0.0) > 90.0 else ["outside"]

    monkeypatch.setattr(budget.Limits, "failures", failures)
    times.models = {"float": 4.0, "w8a8": 3.9, "mixed": 3.9, "cleaned": 2.0}
    first = auto("convnet")
    assert first.preset == "cleaned" and first.coverage.get("integer", 0) == 0
    (row,) = (row for row in first.candidates if row["name"] == "cleaned")
    assert (row["options"], row["recipe"]) == ("-p float", None)
    searched = [row["name"] for row in first.candidates if "(" in row["name"]]
    assert all("of float weights" in name or name == "w8 (gptq)" for name in searched), (
        "nothing slower is worth a search, but for its size"
    )
    asked = len(times.asked)
    second = auto("convnet")
    assert second.preset == "cleaned" and choice_cache.REUSED in second.warnings and len(times.asked) == asked
    assert first.model is not None and second.model is not None
    assert first.model.SerializeToString() == second.model.SerializeToString()


OFFSET = """g (float[N,64] x) => (float[N,6] y) {
    [up] a = MatMul (x, w1) [far] b = Add (a, far_away) [down] c = MatMul (b, w2) [act] d = Tanh (c)
    [out] y = MatMul (d, w3) }"""


def offset() -> onnx.ModelProto:
    """A large common offset that cancels in the next layer: 8 bits leave nearly nothing of what stands on it."""
    down = weights(128, 64)
    down -= down.mean(axis=0)
    return build(OFFSET, w1=weights(64, 128), far_away=np.full(128, 3000, np.float32), w2=down, w3=weights(64, 6))


@pytest.mark.parametrize("fast", ["w8a8", "w8a8-dynamic", "w8a8-token", "mixed"])
@pytest.mark.parametrize(
    "options", [{}, {"min_sqnr": 25.0}, {"max_drop": 2.0}], ids=lambda given: next(iter(given), "")
)
@pytest.mark.parametrize("make", [offset, mlp], ids=["offset", "mlp"])
def test_what_is_given_is_what_the_table_calls_chosen_and_is_inside_the_budget(
    make: Callable[[], onnx.ModelProto], options: dict[str, float], fast: str, times: Times
) -> None:
    times.models = {"float": 4.0, "w8": 4.0, fast: 1.0, **{name: 3.0 for name in NAMES if name != fast}}
    result = onnxq.quantize(make(), calibration=drawn(32, 64), threads=1, **options)
    chosen = [row for row in result.candidates if row["verdict"] == "chosen"]
    assert len(chosen) == 1
    assert chosen[0]["name"].partition(" ")[0] == result.preset
    if result.preset == "float":
        assert any("returning the float model unchanged" in line for line in result.warnings)
        return
    assert result.comparison is not None
    if not options:
        assert not result.comparison.outside()
    assert (result.comparison.sqnr_db or 0.0) >= options.get("min_sqnr", -np.inf)
    refused = {row["name"] for row in result.candidates if "the budget is" in row["verdict"]}
    assert result.preset not in refused


SPECTRUM = """g (float[N,1,1,1280] x) => (float[N,16,1,17] y) {
    [bands] a = Conv <strides = [1,64]> (x, filters) [square] b = Mul (a, a) [floor] c = Add (b, least)
    [log] d = Log (c) [tenth] e = Mul (d, tenth) [first] f = Conv <pads = [0,1,0,1]> (e, w1) [relu] r = Relu (f)
    [second] h = Conv <pads = [0,1,0,1]> (r, w2) [third] y = Conv <pads = [0,1,0,1]> (h, w3) }"""


def spectrum() -> onnx.ModelProto:
    """Filters in front of a logarithm: they are as fast in float, and 8 bits of theirs hide what is quiet."""
    turns = np.linspace(8, 120, 32)[:, None] * np.arange(256) / 256
    filters = (np.hanning(256) ** 2 * np.sin(2 * np.pi * turns)).astype(np.float32)[:, None, None]
    layers = {"w1": weights(64, 32, 1, 3), "w2": weights(64, 64, 1, 3), "w3": weights(16, 64, 1, 3)}
    return build(SPECTRUM, filters=filters, least=np.float32(1e-8), tenth=np.float32(0.1), **layers)


def tones(count: int = 12) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    time = np.arange(1280) / 256
    found = []
    for _ in range(count):
        pitches, loudness = generator.uniform(8, 120, (3, 1)), generator.uniform(0.1, 1, (3, 1))
        sound = (loudness * np.sin(2 * np.pi * pitches * time)).sum(axis=0) + 1e-4 * generator.normal(size=1280)
        found.append({"x": sound.astype(np.float32)[None, None, None]})
    return found


def test_stored_weights_become_float_again_where_they_are_what_costs_accuracy(times: Times) -> None:
    times.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "mixed": 1.0}
    result = onnxq.quantize(spectrum(), calibration=tones(), threads=1, min_sqnr=25.0, cache=False)
    rows = {row["name"]: row for row in result.candidates}
    (name,) = [name for name in rows if name.endswith("1 float weights)")]
    assert rows[name]["verdict"] == "chosen"
    assert rows[name]["sqnr_db"] > rows["w8a8"]["sqnr_db"] + 10
    forms = {choice["node"]: choice for choice in result.choices}
    assert forms["bands"]["choice"] == "float" and "its weight costs accuracy" in forms["bands"]["reason"]
    assert {forms[node]["choice"] for node in ("first", "second", "third")} == {"w8a8"}


NAMES = ("w8a8", "w8a8-dynamic", "w8a8-token", "mixed")
