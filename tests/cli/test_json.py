"""Whatever a result holds becomes strict JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.cli._json import dumps


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (np.float32("nan"), None),
        (np.float32(0.5), 0.5),
        (np.float64("inf"), "Infinity"),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([[1.0, np.nan]], np.float32), [[1.0, None]]),
        (np.array(3), 3),
        (Path("a/b"), "a/b"),
        ((1, 2), [1, 2]),
        ({"a"}, ["a"]),
        pytest.param({"b", "a"}, ["a", "b"], id="a set of two"),
        ({1: {None: 2}}, {"1": {"None": 2}}),
        ({"x": np.dtype("int8")}, {"x": "int8"}),
        (b"ab", "b'ab'"),
        (None, None),
        (True, True),
    ],
    ids=repr,
)
def test_what_json_lacks_is_put_in_its_terms(value: object, expected: object) -> None:
    found = json.loads(dumps({"value": value}), parse_constant=refuse)["value"]
    assert found == expected
    assert type(found) is type(expected)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_every_document_is_strict_ascii_json(value: Any) -> None:
    text = dumps({"value": value})
    assert text.isascii()
    json.loads(text, parse_constant=refuse)


def test_infinities_read_back_as_numbers() -> None:
    assert float(json.loads(dumps({"sqnr_db": float("inf")}))["sqnr_db"]) == float("inf")
