"""Tables for the console, as Markdown and as HTML. Whatever a name or a text holds, it is shown and does nothing there."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.store.masking import mask_urls, printable

# What Markdown would take for a cell's end, an escape, code, emphasis or a link. Brackets alone, as of intervals, are none.
MARKDOWN_SIGNS = re.compile(r"[\\`*|]|(?<=\])[(:\[]")
# ... and for HTML; signs that only compare are none.
HTML_SIGNS = re.compile(r"<(?=[A-Za-z/!?])|&(?=#|\w+;)")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts with a title and a note on how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def text(self) -> str:
        """Return it with aligned columns: the first to the left, the others to the right."""
        shown = [[printable(mask_urls(cell)) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
        lines = [printable(mask_urls(self.title))]
        for row in (shown[0], ["-" * width for width in widths], *shown[1:]):
            cells = [
                cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, mask_urls(self.note)] if self.note else lines)

    def markdown(self) -> str:
        """Return it as Markdown."""
        marks = ("---", *["---:"] * (len(self.columns) - 1))
        head, *rows = (tuple(map(markdown_text, row)) for row in (self.columns, *self.rows))
        lines = [f"| {' | '.join(row)} |" for row in (head, marks, *rows)]
        return "\n".join(
            [f"## {markdown_text(self.title)}", "", *lines, *(["", markdown_text(self.note)] if self.note else [])]
        )

    def html(self) -> str:
        """Return it as HTML, without title and note."""
        return html_table(self.columns, (html_row(html_cell(escaped(cell)) for cell in row) for row in self.rows))


def markdown_text(text: str) -> str:
    """Write a text for one line of Markdown, in which it is nothing but text; credentials in it are masked."""
    line = printable(" ".join(mask_urls(text).split()))
    return HTML_SIGNS.sub(lambda sign: html.escape(sign[0]), MARKDOWN_SIGNS.sub(r"\\\g<0>", line))


def escaped(text: str) -> str:
    """Write a text for HTML; credentials in it are masked."""
    return html.escape(mask_urls(text))


def html_cell(content: str, name: str = "") -> str:
    """Return a table's cell of this class; `content` is HTML."""
    return f'<td class="{name}">{content}</td>' if name else f"<td>{content}</td>"


def html_row(cells: Iterable[str], name: str = "") -> str:
    """Return a table's row of this class."""
    return f'<tr class="{name}">{"".join(cells)}</tr>' if name else f"<tr>{''.join(cells)}</tr>"


def html_table(head: Sequence[str], rows: Iterable[str], name: str = "") -> str:
    """Return a table of this class that scrolls where the page is narrow; `head` are texts, none for a table without one."""
    cells = "".join(f"<th>{escaped(text)}</th>" for text in head)
    start = f"<thead><tr>{cells}</tr></thead>" if head else ""
    opened = f'<table class="{name}">' if name else "<table>"
    return f'<div class="scroll">{opened}{start}<tbody>{"".join(rows)}</tbody></table></div>'
