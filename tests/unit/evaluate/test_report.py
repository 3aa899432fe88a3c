"""The report's page: what stands in it, that nothing is fetched, and how its tables and plots follow from the board."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.evaluate.report.data import Board
from pipelines.evaluate.report.page import TEMPLATES, gallery_data, notes, plots, render, script_json
from pipelines.evaluate.report.pictures import RunRows, part_rows, row_thumbnails
from pipelines.evaluate.report.plots import DOT_PX, Dot, Point, colour_of, dots, scatter
from pipelines.evaluate.report.tables import category_table, comparison_table, provenance, summary_table
from pipelines.output.thumbnails import MASK_COLOURS, code_masks, code_picture
from pipelines.records.types import IMAGE
from pipelines.store.location import locate
from tests.report_board import METHODS, make_board, value_of
from vimaedit.images import encode_image, encode_mask
from vimaedit.methods import METHODS as EDITORS
from vimaedit.metrics.names import SEVEN
from vimaedit.piebench.published import PUBLISHED

COUNT = 12


@pytest.fixture(scope="module")
def board() -> Board:
    return make_board(COUNT)


@pytest.fixture(scope="module")
def several() -> Board:
    return make_board(COUNT, METHODS)


class Page(HTMLParser):
    """Collects what a page refers to, the text of its tables, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.data = ""
        self._open: list[str] = []
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.references += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")
        ]
        self._in_data = values.get("id") == "data"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data
        elif self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data


def test_nothing_is_fetched(several: Board) -> None:
    text = render(several)
    page = Page(text)
    assert page.references and all(reference.startswith("#") for reference in page.references)
    assert "default-src 'none'" in text and not re.search(r"url\(|@import|https?://|\bfetch\(|XMLHttpRequest|\bimport\(", text)


def test_the_package_holds_the_page(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    assert "evaluate/report/template/*" in project["tool"]["setuptools"]["package-data"]["pipelines"]
    assert {each.name for each in TEMPLATES.iterdir()} == {"page.html", "style.css", "gallery.js"}


def test_data_come_back_and_close_no_element(several: Board) -> None:
    samples = [dataclasses.replace(several.samples[0], target_prompt="</script><img src=x>"), *several.samples[1:]]
    page = Page(render(dataclasses.replace(several, samples=tuple(samples))))
    assert "x" not in page.references
    data = json.loads(page.data)
    assert data["samples"][0]["target"] == "</script><img src=x>"
    assert data["methods"] == list(METHODS) and len(data["samples"]) == COUNT
    assert data["statuses"] == ["ok", "rejected"]
    keys = [measure["key"] for measure in data["measures"]]
    assert keys[:7] == list(SEVEN)
    psnr, structure = (data["measures"][keys.index(name)] for name in ("background_psnr", "structure_distance"))
    assert (psnr["better"], structure["better"], structure["factor"]) == (1, -1, 1e3)
    values = [sample["results"][1]["values"][keys.index("background_psnr")] for sample in data["samples"]]
    assert values[5] == "NaN" and values[7] == "∞" and values[4] == pytest.approx(value_of("background_psnr", 4, 1), rel=1e-5)
    rejected = data["samples"][3]["results"][3]
    assert rejected["status"] == "rejected" and rejected["edited"] is None and set(rejected["values"]) == {None}
    picture = Image.open(io.BytesIO(base64.b64decode(data["samples"][2]["results"][0]["edited"])))
    assert (picture.format, picture.size) == ("WEBP", (96, 96))


def test_texts_are_escaped(several: Board) -> None:
    text = script_json({"a": "<b>&\u2028", "n": None})
    assert json.loads(text) == {"a": "<b>&\u2028", "n": None} and "<" not in text
    hostile = dataclasses.replace(several.methods[0], name="<i>m</i>")
    page = render(dataclasses.replace(several, methods=(hostile,), benchmark="<u>b</u>"))
    assert "<i>m</i>" not in page and "&lt;i&gt;m&lt;/i&gt;" in page and "<u>b</u>" not in page


def test_credentials_are_masked(board: Board) -> None:
    sample = dataclasses.replace(board.samples[0], instruction="see https://user:pass@host/x")
    page = render(dataclasses.replace(board, benchmark="s3://key:word@bucket/records", samples=(sample,)))
    assert "s3://***@bucket/records" in page and "https://***@host/x" in page and "word@" not in page and "pass@" not in page


def test_the_summary_stands_beside_the_published_figures(several: Board) -> None:
    (table,) = Page(summary_table(several)).tables
    head, *rows = table
    assert head[:3] == ["method", "Structure distance (x1e3) ↓", "Background PSNR (dB) ↑"] and head[-2:] == ["edits", "s/edit"]
    assert [row[0] for row in rows[:4]] == list(METHODS) and len(rows) == 4 + len(PUBLISHED)
    finite = [value_of("background_psnr", record, 0) for record in range(COUNT) if record not in (5, 7)]
    assert rows[0][2].startswith(f"{np.mean(finite):.2f}{min(finite):.2f} … {max(finite):.2f}") and rows[0][2].endswith(
        "n = 10"
    )
    assert rows[3][-2:] == ["12 (1 rejected)", "2.50"]
    direct = next(row for row in rows if row[0] == "DI + P2P PnPInversion")
    assert direct[1:8] == ["11.65", "27.22", "54.55", "32.86", "84.76", "25.02", "22.10"] and direct[8] == "–"
    text = summary_table(several)
    assert "Here: 12 records of PIE-Bench's form, model random, results" in text.replace("&#x27;", "'")
    assert "CLIP /models/clip (published: ViT-L/14), DINO none (ViT-B/8)." in text
    assert (
        "results scored lossless (jpeg_quality=75 makes background figures comparable)" in text and "JPEG of quality 75" in text
    )
    assert text.count('class="best"') == len(several.metrics) - 1  # none among shares of changed pixels


def test_published_figures_stay_away_from_other_benchmarks() -> None:
    board = make_board(COUNT, piebench=False)
    (table,) = Page(summary_table(board)).tables
    assert len(table) == 2 and "Published" not in summary_table(board) and "published" not in plots(board)


def test_comparisons_and_categories(several: Board, board: Board) -> None:
    (table,) = Page(comparison_table(several)).tables
    assert [row[0] for row in table[1:]] == ["p2p − vimaedit", "masactrl − vimaedit", "pnp − vimaedit"]
    assert table[1][2] == "+0.10-0.10 … 0.50" and comparison_table(board) == ""
    assert comparison_table(several).count('class="best"') == len(several.metrics) - 1  # of the last method alone
    (table,) = Page(category_table(several)).tables
    assert len(table) - 1 == len(several.categories) * len(METHODS) and table[1][0] == "0_randomvimaedit"


def test_the_provenance_says_what_numbers_depend_on(several: Board) -> None:
    text = provenance(several)
    for part in (
        "/data/records.parquet",
        "12 records of 13 entries, 1 left out",
        "m" * 32,
        "c" * 32,
        "torch 2.13.0",
        "batches of 2",
    ):
        assert part in text
    habits = (
        "blend=given: 4 edits without words, 1 whose words gave no mask; missing_blend=ignore: phrases not found in 0 edits; "
    )
    assert f"{habits}long_prompt=truncate: 1 edits with a prompt too long" in text
    assert "image: got 0 bytes; allowed: a picture" in text and "&quot;steps&quot;: 50" in text


def test_what_must_be_known_first_is_said_once(several: Board) -> None:
    assert notes(several) == [
        "random_weights: model=random has random weights; its pictures mean nothing",
        "rows with warnings: prompt_truncated 1",
        "Not measured: Target LPIPS (lpips: no weights were named)",
        "1 of 13 entries of the benchmark are broken and left out",
    ]
    assert several.ingest is not None
    incomplete = dataclasses.replace(several.ingest, incomplete=several.ingest.left_out)
    said = notes(dataclasses.replace(several, ingest=incomplete))[-1]
    assert said == "1 fields that scoring needs are broken in the benchmark, so they are absent"
    filled = dataclasses.replace(several.ingest, benchmark="GEdit-Bench", notes={"prompts_from_instruction": 12})
    instructions = dataclasses.replace(several, ingest=filled)
    assert notes(instructions)[-1].startswith("12 of 12 records come without captions: their target prompt is the instruction")
    assert several.is_piebench and not instructions.is_piebench and "published" not in summary_table(instructions)
    one = dataclasses.replace(several.methods[1], common_warnings=())
    other = dataclasses.replace(several, methods=(several.methods[0], one))
    assert "vimaedit: random_weights: model=random has random weights; its pictures mean nothing" in notes(other)


def test_plots_show_methods_published_points_and_categories(several: Board) -> None:
    text = plots(several)
    assert text.count("<svg") == 3 and "CLIP edited ↑ against Background PSNR (dB) ↑" in text
    plane = text[: text.index("</svg>")]
    assert plane.count("<circle") == len(METHODS) + sum(not row.repeats for row in PUBLISHED)
    assert plane.count('fill="none"') == sum(not row.repeats for row in PUBLISHED)
    rest = text[text.index("</svg>") :]
    shown = [
        method.mean(name, each)
        for method in several.methods
        for name in ("clip_edited", "background_psnr")
        for each in several.categories
    ]
    assert rest.count("<circle") == sum(found is not None for found in shown) > 2 * len(METHODS)


def test_what_was_not_measured_has_no_plot(board: Board) -> None:
    alignment = ("clip_whole", "clip_edited", "scene_edited_right", "target_psnr")
    scores = board.methods[0].scores
    overall = {name: value for name, value in scores["overall"].items() if name not in alignment}
    method = dataclasses.replace(board.methods[0], scores={**scores, "overall": overall})
    text = plots(dataclasses.replace(board, methods=(method,)))
    assert "No metric of alignment was measured, so there is no plot" in text and text.count("<svg") == 1


def test_a_part_of_the_records_is_said(board: Board) -> None:
    text = render(dataclasses.replace(board, records=999))
    assert f"The first {COUNT} of 999 records" in text and "The first" not in render(board)


def test_points_lie_where_their_values_are() -> None:
    points = [
        Point(label="a", x=1.0, y=10.0),
        Point(label="b", x=3.0, y=30.0, x_range=(2.5, 3.5)),
        Point(label="c", x=2.0, y=20.0),
    ]
    text = scatter(points, x_title="x", y_title="y")
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)]
    (ax, ay), (bx, by), (cx, cy) = places
    assert ax < cx < bx and ay > cy > by
    assert cx == pytest.approx((ax + bx) / 2, abs=0.2) and cy == pytest.approx((ay + by) / 2, abs=0.2)


def test_labels_avoid_each_other() -> None:
    points = [Point(label=f"method {n}", x=1.0 + 0.001 * n, y=2.0) for n in range(7)] + [Point(label="far", x=2.0, y=3.0)]
    text = scatter(points, x_title="x", y_title="y")
    places = re.findall(r'<text class="label" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', text)
    lines = [(float(y), anchor) for _, y, anchor in places]
    assert len(lines) == len(set(lines)) == 8


def test_equal_values_have_a_place() -> None:
    assert "nan" not in scatter([Point(label="a", x=0.0, y=0.0)], x_title="x", y_title="y")
    assert "<circle" in dots([("all", [Dot(label="a", value=5.0, low=None, high=None, colour="#000")])], title="t")


def test_pictures_are_small() -> None:
    picture = np.zeros((301, 601, 3), dtype=np.uint8)
    assert Image.open(io.BytesIO(code_picture(picture, 100))).size == (100, 50)
    assert Image.open(io.BytesIO(code_picture(picture[:31, :47], 100))).size == (47, 31)


def test_masks_show_what_agrees() -> None:
    own, reference = np.zeros((7, 11), dtype=bool), np.zeros((7, 11), dtype=bool)
    own[1:3, 1:5] = reference[2:5, 3:9] = True
    drawn = Image.open(io.BytesIO(code_masks(own, reference, 64))).convert("RGB")
    assert drawn.size == (11, 7)
    for place, colour in {(0, 0): 0, (1, 1): 1, (8, 4): 2, (3, 2): 3}.items():
        assert drawn.getpixel(place) == MASK_COLOURS[colour]
    for masks in ((own, None), (None, own)):
        alone = np.array(Image.open(io.BytesIO(code_masks(*masks, 64))).convert("RGB"))
        assert ((alone == MASK_COLOURS[3]).all(axis=-1) == own).all() and (
            (alone == MASK_COLOURS[0]).all(axis=-1) == ~own
        ).all()


def picture_of(array: np.ndarray) -> dict[str, Any]:
    return {"bytes": encode_image(array, "png"), "path": None}


def test_reference_and_target_come_into_the_rows_frame() -> None:
    whole = np.zeros((40, 60, 3), dtype=np.uint8)
    whole[:, 10:50] = 200  # the centre square
    reference = np.zeros((20, 30), dtype=bool)
    reference[:, 5:15] = True  # its left half, at half the size
    canvas = np.full((32, 32, 3), 200, dtype=np.uint8)
    row = {
        "image": picture_of(canvas),
        "edited_image": picture_of(canvas),
        "edit_mask": {"bytes": encode_mask(np.ones((32, 32), dtype=bool)), "path": None},
        "original_size": {"width": 60, "height": 40},
        "crop_box": {"left": 10, "top": 0, "right": 50, "bottom": 40},
        "reference_mask": {"bytes": encode_mask(reference), "path": None},
        "reference_image": picture_of(whole),
    }
    noted = RunRows()
    found = row_thumbnails(row, 64, True, noted)
    assert set(found) == {"source", "reference", "target", "mask", "edited"}
    target = np.array(Image.open(io.BytesIO(found["target"])).convert("RGB"))
    assert target.shape == (40, 40, 3) and (abs(target.astype(int) - 200) < 8).all()
    mask = np.array(Image.open(io.BytesIO(found["mask"])).convert("RGB"))
    assert (mask[:, :16] == MASK_COLOURS[3]).all() and (mask[:, 16:] == MASK_COLOURS[1]).all()
    assert set(row_thumbnails(row, 64, False, noted)) == {"mask", "edited"}
    nothing = dict.fromkeys(("image", "edited_image", "edit_mask", "reference_mask", "reference_image"))
    assert row_thumbnails({**row, **nothing}, 64, True, noted) == {} and noted.notes() == []


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("reference_image", pa.array([b"no picture"] * 3), "got 10 bytes: no picture format known here"),
        ("reference_image", pa.array([7] * 3), "got int 7; allowed: binary"),
        (
            "reference_image",
            pa.array(["cats/a.png?token=SECRET"] * 3),
            r"got the path 'cats/a.png\?token=\*\*\*'; allowed: the",
        ),
        ("reference_image", pa.array([[1, 2]] * 3), r"got list \[1, 2\]; allowed: binary"),
        ("reference_mask", pa.array([{"bytes": b"", "path": None}] * 3), "got 0 bytes; allowed: an encoded picture"),
        ("reference_mask", pa.array([b"\xff"] * 3).view(pa.string()), "got a value of type string that cannot be read"),
        ("reference_mask", pa.array([encode_mask(np.ones((7, 50), bool))] * 3), "got 50x7 px for a picture of 16x16 px"),
    ],
)
def test_a_reference_that_cannot_be_shown_is_left_out_and_told(
    tmp_path: Path, column: str, values: pa.Array, reason: str
) -> None:
    picture = picture_of(np.full((16, 16, 3), 200, np.uint8))
    row = {"input_file": "a", "edit_index": 0, "status": "ok", "warnings": [], "blend_words_used": [], "grounded": False}
    row |= {"image": picture, "edited_image": picture, "edit_mask": None, "original_size": {"width": 16, "height": 16}}
    row |= {"crop_box": {"left": 0, "top": 0, "right": 16, "bottom": 16}}
    table = pa.Table.from_pylist([{**row, "input_row": number} for number in range(3)])
    kinds = {"edit_mask": IMAGE, "image": IMAGE, "edited_image": IMAGE}
    for name in kinds:
        table = table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(IMAGE))
    pq.write_table(table.append_column(column, values), tmp_path / "part.parquet")
    wanted = frozenset(("a", number, 0) for number in (0, 2))
    found = part_rows(locate(str(tmp_path / "part.parquet")), 64, wanted, True)
    assert [set(row.pictures) for row in found.rows.values()] == [{"source", "edited"}] * 2
    assert re.fullmatch(rf"2 of {column} not shown in the gallery; the first: {column}: {reason}.*", found.notes()[0])


def test_long_texts_are_cut_where_a_browser_compares_them(board: Board) -> None:
    sample = dataclasses.replace(board.samples[0], source_prompt="a " * 42_000, target_prompt="b " * 42_000)
    sample.results = {name: dataclasses.replace(found, message="m" * 10**6) for name, found in sample.results.items()}
    (shown,) = gallery_data(dataclasses.replace(board, samples=(sample,)))["samples"]
    assert len(shown["before"]) == len(shown["target"]) == len(shown["results"][0]["message"]) == 1000
    assert shown["before"].startswith("a a a ") and shown["before"].endswith("...")


def test_the_gallery_has_the_order_of_the_benchmark(board: Board) -> None:
    assert [sample["id"] for sample in gallery_data(board)["samples"]] == [f"{n:012d}" for n in range(COUNT)]


def test_a_board_of_every_editor_can_be_told_apart() -> None:
    colours = [colour_of(number) for number in range(len(EDITORS))]
    assert len(set(colours)) == len(EDITORS)
    row = [
        Dot(label=name, value=1.0, low=None, high=None, colour=colour) for name, colour in zip(EDITORS, colours, strict=True)
    ]
    drawn = dots([("one", row), ("two", row)], title="t")
    places = [float(found) for found in re.findall(r'<circle cx="[^"]+" cy="([^"]+)"', drawn)]
    assert len(places) == 2 * len(EDITORS) and min(np.diff(places)) >= DOT_PX
    page = render(make_board(2, [*EDITORS]))
    assert f"<h1>PIE-Bench: {len(EDITORS)} methods</h1>" in page
