"""The page of a result: one file, readable without scripts or network, with every name escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import onnxq
from onnxq.cli._app import app
from onnxq.cli._json import dumps
from onnxq.errors import MissingExtraError, RecipeError, VerificationError
from onnxq.report.html.page import LARGEST, page_of_file, result_page
from onnxq.report.html.parts import samples
from onnxq.report.html.verdict import CHECK, GOOD, verdict
from onnxq.report.results import QuantizeResult
from onnxq.verify.kinds.side_by_side import picture_of
from tests.graph.build import build, weights

pytestmark = pytest.mark.report
EVIL = "<script>alert('x')</script>"
TEXT = """g (float[N,3,16,16] x) => (float[N,10] y) {
    [stem] a = Conv <pads = [1,1,1,1]> (x, w1) [relu] b = Relu (a) [body] c = Conv <pads = [1,1,1,1]> (b, w2)
    [act] t = Tanh (c) [pool] d = GlobalAveragePool (t) e = Flatten (d) [fc] f = Gemm (e, w3) y = Softmax (f) }"""


def model() -> Any:
    made = build(TEXT, w1=weights(32, 3, 3, 3), w2=weights(64, 32, 3, 3, low=-0.1, high=0.1), w3=weights(64, 10))
    for node in made.graph.node:
        if node.name == "body":
            node.name = EVIL
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizeResult, Path]:
    folder = tmp_path_factory.mktemp("page")
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 3, 16, 16)).astype(np.float32)} for i in range(6)]
    page = folder / "page.html"
    result = onnxq.quantize(
        model(), folder / "out.onnx", calibration=feeds, preset="w8a8", seconds=0.02, threads=1, report=page,
        op_types=["Conv", "Gemm"],
    )  # fmt: skip
    return result, page


def test_the_page_needs_nothing_but_itself(made: tuple[QuantizeResult, Path]) -> None:
    result, path = made
    page = path.read_text(encoding="utf-8")
    assert result.report == path and len(page.encode()) < LARGEST
    assert "<script" not in page and "javascript:" not in page and " onload" not in page
    linked = re.findall(r"""(?:href|src|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert linked and all(link.startswith(("data:", "#")) for link in linked)
    assert "prefers-color-scheme:dark" in page and "@media print" in page


def test_names_of_the_model_are_escaped(made: tuple[QuantizeResult, Path]) -> None:
    page = made[1].read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_it_shows_what_the_result_has(made: tuple[QuantizeResult, Path]) -> None:
    result, path = made
    page, evidence = path.read_text(encoding="utf-8"), result.evidence
    assert evidence is not None and evidence["missing"] == []
    assert [row["value"] for row in evidence["layers"]][:1] == ["b"]
    assert any(row["culprit"] for row in evidence["layers"])
    assert len(evidence["outputs"]) == 4
    assert evidence["outputs"][0]["outputs"][0]["form"] == "scores"
    for heading in ("Side by side", "Error by layer", "Activations that lose most", "Weights that lose most"):
        assert f"<h2>{heading}</h2>" in page
    assert "onnxq quantize MODEL" in page and "--op-type Conv" in page
    assert f"{result.size_before / result.size_after:.2f}x smaller" in page
    for reason in {reason for _, _, reason in result.kept_float}:
        assert reason.partition(": about ")[0].split("'")[0].split("<")[0] in page


def test_every_picture_has_a_text(made: tuple[QuantizeResult, Path]) -> None:
    page = made[1].read_text(encoding="utf-8")
    plots = re.findall(r"<svg class=\"plot.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) >= 4
    assert all(re.search(r"<title id=\"\w+\">[^<]+</title><desc id=\"\w+\">[^<]+</desc>", plot) for plot in plots)
    assert all("var(--" in plot and "#0102" not in plot for plot in plots)
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img [^>]*>", page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_histograms_count_what_was_run(made: tuple[QuantizeResult, Path]) -> None:
    evidence = made[0].evidence
    assert evidence is not None
    for row in evidence["activations"]:
        assert sum(row["counts"]) > 0
        assert row["edges"][0] <= min(row["low"], row["seen_low"])
        assert row["edges"][1] >= max(row["high"], row["seen_high"])
    body = next(row for row in evidence["weights"] if row["node"] == EVIL)
    assert sum(body["float"]) == sum(body["quantized"]) == 64 * 32 * 9
    assert body["sqnr_db"] > 30


def test_the_saved_json_gives_the_same_page(made: tuple[QuantizeResult, Path], tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    saved.write_text(dumps(made[0].to_dict()), encoding="utf-8")
    assert page_of_file(saved) == made[1].read_text(encoding="utf-8")
    done = CliRunner().invoke(app, ["report", str(saved), "--json"], standalone_mode=False)
    assert not done.exception
    assert json.loads(done.output)["output"] == str(saved.with_suffix(".html"))
    with pytest.raises(onnxq.OnnxqError, match="is an input of this run"):
        onnxq.report(saved, saved)
    assert "Error by layer" in saved.with_suffix(".html").read_text(encoding="utf-8")


def test_a_result_without_evidence_has_a_page_too() -> None:
    result = onnxq.quantize(model(), preset="w8", benchmark=False, threads=1)
    page = result_page(result.to_dict())
    assert "Not in this report" in page and "--report" in page and "not measured" in page


def test_texts_are_compared_symbol_by_symbol() -> None:
    sample = {"sample": 0, "input": {"name": "x", "picture": picture_of(np.zeros((24, 240, 1)), 0.0, 1.0)}}
    shown = {"output": "y", "form": "symbols", "float": [5, 6, 7, 8], "quantized": [5, 7, 8], "differs": 0.1}
    (entry,) = samples({"outputs": [{**sample, "outputs": [shown]}]}, 4)
    assert entry["long"]
    marks = entry["outputs"][0]["marks"]
    assert marks == {"float": [False, True, False, False], "quantized": [False, False, False]}


def test_candidates_are_drawn_and_have_commands(made: tuple[QuantizeResult, Path]) -> None:
    rows = [
        {"name": name, "latency_ratio": ratio, "latency_ms": 1.0, "sqnr_db": sqnr, "top1_agreement": 1.0, "loss": loss,
         "size_bytes": size, "verdict": verdict_of, "options": options, "recipe": recipe, "frontier": name != "w8"}
        for name, ratio, sqnr, loss, size, verdict_of, options, recipe in [
            ("mixed", 2.5, 40.0, 0.001, 100, "chosen", "--recipe FILE", "preset: w8a8\n"),
            ("w8", 1.1, 44.0, 0.0005, 120, "not the best", "-p w8", None),
            ("float", 1.0, float("inf"), 0.0, 400, "not the best", None, None),
            ("w4", None, None, None, None, "does not run: <b>", None, None),
        ]
    ]  # fmt: skip
    page = result_page(made[0].to_dict() | {"candidates": rows})
    assert "Speed over quality" in page and "float (exact)" in page
    assert "--recipe mixed.yaml" in page and "<pre>preset: w8a8\n</pre>" in page
    assert "does not run: &lt;b&gt;" in page


def test_a_search_is_drawn_and_folded(made: tuple[QuantizeResult, Path]) -> None:
    trail = [
        {"tried": f"step {i} <i>", "kept": i in (0, 3), "drop": None, "sqnr_db": 20.0 + i, "estimated_us": 100.0 + i,
         "seconds": 0.1, "verdict": "inside the limit, chosen" if i == 3 else "no better"}
        for i in range(20)
    ]  # fmt: skip
    page = result_page(made[0].to_dict() | {"trail": trail, "recipe": "preset: w8a8\n"})
    assert "all 20 steps" in page and "step 19 &lt;i&gt;" in page and "<title" in page
    assert "times as fast as the first, estimated" in page


def test_the_verdict_is_a_sentence(made: tuple[QuantizeResult, Path]) -> None:
    result = made[0].to_dict() | {
        "latency_ms": {"float": 4.0, "quantized": 2.0},
        "size_bytes": {"before": 400, "after": 100},
        "accuracy": None,
        "loss": 0.004,
    }
    state, sentence = verdict(result)
    assert state == GOOD
    assert sentence == (
        "The quantized model is 2.00x faster and 4.00x smaller than float, and 0.4 % of its decisions are expected to "
        "change, within the 1.0 % that counts as equal."
    )
    assert verdict(result | {"loss": 0.2})[0] == CHECK
    assert verdict(result | {"latency_ms": {"float": 1.0, "quantized": 2.0}})[0] == CHECK
    assert "not measured on real samples" in verdict(result | {"outputs": {}})[1]
    assert verdict(result | {"preset": "float"})[1].startswith("No quantized candidate")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "no result of a quantization"),
        ('{"models": []}', "no result of a quantization"),
        ('{"error": {"type": "ModelError", "message": "m", "exit_code": 1}}', "the error of a run that failed"),
        (
            '{"preset": 1, "format": 1, "size_bytes": 3, "coverage": [], "kept_float": 0, "sqnr_db": 1, "warnings": 5}',
            "no result of this version",
        ),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=said):
        onnxq.report(path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_report_goes_over_no_file_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--report .*: is the quantized model itself"):
        onnxq.quantize(model(), tmp_path / "a", preset="w8", report=tmp_path / "a")
    with pytest.raises(RecipeError, match="cannot be read"):
        onnxq.report(tmp_path / "none.json", tmp_path / "r.html")


def test_a_missing_library_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "jinja2" else found(name, *rest)
    )
    with pytest.raises(
        MissingExtraError, match=r"--report: .* and jinja2 cannot be found; pip install 'onnxq\[report\]'"
    ):
        onnxq.quantize(tmp_path / "missing.onnx", report=tmp_path / "r.html")


def test_a_refused_model_has_a_page_and_no_file(tmp_path: Path) -> None:
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32)} for i in range(4)]
    output, page = tmp_path / "out.onnx", tmp_path / "page.html"
    plain = build("g (float[N,64] x) => (float[N,64] y) { [fc] y = Gemm (x, w) }", w=weights(64, 64))
    recipe = {"preset": "w8a8", "values": [{"match": "x", "scale": 1e3, "zero_point": 128}], "bias_correct": False}

    def quantize(**more: Any) -> QuantizeResult:
        return onnxq.quantize(
            plain, output, calibration=feeds, recipe=recipe, benchmark=False, threads=1, report=page, include=["fc"],
            **more,
        )  # fmt: skip

    with pytest.raises(VerificationError, match=r"no model was written, .*page\.html has the figures: SQNR is"):
        quantize()
    assert list(tmp_path.iterdir()) == [page]
    text = page.read_text(encoding="utf-8")
    assert "The quantized model was refused and not written: SQNR is" in text and "error by layer" in text.lower()
    assert quantize(force=True).refused == [] and output.is_file()
    assert "was refused" not in page.read_text(encoding="utf-8")
