"""The data set's card: what is in it, how it came about, what was left out and why, with a sheet of samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.edit.sheet import BUFFER_BYTES, draw_sheet, put_sheet
from pipelines.output.compact import THIS_FOLDER
from pipelines.output.sets import FOLDERS
from pipelines.store.location import Location, locate, put_atomic
from pipelines.store.parquet import read_batches
from pipelines.synthesis.config import SynthesizeConfig
from pipelines.synthesis.dataset import Shard, configurations
from pipelines.synthesis.filters import KEPT, NEEDS, Bound, best_score, outcomes
from pipelines.synthesis.selection import SPLITS, Selected, Selecting
from pipelines.tables import Table, markdown_text

SAMPLES = 12
SHEET_COLUMNS = (("image", "source"), ("edit_mask", "mask"), ("edited_image", "edited"))
SHEET_FILE = "samples.png"
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
MEANINGS = {  # of the outcomes that no threshold decides
    "pair": "no prompt pair or no source picture could be had",
    "edit": "not edited: rejected, failed or quarantined",
    "no_mask": "words say what changes, but gave no mask",
    "best_of_pair": "another candidate of the pair is better",
    "duplicate": "another record looks nearly the same",
    KEPT: "in the data set",
}


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a data set's card and report tell: what was selected and how, its warnings, where it comes from, and how much is right."""

    selecting: Selecting
    selected: Selected
    shards: Sequence[Shard] = ()
    warnings: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    truth: Table | None = None

    def facts(self) -> Table:
        """Return where the data set comes from."""
        rows = tuple((name, str(value)) for name, value in self.provenance.items())
        return Table(title="Provenance", columns=("", "value"), rows=rows)


def meanings(bounds: Sequence[Bound]) -> dict[str, str]:
    """Say of every outcome what it means."""
    return MEANINGS | {bound.name: bound.meaning for bound in bounds}


def funnel_table(config: SynthesizeConfig, bounds: Sequence[Bound], selected: Selected) -> Table:
    """Say how many candidates each filter took out, and how many were left behind it."""
    left = sum(selected.counts.values())
    rows = [("requested", "", "", str(left), "100 %")]
    limits = {bound.name: bound for bound in bounds}
    total = max(1, left)
    for name in outcomes(config.filters, bounds):
        if name == KEPT:
            continue
        count = selected.counts.get(name, 0)
        left -= count
        rows.append((name, _limit(config, name, limits.get(name)), str(count), str(left), f"{100 * left / total:.1f} %"))
    return Table(title="Filters", columns=("filter", "threshold", "taken out", "left", "share"), rows=tuple(rows))


def category_table(selected: Selected) -> Table:
    """Say how many candidates of each kind of edit were asked for and kept."""
    rows = []
    for category, counts in sorted(selected.by_category.items()):
        total = sum(counts.values())
        share = f"{100 * counts[KEPT] / total:.1f} %"
        rows.append((category or "(none)", str(total), str(counts[KEPT]), share))
    return Table(title="Kinds of edits", columns=("kind", "candidates", "kept", "share"), rows=tuple(rows))


def cost_table(selected: Selected) -> Table:
    """Say what a kept record has cost: edits, seconds of devices in them, bytes of its pictures."""
    edited = sum(selected.counts.values()) - selected.counts["pair"]
    kept, seconds = selected.counts[KEPT], selected.seconds
    size = sum(in_bytes for groups in selected.kept.values() for _, in_bytes in groups.values())
    rows = [("candidates an hour and device", f"{3600 * edited / seconds:,.0f}" if seconds else "")]
    if kept:
        rows += [
            ("candidates a kept record", f"{edited / kept:.1f}"),
            ("device seconds a kept record", f"{seconds / kept:.2f}"),
            ("kept records an hour and device", f"{3600 * kept / seconds:,.0f}" if seconds else ""),
            ("kB of pictures a kept record", f"{size / kept / 1000:.1f}"),
        ]
    return Table(title="Cost of the edits", columns=("", "value"), rows=tuple(rows))


def _others(config: SynthesizeConfig, selected: Selected) -> list[str]:
    """Say what the other configurations hold."""
    lines = []
    if config.preferences:
        lines.append(
            f"- `preferences`: {sum(selected.preferences.values())} pairs of a better (`chosen`) and a worse candidate (`rejected`) of one "
            f"source and edit, by {best_score(config.filters, vars(config))}, with the `margin`"
        )
    if config.inverted:
        lines.append(
            "- `inverted`: the records turned round, from `edited_image` back to its source, in the split of the record"
        )
    if config.turns:
        lines.append(
            "- `turns`: two edits of one source picture after one another, from `image_0` (the first one's result) back to the source, `image_1`, and on "
            "to `image_2`; `edit_prompt_1` and `edit_prompt_2` ask for them"
        )
    return ['Beside `default` there are, by `load_dataset(..., "NAME")`:', "", *lines, ""] if lines else []


def write_card(account: Account) -> None:
    """Write README.md and its sheet of samples."""
    output = locate(account.selecting.output)
    samples = list(_first_records(output, account.shards, SAMPLES))
    if samples:
        put_sheet(output / SHEET_FILE, draw_sheet(samples, columns=SHEET_COLUMNS)[0])
    put_atomic(output / "README.md", card_text(account, has_sheet=bool(samples)).encode())


def card_text(account: Account, *, has_sheet: bool) -> str:
    """Write the card: a head that `datasets` and the hub read, then text."""
    config, bounds, selected = account.selecting.config, account.selecting.bounds, account.selected
    records = {split: selected.records(split) for split in SPLITS}
    present = [split for split in SPLITS if any(shard.split == split for shard in account.shards)]
    total = sum(records.values())
    size = next((name for limit, name in SIZES if total < limit), "n>10M")
    head = ["---", "task_categories:", "- image-to-image", "size_categories:", f"- {size}"]
    head += ["configs:"] if present else []
    for name in configurations(config) if present else ():
        head += [f"- config_name: {name}", "  data_files:"]
        head += [line for split in present for line in (f"  - split: {split}", f"    path: {FOLDERS[name]}/{split}-*.parquet")]
    head.append("---")
    counts = ", ".join(f"{records[split]} {split}" for split in present) or "no records"
    told = meanings(bounds)
    lines = [
        *head,
        "# Edits of pictures by instruction",
        "",
        f"{total} records ({counts}) of {sum(selected.counts.values())} candidates. Each has `original_image`, `edit_prompt`, `edited_image`, the "
        "prompts of both pictures, the mask of the edit, the scores of all filters, and where it comes from. A source picture "
        "(`source_image_id`) lies in one split only.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'data = load_dataset("{THIS_FOLDER}")',
        "```",
        "",
        *_others(config, selected),
        *((f"![source, mask, edited]({SHEET_FILE})", "") if has_sheet else ()),
        funnel_table(config, bounds, selected).markdown(),
        "",
        *(f"- {name}: {told[name]}" for name in outcomes(config.filters, bounds)),
        "",
        f"The best of a pair is the one with the highest {best_score(config.filters, vars(config))}. Every candidate's outcome stands in "
        "`selection/`, with its scores and the reason.",
        "",
        *(f"- {markdown_text(warning)}" for warning in account.warnings),
        "",
        category_table(selected).markdown(),
        "",
        cost_table(selected).markdown(),
        "",
        *(() if account.truth is None else (account.truth.markdown(), "")),
        account.facts().markdown(),
        "",
    ]
    return "\n".join(lines)


def _limit(config: SynthesizeConfig, name: str, bound: Bound | None) -> str:
    if bound is not None:
        sides = [f">= {bound.low:g}" if bound.low is not None else "", f"<= {bound.high:g}" if bound.high is not None else ""]
        source = f" ({NEEDS[bound.score]})" if bound.score in NEEDS else ""
        return " and ".join(side for side in sides if side) + source
    if name == "best_of_pair":
        return f"{config.filters.per_pair} of {config.candidates}"
    return f"<= {config.filters.max_distance} bits" if name == "duplicate" else ""


def _first_records(output: Location, shards: Sequence[Shard], count: int) -> Iterator[dict[str, Any]]:
    """Read the first records of the data set in the form in which the sheet draws them."""
    columns = ["original_image", "edited_image", "mask", "edit_prompt", "original_prompt", "edited_prompt", "id", "candidate"]
    for shard in shards:
        for batch in read_batches(output / "data" / shard.name, columns, rows=1, buffer_bytes=BUFFER_BYTES):
            (row,) = batch.to_pylist()
            yield {
                "image": row["original_image"],
                "edit_mask": row["mask"],
                "edited_image": row["edited_image"],
                "id": row["id"],
                "edit_index": row["candidate"],
                "status": json.dumps(row["edit_prompt"], ensure_ascii=False),
                "source_prompt": row["original_prompt"],
                "target_prompt": row["edited_prompt"],
                "error_message": None,
                "warnings": None,
            }
            count -= 1
            if not count:
                return
