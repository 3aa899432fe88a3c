"""The first look at a synthesis, which needs neither Ray nor a model: what is refused at once, and one that is finished already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.cluster.weights import with_absolute_names
from pipelines.edit import begin as edit
from pipelines.output.config import EditJobConfig
from pipelines.output.finish import RUN_FILE, read_run
from pipelines.output.plan import load_plan
from pipelines.output.resume import as_stored, tell_differences
from pipelines.records.scan import READING
from pipelines.store.listing import refuse_output_in_input, shown_inputs
from pipelines.store.location import (
    Damaged,
    Location,
    check_writable,
    is_complete,
    list_files,
    locate,
    put_json,
    read_json,
)
from pipelines.store.masking import mask_urls
from pipelines.synthesis.columns import TAKEN
from pipelines.synthesis.config import SynthesizeConfig, pair_settings, score_settings
from pipelines.synthesis.input import CaptionSet, cut_chunks, scan_captions
from pipelines.synthesis.making import Making
from vimaedit.errors import ConfigError
from vimaedit.models.names import absolute_name
from vimaedit.synthesis.lexicon import Lexicon, load_lexicon

SETTINGS_FILE = "synthesis.json"
SELECTED_FIELDS = {  # of `run.json` once the selection is made
    **dict.fromkeys(("counts", "records", "config"), dict),
    **dict.fromkeys(("places", "warnings"), list),
    **{"exit_code": int, "digest": str, "seconds": int | float, "truth": str | None},
}
SELECTION_OPTIONS = (
    "filters",
    "validation_fraction",
    "preferences",
    "turns",
    "inverted",
    "rewrite",
    "keep_rejected",
    "shard_mb",
    "seed",
    "truth",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SynthesisSummary:
    """What a synthesis came to. `counts`: outcome -> candidates, `records`: split -> records; places are URLs."""

    exit_code: int
    seconds: float
    places: tuple[str, ...]
    warnings: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    records: Mapping[str, int] = field(default_factory=dict)
    stop_reason: str | None = None
    was_finished: bool = False
    truth: str | None = None  # table

    @classmethod
    def of(cls, facts: Mapping[str, Any], **others: Any) -> SynthesisSummary:
        """Say what a finished synthesis came to, from what its `run.json` says."""
        told = {name: facts[name] for name in ("exit_code", "counts", "records", "seconds", "truth")}
        lists = {name: tuple(facts[name]) for name in ("places", "warnings")}
        return cls(**{**told, **lists, **others})

    def text(self) -> str:
        """Say candidates by outcome, records by split, and where they lie."""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items())
        records = ", ".join(f"{count} {split}" for split, count in self.records.items())
        total = sum(self.counts.values())
        lines = [f"{total} candidates in {self.seconds:.1f} s: {counts}", f"records: {records}"] if total else []
        if self.was_finished:
            lines.insert(0, "finished before: nothing was done")
        lines += [self.truth] if self.truth else []
        lines += self.places
        if self.stop_reason:
            lines.append(f"stopped early: {self.stop_reason}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, eq=False)
class BegunSynthesis:
    """A synthesis that may begin, or go on. `making`: of its pairs, None where it selects only; `limits`: those that it has had."""

    config: SynthesizeConfig
    output: Location
    making: Making | None
    limits: list[int | None]


def begin_synthesis(config: SynthesizeConfig) -> BegunSynthesis:
    """Look at input and output, and read the word lists; nothing is settled yet that only the cluster tells.

    Raises: ConfigError.
    """
    output = locate(config.output)
    config = dataclasses.replace(config, output=output.url)
    refuse_output_in_input(output, config.input)
    if not config.dry_run:
        check_writable(output, "candidates", "data", "pairs", "state")
    if config.select_only and not config.dry_run:
        if not is_complete(output / "candidates"):
            raise ConfigError(
                f"select_only: got true, but {mask_urls((output / 'candidates').url)} holds no finished candidates; allowed: false, "
                "which makes them"
            )
        return BegunSynthesis(config=config, output=output, making=None, limits=[])
    captions = scan_captions(config.input, config.columns, TAKEN)
    if not captions.num_rows:
        raise ConfigError(f"input: got {shown_inputs(config.input)}, whose files hold no records; allowed: at least one")
    source = pair_source(config, captions)
    lexicon = load_lexicon(config.words) if source == "rules" else None
    named, generator = with_absolute_names(config), config.generator
    if generator.model is not None and generator.url is None:
        named = dataclasses.replace(named, generator=dataclasses.replace(generator, model=absolute_name(generator.model)))
    making = Making(config=named, captions=captions, lexicon=lexicon, source=source, device="cpu", dtype="float32", threads=1)
    limits = [config.limit] if config.dry_run else check_settings(output, config, captions, lexicon)
    return BegunSynthesis(config=config, output=output, making=making, limits=limits)


def find_finished(begun: BegunSynthesis) -> SynthesisSummary | None:
    """Say of a finished synthesis what it came to; None where anything has to be made, edited or selected."""
    output, making = begun.output, begun.making
    before = find_selected(begun.config, output)
    if before is None or making is None:
        return before
    there = {name for name, _ in list_files(output / "pairs", ".parquet")}
    if any(chunk.name not in there for chunk in cut_chunks(making.captions, begun.limits)):
        return None
    if edit.find_finished(edit.begin(editing_job(begun.config, output))) is None:
        return None
    return before


def find_selected(config: SynthesizeConfig, output: Location) -> SynthesisSummary | None:
    """Say what the selection came to that is there, where it is of these candidates and these options."""
    try:
        before = read_json(output / RUN_FILE, SELECTED_FIELDS) if is_complete(output) else None
        if before is None or before["digest"] != selection_digest(config, read_run(output / "candidates") or {}):
            return None
    except Damaged as error:
        logger.warning("output: %s", error)  # it is made anew
        return None
    return SynthesisSummary.of(before, seconds=0.0, was_finished=True)


def selection_digest(config: SynthesizeConfig, run: Mapping[str, Any]) -> str:
    """Digest what the data set depends on besides the candidates, and which state of them it was."""
    values = dataclasses.asdict(config)
    options = {name: values[name] for name in SELECTION_OPTIONS}
    if config.rewrite != "none":
        options["rewriting"] = {name: values[config.rewrite][name] for name in ("model", "max_tokens")}
    state = {name: run.get(name) for name in ("plan_digest", "generation", "counts")}
    text = json.dumps([options, dict(score_settings(config)), state], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def editing_job(config: SynthesizeConfig, output: Location) -> EditJobConfig:
    """Return the run that edits the candidates; where a larger limit has added pairs to its input, it takes them in."""
    job, stored = config.editing_job(), load_plan(output / "candidates")
    pairs = {name for name, _ in list_files(output / "pairs", ".parquet")}
    if stored is None or pairs <= {file.path for file in stored.files}:
        return job
    if config.resume == "retry-failed":
        raise ConfigError("limit: got a larger one with resume=retry-failed; allowed: one after the other")
    return dataclasses.replace(job, resume="extend")


def pair_source(config: SynthesizeConfig, captions: CaptionSet) -> str:
    """Settle where the pairs come from.

    Raises: ConfigError for pairs=given without such a column.
    """
    if config.pairs == "auto":
        return "given" if "target_prompt" in captions.columns else "rules"
    if config.pairs == "given" and "target_prompt" not in captions.columns:
        raise ConfigError("pairs: got given, but the input has no target_prompt; allowed: rules, generator, or such a column")
    return config.pairs


def check_settings(
    output: Location, config: SynthesizeConfig, captions: CaptionSet, lexicon: Lexicon | None
) -> list[int | None]:
    """Check that an output's pairs were made of the same, where it has any.

    Returns the limits that the output has had, this one last.

    Raises: ConfigError with the differences.
    """
    found = read_json(output / SETTINGS_FILE, {"settings": dict, "input": list, "limits": list}, "put a copy of it back")
    if found is None:
        if list_files(output / "pairs", ".parquet"):
            raise ConfigError(
                f"output: got {mask_urls(output.url)}, which holds pairs of unknown settings; allowed: a new folder"
            )
        return [config.limit]
    if config.resume == "never":
        raise ConfigError(
            f"resume: got never, but {mask_urls(output.url)} holds a synthesis; allowed: if-possible, or another output"
        )
    wanted = _settings(config, captions, lexicon)
    differences = tell_differences(wanted["settings"], {name: found["settings"].get(name) for name in wanted["settings"]})
    if wanted["reading"] != found.get("reading"):
        differences.append("an input read by the rules of an earlier version")
    if wanted["input"] != found["input"]:
        differences.append("other input files")
    if differences:
        raise ConfigError(
            f"output: got {mask_urls(output.url)}, which holds a synthesis of other settings: {', '.join(differences)}; allowed: those "
            "it was begun with, or another output (nothing is deleted)"
        )
    limits: list[int | None] = found["limits"]
    last, limit = limits[-1], config.limit
    if limit == last:
        return limits
    if last is None or (limit is not None and limit < last):
        raise ConfigError(
            f"limit: got {limit}, but {mask_urls(output.url)} was begun {'without one' if last is None else f'with {last}'}; allowed: "
            "that, a larger one or none"
        )
    return [*limits, limit]


def store_settings(output: Location, making: Making) -> list[int | None]:
    """Store what the pairs depend on, checked once more under the lock; return the limits that the output has had.

    Raises: ConfigError as `check_settings`.
    """
    limits = check_settings(output, making.config, making.captions, making.lexicon)
    content = {**_settings(making.config, making.captions, making.lexicon), "limits": limits}
    put_json(output / SETTINGS_FILE, content)
    return limits


def _settings(config: SynthesizeConfig, captions: CaptionSet, lexicon: Lexicon | None) -> dict[str, Any]:
    words = lexicon.digest if lexicon is not None else ""
    return {
        "settings": as_stored(pair_settings(config, words)),
        "input": [[file.path, file.size, file.rows] for file in captions.files],
        "reading": READING,
    }
