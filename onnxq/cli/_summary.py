"""Results for people: the JSON form of each as lines and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.cli._output import show_table, show_text
from onnxq.report.facts import inspection_facts, quantization_facts, seconds_by_step, token_facts
from onnxq.report.folder_results import folder_facts, folder_table
from onnxq.report.look_tables import difference_line, difference_tables, schemes_tables
from onnxq.report.printable import printable
from onnxq.report.result_tables import (
    Table,
    benchmark_table,
    comparison_table,
    diagnosis_table,
    inspection_tables,
    quantization_tables,
)
from onnxq.report.words import cell, decibels


def show_quantization(result: Mapping[str, Any], *, float_model: Path, verbose: bool) -> None:
    """Print what came out, what it costs, how good it is, what is quantized and what is not.

    Args:
        result: the JSON form of the result.
        float_model: the model that went in.
        verbose: name every node, not only the first few of each reason, and say what each step took.
    """
    show_text(printable(f"{float_model} -> {result['output']}"))
    show_text()
    facts = quantization_facts(result)
    _show_facts([*facts, ("seconds", seconds_by_step(result))] if verbose else facts)
    _show_tables(quantization_tables(result, everything=verbose))


def show_folder(result: Mapping[str, Any]) -> None:
    """Print what came out of a folder, and a line a graph."""
    show_text(printable(f"{result['folder']} -> {result['output']}"))
    show_text()
    _show_facts(folder_facts(result))
    _show_tables([folder_table(result)])


def show_comparison(result: Mapping[str, Any]) -> None:
    """Print a line for each output, and the accuracy of both models where it is known."""
    samples = result["samples"]
    show_text(f"{samples} sample{'s' if samples != 1 else ''}")
    _show_tables([comparison_table(result)])
    accuracy = result.get("accuracy")
    if accuracy:
        show_text()
        show_text(f"accuracy  {100 * accuracy['float']:.2f} % -> {100 * accuracy['quantized']:.2f} %")
    for name, phrase in token_facts(result):
        show_text(f"{name}  {phrase}")
    metric = result.get("metric")
    if metric:
        before = "" if metric["reference"] is None else f"{cell(metric['reference'])} -> "
        show_text(f"metric    {metric['name']}: {before}{cell(metric['quantized'])}")


def show_diagnosis(result: Mapping[str, Any], *, verbose: bool) -> None:
    """Print a line for each quantized node, the worst first, and the SQNR of each output.

    Args:
        result: the JSON form of the result.
        verbose: all nodes, not only the worst.
    """
    for name, ratio in result["outputs"].items():
        show_text(f"output {name}: {decibels(ratio)} over {result['samples']} samples")
    _show_tables([diagnosis_table(result, everything=verbose)])
    if result["recipe_path"] is not None:
        show_text()
        show_text(f"recipe    {result['recipe_path']}")


def show_benchmark(result: Mapping[str, Any]) -> None:
    """Print a line for each model."""
    show_table(benchmark_table(result))


def show_inspection(result: Mapping[str, Any], *, verbose: bool) -> None:
    """Print facts, what is quantized and how, what is not, and what weights look like.

    Args:
        result: the JSON form of the result.
        verbose: name every node and every weight.
    """
    _show_facts(inspection_facts(result))
    _show_tables(inspection_tables(result, everything=verbose))
    if "schemes" in result:
        _show_tables(schemes_tables(result["schemes"], everything=verbose))


def show_difference(result: Mapping[str, Any], *, verbose: bool) -> None:
    """Print what is quantized differently between two models.

    Args:
        result: the JSON form of the result.
        verbose: all nodes, not only the first.
    """
    show_text(difference_line(result))
    _show_tables(difference_tables(result, everything=verbose))


def show_records(records: Sequence[Mapping[str, Any]], *, last: str = "", leave_out: Iterable[str] = ()) -> None:
    """Print mappings with the same keys as a table.

    Args:
        records: the rows.
        last: key whose column comes last, since its text is long.
        leave_out: keys that are not shown.
    """
    keys = dict.fromkeys(name for record in records for name in record if name not in set(leave_out))
    names = sorted(keys, key=lambda name: name == last)
    rows = [tuple(cell(record.get(name)) for name in names) for record in records]
    header = tuple(name.replace("_", " ") for name in names)
    show_table(Table(header, rows, long=(len(names) - 1,)))


def _show_facts(facts: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        show_text(f"{name:{width}}{printable(value)}")


def _show_tables(tables: Iterable[Table]) -> None:
    for table in tables:
        show_text()
        show_table(table)
