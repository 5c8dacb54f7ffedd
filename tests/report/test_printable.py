"""No name of a model reaches a terminal as anything but text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxq.report.printable import printable
from onnxq.report.result_tables import Table
from tests.graph.build import build, weights

BAD = "a\x1b[31mb\nc\r\x07\x9b\u202e\x00d".replace("\x00", "\x01")


def test_control_characters_are_escaped() -> None:
    assert printable(BAD) == "a\\x1b[31mb\\nc\\r\\x07\\x9b\\u202e\\x01d"
    assert printable("a\nb\x1b", lines=True) == "a\nb\\x1b"
    assert printable("Größe/層.1 [x]") == "Größe/層.1 [x]"


def test_a_name_with_a_line_break_is_one_row() -> None:
    assert Table(("name",), [(BAD,), ("x",)]).text().count("\n") == 2


@pytest.mark.parametrize("command", ["inspect", "quantize"])
def test_names_of_a_model_are_shown_escaped(command: str, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from onnxq.cli._app import app

    model = build("g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }", w=weights(64, 64))
    model.graph.node[0].name = BAD
    model.graph.node[0].input[1] = model.graph.initializer[0].name = f"w{BAD}"
    onnx.save(model, tmp_path / "m.onnx")
    more: list[Any] = ["-p", "w8", "--no-benchmark"] if command == "quantize" else []
    done = CliRunner().invoke(app, [command, str(tmp_path / "m.onnx"), "--verbose", *more])
    assert done.exit_code == (0 if command == "inspect" else done.exit_code)
    assert not any(ord(character) < 32 and character != "\n" for character in done.output)
    assert "\u202e" not in done.output
    assert command != "inspect" or "a\\x1b[31mb\\nc" in done.output
