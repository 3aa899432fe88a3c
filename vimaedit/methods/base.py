"""What an editor is made of: the parts of the engine that it puts together, and the options it is published with.

A method is data: nothing here computes, and nothing imports torch, so that planning can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Method:
    """One choice for every part of the engine. The defaults are ViMAEdit's.

    `track`, where the source's latents come from: `shared` (noised once, the clean prediction anchored to the picture),
    `independent` (noised anew at every level), `sampled` (denoised from the inverted picture) or `recorded` (looked up among the
    latents that the inversion or, with `reconstructs`, a reconstruction passed through).
    `inverts`, how the picture is inverted where it is: `plain`, `corrected` (every prediction is made at the guess of the one
    before) or `midpoint`.
    `midpoint`, for steps by the midpoint rule: `reused` (the last mid velocity leads to the next middle) or `fresh`.
    `spread`, how much noise a step takes: `masked` (the posterior variance inside the critical region), `posterior`
    (everywhere), `consistency` (all of the next level's) or `none`.
    `routing`, what the target's self-attention takes from the source: `weights`, `queries` (and keys, in the unconditional rows
    too), `values` (and keys), `auxiliary` (three branches) or `none`.
    `inversion`, `source_text`, `free_text`, `source_free_text`: what the inversion, the source's rows and the unconditional rows of
    target and source read:
    `empty`, `source`, `negative` (the option) or `nothing` (what the model was trained on without a text).
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)  # published options, nested as in a file
    grid: str = (
        "solver"  # solver: by that option, down to the clean picture; training: down to the first level; consistency; leading
    )
    track: str = "shared"
    reconstructs: bool = False
    couples: bool = False  # the target keeps its distance to the source: x' = x_source' + mean - mean_source
    spread: str = "masked"
    second_order: bool = False  # the means follow the last two clean predictions
    routing: str = "weights"
    routed_sites: str = "coarse"  # coarse: half the latent's side and less; coarser: a quarter; decoder; fine-decoder; all
    edits_text: bool = True
    copies_features: bool = False
    inversion: str = "none"
    inverts: str = "plain"
    midpoint: str = "none"
    source_text: str = "source"
    free_text: str = "negative"
    source_free_text: str = "nothing"
    # free: classifier-free; proximal; concepts; difference: both branches go where the two prompts' predictions differ, without CFG
    guidance: str = "free"
    keeps_attention: bool = False  # the target's latents are moved towards the source's text attention, by a gradient
    regularises: bool = False  # the inversion's predictions are kept like noise, by gradients
    optimises_text: bool = False  # null-text: the unconditional embedding is fitted to the inversion, step by step
    has_auxiliary: bool = False  # a third branch, source prompt, between the two
    links_words: bool = False  # tokens without a partner are paired by the likeness of their embeddings
    hosts_pipeline: bool = False  # a pipeline of diffusers does all of it; nothing else here matters then
    returns_clean: bool = False  # the last clean prediction is the result
    groundings: tuple[str, ...] = ("vimaedit", "cross-attention", "laplacian", "local-blend", "dpl", "given", "segmenter")

    @property
    def guides_source(self) -> bool:
        """Whether the source's own prediction takes part, so that its guidance matters."""
        return self.track != "recorded" or self.couples

    @property
    def can_stop_guiding(self) -> bool:
        """Whether guidance is a branch's own two rows alone, so that a step can do without the unconditional ones."""
        is_plain = not (self.has_auxiliary or self.keeps_attention or self.midpoint != "none" or self.hosts_pipeline)
        return self.guidance == "free" and is_plain

    @property
    def has_one_latent(self) -> bool:
        """Whether source and target are one: there is no other latent that a mask could bring back."""
        return self.guidance == "difference" or self.midpoint != "none"

    @property
    def has_critical_region(self) -> bool:
        """Whether noise is confined to a region of the mask."""
        return self.spread == "masked"
