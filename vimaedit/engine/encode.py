"""The second phase of an edit: the encoders run over a batch, and everything the loop reads becomes a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vimaedit.attention.injection import TextEdit
from vimaedit.config import EditConfig
from vimaedit.engine.batch import EditBatch
from vimaedit.engine.prepare import PreparedEdit
from vimaedit.errors import ConfigError
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning, stack_rows
from vimaedit.models.family import Family
from vimaedit.parts.concepts import ConceptBatch
from vimaedit.parts.learned_words import LearnedWords
from vimaedit.step.guidance import estimate_target_embedding
from vimaedit.step.rows import SOURCE, TARGET, RowLayout, edit_layout, image_embedding_rows, shared_edits
from vimaedit.words.tokens import content_words


def encode_batch(backbone: Backbone, config: EditConfig, edits: Sequence[PreparedEdit]) -> EditBatch:
    """Run the encoders over a batch. All edits share one canvas shape.

    Raises: ConfigError where edits that are to share a source differ in what makes it.
    """
    _check_sources(config, edits)
    with backbone.encoders():
        return _encode(backbone, config, edits)


def _encode(backbone: Backbone, config: EditConfig, edits: Sequence[PreparedEdit]) -> EditBatch:
    shared = shared_edits(config, len(edits))
    guides = not backbone.family.kind.embeds_guidance
    layout = edit_layout(len(edits), config, max(1, len(edits[0].concepts)), guides=guides)
    texts, places = _encode_texts(backbone, config, edits)
    x0_BChw = backbone.encode_images(np.stack([edit.image for edit in edits[::shared]])).repeat_interleave(shared, dim=0)
    device = x0_BChw.device
    canvas = backbone.canvas_of(x0_BChw)
    if "leditspp-sizes" in config.quirks:
        canvas = (canvas[1], canvas[0])
    own = [edit.config for edit in edits]
    settings = torch.tensor([(c.target_guidance, c.thresholds.edit, c.thresholds.critical) for c in own], device=device)
    given_mask = _latent_masks(edits, x0_BChw) if config.takes_mask else None

    def read_by_all(name: str) -> Conditioning:
        return backbone.condition(texts.rows(places[name]), None, canvas)

    inversion = None if config.parts.inversion == "none" else read_by_all(config.parts.inversion)
    if inversion is not None and not guides and config.parts.midpoint != "none":  # others invert without guidance
        inversion = inversion.having(guidance=torch.full_like(settings[:, 0], config.source_guidance))

    return EditBatch(
        layout=layout,
        x0=x0_BChw,
        conditioning=_told_guidance(
            backbone.condition(
                texts.rows(_text_rows(config, layout, places)),
                _image_rows(backbone, config, layout, edits),
                canvas,
            ),
            backbone,
            config,
            layout,
            settings[:, 0],
        ),
        text_edit=TextEdit(
            fold=torch.from_numpy(np.stack([edit.words.fold for edit in edits])).to(device),
            keep=torch.from_numpy(np.stack([edit.words.keep for edit in edits])).to(device),
            words=_word_columns(edits, texts["text"].shape[1]).to(device),
            shares=_text_shares(edits),
        ),
        windows=tuple(c.windows for c in own),
        image_strength=tuple(c.image_strength if config.image_guidance else 0.0 for c in own),
        target_guidance=settings[:, 0],
        edit_threshold=settings[:, 1],
        critical_threshold=settings[:, 2],
        given_mask=given_mask,
        has_words=torch.tensor([bool(edit.request.blend) and config.blend != "none" for edit in edits], device=device),
        inversion=inversion,
        free=read_by_all(config.parts.free_text),
        concepts=_concept_batch(backbone.family, edits, given_mask, device) if edits[0].concepts else None,
        learned=_learned_words(backbone, edits, device) if config.learns_words else None,
    )


def _check_sources(config: EditConfig, edits: Sequence[PreparedEdit]) -> None:
    """Raise ConfigError where edits that are to share a source differ in what makes it."""
    shared = shared_edits(config, len(edits))
    for position, edit in enumerate(edits if shared > 1 else ()):
        first = edits[position - position % shared]
        alike = (
            edit.request.source_prompt == first.request.source_prompt
            and edit.request.seed == first.request.seed
            and edit.config.image_strength == first.config.image_strength
            and np.array_equal(edit.image, first.image)
            and np.array_equal(edit.clip_image, first.clip_image)
        )
        if not alike:
            raise ConfigError(
                f"targets_per_source: got {config.targets_per_source}, but edits {first.request.id!r} and "
                f"{edit.request.id!r} of a batch differ in picture, source prompt, seed or strength; allowed: edits of one picture in a row, or 1"
            )


def _encode_texts(
    backbone: Backbone, config: EditConfig, edits: Sequence[PreparedEdit]
) -> tuple[Conditioning, dict[str, Tensor]]:
    """Encode all texts of a batch. Return their rows, and by name in which of them each request's text stands, (B,): `empty`,
    `negative`, `nothing` (what an unconditional row reads where no text is given), `source`, `target`, and every concept by its
    number."""
    count = len(edits)
    prompts: dict[str, list[str]] = {
        "source": [edit.request.source_prompt for edit in edits],
        "target": [edit.request.target_prompt if config.text_guidance else "" for edit in edits],
    }
    for number in range(1, len(edits[0].concepts)):
        prompts[str(number)] = [edit.concepts[number].text for edit in edits]
    texts = backbone.encode_texts(["", *(prompt for each in prompts.values() for prompt in each)])
    places = {name: torch.arange(1 + n * count, 1 + (n + 1) * count) for n, name in enumerate(prompts)}
    places["empty"] = places["nothing"] = torch.zeros(count, dtype=torch.int64)
    if backbone.networks.zeroes_nothing:
        places["nothing"] = torch.full((count,), len(texts))
        texts = stack_rows([texts, backbone.encode_texts([None])])
    places["negative"] = places["nothing"]
    if config.negative_prompt is not None:
        places["negative"] = torch.full((count,), len(texts))
        texts = stack_rows([texts, backbone.encode_texts([config.negative_prompt])])
    return texts, {name: rows.to(backbone.device) for name, rows in places.items()}


def _text_rows(config: EditConfig, layout: RowLayout, places: dict[str, Tensor]) -> Tensor:
    """Choose the text that each row reads, (R,): its place among those of the batch."""
    rows = {}
    for kind in layout.kinds:
        if kind.branch == TARGET:
            conditional = places[str(kind.concept)] if kind.concept else places["target"]
            rows[kind] = conditional if kind.conditional else places[config.parts.free_text]
        else:
            rows[kind] = places[config.parts.source_text if kind.conditional else config.parts.source_free_text]
    return layout.arrange(rows)


def _told_guidance(
    conditioning: Conditioning, backbone: Backbone, config: EditConfig, layout: RowLayout, target_guidance_B: Tensor
) -> Conditioning:
    """Tell every row its guidance, for a model that takes it as an input."""
    if not backbone.family.kind.embeds_guidance:
        return conditioning
    by_branch = {SOURCE: torch.full_like(target_guidance_B, config.source_guidance), TARGET: target_guidance_B}
    return conditioning.having(guidance=layout.arrange({kind: by_branch[kind.branch] for kind in layout.kinds}))


def _word_columns(edits: Sequence[PreparedEdit], num_columns: int) -> Tensor:
    """Stack the tokens of the blend phrases, (2, B, T) float32; the columns of further text encoders stand behind those of the first."""
    words = np.stack([edit.words.word_mask for edit in edits], axis=1).astype(np.float32)
    return F.pad(torch.from_numpy(words), (0, num_columns - words.shape[-1]))


def _image_rows(backbone: Backbone, config: EditConfig, layout: RowLayout, edits: Sequence[PreparedEdit]) -> Tensor | None:
    """Embed the pictures, estimate the targets' embeddings, and choose the one that each row sees, (R, E)."""
    if not config.image_guidance:
        return None
    shared = shared_edits(config, len(edits))
    sources = edits[::shared]
    image_BE = backbone.embed_images(np.stack([edit.clip_image for edit in sources])).repeat_interleave(shared, dim=0)
    prompts = [edit.request.source_prompt for edit in sources] + [edit.request.target_prompt for edit in edits]
    source_BE, target_BE = backbone.embed_texts(prompts).split([len(sources), len(edits)])
    source_BE = source_BE.repeat_interleave(shared, dim=0)
    estimated_BE = estimate_target_embedding(image_BE, source_BE, target_BE, config.direction_kept)
    return image_embedding_rows(layout, image_BE, estimated_BE, config.image_order)


def _text_shares(edits: Sequence[PreparedEdit]) -> Tensor | None:
    """Stack how long each token's text window is open, (B, T); None where no request has windows for single words."""
    given = [edit.words.text_shares for edit in edits]
    length = len(edits[0].words.target_ids)
    rows = [np.full(length, -1.0) if shares is None else shares for shares in given]
    return None if all(shares is None for shares in given) else torch.from_numpy(np.stack(rows))


def _latent_masks(edits: Sequence[PreparedEdit], x0_BChw: Tensor) -> Tensor:
    """Bring the given masks to the latents' grid, (B, h, w) bool; one that an edit lacks is empty."""
    empty = np.zeros(edits[0].image.shape[:2], dtype=np.bool_)
    masks = torch.from_numpy(np.stack([empty if edit.given_mask is None else edit.given_mask for edit in edits]))
    resized = F.interpolate(masks[:, None].float(), size=x0_BChw.shape[-2:], mode="nearest-exact")  # the cells' centres
    return (resized[:, 0] > 0).to(x0_BChw.device)


def _concept_batch(
    family: Family, edits: Sequence[PreparedEdit], given_mask_Bhw: Tensor | None, device: torch.device
) -> ConceptBatch:
    """Stack the concepts, of which all edits have equally many; a given mask confines what they do."""
    options = edits[0].config.concepts
    by_concept = list(zip(*(edit.concepts for edit in edits), strict=True))

    def stack(values: list[list[float]]) -> Tensor:
        return torch.tensor(values, device=device)

    return ConceptBatch(
        scale=stack([[each.scale for each in concepts] for concepts in by_concept]),
        quantile=stack([[each.quantile for each in concepts] for concepts in by_concept]),
        first=stack([[each.first for each in concepts] for concepts in by_concept]),
        last=stack([[each.last for each in concepts] for concepts in by_concept]),
        words=torch.from_numpy(np.stack([np.stack([each.words for each in concepts]) for concepts in by_concept])),
        user_mask=None if given_mask_Bhw is None else given_mask_Bhw[:, None].float(),
        guided_up_to=family.guided_up_to if options.guided_up_to is None else options.guided_up_to,
        noiseless=family.noiseless if options.noiseless is None else options.noiseless,
    )


def _learned_words(backbone: Backbone, edits: Sequence[PreparedEdit], device: torch.device) -> LearnedWords:
    """Stack the source prompts with their words, as many rows as the prompt with most of them has."""
    own = [content_words(edit.request.source_prompt, backbone.tokenizer) for edit in edits]
    words = np.zeros((len(edits), max(1, *map(len, own)), backbone.text_length), dtype=np.float32)
    for stacked, found in zip(words, own, strict=True):
        stacked[: len(found)] = found
    ids = backbone.networks.tokenize([edit.request.source_prompt for edit in edits])
    return LearnedWords(ids=ids, words=torch.from_numpy(words).to(device))
