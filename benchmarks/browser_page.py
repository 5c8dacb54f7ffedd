"""A page in headless Chromium that runs and times models with onnxruntime-web, and posts what it found."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feeds import Feed

LIMIT = 300.0
"""Seconds that a page may take beyond the time of measuring."""

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)

_PAGE = """<!doctype html><title>onnxruntime-web</title><script type="module">
import * as ort from '/onnxruntime-web/dist/ort.wasm.bundle.min.mjs';
const kinds = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array,
                uint8: Uint8Array, bool: Uint8Array };
const bytes = async path => (await fetch(path)).arrayBuffer();
async function measured() {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = '/onnxruntime-web/dist/';
  const { models, feeds: described, seconds } = await (await fetch('/task.json')).json();
  const feeds = [];
  for (const inputs of described) {
    const feed = {};
    for (const [name, { type, shape, file }] of Object.entries(inputs))
      feed[name] = new ort.Tensor(type, new kinds[type](await bytes(file)), shape);
    feeds.push(feed);
  }
  const sessions = [], outputs = [];
  for (const model of models) {
    const session = await ort.InferenceSession.create(model, { executionProviders: ['wasm'] });
    const found = [];
    for (const feed of feeds) {
      const results = await session.run(feed);
      found.push(session.outputNames.map(name => Array.from(results[name].data, Number)));
    }
    sessions.push(session);
    outputs.push(found);
  }
  for (const session of sessions) {  // compiled quickly first, and well once it has run for a while
    const warm = performance.now() + 300 * seconds;
    do await session.run(feeds[0]); while (performance.now() < warm);
  }
  const ms = sessions.map(() => []);
  const end = performance.now() + 1000 * seconds * sessions.length;
  for (let turn = 0; turn < 3 || performance.now() < end; turn++)
    for (const [i, session] of sessions.entries()) {
      const started = performance.now();
      await session.run(feeds[turn % feeds.length]);
      ms[i].push(performance.now() - started);
    }
  return { outputs, ms };
}
let said;
try { said = await measured(); } catch (error) { said = { error: String(error) }; }
await fetch('/found', { method: 'POST', body: JSON.stringify(said) });
</script>"""


@dataclass(frozen=True)
class Page:
    """What a page found.

    Attributes:
        version: of the browser.
        outputs: by model, for each feed its outputs, flat.
        ms: by model, the time of each run.
    """

    version: str
    outputs: dict[str, list[list[list[float]]]]
    ms: dict[str, list[float]]


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, found: dict[str, Any], done: threading.Event, **kwargs: Any) -> None:
        self._found, self._done = found, done
        super().__init__(*args, **kwargs)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        # A page by itself alone gets a clock of 5 µs instead of 100.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def do_POST(self) -> None:
        self._found.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self._done.set()


def in_chromium(chromium: str, modules: Path, paths: Mapping[str, Path], feeds: Sequence[Feed], seconds: float) -> Page:
    """Run models in a page, and time them in turns.

    Args:
        chromium: the program.
        modules: folder with onnxruntime-web.
        paths: models by name.
        feeds: what they are run on.
        seconds: to time each model for.

    Raises:
        RuntimeError: the page failed, or did not answer.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "page"
        folder.mkdir()
        (folder / "onnxruntime-web").symlink_to(modules / "onnxruntime-web")
        _write(folder, paths, feeds, seconds)
        found: dict[str, Any] = {}
        done = threading.Event()
        _Handler.extensions_map |= {".mjs": "text/javascript", ".wasm": "application/wasm"}
        handler = functools.partial(_Handler, directory=str(folder), found=found, done=done)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            command = [chromium, *_FLAGS.split(), f"--user-data-dir={place}/profile"]
            address = f"http://127.0.0.1:{server.server_address[1]}/index.html"
            with subprocess.Popen([*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
                done.wait(LIMIT + 2 * seconds * len(paths))
                browser.terminate()
            server.shutdown()
    if "outputs" not in found:
        raise RuntimeError(f"chromium: {found.get('error', 'the page did not answer')}")
    version = subprocess.run([chromium, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    outputs, ms = (dict(zip(paths, found[key], strict=True)) for key in ("outputs", "ms"))
    return Page(version, outputs, ms)


def _write(folder: Path, paths: Mapping[str, Path], feeds: Sequence[Feed], seconds: float) -> None:
    for i, path in enumerate(paths.values()):
        (folder / f"{i}.onnx").symlink_to(path.resolve())
    described = []
    for i, feed in enumerate(feeds):
        inputs = {}
        for j, (name, array) in enumerate(feed.items()):
            file = f"{i}.{j}.bin"
            (folder / file).write_bytes(np.ascontiguousarray(array).tobytes())
            inputs[name] = {"type": str(array.dtype), "shape": list(array.shape), "file": f"/{file}"}
        described.append(inputs)
    task = {"models": [f"/{i}.onnx" for i in range(len(paths))], "feeds": described, "seconds": seconds}
    (folder / "task.json").write_text(json.dumps(task), "utf8")
    (folder / "index.html").write_text(_PAGE, "utf8")
