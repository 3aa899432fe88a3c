"""One chunk of captions -> its candidates: prompt pairs, source pictures, seeds and strengths. Runs on workers."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.cluster.weights import local_copy, with_local_weights
from pipelines.records.parse import parse_edit
from pipelines.records.pictures import find_picture
from pipelines.records.values import read_prompt
from pipelines.store.fetch import ReferenceRules, fetch
from pipelines.store.listing import own_root
from pipelines.store.masking import mask_urls
from pipelines.synthesis.columns import pair_row, rejected_row
from pipelines.synthesis.config import SynthesizeConfig
from pipelines.synthesis.input import CaptionSet, Chunk, Record, read_records
from vimaedit.chat import server_key
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import encode_image
from vimaedit.marks import GENERATED, make_mark
from vimaedit.scenes.draws import Draws
from vimaedit.seeds import derive_seed
from vimaedit.synthesis.candidates import spread_candidates
from vimaedit.synthesis.generator import EndpointGenerator, LocalGenerator, Question, TextGenerator, generate_pairs
from vimaedit.synthesis.lexicon import CATEGORIES, Lexicon
from vimaedit.synthesis.pairs import PromptPair, check_pair
from vimaedit.synthesis.rules import propose_pairs
from vimaedit.types import UInt8Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Making:
    """What workers must know to make candidates; `device` and `dtype` are settled."""

    config: SynthesizeConfig
    captions: CaptionSet
    lexicon: Lexicon | None
    source: str  # of the pairs: given, rules, generator
    device: str
    dtype: str
    threads: int

    @property
    def draws_sources(self) -> bool:
        """Whether source pictures are drawn from the captions."""
        return "image" not in self.captions.columns

    @property
    def needs_device(self) -> bool:
        """Whether pictures are drawn or texts written by a model of the workers' own."""
        return self.draws_sources or (self.source == "generator" and self.config.generator.url is None)


@dataclass(kw_only=True, eq=False)
class Made:
    """The candidates of a chunk and what was rejected; seconds of drawing, and how many pictures that were."""

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    passed: list[pa.Table] = dataclasses.field(default_factory=list)
    rejected: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    num_pairs: int = 0
    num_drawn: int = 0
    drawing_s: float = 0.0


class Maker:
    """Makes the candidates of chunks; holds the generator and the text-to-image pipeline where they are needed."""

    def __init__(self, making: Making) -> None:
        self.making = making
        if making.needs_device:
            import torch

            torch.set_num_threads(making.threads)
        self.generator = _load_generator(making) if making.source == "generator" else None
        self.pipe = _load_text_to_image(making) if making.draws_sources else None

    def make(self, chunk: Chunk) -> Made:
        """Make all candidates of a chunk. What cannot be had becomes a row, whatever is wrong with it.

        Raises: the infrastructure's errors.
        """
        config, captions = self.making.config, self.making.captions
        records = list(read_records(captions, chunk))
        file = captions.files[chunk.file].path
        proposals = self._pairs(records, file)
        made = Made()
        pictures = self._pictures(records, file, proposals, made)
        for record, pairs, picture in zip(records, proposals, pictures, strict=True):
            for edit, pair in enumerate(pairs):
                pair_id = f"{file}#{record.input_row}/{edit}"
                if isinstance(pair, Exception):
                    made.rejected.append(rejected_row(record, file, pair_id, config.candidates, "pair", pair))
                    continue
                if isinstance(picture, Exception):
                    made.rejected.append(rejected_row(record, file, pair_id, config.candidates, "image", picture))
                    continue
                seed = derive_seed(config.seed, record.id) if self.making.draws_sources else None
                made.num_pairs += 1
                for each in spread_candidates(config.seed, record.id, edit, config.candidates, config.spread.ranges(config)):
                    made.rows.append(pair_row(record, file, pair_id, pair, each, picture, seed))
                    made.passed.append(record.passed)
        return made

    def _pairs(self, records: Sequence[Record], file: str) -> list[list[PromptPair | RequestError]]:
        """Return each record's pairs: as many as are wanted, an error in the place of one that cannot be had."""
        wanted = 1 if self.making.source == "given" else self.making.config.edits_per_caption
        proposals: list[list[PromptPair | RequestError]] = []
        asked: list[tuple[int, Question]] = []
        for index, record in enumerate(records):
            try:
                caption = _caption(record)
            except RequestError as error:
                proposals.append([error] * wanted)
                continue
            if self.making.source == "given":
                proposals.append([_given_pair(record)])
            elif self.making.source == "rules":
                assert self.making.lexicon is not None
                seed = derive_seed(self.making.config.seed, record.id, "pairs")
                proposals.append(_checked(propose_pairs(caption, self.making.lexicon, self.making.config.edits, wanted, seed)))
            else:
                proposals.append([])
                asked += [(index, question) for question in self._questions(record, caption, wanted)]
        if asked and self.generator is not None:
            answers = generate_pairs(self.generator, [question for _, question in asked])
            for (index, _), answer in zip(asked, answers, strict=True):
                known = {pair.target_prompt for pair in proposals[index] if isinstance(pair, PromptPair)}
                proposals[index].append(_not_twice(answer, known))
        return proposals

    def _questions(self, record: Record, caption: str, wanted: int) -> list[Question]:
        seed = derive_seed(self.making.config.seed, record.id, "pairs")
        kinds = Draws(seed, 0).shuffled(self.making.config.edits or CATEGORIES)
        return [
            Question(caption=caption, category=kinds[edit % len(kinds)], seed=derive_seed(seed, edit)) for edit in range(wanted)
        ]

    def _pictures(
        self, records: Sequence[Record], file: str, proposals: Sequence[Sequence[PromptPair | RequestError]], made: Made
    ) -> list[bytes | Exception]:
        """Return each record's coded source picture, or why there is none."""
        if self.pipe is None:
            return [self._picture(record, file) for record in records]
        from vimaedit.synthesis.text_to_image import draw_pictures

        config = self.making.config
        wanted = [n for n, pairs in enumerate(proposals) if any(isinstance(pair, PromptPair) for pair in pairs)]
        captions = [_caption(records[n]) for n in wanted]
        seeds = [derive_seed(config.seed, records[n].id) for n in wanted]
        started = time.perf_counter()
        drawn: list[UInt8Array] = []
        if wanted:
            drawn = draw_pictures(self.pipe, captions, seeds, steps=config.source.steps, guidance=config.source.guidance)
        made.drawing_s, made.num_drawn = time.perf_counter() - started, len(drawn)
        pictures: list[bytes | Exception] = [b""] * len(records)
        for n, picture in zip(wanted, drawn, strict=True):
            pictures[n] = encode_image(picture, "png", make_mark(GENERATED))
        return pictures

    def _picture(self, record: Record, file: str) -> bytes | Exception:
        """Return a record's own picture, fetched where the record only names it."""
        config = self.making.config
        source = find_picture(record.values)
        if not isinstance(source, str):
            return source
        captions = self.making.captions
        root = config.image_root or own_root(captions.root, captions.roots, file)
        try:
            return fetch(source, ReferenceRules(root=root, allow_http=config.allow_http, http_hosts=config.http_hosts))
        except Exception as error:  # what a record names may be anything; it becomes the record's own
            logger.warning("record %r: %s: %s", record.id, type(error).__name__, mask_urls(str(error)))
            return error


def _caption(record: Record) -> str:
    if record.error is not None:
        raise record.error
    return read_prompt("source_prompt", record.values.get("source_prompt"))


def _given_pair(record: Record) -> PromptPair | RequestError:
    """Read a ready pair by the rules of input records."""
    try:
        wanted = parse_edit(record.values, 0, blends_per_target=False)
    except RequestError as error:
        return error
    texts = {}
    for name in ("instruction", "category"):
        value = record.values.get(name)
        texts[name] = value if isinstance(value, str) and value.strip() else None
    pair = PromptPair(
        source_prompt=wanted["source_prompt"],
        target_prompt=wanted["target_prompt"],
        blend=wanted["blend"],
        instruction=texts["instruction"] or f"make it {wanted['target_prompt']}",
        category=texts["category"],
    )
    return _checked([pair])[0]


def _checked(pairs: Sequence[PromptPair | RequestError]) -> list[PromptPair | RequestError]:
    checked: list[PromptPair | RequestError] = []
    for pair in pairs:
        try:
            checked.append(pair if isinstance(pair, RequestError) else check_pair(pair))
        except RequestError as error:
            checked.append(error)
    return checked


def _not_twice(answer: PromptPair | RequestError, known: set[str]) -> PromptPair | RequestError:
    if isinstance(answer, PromptPair) and answer.target_prompt in known:
        return RequestError(
            "edit_repeated", field="target_prompt", got=repr(answer.target_prompt), allowed="an edit other than the others"
        )
    return answer


def _load_generator(making: Making) -> TextGenerator:
    options = making.config.generator
    assert options.model is not None
    if options.url is None:
        name = local_copy("generator.model", options.model) if "://" in options.model else options.model
        return LocalGenerator(
            name, batch_size=options.batch_size, max_tokens=options.max_tokens, device=making.device, dtype=making.dtype
        )
    key = server_key("generator", options.key_variable)
    return EndpointGenerator(options.url, model=options.model, key=key, max_tokens=options.max_tokens)


def _load_text_to_image(making: Making) -> Any:
    from vimaedit.models.files import resolve_model
    from vimaedit.synthesis.text_to_image import load_text_to_image

    files = resolve_model(with_local_weights(making.config), image_guidance=False)
    if files.checkpoint is not None:
        raise ConfigError(
            f"model: got {making.config.model!r}, a checkpoint file, with captions alone; allowed: a bundle or diffusers folder, which "
            "can draw their pictures, or an input with an image column"
        )
    is_settled = making.config.dtype != "auto" or making.device == "cpu"
    return load_text_to_image(files, making.device, making.dtype if is_settled else files.family.half)
