"""What the command line makes of --smooth and --outliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnxq.errors import OnnxqError
from tests.cli.conftest import FakeApi


@pytest.mark.parametrize(("given", "wanted"), [("0.5", 0.5), ("1", 1.0), ("auto", "auto"), ("most", "most")])
def test_alpha_is_a_number_or_a_word(
    fake_api: FakeApi, run: Callable[..., object], tmp_path: Path, given: str, wanted: object
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    fake_api.answer = OnnxqError("stopped")
    run("quantize", str(tmp_path / "m.onnx"), "--smooth", given, "--outliers", "7")
    ((_, _, options),) = fake_api.calls
    assert options["smooth"] == wanted
    assert options["outliers"] == 7.0
