"""The benchmark of drawn scenes: edit it with the recipe and with each of its variants, score every edit, make the tables."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.cluster.place import Placement, place
from pipelines.cluster.progress import ProgressState
from pipelines.cluster.session import connect, look_at_cluster
from pipelines.cluster.weights import stated_recipe
from pipelines.cluster.workers import Probe, await_worker, probe
from pipelines.edit.edit import run_edit
from pipelines.exits import EXIT_LOSSES
from pipelines.output.config import EditJobConfig
from pipelines.output.digest import config_digest
from pipelines.scenes.benchmark import FILE_NAME, ScenesConfig, scene_file
from pipelines.scenes.marks import (
    Record,
    RoundTripScore,
    SceneScore,
    decode_picture,
    read_results,
    score_results,
    score_round_trips,
    write_scores,
)
from pipelines.scenes.models import (
    OBJECT_COUNTS,
    CaptionedScene,
    captioned_scene,
    draw_scenes,
    num_found,
    read_drawn,
    round_trips,
    similarities,
    steering_clip,
)
from pipelines.scenes.report import markdown
from pipelines.scenes.table import DEFAULT, Found, make_numbers, trade
from pipelines.store.location import Location, check_writable, exists, locate, open_reader, put_atomic, read_bytes
from pipelines.store.masking import mask_urls, without_secrets
from vimaedit.config import EditConfig, ModelConfig, check_choice, check_range
from vimaedit.errors import ConfigError
from vimaedit.recipes import config_of, recipe_of
from vimaedit.scenes.benchmark import MAX_COUNT, MAX_SEED, benchmark_seed
from vimaedit.scenes.reading.judge_compare import Comparison
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.scenes import SPLITS
from vimaedit.types import Status

logger = logging.getLogger(__name__)

VARIANTS: dict[str, dict[str, Any]] = {  # options that differ from the recipe's
    DEFAULT: {},
    "no-image-guidance": {"image_guidance": False},
    "cross-attention": {"grounding": "cross-attention"},
    "true-mask": {"grounding": "given"},
    "zero-variance": {"variance": "zero"},
    "uniform-variance": {"variance": "uniform"},
    "conventional-order": {"image_order": "conventional"},
    "no-text-guidance": {"text_guidance": False},
    "ddim-20": {"solver": "ddim", "steps": 20},
    "ddim-10": {"solver": "ddim", "steps": 10},
    "dpmsolver-50": {"solver": "dpmsolver++", "steps": 50},
    "dpmsolver-20": {"solver": "dpmsolver++", "steps": 20},
    "dpmsolver-10": {"solver": "dpmsolver++", "steps": 10},
    "quiet-source": {"source_variance": False},
}
FEWER = ("ddim-20", "ddim-10", "dpmsolver-20", "dpmsolver-10")  # of the above, those with fewer steps
GUIDED: dict[str, dict[str, Any]] = {  # guidance in the first so many percent of the steps, where a method can stop
    "guided-60": {"guidance_end": 0.6},
    "guided-40": {"guidance_end": 0.4},
    "guided-20": {"guidance_end": 0.2},
    "ddim-10-guided-40": {"solver": "ddim", "steps": 10, "guidance_end": 0.4},
}
CARRIED = ("seed", "canvas", "blend", "missing_blend", "long_prompt")  # from the command line to a variant of another model
VariantProgress = Callable[[str, ProgressState], None]


@dataclass(frozen=True, kw_only=True)
class SceneBenchConfig(EditConfig, ModelConfig):
    """The suite `miniature` of `jobs.bench`: which scenes, which variants; the edit's options are the recipe that varies."""

    suite: str = "miniature"  # this one
    output: str = ""  # folder, local or any fsspec URL; gets records/ runs/ scores/ table.json table.md
    split: str = "test"  # train, validation, test
    count: int = 50  # records
    scenes_seed: int = 0  # another seed, other scenes
    variants: list[str] = field(default_factory=list)  # which to compare with the recipe itself; empty: all
    scoring_clip: str | None = "miniature"  # CLIP that judges, not the one that steers: name, folder, URL, hub id; null: none
    text_to_image: int = 20  # pictures drawn from captions for each number of objects; 0: none
    text_to_image_steps: int = 50  # of the stock pipeline
    text_to_image_guidance: float = 7.5  # of the stock pipeline
    retrieval: int = 100  # captions among which each CLIP looks for the one of a picture; 0: none
    actors: int | str = "auto"  # how many editors work side by side; auto: as many as the cluster has room for
    batch_size: int | str = "auto"  # edits that one editor does at once; auto: by the memory of its device
    threads: int | str = "auto"  # CPU threads of one actor
    ray_address: str | None = None  # HOST:PORT of a cluster, or auto; unset: RAY_ADDRESS, else a Ray of this process's own

    def __post_init__(self) -> None:
        EditConfig.__post_init__(self)
        ModelConfig.__post_init__(self)
        if not self.output:
            raise ConfigError("output: got nothing; it is required: output=PATH_OR_URL")
        check_choice("split", self.split, SPLITS)
        check_range("count", self.count, 1, MAX_COUNT)
        check_range("scenes_seed", self.scenes_seed, 0, MAX_SEED)
        for name in self.variants:
            check_choice("variants", name, self.choices)
        check_range("text_to_image", self.text_to_image, 0, 10_000)
        check_range("text_to_image_steps", self.text_to_image_steps, 1, 999)
        check_range("text_to_image_guidance", self.text_to_image_guidance, 0.0, 100.0)
        check_range("retrieval", self.retrieval, 0, 10_000)
        variant_jobs(self)  # a variant that contradicts the recipe is refused now

    @property
    def choices(self) -> dict[str, dict[str, Any]]:
        """The variants that there are."""
        return VARIANTS


@dataclass(frozen=True, kw_only=True)
class FewStepBenchConfig(SceneBenchConfig):
    """The suite `few-steps` of `jobs.bench`: what fewer steps save, and what they cost in quality, on drawn scenes."""

    suite: str = "few-steps"  # this one
    few_step_model: str = "miniature-lcm"  # distilled for few steps: built-in name, bundle folder or URL
    text_to_image: int = 0  # pictures drawn from captions for each number of objects; 0: none
    retrieval: int = 0  # captions among which each CLIP looks for the one of a picture; 0: none

    @property
    def choices(self) -> dict[str, dict[str, Any]]:
        guided = GUIDED if self.parts.can_stop_guiding else {}
        distilled: dict[str, dict[str, Any]] = {}
        for steps in (12, 8, 4):
            distilled[f"distilled-{steps}"] = {"model": self.few_step_model, "steps": steps}
            distilled[f"distilled-infedit-{steps}"] = {"model": self.few_step_model, "method": "infedit", "steps": steps}
        return {DEFAULT: {}, **{name: VARIANTS[name] for name in FEWER}, **guided, **distilled}


@dataclass(frozen=True, kw_only=True)
class BenchSummary:
    """What a benchmark came to: its numbers (None: it stopped early), where they lie, and the exit code."""

    exit_code: int
    numbers: dict[str, Any] | None
    places: tuple[str, ...]
    stop_reason: str | None = None


def run_scene_bench(
    config: SceneBenchConfig, progress: VariantProgress | None = None, on_started: Callable[[], None] | None = None
) -> BenchSummary:
    """Edit, score and compare. What an interrupted benchmark has finished under the same settings is kept.

    `on_started` is called right after Ray has started (the place to install signal handlers).

    Raises: ConfigError (exit 2), also where the output holds a benchmark of other settings.
    """
    output = locate(config.output)
    check_writable(output)
    jobs = variant_jobs(config)
    default = jobs[DEFAULT]
    connect(default)
    if on_started is not None:
        on_started()
    placement = place(default, look_at_cluster(default), compiled=default.compile)
    await_worker(placement)
    probes = {weights: probe(job, job, placement) for weights, job in _by_weights(jobs).items()}
    found = probes[_weights(default)]
    size = config.canvas.size or found.facts.canvas_size
    codes = {name: finished_code(job, probes[_weights(job)]) for name, job in jobs.items()}
    records = keep_records(output, config, size)
    pictures = [decode_picture(record["image"]) for record in records]
    prompts = [record["target_prompt"] for record in records]
    trips, cell = _round_trips(output, default, placement, records)
    scores: dict[str, list[SceneScore]] = {}
    for name, job in jobs.items():
        run = locate(job.output)
        if codes[name] is None:
            logger.info("editing %s", mask_urls(run.url))
            summary = run_edit(job, functools.partial(progress, name) if progress else None)
            codes[name] = summary.exit_code
            for warning in summary.warnings:
                if warning != found.facts.warning:  # that stands with the tables
                    logger.warning("%s: %s", name, warning)
            if summary.stop_reason is not None:
                reason = f"{name}: {summary.stop_reason}"
                return BenchSummary(exit_code=summary.exit_code, numbers=None, places=(mask_urls(run.url),), stop_reason=reason)
        results = read_results(run)
        edited = [decode_picture(each["edited_image"]) for each in results if each["status"] == Status.OK]
        wanted = [prompt for prompt, each in zip(prompts, results, strict=True) if each["status"] == Status.OK]
        likeness = iter(similarities(config.scoring_clip, edited, wanted) if config.scoring_clip else itertools.repeat(None))
        clip = [next(likeness) if each["status"] == Status.OK else None for each in results]
        scores[name] = score_results(records, results, clip, cell)
        write_scores(output / "scores" / f"{name}.parquet", SceneScore, scores[name])
    numbers = make_numbers(
        scores=scores,
        trips=trips,
        drawn=_draw(config, _settled(default, found), placement),
        found=_retrieve(config, default, placement, size),
        source_clip=similarities(config.scoring_clip, pictures, prompts) if config.scoring_clip else None,
        facts=_facts(config, default, found, size),
    )
    if isinstance(config, FewStepBenchConfig):
        numbers["trade"] = trade(numbers["variants"], {name: f"{job.method}, {job.model}" for name, job in jobs.items()})
    numbers = without_secrets(numbers)
    texts = {"table.json": json.dumps(numbers, indent=2), "table.md": markdown(numbers)}
    for name, text in texts.items():
        put_atomic(output / name, text.encode())
    places = tuple(mask_urls((output / name).url) for name in texts)
    return BenchSummary(exit_code=EXIT_LOSSES if any(codes.values()) else 0, numbers=numbers, places=places)


def variant_jobs(config: SceneBenchConfig) -> dict[str, EditJobConfig]:
    """Return the editing run of every variant that is asked for, the recipe itself first.

    Raises: ConfigError for a variant that contradicts the recipe, naming it.
    """
    output = locate(config.output)
    own = {each.name: getattr(config, each.name) for kind in (EditConfig, ModelConfig) for each in dataclasses.fields(kind)}
    own |= {name: getattr(config, name) for name in ("actors", "batch_size", "threads", "ray_address")}
    own["input"] = (output / "records" / FILE_NAME).url
    jobs = {}
    for name, changes in config.choices.items():
        if name != DEFAULT and config.variants and name not in config.variants:
            continue
        options = {**own, **_recipe(config, changes), **changes, "output": (output / "runs" / name).url}
        if options["grounding"] == "given":
            options["columns"] = {"given_mask": "reference_mask"}
        try:
            jobs[name] = EditJobConfig(**options)
        except ConfigError as error:
            raise ConfigError(f"variants: {name} does not go with the other options ({error}); leave it out") from error
    return jobs


def _recipe(config: SceneBenchConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the options of another model's own recipe, for a variant that names one."""
    if "model" not in changes:
        return {}
    recipe = config_of(recipe_of(stated_recipe(changes["model"]), changes.get("method")))
    options = {each.name: getattr(recipe, each.name) for each in dataclasses.fields(EditConfig)}
    return {**options, **{name: getattr(config, name) for name in CARRIED}}


def keep_records(output: Location, config: SceneBenchConfig, size: int) -> list[Record]:
    """Write the records, or find them written.

    Raises: ConfigError where the output holds other ones.
    """
    scenes = ScenesConfig(output=config.output, split=config.split, count=config.count, size=size, seed=config.scenes_seed)
    place, content = output / "records" / FILE_NAME, scene_file(scenes)
    if not exists(place):
        put_atomic(place, content)
    elif read_bytes(place) != content:
        raise ConfigError(
            f"output: got {mask_urls(output.url)}, which holds other records than count={config.count} split={config.split} "
            f"scenes_seed={config.scenes_seed} at {size} px; allowed: those it was begun with, or another output"
        )
    with open_reader(place) as stream:
        records: list[Record] = pq.read_table(stream).to_pylist()
    return records


def finished_code(job: EditJobConfig, found: Probe) -> int | None:
    """Return the exit code with which a variant's run finished; None where it has not.

    Raises: ConfigError where its output holds a finished run of other settings or of another model.
    """
    run = locate(job.output)
    if not exists(run / "_SUCCESS"):
        return None
    done = json.loads(read_bytes(run / "run.json"))
    wanted = {"config_digest": config_digest(_settled(job, found)), "model_digest": found.model_digest}
    if different := [f"{name} {done[name]} and not {value}" for name, value in wanted.items() if done[name] != value]:
        raise ConfigError(
            f"output: got {mask_urls(run.url)}, which holds a finished run with {', '.join(different)}; allowed: the options it was "
            "begun with, or another output"
        )
    code: int = done["exit_code"]
    return code


def _by_weights(jobs: dict[str, EditJobConfig]) -> dict[tuple[str, bool], EditJobConfig]:
    """Return a job of each kind that there is: which weights are loaded depends on nothing else."""
    return {_weights(job): job for job in jobs.values()}


def _weights(job: EditJobConfig) -> tuple[str, bool]:
    return job.model, job.image_guidance


def _settled(job: EditJobConfig, found: Probe) -> EditJobConfig:
    return dataclasses.replace(job, device=found.device, dtype=found.dtype)


def _round_trips(
    output: Location, job: EditJobConfig, placement: Placement, records: Sequence[Record]
) -> tuple[list[RoundTripScore], int]:
    returned, cell = round_trips(job, placement, [decode_picture(record["image"]) for record in records])
    scores = score_round_trips(records, returned)
    write_scores(output / "scores" / "round_trip.parquet", RoundTripScore, scores)
    return scores, cell


def _draw(config: SceneBenchConfig, job: EditJobConfig, placement: Placement) -> list[Comparison]:
    """Draw the first scenes of each number of objects from their captions, and read what came out."""
    if not config.text_to_image:
        return []
    scenes: list[CaptionedScene] = []
    left = dict.fromkeys(OBJECT_COUNTS, config.text_to_image)
    for index in itertools.count():
        if not any(left.values()):
            break
        each = captioned_scene(benchmark_seed(config.split, config.scenes_seed, index))
        if left[len(each.scene.objects)]:
            left[len(each.scene.objects)] -= 1
            scenes.append(each)
    pictures = draw_scenes(job, placement, scenes, steps=config.text_to_image_steps, guidance=config.text_to_image_guidance)
    return read_drawn(scenes, pictures)


def _retrieve(config: SceneBenchConfig, job: EditJobConfig, placement: Placement, size: int) -> list[Found]:
    """Let each CLIP find the captions of pictures as they were drawn."""
    if not config.retrieval:
        return []
    indices = range(config.retrieval)
    scenes = [captioned_scene(benchmark_seed(config.split, config.scenes_seed, index)) for index in indices]
    pictures, captions = [render_scene(each.scene, size) for each in scenes], [each.caption for each in scenes]
    folders = {"steering CLIP": steering_clip(job, placement), "scoring CLIP": config.scoring_clip}
    return [
        Found(name=name, found=num_found(folder, pictures, captions), total=config.retrieval)
        for name, folder in folders.items()
        if folder is not None
    ]


def _facts(config: SceneBenchConfig, job: EditJobConfig, found: Probe, size: int) -> dict[str, Any]:
    """Say what the numbers depend on, and where they were made."""
    return {
        "split": config.split,
        "records": config.count,
        "scenes_seed": config.scenes_seed,
        "picture_px": size,
        "seed": config.seed,
        "steps": config.steps,
        "model": config.model,
        "model_warning": found.facts.warning,
        "model_digest": found.model_digest,
        "config_digest": config_digest(_settled(job, found)),
        "scoring_clip": config.scoring_clip,
        "processor": processor_name(),
        "versions": found.versions,
        "config": dataclasses.asdict(config),
    }


def processor_name() -> str:
    """Return the name of this machine's processor, as far as the system tells."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
