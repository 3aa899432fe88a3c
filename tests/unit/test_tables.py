"""Tables for the console, as Markdown and as HTML: what stands in a cell is shown, and does nothing."""

from __future__ import annotations

import re

import pytest

from pipelines.synthesis.card import Account, card_text
from pipelines.synthesis.config import SynthesizeConfig
from pipelines.synthesis.selection import Selected, Selecting
from pipelines.tables import Table, html_cell, html_row, html_table, markdown_text

HOSTILE = "a|b\n---\n<script>x</script> [c](javascript:d) s3://KEY:SECRET@bucket/e \x1b[2J\u202e `f` *g* \\"


def test_columns_are_aligned() -> None:
    table = Table(title="T", columns=("name", "n"), rows=(("a", "1"), ("longer", "23")), note="end")
    assert table.text().splitlines() == ["T", "name     n", "------  --", "a        1", "longer  23", "end"]
    assert table.markdown().splitlines() == [
        *("## T", "", "| name | n |", "| --- | ---: |", "| a | 1 |", "| longer | 23 |", "", "end"),
    ]
    assert table.html() == (
        '<div class="scroll"><table><thead><tr><th>name</th><th>n</th></tr></thead><tbody>'
        "<tr><td>a</td><td>1</td></tr><tr><td>longer</td><td>23</td></tr></tbody></table></div>"
    )


def test_own_texts_stay_readable_in_markdown() -> None:
    for text in ("22.1 [20.0, 24.0]", "scene_success (%)", 'it\'s "quoted"', "12.3 % of 5 -> x", "<= 12 & > 3"):
        assert markdown_text(text) == text
    assert markdown_text("a <b> </b> <!-- --> &lt; &#60; <https://host>") == (
        "a &lt;b> &lt;/b> &lt;!-- --> &amp;lt; &amp;#60; &lt;https://host>"
    )


@pytest.mark.parametrize("place", ["title", "column", "cell", "note"])
def test_a_hostile_text_is_one_cell_wherever_it_stands(place: str) -> None:
    own = {name: HOSTILE if name == place else name for name in ("title", "column", "cell", "note")}
    table = Table(title=own["title"], columns=("", own["column"]), rows=(("x", own["cell"]),), note=own["note"])
    lines = table.markdown().splitlines()
    assert len(lines) == 7
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:5]]
    assert cells == [3, 3, 3]
    texts = [table.markdown(), *([table.html()] if place in ("column", "cell") else [])]
    for text in texts:
        assert "SECRET" not in text and "s3://***@bucket/e" in text.replace(r"\*", "*") and "<script>" not in text
    assert "](" not in table.markdown() and "\x1b" not in table.markdown()


def test_nothing_in_a_name_steers_the_terminal() -> None:
    table = Table(title="x\r", columns=("name", "n"), rows=((HOSTILE, "1"), ("\ud800", "2")))
    text = table.text()
    assert text.encode() and len(text.splitlines()) == 5
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text) and "SECRET" not in text
    assert r"\x1b[2J\u202e" in text and text.startswith("x\\r\n")


def test_html_tables_take_cells_of_html() -> None:
    table = html_table((), [html_row([html_cell("<b>1</b>", "best")], "first")], "facts")
    assert table == (
        '<div class="scroll"><table class="facts"><tbody><tr class="first"><td class="best"><b>1</b></td></tr></tbody></table></div>'
    )


def test_a_card_has_one_head_and_no_html_whatever_the_categories_and_warnings_are() -> None:
    selected = Selected()
    selected.counts.update({"kept": 1})
    selected.by_category[f"\n---\nlicense: mine\n{HOSTILE}"].update({"kept": 1})
    config = SynthesizeConfig(input="in", output="out", model="tiny")
    warnings = [f"w\n---\n{HOSTILE}"]
    provenance = {"model": "s3://KEY:SECRET@bucket/m", "input": HOSTILE}
    selecting = Selecting(output="out", config=config, groups=(), bounds=())
    account = Account(selecting=selecting, selected=selected, warnings=warnings, provenance=provenance)
    text = card_text(account, has_sheet=False)
    assert text.splitlines().count("---") == 2 and "license: mine" not in text.splitlines()
    assert "<script>" not in text and "SECRET" not in text and "](javascript" not in text
    assert "- w --- a\\|b" in text and r"| model | s3://\*\*\*@bucket/m |" in text
