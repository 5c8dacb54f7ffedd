"""The benchmark of caches runs: its Llama shape is a model that can be quantized."""

from __future__ import annotations

from pathlib import Path

from benchmarks import kv_cache
from tests.runtime_version import CACHES


@CACHES
def test_the_table_of_speed_has_a_line_for_each_form(tmp_path: Path) -> None:
    lines = kv_cache.speed_table(tmp_path, (32,), 2).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["float", "int8", "int4"]
    sizes = [float(line.split("|")[3].split()[0]) for line in lines[2:]]
    assert sizes[0] == 0.1 and sizes[1] <= 0.1 and sizes[2] == 0.0


def test_the_table_of_quality_is_of_the_test_text(tmp_path: Path, monkeypatch) -> None:
    made: list[str] = []

    def instead(source: Path, folder: Path, form: str, data: object, preset: str, *, rotate: bool = False) -> Path:
        made.append(f"{form} {rotate}")
        return source  # the float model itself: nothing is lost

    monkeypatch.setattr(kv_cache, "quantized", instead)
    lines = kv_cache.quality_table(tmp_path, 4).splitlines()
    assert made == ["int8 False", "int8 True", "int4 False", "int4 True"]
    assert all("+0.000 | 100.0 % | 0.00000" in line for line in lines[2:])
