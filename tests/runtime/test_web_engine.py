"""onnxruntime-web in Node, and in a browser: the numbers are those of ONNX Runtime here."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.errors import EngineError
from onnxq.runtime.engines.places import RunsOn
from onnxq.runtime.session import open_session
from tests.graph.build import build

WEB = RunsOn(engine="web")


@pytest.mark.parametrize("named", [None, "empty"])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str | None) -> None:
    monkeypatch.delenv("ONNXQ_NODE_MODULES", raising=False)
    node = tmp_path / "bin" / "node"
    node.parent.mkdir()
    node.write_text("#!/bin/sh\nexit 1\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", str(node.parent))
    said = "name its node_modules with --node-modules" if named is None else "it is not in .*empty; npm install"
    with pytest.raises(EngineError, match=said):
        RunsOn(engine="web", node_modules=None if named is None else tmp_path / named).open()
    node.unlink()
    with pytest.raises(EngineError, match="no program 'node' on the PATH"):
        WEB.open()


def test_a_folder_that_only_looks_right(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    (tmp_path / "onnxruntime-web").mkdir()
    (tmp_path / "onnxruntime-web" / "package.json").write_text("{}")
    with pytest.raises(EngineError, match="onnxruntime-web: Cannot find module"):
        RunsOn(engine="web", node_modules=tmp_path).open()


@pytest.mark.web
def test_types_go_to_node_and_back() -> None:
    kinds = ["float", "int64", "int32", "uint8", "int8", "bool", "float16", "double"]
    names = ["float32", "int64", "int32", "uint8", "int8", "bool", "float16", "float64"]
    inputs = ", ".join(f"{kind}[n] x{i}" for i, kind in enumerate(kinds))
    outputs = ", ".join(f"{kind}[n] y{i}" for i, kind in enumerate(kinds))
    body = " ".join(f"y{i} = Identity (x{i})" for i in range(len(kinds)))
    content = build(f"g ({inputs}) => ({outputs}) {{ {body} }}").SerializeToString()
    feed = {f"x{i}": np.array([0, 1, 3, 0, 1], np.int8).astype(name) for i, name in enumerate(names)}
    engine = WEB.open()
    try:
        (got,) = engine.run(content, [feed])
        assert engine.refused(content) == []
        assert engine.about().provider == "wasm"
        with pytest.raises(EngineError, match="onnxruntime-web: "):
            engine.run(b"no model", [feed])
        assert len(engine.run(content, [feed])[0]) == len(kinds)
    finally:
        engine.close()
    for array, want in zip(got, feed.values(), strict=True):
        np.testing.assert_array_equal(array, want)
        assert array.dtype == want.dtype


@pytest.mark.web
def test_float32_samples_are_rounded_for_a_halved_model_as_here() -> None:
    content = build("g (float16[n] x) => (float16[n] y) { y = Identity (x) }").SerializeToString()
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, 65504, 65520, 65519.9, 6e-8, 2.9e-8, 3e-8, 6.1e-5, 1e-10, 2049, 2051]
    x = np.concatenate([np.float32(special), rng.standard_normal(500), rng.standard_normal(500) * 1e-5])
    feed = {"x": x.astype(np.float32)}
    engine = WEB.open()
    try:
        ((got,),) = engine.run(content, [feed])
    finally:
        engine.close()
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, feed["x"].astype(np.float16))


@pytest.mark.web
def test_auto_for_the_web_is_measured_in_node(root: Path, tmp_path: Path) -> None:
    model = root / "models" / "text_encoder.onnx"
    result = onnxq.quantize(model, tmp_path / "q.onnx", target="web", seconds=0.05, budget=10)
    assert result.engine is not None
    assert result.engine["engine"].startswith("wasm on Node")
    assert len([row for row in result.candidates if row["latency_ratio"] is not None]) >= 2
    assert any("shows no times of single kernels" in line for line in result.warnings)
    assert not any(row["name"].startswith("mixed") for row in result.candidates)
    comparison = onnxq.compare(
        tmp_path / "q.onnx", tmp_path / "q.onnx", data=root / "models" / "text_encoder.test.npz", runs_on=WEB
    )
    assert comparison.sqnr_db is not None
    assert comparison.sqnr_db > 25


PAGE = """<!doctype html><title>waits</title><pre id="out"></pre>
<script type="module">
import * as ort from '/onnxruntime-web/dist/ort.wasm.bundle.min.mjs';
try {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = '/onnxruntime-web/dist/';
  const session = await ort.InferenceSession.create('/model.onnx', { executionProviders: ['wasm'] });
  const data = new Float32Array(await (await fetch('/x.bin')).arrayBuffer());
  const { logits } = await session.run({ image: new ort.Tensor('float32', data, [1, 1, 16, 16]) });
  document.getElementById('out').textContent = 'logits ' + Array.from(logits.data).join(' ');
} catch (error) {
  document.getElementById('out').textContent = 'failed ' + error;
}
</script>"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that a server on loopback shows, with onnxruntime-web in it."""
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "onnxruntime-web").symlink_to(Path(os.environ["ONNXQ_NODE_MODULES"]).resolve() / "onnxruntime-web")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    Quiet.extensions_map = {**Quiet.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.web
@pytest.mark.parametrize("preset", ["w8a8", "fp16"])
def test_a_page_in_chromium_gives_the_same_numbers(
    served: tuple[Path, str], root: Path, tmp_path: Path, preset: str
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    folder, address = served
    model = root / "models" / "digits_resnet.onnx"
    onnxq.quantize(model, folder / "model.onnx", preset=preset, target="web", benchmark=False)
    with np.load(root / "models" / "digits_resnet.test.npz") as data:
        image = data["image"][:1].astype(np.float32)
    (folder / "x.bin").write_bytes(image.tobytes())
    (folder / "index.html").write_text(PAGE)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=30000 --timeout=60000"
    )
    command = [
        chromium,
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"{address}/index.html",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    line = shown.partition('<pre id="out">')[2].partition("</pre>")[0]
    assert line.startswith("logits "), line or shown
    found = np.array(line.split()[1:], float)
    expected = open_session(folder / "model.onnx").run({"image": image})[0][0]
    np.testing.assert_allclose(found, expected, atol=0.02 * float(np.abs(expected).max()) + 0.02)
