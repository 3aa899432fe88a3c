"""How many candidates of drawn scenes are truly right, of all that were edited and of those that were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from pipelines.cluster.session import get
from pipelines.store.location import list_files, locate
from pipelines.store.parquet import READ_ROWS, read_batches, read_table
from pipelines.synthesis.filters import KEPT
from pipelines.synthesis.selection import find_preferences
from pipelines.tables import Table
from vimaedit.decoding import decode_image
from vimaedit.metrics.statistics import paired_bootstrap, wilson_interval
from vimaedit.scenes.scenes import Scene
from vimaedit.synthesis.lexicon import Lexicon, load_lexicon
from vimaedit.types import Status
from vimaedit.words.phrases import parse_blend

COLUMNS = ("image", "edited_image", "category", "blend_words_used", "target_prompt", "status", "pair_id", "candidate")
DECIDED = ("pair_id", "candidate", "outcome", "rank", "unsafe", "split")
MEASURED = "the reader of the scene world; no filter asks it"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a reader that the filters do not have says: (right, total) of all edited candidates, of kept ones, by category.

    `requested`: so many candidates were asked for. `preferred`: of each pair of a better and a worse candidate, whether they are right.
    """

    requested: int
    edited: tuple[int, int]
    kept: tuple[int, int]
    by_category: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]
    preferred: Sequence[tuple[bool, bool]]

    @property
    def kept_share(self) -> float:
        """The share of the requested candidates that was kept."""
        return self.kept[1] / self.requested


def measure_truth(output: str, max_unsafe: float | None, words: str = "scenes") -> Truth:
    """Read every edited candidate of a finished synthesis of drawn scenes. Ray has to be running. `max_unsafe`: of its filters.

    Raises: ConfigError for unknown word lists.
    """
    place = locate(output)
    decisions = [
        row
        for name, _ in list_files(place / "selection", ".parquet")
        if "/" not in name
        for row in read_table(place / "selection" / name, DECIDED).to_pylist()
    ]
    kept = {(row["pair_id"], row["candidate"]) for row in decisions if row["outcome"] == KEPT}
    lexicon = load_lexicon(words)
    parts = [name for name, _ in list_files(place / "candidates" / "data", ".parquet")]
    task = ray.remote(_judge_part)
    judged = [row for rows in get([task.remote(output, part, lexicon) for part in parts]) for row in rows]
    preferences = [
        (best["pair_id"], best["candidate"], worst["candidate"]) for best, worst in find_preferences(decisions, max_unsafe)
    ]
    return count_truth(judged, kept, len(decisions), preferences)


def count_truth(
    judged: Sequence[tuple[str, str, int, bool]],
    kept: set[tuple[str, int]],
    requested: int,
    preferences: Sequence[tuple[str, int, int]] = (),
) -> Truth:
    """Count verdicts (category, pair, candidate, whether right). `preferences`: pair, its best candidate, its worst."""
    verdicts = {(pair, candidate): right for _, pair, candidate, right in judged}
    every = [(category, right) for category, _, _, right in judged]
    chosen = [(category, right) for category, pair, candidate, right in judged if (pair, candidate) in kept]
    categories = sorted({category for category, _ in every})

    def counts(rows: Sequence[tuple[str, bool]], category: str | None = None) -> tuple[int, int]:
        rights = [right for name, right in rows if category in (None, name)]
        return sum(rights), len(rights)

    return Truth(
        requested=requested,
        edited=counts(every),
        kept=counts(chosen),
        by_category={name: (counts(every, name), counts(chosen, name)) for name in categories},
        preferred=[(verdicts[pair, best], verdicts[pair, worst]) for pair, best, worst in preferences],
    )


def truth_table(truth: Truth) -> Table:
    """Write the shares down."""
    lines = [("all", truth.edited, truth.kept), *((name, *both) for name, both in truth.by_category.items())]
    rows = tuple((name, str(before[1]), _share(*before), str(after[1]), _share(*after)) for name, before, after in lines)
    columns = ("edits", "edited", "right", "kept", "right of the kept")
    note = f"Right: {MEASURED}. {100 * truth.kept_share:.1f} % of {truth.requested} requested candidates were kept."
    if count := len(truth.preferred):
        chosen, rejected = (_share(sum(rights), count) for rights in zip(*truth.preferred, strict=True))
        gain = paired_bootstrap([100.0 * (best - worst) for best, worst in truth.preferred], seed=0)
        note += (
            f" Of {count} pairs of a better and a worse candidate the better one is right in {chosen}, the worse one in {rejected}: "
            f"{gain.value:.1f} points more [{gain.low:.1f}, {gain.high:.1f}]."
        )
    return Table(title="Truly right edits", columns=columns, rows=rows, note=note)


def _share(right: int, total: int) -> str:
    if not total:
        return "-"
    found = wilson_interval(right, total)
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _judge_part(output: str, part: str, lexicon: Lexicon) -> list[tuple[str, str, int, bool]]:
    from vimaedit.scenes.reading.find import read_unknown
    from vimaedit.scenes.reading.truth import is_edit_right

    place = locate(output) / "candidates" / "data" / part
    sources: dict[bytes, Scene] = {}  # a picture is read once for all its candidates
    verdicts = []
    for row in (row for batch in read_batches(place, COLUMNS, rows=READ_ROWS) for row in batch.to_pylist()):
        if row["status"] != Status.OK:
            continue
        coded, edited = (row[name]["bytes"] for name in ("image", "edited_image"))
        if coded not in sources:
            sources[coded] = read_unknown(decode_image(coded))
        blend = parse_blend(row["blend_words_used"])
        right = is_edit_right(sources[coded], decode_image(edited), row["category"] or "", blend, row["target_prompt"], lexicon)
        verdicts.append((row["category"] or "", row["pair_id"], row["candidate"], right))
    return verdicts
