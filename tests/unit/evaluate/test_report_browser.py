"""The report in headless Chromium: it opens offline, sorts, filters, and fits a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.evaluate.report.page import render
from tests.report_board import METHODS, make_board, value_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COUNT = 24  # one page of the gallery
PHONE_PX = 390

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report") / "report.html"
    place.write_text(render(make_board(COUNT, METHODS)), encoding="utf-8")
    return place


@dataclass(frozen=True, kw_only=True)
class View:
    """What one frame shows."""

    ids: list[int]
    count: str
    more: bool
    text: str
    width: int


def browse(url: str, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page with no network behind it, to the end of its scripts."""
    assert CHROMIUM is not None
    words = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ]
    words += ["--proxy-server=127.0.0.1:9", "--virtual-time-budget=5000", "--enable-logging=stderr", *flags]
    return subprocess.run([CHROMIUM, *words, url], capture_output=True, text=True, timeout=120)


def ids(text: str) -> list[int]:
    return [int(found) for found in re.findall(r'<article class="card" data-id="(\d+)"', text)]


@pytest.fixture(scope="module")
def views(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, View]:
    """Open the page many ways at once, each in a frame of a phone's width (a window cannot be as narrow)."""
    folder = tmp_path_factory.mktemp("frames")
    fragments = [
        *("#sort=background_psnr&method=p2p&order=worst", "#sort=background_psnr&method=p2p&order=best"),
        *("#sort=structure_distance&method=pnp", "#sort=clip_edited&method=spread"),
        *("#status=rejected", "#category=9_change_style", "#q=000000000021"),
    ]
    long = folder / "long.html"
    long.write_text(render(make_board(COUNT + 7)), encoding="utf-8")
    urls = [*(f"{page.as_uri()}{fragment}" for fragment in fragments), long.as_uri()]
    frames = "".join(f'<iframe src="{html.escape(url)}" style="width:{PHONE_PX}px;height:844px"></iframe>' for url in urls)
    script = """
        addEventListener("load", () => {
            const found = [...document.querySelectorAll("iframe")].map((frame) => {
                const inner = frame.contentDocument;
                return {
                    ids: [...inner.querySelectorAll("article")].map((card) => Number(card.dataset.id)),
                    count: inner.getElementById("count").textContent,
                    more: !inner.getElementById("more").hidden,
                    text: inner.getElementById("cards").textContent,
                    width: inner.documentElement.scrollWidth,
                };
            });
            document.body.textContent = JSON.stringify(found);
        });
    """
    frame = folder / "frames.html"
    frame.write_text(f"<!doctype html><meta charset=utf-8><body>{frames}<script>{script}</script></body>", encoding="utf-8")
    done = browse(frame.as_uri(), folder / "profile", "--dump-dom", "--allow-file-access-from-files")
    body = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    assert body, done.stdout
    found = [View(**each) for each in json.loads(html.unescape(body[1]))]
    return dict(zip([*fragments, "long"], found, strict=True))


def test_it_opens_with_all_its_pictures(page: Path, tmp_path: Path) -> None:
    done = browse(page.as_uri(), tmp_path / "profile", "--dump-dom")
    text = done.stdout
    assert done.returncode == 0 and not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr
    assert 'data-ready="' in text and "24 of 24 records, 24 shown" in text
    assert ids(text) == list(range(COUNT))
    first = text[text.index("<article") : text.index("</article>")]
    assert first.count("data:image/webp;base64,") == 2 + len(METHODS)  # source, target, one edit of each
    assert first.count("data:image/png;base64,") == 1 + len(METHODS)
    assert "<ins>" in first and "no mask" not in first


@pytest.mark.parametrize(("order", "sign"), [("worst", 1), ("best", -1)])
def test_it_sorts_by_any_metric_of_any_method(views: dict[str, View], order: str, sign: int) -> None:
    found = views[f"#sort=background_psnr&method=p2p&order={order}"].ids
    finite = [n for n in range(COUNT) if n not in (5, 7)]
    wanted = sorted(finite, key=lambda n: sign * value_of("background_psnr", n, 1))
    assert found[: len(finite)] == wanted and set(found[len(finite) :]) == {5, 7}


def test_a_lower_value_can_be_the_better_one(views: dict[str, View]) -> None:
    wanted = sorted((n for n in range(COUNT) if n != 3), key=lambda n: -value_of("structure_distance", n, 3))
    assert views["#sort=structure_distance&method=pnp"].ids == [*wanted, 3]


def test_it_finds_where_methods_differ_most(views: dict[str, View]) -> None:
    def spread(n: int) -> float:
        values = [value_of("clip_edited", n, method) for method in range(len(METHODS) - (n == 3))]
        return max(values) - min(values)

    found = views["#sort=clip_edited&method=spread"].ids
    assert [round(spread(n), 3) for n in found] == sorted((round(spread(n), 3) for n in range(COUNT)), reverse=True)


def test_it_filters(views: dict[str, View]) -> None:
    rejected = views["#status=rejected"]
    assert rejected.ids == [3] and "rejected: record '3': blend_words: got <b>7</b>" in rejected.text
    style = views["#category=9_change_style"]
    assert style.count.startswith(f"{len(style.ids)} of 24 records") and 0 < len(style.ids) < COUNT
    assert views["#q=000000000021"].ids == [21] and not views["#q=000000000021"].more


def test_a_long_gallery_comes_in_pages(views: dict[str, View]) -> None:
    assert views["long"].ids == list(range(COUNT)) and views["long"].more
    assert views["long"].count == "31 of 31 records, 24 shown"


def test_it_fits_a_phone(views: dict[str, View]) -> None:
    assert {view.width for view in views.values()} == {PHONE_PX}
