"""The first look at a scoring, which needs neither Ray nor a network: what is refused at once, and scores that are there already."""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

import vimaedit
from pipelines.exits import EXIT_LOSSES
from pipelines.options import Place, option_names
from pipelines.score.config import ScoreConfig
from pipelines.score.pairs import Pair, Pairs, find_pairs
from pipelines.score.table import (
    FOLDER,
    Numbers,
    compare_tables,
    comparison_table,
    judge_table,
    read_scores,
    read_summary,
    summary_table,
    write_summary,
)
from pipelines.store.location import Location, check_writable, locate
from pipelines.store.masking import mask_urls
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import METRICS
from vimaedit.scenes.reading.judge import READER_VERSION
from vimaedit.types import Status

logger = logging.getLogger(__name__)

METHOD_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
# Where work is placed, and when a run counts as a failure.
CHANGE_NO_SCORE = option_names(Place) | {"output", "name", "against", "max_missing_fraction", "batch_size"}


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What scoring came to: exit code, the content of `scores/<name>.json`, the URLs of what was written, warnings."""

    exit_code: int
    name: str
    aggregates: Numbers
    places: tuple[str, ...]
    warnings: tuple[str, ...]

    def text(self) -> str:
        """Say the means, the requests without scores, the comparison, and where everything lies."""
        numbers = self.aggregates
        counts = ", ".join(f"{count} {status}" for status, count in numbers["statuses"].items() if count)
        lines = [summary_table(self.name, numbers["overall"], numbers["records"]).text(), "", f"requests: {counts}"]
        if numbers["unmatched"]:
            lines.append(f"edited pictures that belong to no request: {numbers['unmatched']}")
        if numbers.get("judge") is not None:
            lines += ["", judge_table(numbers["judge"]).text()]
        if numbers["compared"] is not None:
            lines += ["", comparison_table(self.name, numbers["compared"]).text()]
        return "\n".join([*lines, *self.places])


@dataclass(frozen=True, kw_only=True, eq=False)
class BegunScore:
    """A scoring that may begin. `kept`: what is there already of these settings and pictures, as numbers and as rows."""

    config: ScoreConfig
    output: Location
    name: str
    pairs: Pairs
    digest: str
    kept: tuple[Numbers, pa.Table] | None


def begin_score(config: ScoreConfig) -> BegunScore:
    """Match the edited pictures with the benchmark, and look for scores of them.

    Raises: ConfigError for what cannot be scored.
    """
    output = locate(config.output)
    check_writable(output, FOLDER)
    pairs = find_pairs(config)
    name = config.name or default_name(config, pairs.pairs)
    if name == config.against:
        raise ConfigError(
            f"against: got {name!r}, these scores themselves; allowed: the name of other scores, or another name="
        )
    if config.against and (read_summary(output, config.against) is None or read_scores(output, config.against) is None):
        raise ConfigError(
            f"against: got {config.against!r}, which {mask_urls(output.url)} has no scores of; allowed: a name scored there before"
        )
    digest = settings_digest(config, pairs.digest)
    numbers, kept = read_summary(output, name), None
    if numbers is not None and numbers.get("digest") == digest and (table := read_scores(output, name)) is not None:
        kept = (numbers, table)
    return BegunScore(config=config, output=output, name=name, pairs=pairs, digest=digest, kept=kept)


def find_kept(begun: BegunScore) -> ScoreSummary | None:
    """Return scores that are there already, compared anew; None where there is something to measure.

    A network that could not be had may be there now: only a worker can tell.
    """
    if begun.kept is None:
        return None
    numbers, table = begun.kept
    if any(getattr(begun.config, str(METRICS[name].backbone)) is not None for name in numbers["absent"]):
        return None
    logger.info("%s holds these scores of %s already", mask_urls(begun.output.url), begun.name)
    found = {**numbers, "compared": compare(begun, table)}
    if found != numbers:
        write_summary(begun.output, begun.name, found)
    return summarize(begun, found)


def summarize(begun: BegunScore, numbers: Numbers) -> ScoreSummary:
    """Judge scores: 3 where too many requests have none."""
    lost = numbers["records"] - numbers["statuses"][Status.OK]
    return ScoreSummary(
        exit_code=EXIT_LOSSES if lost > begun.config.max_missing_fraction * numbers["records"] else 0,
        name=begun.name,
        aggregates=numbers,
        places=tuple(mask_urls((begun.output / FOLDER / f"{begun.name}.{kind}").url) for kind in ("parquet", "json")),
        warnings=tuple(numbers["warnings"]),
    )


def compare(begun: BegunScore, table: pa.Table) -> Numbers | None:
    """Compare with the scores of the name that is asked for; None for no name."""
    against = begun.config.against
    if not against:
        return None
    other = read_scores(begun.output, against)
    assert other is not None  # looked for at the beginning
    return {"against": against, "metrics": compare_tables(table, other)}


def default_name(config: ScoreConfig, pairs: Sequence[Pair]) -> str:
    """Name scores after the method that made the pictures, else after the place where they lie.

    The pictures may be anybody's: what they say of their method must be a file's name and no path.
    """
    methods = {pair.edited.method for pair in pairs if pair.edited is not None and pair.edited.method}
    if len(methods) == 1 and METHOD_NAME.fullmatch(name := str(methods.pop())):
        return name
    return posixpath.splitext(locate(config.edited).path.rstrip("/").rsplit("/", 1)[-1])[0].strip("._*") or "edited"


def settings_digest(config: ScoreConfig, content: str) -> str:
    """Digest what scores depend on: the settings, and the `content` that is scored."""
    settings = {name: value for name, value in asdict(config).items() if name not in CHANGE_NO_SCORE}
    made_by: dict[str, Any] = {"version": vimaedit.__version__, "metrics_known": list(METRICS)}
    if not config.metrics or "scene" in config.metrics:
        made_by["reader"] = READER_VERSION
    text = json.dumps({"content": content, **made_by, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
