"""Results as figures in words and as tables."""

from __future__ import annotations

from typing import Any

import pytest

from onnxq.report.facts import quantization_facts
from onnxq.report.html.parts import stayed_float
from onnxq.report.result_tables import ROWS_SHOWN, Table, quantization_tables
from onnxq.report.words import cell, change_of_size, decibels, in_bytes, speed, three_digits


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (2.0, "2.00x faster than float"),
        (0.5, "2.00x slower than float"),
        (1.0, "about as fast as float"),
        (0.98, "about as fast as float"),
        (1.04, "1.04x faster than float"),
        (None, "not measured"),
        (float("nan"), "not measured"),
    ],
)
def test_ratios_in_words(ratio: float | None, words: str) -> None:
    assert speed(ratio) == words


@pytest.mark.parametrize(
    ("sqnr", "words"),
    [
        (31.26, "31.3 dB"),
        (float("inf"), "outputs are equal"),
        (float("-inf"), "no signal: an output is zero or not finite"),
        (float("nan"), "undefined: an output is not finite"),
        (None, "not measured"),
    ],
)
def test_sqnr_in_words(sqnr: float | None, words: str) -> None:
    assert decibels(sqnr) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_345_678, "2.3 MB"), (7.5e9, "7.50 GB")],
)
def test_sizes_in_words(size: float, words: str) -> None:
    assert in_bytes(size) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (True, "yes"),
        (False, "no"),
        (0.12345678, "0.1235"),
        ([1, "a"], "1, a"),
        ({}, "-"),
        ({"a": 1}, "a 1"),
    ],
)
def test_cells(value: object, words: str) -> None:
    assert cell(value) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (4000, 1000, "4.0 kB -> 1.0 kB, 4.00x smaller"),
        (1000, 1500, "1.0 kB -> 1.5 kB, 1.50x larger"),
        (1_289_603, 1_290_429, "1.3 MB -> 1.3 MB, same size"),
    ],
)
def test_changes_of_size_in_words(before: float, after: float, words: str) -> None:
    assert change_of_size(before, after) == words


RESULT: dict[str, Any] = {
    "preset": "w8a8",
    "format": "qdq",
    "target": "cpu",
    "seconds": 1.25,
    "size_bytes": {"before": 4000, "after": 1000},
    "latency_ratio": 2.0,
    "latency_ms": {"float": 0.5, "quantized": 0.25},
    "sqnr_db": 20.0,
    "top1_agreement": 0.5,
    "class_output": "b",
    "outputs": {
        "a": {"sqnr_db": 20.0, "samples": 7},
        "b": {"sqnr_db": 30.0, "samples": 7},
        "ids": {"sqnr_db": None, "samples": 7},
    },
    "coverage": {"Conv": {"quantized": 5, "total": 6}, "Relu": {"quantized": 1, "total": 1}},
    "kept_float": [
        {"node": "c0", "op_type": "Conv", "reason": "slower on integers here: about 12 µs against 8 µs"},
        {"node": "c1", "op_type": "Conv", "reason": "slower on integers here: about 9 µs against 1 µs; stored as int8"},
        {
            "node": "c2",
            "op_type": "Conv",
            "reason": "slower on integers here: about 2.5 µs against 1 µs; stored as int8",
        },
    ],
}


def test_the_figures_of_a_quantization() -> None:
    assert quantization_facts(RESULT) == [
        ("preset", "w8a8 (qdq, for cpu), in 1.2 s"),
        ("size", "4.0 kB -> 1.0 kB, 4.00x smaller"),
        ("latency", "0.5 ms -> 0.25 ms, 2.00x faster than float"),
        ("SQNR", "20.0 dB over 7 samples, worst of 2 outputs (a)"),
        ("top-1", "agrees with the float model on 50.0 %, output b"),
    ]


def test_weights_alone_have_no_format() -> None:
    (_, words), *_ = quantization_facts({**RESULT, "preset": "w8", "format": None})
    assert words == "w8 (weights only, for cpu), in 1.2 s"


def test_layers_with_stored_weights_are_counted_apart() -> None:
    coverage, _ = quantization_tables(RESULT)
    assert coverage.header == ("operator", "nodes", "on integers", "weights stored", "float")
    assert coverage.rows == [("Conv", "6", "3", "2", "1"), ("Relu", "1", "1", "-", "-")]


def test_nodes_with_one_reason_are_one_row_whatever_their_times() -> None:
    _, kept = quantization_tables(RESULT)
    assert kept.rows == [
        ("2", "slower on integers here; stored as int8", "c1, c2"),
        ("1", "slower on integers here", "c0"),
    ]
    _, everything = quantization_tables(RESULT, everything=True)
    assert len(everything.rows) == 3
    assert "about 12 µs against 8 µs" in everything.text()


@pytest.mark.parametrize(
    ("number", "said"), [(0.01234, "0.0123"), (12.34, "12.3"), (1234.5, "1234"), (-1302.2, "-1302"), (1e9, "1e+09")]
)
def test_large_numbers_have_no_exponent(number: float, said: str) -> None:
    assert three_digits(number) == said


def test_nodes_with_one_reason_are_one_row_whatever_their_errors() -> None:
    reason = "static costs accuracy here ({} dB), and the whole model missed the accuracy budget"
    kept = [
        {"node": f"c{i}", "op_type": "Conv", "reason": reason.format(error)} for i, error in enumerate((37.6, 41.9))
    ]
    _, table = quantization_tables({**RESULT, "kept_float": kept})
    assert table.rows == [("2", "static costs accuracy here, and the whole model missed the accuracy budget", "c0, c1")]
    (row,) = stayed_float({"kept_float": kept})
    assert (row["count"], row["nodes"]) == (2, ["c0", "c1"])
    assert "41.9 dB" in quantization_tables({**RESULT, "kept_float": kept}, everything=True)[1].text()


def test_a_table_as_text_is_aligned() -> None:
    table = Table(("name", "n"), [("a", "1"), ("bbbbb", "22")], right=(1,), more="and 3 more")
    assert table.text().splitlines() == ["name    n", "a       1", "bbbbb  22", "and 3 more"]


def step(tried: str, verdict: str, **more: Any) -> dict[str, Any]:
    figures = {"drop": None, "sqnr_db": 20.0, "size": 10, "estimated_us": 150.0, "seconds": 0.25, "inside": False}
    return {"tried": tried, **figures, "kept": verdict != "no better", "verdict": verdict, **more}


def trail_of(*steps: dict[str, Any], everything: bool = False) -> list[str]:
    tables = quantization_tables({**RESULT, "trail": list(steps)}, everything=everything)
    return tables[0].text().splitlines()


def test_a_trail_has_a_line_for_each_step() -> None:
    failed = {"sqnr_db": None, "estimated_us": None}
    lines = trail_of(step("as given", "outside the limit", estimated_us=100.0), step("it", "broken", **failed))
    assert lines[0].split() == ["tried", "SQNR", "time,", "estimated", "took", "verdict"]
    assert lines[1].split() == ["as", "given", "20.0", "dB", "1.00", "0.2", "s", "outside", "the", "limit"]
    assert lines[2].split() == ["it", "-", "-", "0.2", "s", "broken"]


def test_the_drop_is_shown_where_there_is_one() -> None:
    lines = trail_of(step("as given", "outside the limit", drop=1.234567))
    assert lines[0].split()[:3] == ["tried", "drop", "SQNR"]
    assert "1.23 " in lines[1]


def test_a_long_trail_is_cut_to_what_led_to_the_choice() -> None:
    steps = [step("as given", "outside the limit")]
    steps += [step(f"useless {i}", "no better") for i in range(20)]
    steps += [step(f"kept {i}", "better, kept") for i in range(20)]
    steps += [step("this", "inside the limit, chosen"), step("late", "inside the limit")]
    lines = trail_of(*steps)
    assert len(lines) == ROWS_SHOWN + 2
    assert lines[1].startswith("as given")
    assert lines[-2].endswith("inside the limit, chosen")
    assert lines[-1] == f"and {len(steps) - ROWS_SHOWN} more; --verbose shows all"
    assert not any(line.startswith("useless") for line in lines)
    assert len(trail_of(*steps, everything=True)) == len(steps) + 1
