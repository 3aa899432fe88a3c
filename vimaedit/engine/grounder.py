"""The state of grounding during a run: when attention is read, what is summed, and the masks that follow."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vimaedit.attention.injection import MapBuffers
from vimaedit.config import EditConfig
from vimaedit.engine.batch import EditBatch
from vimaedit.models.backbone import Backbone
from vimaedit.parts.concepts import concept_masks, concept_pulls
from vimaedit.parts.learned_words import learned_maps
from vimaedit.step.guidance import difference_weights
from vimaedit.step.masks import (
    Masks,
    auxiliary_maps,
    auxiliary_masks,
    blend_masks,
    combine_masks,
    given_masks,
    masks_from_sum,
    no_masks,
    refine_map,
    smooth_map,
)
from vimaedit.step.rows import RowLayout
from vimaedit.step.solvers import Schedule


class Grounder:
    """Ground one batch step by step. `map_sum`: the running sum, None before grounding starts."""

    def __init__(self, backbone: Backbone, batch: EditBatch, config: EditConfig, schedule: Schedule) -> None:
        self.batch, self.config, self.schedule = batch, config, schedule
        self.cell = backbone.family.cell
        num_requests = batch.layout.num_requests
        self.latent_hw = (batch.x0.shape[-2], batch.x0.shape[-1])
        self.sizes = backbone.map_sizes(self.latent_hw)
        num_maps = num_requests if batch.concepts is None else len(batch.concepts.scale) * num_requests
        self.buffers = backbone.allocate_maps(num_maps, self.latent_hw) if config.reads_words else None
        self.map_sum: Tensor | None = None
        self.masks = no_masks(num_requests, self.latent_hw, batch.x0.device)
        self.learned_SBn: Tensor | None = None
        if batch.learned is not None:
            source_BT, _ = batch.text_edit.words
            self.learned_SBn = learned_maps(backbone, batch.x0, batch.learned, source_BT, config, schedule)
        if batch.given_mask is not None:
            self.masks = given_masks(batch.given_mask) if config.mask_is_all else self._combined(self.masks)

    def buffers_of(self, i: int) -> MapBuffers | None:
        """Return what step i's attention weights are recorded into; None where nothing reads them."""
        if self.config.grounding in ("local-blend", "auxiliary", "concepts") or self.batch.concepts is not None:
            return self.buffers
        return self.buffers if i + 1 >= int(self.config.grounding_start * self.config.steps) else None

    def update(self, i: int, eps_R: Tensor, layout: RowLayout) -> Masks:
        """Take in what step i recorded and return its masks. `eps_R` (R, C, h, w) before guidance."""
        batch, config, buffers = self.batch, self.config, self.buffers_of(i)
        if config.parts.guidance == "difference":
            self.masks = replace(self.masks, weights=difference_weights(eps_R, layout, self.cell))
        if batch.concepts is not None:
            pulls = concept_pulls(eps_R, layout, batch.concepts)
            timestep = self.schedule.timesteps[i]
            concepts = concept_masks(i, timestep, pulls, batch.concepts, buffers, self.sizes[0], config)
            edit, exists = (concepts > 0).any(dim=0), torch.ones_like(self.masks.exists)
            self.masks = Masks(edit=edit, critical=torch.zeros_like(edit), exists=exists, concepts=concepts)
        elif buffers is not None and config.grounding == "auxiliary":
            self._add(buffers.token_map())
            if i > 0 and self.map_sum is not None:
                self.masks = self._auxiliary(i, self.map_sum)
        elif buffers is not None and config.grounding == "local-blend":
            self._add(buffers.word_map())
            if i >= int(config.grounding_start * config.steps):
                assert self.map_sum is not None
                has_words = batch.has_words & ("absent-words" in config.quirks)
                cross_hw = self.sizes[0]
                self.masks = blend_masks(self.map_sum, cross_hw, self.latent_hw, batch.edit_threshold, has_words_B=has_words)
        elif buffers is not None:
            self._add(self._step_map(i, buffers))
            assert self.map_sum is not None
            thresholds = (batch.edit_threshold, batch.critical_threshold)
            self.masks = self._combined(masks_from_sum(self.map_sum, self.sizes[1], self.latent_hw, *thresholds))
        return self.masks

    def _combined(self, own: Masks) -> Masks:
        """Let the segmenter's masks, where there are some, have their part in those of attention."""
        given = self.batch.given_mask
        return own if given is None else combine_masks(own, given, self.config.segmenter.combine)

    def _add(self, step_map: Tensor) -> None:
        self.map_sum = step_map if self.map_sum is None else self.map_sum + step_map

    def _step_map(self, i: int, buffers: MapBuffers) -> Tensor:
        """Turn the recorded weights of one step into its grounding map, (2 B, N)."""
        config, word_map, self_map = self.config, buffers.word_map(), buffers.self_map()
        if config.grounding == "laplacian":
            assert self_map is not None
            return smooth_map(word_map, self_map, self.sizes, config.laplacian)
        if self.learned_SBn is not None:
            source_Bn = self.learned_SBn[i]
            word_map = torch.cat([source_Bn, word_map[len(source_Bn) :]])
        return refine_map(word_map, self_map, self.sizes, config.grounding_rounds, config.grounding_decay)

    def state_map(self) -> Tensor | None:
        """Return the sum that the masks follow from: that of the maps, (2 B, N), or what an auxiliary branch's come to, (3 B, n)."""
        if self.map_sum is None or self.config.grounding != "auxiliary":
            return self.map_sum
        return self._auxiliary_maps(self.map_sum).flatten(0, 1)

    def _auxiliary_maps(self, map_sum: Tensor) -> Tensor:
        edit = self.batch.text_edit
        mutual_BT, words_BT = edit.words
        return auxiliary_maps(map_sum, edit.fold, edit.keep, words_BT, mutual_BT)

    def _auxiliary(self, i: int, map_sum: Tensor) -> Masks:
        _, words_BT = self.batch.text_edit.words
        return auxiliary_masks(
            self._auxiliary_maps(map_sum),
            self.sizes[0],
            self.latent_hw,
            self.batch.edit_threshold,
            self.config.auxiliary.mutual_threshold,
            self.schedule.levels[i].signal,
            words_BT.any(dim=1),
        )
