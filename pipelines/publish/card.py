"""The card of a published data set: the set's own, or one made of what its run says of itself; with a licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCard

from pipelines.tables import Table
from vimaedit.types import Status

PROVENANCE = ("model", "family", "model_digest", "config_digest", "version")  # of run.json
OPTIONS = ("method", "steps", "seed", "frame")  # of its config


def make_card(
    text: str | None, run: Mapping[str, Any], splits: Sequence[str], suffix: str, licence: str | None
) -> tuple[str, str]:
    """Return the card and the licence that it states, "" where it states none.

    `text`: the set's own card, if it has one; `splits`: its shards' folders and splits (`data/train`), whose names end in `suffix`.
    """
    card = DatasetCard(run_card(run, splits, suffix) if text is None else text)
    if licence is not None:
        card.data["license"] = licence
    return str(card), str(card.data.get("license") or "")


def run_card(run: Mapping[str, Any], splits: Sequence[str], suffix: str) -> str:
    """Write the card of an editing run: a head that `datasets` and the hub read, then where the edits come from."""
    head = ["---", "task_categories:", "- image-to-image", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        head += [f"  - split: {split.rpartition('/')[2]}", f"    path: {split}-*{suffix}"]
    config, counts = run.get("config", {}), run.get("counts", {})
    facts = [(name, run.get(name)) for name in PROVENANCE] + [(name, config.get(name)) for name in OPTIONS]
    facts += [(f"rows: {status}", counts.get(status)) for status in map(str, Status)]
    rows = tuple((name, str(value)) for name, value in facts if value is not None)
    return "\n".join(
        [
            *head,
            "---",
            "# Pictures edited by prompt",
            "",
            f"{counts.get(str(Status.OK), 0)} edits that are ok: source, edited picture, masks, prompts, metrics, and where each comes from. "
            "Every edited picture says in its XMP (IPTC's `DigitalSourceType`) that a model made it. `run.json` holds all options.",
            "",
            Table(title="Provenance", columns=("", "value"), rows=rows).markdown(),
            "",
        ]
    )
