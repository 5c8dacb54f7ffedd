"""Small models, as text."""

from __future__ import annotations

import onnx.parser
import pytest

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'


@pytest.fixture
def content():
    """The bytes of the model that a text describes."""
    return lambda text: onnx.parser.parse_model(HEADER + text).SerializeToString()
