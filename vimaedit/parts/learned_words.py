"""Dynamic Prompt Learning's prelude (arXiv 2309.15664): the embeddings of the source's words are fitted until each has a place
of its own in the picture. Like null-text inversion's it needs gradients, and the loop does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vimaedit.attention.control import AttentionControl, plain_control
from vimaedit.attention.recorder import MapRecorder
from vimaedit.config import EditConfig
from vimaedit.methods.options import PromptLearning
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning
from vimaedit.parts.tracks import invert
from vimaedit.step.solvers import Schedule

BETA_1, BETA_2, EPSILON, DECAY = 0.9, 0.999, 1e-8, 1e-2  # AdamW's
SHARPNESS = 100.0  # of the attention's softmax over the tokens, before a word's best place is sought
BACKGROUND_WEIGHT, OVERLAP_WEIGHT = 0.05, 0.05
# A step i's fit stops when a word's best place falls short by less than the first, its overlap with others and with the
# background is less than the second and third number, times e^(-i / their partner).
PLACE_GOAL, OVERLAP_GOAL, BACKGROUND_GOAL = (0.3, 25), (0.9, 25), (0.7, 50)
CLUSTERS, CLUSTER_ROUNDS, WORD_LEVEL = 5, 20, 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedWords:
    """The words that are fitted. Shapes: `ids` (B, T) int64 of the source prompts, by text encoder; `words` (B, W, T) float32, 1 at a
    word's tokens; rows beyond a request's own words are zero."""

    ids: Mapping[str, Tensor]
    words: Tensor

    @property
    def tokens(self) -> Tensor:
        """Whether a token is one of a word, (B, T, 1)."""
        return self.words.any(dim=1)[..., None]

    @property
    def exists(self) -> Tensor:
        """Whether there is such a word, (B, W)."""
        return self.words.any(dim=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """One pass of a fit, for whom it may concern: the embeddings it used (B, T, E), the maps (B, n, T), each word's best place (B, W)."""

    embeddings: Tensor
    maps: Tensor
    best: Tensor


def learned_maps(
    backbone: Backbone, x0: Tensor, learned: LearnedWords, blend_BT: Tensor, config: EditConfig, schedule: Schedule
) -> Tensor:
    """Fit the words at every step of the inverted picture, and return the map of the blend words that follows, (S, B, n).

    The embeddings of a step begin as those of the step before. Requests are fitted side by side and stop one by one.

    Shapes: `x0` (B, C, h, w); `blend_BT` 1 at the source's tokens of the blend phrases.
    """
    with torch.inference_mode(False), backbone.encoders():
        x0, blend_BT = x0.clone(), blend_BT.clone()
        ids = {name: each.clone() for name, each in learned.ids.items()}
        learned = LearnedWords(ids=ids, words=learned.words.clone())
        with torch.no_grad():
            conditioning = _condition(backbone, x0, learned)
        self_sum, token_sum = _zero_maps(backbone, x0)
        control = _recording(backbone, x0, self_sum, token_sum)
        levels = [level.clone() for level in invert(backbone, x0, conditioning, schedule, control)]
        word_sum = torch.einsum("bnt,bwt->bwn", token_sum, learned.words)
        background = background_cells(self_sum, word_sum, learned, backbone.map_sizes(_side(x0)))
        embeddings, found = own_embeddings(backbone, learned), []
        for i, timestep in enumerate(schedule.timesteps):
            embeddings = fit_words(backbone, levels[i], timestep, i, embeddings, learned, background, config.prompt_learning)
            with torch.no_grad():
                maps = text_maps(backbone, levels[i], timestep, embeddings, learned)
            found.append(torch.einsum("bnt,bt->bn", maps, blend_BT))
        return torch.stack(found)


def own_embeddings(backbone: Backbone, learned: LearnedWords) -> Tensor:
    """Return the vocabularies' embeddings of the prompts, those of all text encoders side by side, (B, T, E) float32: what a fit
    begins with.

    Reference: the published program begins with the vocabulary's entry that is spelled like the word without the mark of a
    word's end, and with that of unknown tokens where there is none.
    """
    layers = _word_layers(backbone)
    return torch.cat([layers[name].weight.detach()[ids].float() for name, ids in learned.ids.items()], dim=-1)


def fit_words(
    backbone: Backbone,
    x: Tensor,
    timestep: float,
    i: int,
    embeddings: Tensor,
    learned: LearnedWords,
    background: Tensor,
    options: PromptLearning,
    watch: Callable[[Pass], None] | None = None,
) -> Tensor:
    """Fit the embeddings at step i of the latents' way down, (B, T, E): losses, then the test whether to stop, then an update.

    Minimised is max_w (1 - m_w) + 0.05 mean cos(A_w, background) + 0.05 mean cos(A_w, A_w'), with A_w a word's attention map and
    m_w the largest value of softmax_tokens(100 A) at the word, smoothed. AdamW, begun anew at every step.

    Shapes: `x` (B, C, h, w); `background` (B, n), 1 where no word is.
    """
    embeddings = embeddings.clone()
    mean, square = torch.zeros_like(embeddings), torch.zeros_like(embeddings)
    active_B = learned.exists.any(dim=1)
    for update in range(1, options.passes + 1):
        with torch.enable_grad():
            embeddings.requires_grad_(True)
            maps = text_maps(backbone, x, timestep, embeddings, learned)
            place_B, overlap_B, background_B, best = losses(maps, learned, background, backbone.map_sizes(_side(x))[0])
            loss_B = place_B + BACKGROUND_WEIGHT * background_B + OVERLAP_WEIGHT * overlap_B
            (gradient,) = torch.autograd.grad(loss_B.sum(), embeddings)
        embeddings = embeddings.detach()
        if watch is not None:
            watch(Pass(embeddings=embeddings, maps=maps.detach(), best=best.detach()))
        goals = ((place_B, PLACE_GOAL), (overlap_B, OVERLAP_GOAL), (background_B, BACKGROUND_GOAL))
        reached = [value.detach() < level * math.exp(-i / pace) for value, (level, pace) in goals]
        active_B = active_B & ~torch.stack(reached).all(dim=0)
        if not bool(active_B.any()):
            break
        mean = BETA_1 * mean + (1 - BETA_1) * gradient
        square = BETA_2 * square + (1 - BETA_2) * gradient.square()
        corrected = square.sqrt() / math.sqrt(1 - BETA_2**update) + EPSILON
        change = options.rate * (DECAY * embeddings + mean / (1 - BETA_1**update) / corrected)
        embeddings = torch.where(active_B[:, None, None] & learned.tokens, embeddings - change, embeddings)
    return embeddings


def losses(
    maps_BnT: Tensor, learned: LearnedWords, background_Bn: Tensor, map_hw: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return how far the worst word falls short of a place of its own, the words' overlap with each other and with the background,
    (B,) each, and each word's best place (B, W). One word alone overlaps with none."""
    exists_BW = learned.exists
    count_B = exists_BW.sum(dim=1).clamp(min=1)
    inner = (SHARPNESS * maps_BnT[..., 1:-1]).softmax(dim=-1)
    sharp_BWn = torch.einsum("bnt,bwt->bwn", inner, learned.words[..., 1:-1])
    best_BW = _smooth(sharp_BWn.unflatten(-1, map_hw)).flatten(2).amax(dim=-1)
    place_B = ((1 - best_BW).clamp(min=0) * exists_BW).amax(dim=1)
    maps_BWn = torch.einsum("bnt,bwt->bwn", maps_BnT, learned.words)
    likeness_BWW = F.cosine_similarity(maps_BWn[:, :, None], maps_BWn[:, None], dim=-1)
    pairs_BWW = torch.triu(exists_BW[:, :, None] & exists_BW[:, None], diagonal=1)
    overlap_B = (likeness_BWW * pairs_BWW).sum(dim=(1, 2)) / pairs_BWW.sum(dim=(1, 2)).clamp(min=1)
    behind_BW = F.cosine_similarity(maps_BWn, background_Bn[:, None], dim=-1)
    return place_B, overlap_B, (behind_BW * exists_BW).sum(dim=1) / count_B, best_BW


def text_maps(backbone: Backbone, x: Tensor, timestep: float, embeddings: Tensor, learned: LearnedWords) -> Tensor:
    """Return the mean attention to every token under the given embeddings of the words, (B, n, T)."""
    _, token_sum = _zero_maps(backbone, x)
    conditioning = _condition(backbone, x, learned, embeddings)
    control = _recording(backbone, x, None, token_sum)
    backbone.predict_noise(x, torch.tensor(timestep, device=x.device), conditioning, control)
    return token_sum / backbone.num_word_maps


def background_cells(self_sum: Tensor, word_sum: Tensor, learned: LearnedWords, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """Find where none of the words is, (B, n) float32: cells that attend alike form clusters, and a cluster in which every word's
    map, over its maximum, averages at most 0.2 is background.

    Shapes: `self_sum` (B, N, N), `word_sum` (B, W, n), sums over the inversion; `sizes` the grids of n and N.
    """
    cross_hw, self_hw = sizes
    found = []
    for own_NN, words_Wn, exists_W in zip(self_sum, word_sum, learned.exists, strict=True):
        label_N = _cluster(own_NN / own_NN.sum(dim=1, keepdim=True))
        words_Wn = words_Wn[exists_W] / words_Wn[exists_W].amax(dim=1, keepdim=True).clamp(min=EPSILON)
        words_WN = F.interpolate(words_Wn.view(1, -1, *cross_hw), size=self_hw, mode="nearest")[0].flatten(1)
        background_N = torch.zeros_like(label_N, dtype=torch.float32)
        for label in range(CLUSTERS):
            members_N = label_N == label
            if bool(members_N.any()) and not bool((words_WN[:, members_N].mean(dim=1) > WORD_LEVEL).any()):
                background_N[members_N] = 1
        found.append(F.interpolate(background_N.view(1, 1, *self_hw), size=cross_hw, mode="nearest").flatten())
    return torch.stack(found)


def _cluster(rows_NM: Tensor) -> Tensor:
    """Label rows by k-means, (N,) int64. It begins with the mean and goes on with the farthest row each time, so that nothing is
    drawn."""
    centres = [rows_NM.mean(dim=0)]
    for _ in range(CLUSTERS):
        nearest_N = torch.cdist(rows_NM, torch.stack(centres)).amin(dim=1)
        centres.append(rows_NM[nearest_N.argmax()])
    centres_KM = torch.stack(centres[1:])
    for _ in range(CLUSTER_ROUNDS):
        label_N = torch.cdist(rows_NM, centres_KM).argmin(dim=1)
        member_KN = F.one_hot(label_N, CLUSTERS).T.float()
        count_K1 = member_KN.sum(dim=1, keepdim=True)
        centres_KM = torch.where(count_K1 > 0, member_KN @ rows_NM / count_K1.clamp(min=1), centres_KM)
    return torch.cdist(rows_NM, centres_KM).argmin(dim=1)


def _smooth(grid_BWhw: Tensor) -> Tensor:
    """Smooth maps with a 3 x 3 kernel e^-(dy^2 + dx^2), reflected at the borders."""
    offset = torch.arange(-1.0, 2.0, device=grid_BWhw.device)
    kernel = torch.exp(-(offset[:, None].square() + offset.square()))
    padded = F.pad(grid_BWhw.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None]).view_as(grid_BWhw)


def _condition(backbone: Backbone, x: Tensor, learned: LearnedWords, embeddings: Tensor | None = None) -> Conditioning:
    """Condition on the prompts, with other embeddings (B, T, E) at the words' tokens; None: their own."""

    def put(own: Tensor) -> Callable[..., Tensor]:
        return lambda layer, inputs, output: torch.where(learned.tokens, own.to(output.dtype), output)

    layers = _word_layers(backbone)
    with ExitStack() as hooks:
        if embeddings is not None:
            widths = [layer.embedding_dim for layer in layers.values()]
            for layer, own in zip(layers.values(), embeddings.split(widths, dim=-1), strict=True):
                hooks.callback(layer.register_forward_hook(put(own)).remove)
        texts = Conditioning(backbone.networks.read_texts(learned.ids))
    return backbone.condition(texts, None, backbone.canvas_of(x))


def _word_layers(backbone: Backbone) -> dict[str, Any]:
    return {name: encoder.get_input_embeddings() for name, encoder in backbone.networks.text_encoders.items()}


def _recording(backbone: Backbone, x: Tensor, self_sum: Tensor | None, token_sum: Tensor) -> AttentionControl:
    """Return a control that changes nothing and adds the attention maps of every call to the sums."""
    rows = torch.arange(len(x), device=x.device)
    recorder = MapRecorder(rows, None, None, None, self_sum, torch.empty(0, device=x.device), token_sum)
    return replace(plain_control(torch.zeros(len(x), dtype=backbone.dtype, device=x.device)), recorder=recorder)


def _zero_maps(backbone: Backbone, x: Tensor) -> tuple[Tensor, Tensor]:
    (cross_h, cross_w), (self_h, self_w) = backbone.map_sizes(_side(x))
    self_sum = torch.zeros(len(x), self_h * self_w, self_h * self_w, device=x.device)
    return self_sum, torch.zeros(len(x), cross_h * cross_w, backbone.text_length, device=x.device)


def _side(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
