"""The judge of edits on a worker: asked in parallel, its answers kept below the output, and held to pairs of known quality."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.cluster.place import Placement
from pipelines.cluster.session import get
from pipelines.cluster.weights import local_copy
from pipelines.cluster.workers import on_worker
from pipelines.options import Judge
from pipelines.store.location import Damaged, locate, put_json, read_json
from pipelines.store.masking import mask_urls
from vimaedit.chat import ChatServer, Refused, server_key
from vimaedit.metrics.judge import PROMPT_VERSION, Content, Unreadable, judge_values, question, read_scores, request_of
from vimaedit.metrics.samples import EditSample
from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.edits import CATEGORIES, make_edit
from vimaedit.scenes.render import render_scene

if TYPE_CHECKING:
    from vimaedit.metrics.local_chat import LocalChat

logger = logging.getLogger(__name__)

FOLDER = "judge"  # below an output
CALIBRATION_EDITS = 6
CALIBRATION_PX = 256
KINDS = ("done", "nothing done", "another edit")  # of which a judge has to like the first best


class KeptAnswers:
    """A model whose answers are kept below an output: what was answered is not asked for again."""

    def __init__(self, options: Any, output: str, option: str, device: str = "cpu") -> None:
        """`options` name server, model and key, or a model that is loaded onto `device`; `option` is what errors call them by.

        Raises: ConfigError where the key's variable is not set on this worker, or the model does not load.
        """
        self.model, self.max_tokens = options.model, options.max_tokens
        self.answers = locate(output) / FOLDER
        self.server: ChatServer | LocalChat
        if options.url is None:
            from vimaedit.metrics.local_chat import LocalChat

            place = local_copy(f"{option}.model", options.model) if "://" in options.model else options.model
            self.server = LocalChat(place, max_tokens=options.max_tokens, device=device, option=option)
            self.model = self.server.name
        else:
            key = server_key(option, options.key_variable)
            self.server = ChatServer(options.url, model=options.model, key=key, max_tokens=options.max_tokens, option=option)

    def ask(self, content: Content) -> dict[str, Any]:
        """Return `answer`, or the `reason` why there is none.

        Raises: ConfigError, OSError where the server cannot be asked.
        """
        text = json.dumps([PROMPT_VERSION, self.model, self.max_tokens, content], sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        place = self.answers / digest[:2] / f"{digest}.json"
        try:
            kept = read_json(place, {"answer": str | None, "reason": str | None})
        except Damaged as error:  # it is asked for again, and written anew
            logger.warning("%s.output: %s", self.server.option, error)
            kept = None
        if kept is not None:
            return kept
        try:
            found = {"answer": self.server.ask(content, seed=0), "reason": None}
        except Refused as error:
            found = {"answer": None, "reason": mask_urls(str(error))}
        put_json(place, {**found, "model": self.model, "prompt_version": PROMPT_VERSION})
        return found


class AskingJudge:
    """Asks of edits: a server, or a model that it loads onto `device`."""

    def __init__(self, judge: Judge, output: str, device: str = "cpu") -> None:
        self.judge, self.server = judge, KeptAnswers(judge, output, "judge", device)

    def __call__(self, samples: Sequence[EditSample]) -> list[dict[str, Any]]:
        """Judge edits: values, the reason where there is none, and both answers as they came.

        Raises: ConfigError, OSError where the server cannot be asked; what it has answered by then is kept.
        """
        with ThreadPoolExecutor(self.judge.parallel) as pool:
            return list(pool.map(self._judge, samples))

    def _judge(self, sample: EditSample) -> dict[str, Any]:
        asked = request_of(sample.instruction, sample.source_prompt, sample.target_prompt)
        both = question(sample.source, sample.edited, asked, self.judge.side_px)
        scores: list[tuple[float, float] | None] = []
        reasons, answers = [], []
        for content in (both.semantics, both.quality):
            found = self.server.ask(content)
            answers.append(found["answer"])
            try:
                if found["reason"] is not None:
                    raise Unreadable(found["reason"])
                scores.append(read_scores(found["answer"]))
            except Unreadable as error:
                scores.append(None)
                reasons.append(str(error))
        values = judge_values(scores[0], scores[1])
        return {**values, "judge_reason": "; ".join(reasons) or None, "judge_answers": answers}


def calibrate(judge: Judge, output: str, placement: Placement) -> dict[str, Any]:
    """Let the judge, on a worker, say what it thinks of drawn edits of known quality: mean overall of each kind, and the share of
    comparisons in which the edit that was done is liked better."""
    device = "cuda" if placement.use_gpu else "cpu"
    found: dict[str, Any] = get(on_worker(_calibrate, placement).remote(judge, output, device, placement.threads))
    return found


def calibration_samples() -> list[list[EditSample]]:
    """Draw edits, each as it was asked for, left undone, and with the answer to another: a list for each of `KINDS`."""
    edits = [make_edit(benchmark_seed("validation", 0, n), CATEGORIES[1 + n % 9]) for n in range(CALIBRATION_EDITS)]
    pictures = [tuple(render_scene(scene, CALIBRATION_PX) for scene in (edit.source, edit.target)) for edit in edits]
    samples: list[list[EditSample]] = [[] for _ in KINDS]
    for number, (edit, (source, target)) in enumerate(zip(edits, pictures, strict=True)):
        other = pictures[(number + 1) % len(pictures)][1]
        for kind, shown in enumerate((target, source, other)):
            samples[kind].append(
                EditSample(
                    source=source,
                    edited=shown,
                    source_prompt=edit.source_prompt,
                    target_prompt=edit.target_prompt,
                    instruction=edit.instruction,
                )
            )
    return samples


def _calibrate(judge: Judge, output: str, device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    if judge.url is None and threads is not None:
        import torch

        torch.set_num_threads(threads)
    asking = AskingJudge(judge, output, device)
    overall = [[row["judge_overall"] for row in asking(samples)] for samples in calibration_samples()]
    pairs = [(done, other) for kind in overall[1:] for done, other in zip(overall[0], kind, strict=True)]
    compared = [(done, other) for done, other in pairs if done is not None and other is not None]
    means = {kind: _mean([value for value in values if value is not None]) for kind, values in zip(KINDS, overall, strict=True)}
    ranked = _mean([float(done > other) for done, other in compared])
    return {"judge": judge.model, "prompt_version": PROMPT_VERSION, "means": means, "ranked": ranked, "compared": len(compared)}


def judge_facts(table: pa.Table, calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Say of scored rows how many the judge gave no score, by the kind of reason, beside its calibration."""
    reasons = [reason for reason in table.column("judge_reason").to_pylist() if reason is not None]
    kinds = Counter(reason.partition(":")[0] for reason in reasons)
    return {**calibration, "without_score": dict(sorted(kinds.items()))}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
