"""A run as a command line: what was asked for, no more."""

from __future__ import annotations

import click
from hypothesis import given
from hypothesis import strategies as st

from onnxq.cli._app import app
from onnxq.recipe.recipe import Recipe
from onnxq.report.command_lines import candidate_line, command_line, quantize_words, recipe_words


def parsed(words: list[str]) -> dict[str, object]:
    """What the command line makes of words."""
    command = app.get_command(click.Context(app), "quantize")
    assert command is not None
    return command.make_context("quantize", words).params


def test_defaults_are_not_said() -> None:
    assert recipe_words(Recipe()) == []
    assert quantize_words("m.onnx", [("-c", None), ("--stats", "s")], Recipe())["run"] == [
        "onnxq", "quantize", "m.onnx", "--stats", "s",
    ]  # fmt: skip


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "preset": st.sampled_from(["w8", "w4", "w8a8"]),
            "range": st.sampled_from(["minmax", "entropy"]),
            "per_channel": st.just(False),
            "symmetric": st.booleans(),
            "bias_correct": st.just(False),
            "equalize": st.just(True),
            "exclude": st.lists(st.text("ab*/ '", min_size=1), max_size=2).map(tuple),
            "op_types": st.just(("Conv",)),
            "bits": st.sampled_from([2, 4]),
            "max_drop": st.sampled_from([0.5, 1.0]),
            "outliers": st.just(6.0),
            "smooth": st.sampled_from([0.5, "auto"]),
            "sequential": st.just(True),
            "rotate": st.just(True),
            "learn_rotation": st.just(True),
            "keep_io": st.just(False),
        },
    )
)
def test_the_command_line_reads_them_back(options: dict[str, object]) -> None:
    found = parsed(["m.onnx", *recipe_words(Recipe(**options))])  # type: ignore[arg-type]
    for name, value in options.items():
        assert found["range_method" if name == "range" else name] == value


def test_a_candidate_has_the_options_of_the_run_without_its_limits() -> None:
    command = quantize_words("my model.onnx", [("-c", "c.npz")], Recipe(preset="w8a8", max_drop=1.0, range="minmax"))
    result = {"command": command}
    assert candidate_line(result, {"name": "w8", "options": "-p w8"}) == (
        "onnxq quantize 'my model.onnx' -c c.npz --range minmax -p w8"
    )
    assert candidate_line(result, {"name": "mixed (per tensor)", "options": "--recipe FILE"}).endswith(
        "--recipe mixed--per-tensor.yaml"
    )
    assert candidate_line(result, {"name": "float", "options": None}) == ""
    assert command_line(command["run"]).endswith("-p w8a8 --range minmax --max-drop 1")
