"""The page in Chromium, on a desktop and on a phone, in light and in dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq

pytestmark = [pytest.mark.browser, pytest.mark.report]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def page_file(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    page = folder / "digits.html"
    onnxq.quantize(
        root / "models" / "digits_resnet.onnx", folder / "q.onnx", seconds=0.02, budget=10, threads=1, report=page
    )
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=shutil.which("chromium"), args=FLAGS, offline=True,
            java_script_enabled=True,
        )  # fmt: skip
        yield context
        context.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_complaints(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(page_file.as_uri())
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    shown = page.evaluate(
        "[...document.querySelectorAll('svg.plot')].filter(s => s.getBoundingClientRect().width > 0).length"
    )
    assert shown >= 3
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    ink, back = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (ink, back)]
    assert (light[0] < light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 400
    assert page.evaluate("getComputedStyle(document.querySelector('svg.plot text')).fill") not in ("", "none")
    page.close()


def test_it_prints_on_pages(browser: Any, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and np.frombuffer(printed, np.uint8).size > 20_000
    page.close()
