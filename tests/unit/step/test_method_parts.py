"""The parts that other editors add to the engine, each against a short second computation; sizes are prime where they can be."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vimaedit.attention.routing import layout_of_step, open_windows, route_rows
from vimaedit.attention.sites import Site, choose_sites
from vimaedit.config import EditConfig, Windows
from vimaedit.errors import ConfigError
from vimaedit.methods import METHODS
from vimaedit.methods.options import Laplacian
from vimaedit.recipes import method_config
from vimaedit.step.guidance import estimate_target_embedding, proximal_guidance
from vimaedit.step.masks import Masks, auxiliary_maps, auxiliary_masks, blend_auxiliary, blend_masks, smooth_map
from vimaedit.step.rows import RowKind, RowLayout, edit_layout
from vimaedit.step.solvers import Level, method_schedule, noise_schedule, num_skipped, second_order_term, spread_step
from vimaedit.words.linking import edited_tokens, link_tokens, scan_tokens

ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
S, T, A = RowKind.SOURCE_COND, RowKind.TARGET_COND, RowKind.AUXILIARY_COND
SU, TU = RowKind.SOURCE_UNCOND, RowKind.TARGET_UNCOND


def test_every_method_is_published_with_options_that_are_allowed(repository: Path) -> None:
    table = (repository / "vimaedit" / "methods" / "README.md").read_text().split("| `method=` | editor |")[1].split("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert sorted(named) == sorted(METHODS)
    for name in METHODS:
        config = method_config(name)
        assert config.method == name and method_schedule(config, ALPHAS).timesteps
    assert method_config("vimaedit") == EditConfig()


def test_grids() -> None:
    direct = method_schedule(method_config("p2p"), ALPHAS)
    assert direct.timesteps[:2] == (981, 961) and direct.timesteps[-1] == 1 and direct.next_levels[-1].signal == ALPHAS[0]
    assert method_schedule(method_config("vimaedit"), ALPHAS).next_levels[-1].signal == 1.0
    consistency = method_schedule(method_config("infedit"), ALPHAS)
    assert consistency.timesteps == (999, 919, 839, 759, 679, 599, 499, 419, 339, 259, 179, 99)
    assert consistency.next_levels[-1] == consistency.levels[-1] == Level.of_noise(ALPHAS[99])
    leading = method_schedule(method_config("leditspp", steps=10, skip=0.15), ALPHAS)
    assert leading.timesteps == tuple(range(831, 80, -83)) and leading.next_levels[-1].sigma == 0
    skipped = method_schedule(method_config("edit-friendly-p2p"), ALPHAS)
    assert len(skipped) == 38 and skipped.timesteps[0] == 741
    assert num_skipped(method_config("infedit", steps=9, skip=1 - 0.8)) == 2
    assert num_skipped(method_config("edit-friendly")) == 36


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "infedit", "steps": 51}, "steps: got 51 on a consistency grid; allowed: 1 to 50"),
        ({"method": "leditspp", "steps": 999, "skip": 0.5}, "steps: got 999 with skip=0.5; allowed: less than 1000 levels"),
        ({"method": "p2p", "steps": 999}, "steps: got 999 with solver=ddim"),
    ],
)
def test_steps_that_a_grid_cannot_give(options: dict[str, object], text: str) -> None:
    config = method_config(**options)
    with pytest.raises(ConfigError, match=text):
        method_schedule(config, ALPHAS[:998] if config.method == "p2p" else ALPHAS)


def test_windows_in_steps() -> None:
    def lengths(method: str, **options: object) -> dict[str, int]:
        config = method_config(method, **options)
        steps = len(method_schedule(config, ALPHAS))
        return {name: int(open_SB.sum()) for name, open_SB in open_windows(config, (config.windows,), steps).items()}

    assert (lengths("p2p")["text"], lengths("p2p")["self"]) == (20, 30)
    assert (lengths("pnp")["self"], lengths("pnp")["feature"]) == (25, 40)
    assert (lengths("infedit")["self"], lengths("infedit")["text"]) == (8, 8)
    # p = 7/10 is outside the self window and inside the text window.
    assert (lengths("infedit", steps=10)["self"], lengths("infedit", steps=10)["text"]) == (6, 7)
    assert lengths("masactrl")["self"] == 46
    # The clock of the full grid, from the first executed step on.
    assert {k: v for k, v in lengths("edit-friendly-p2p", steps=10, skip=0.2).items() if k != "image"} == {
        "self": 6,
        "text": 4,
        "feature": 0,
    }


def test_rows_that_a_method_needs() -> None:
    def count(method: str, **options: object) -> int:
        return len(edit_layout(1, method_config(method, **options)).kinds)

    three = (
        "p2p",
        "npi-p2p",
        "proximal-p2p",
        "masactrl",
        "ddim-masactrl",
        "pnp",
        "virtual-p2p",
        "edit-friendly-p2p",
        "leditspp",
    )
    assert {method: count(method) for method in three} == dict.fromkeys(three, 3)
    assert count("ddim-p2p") == count("null-text-p2p") == count("edit-friendly") == 4
    # A looked-up source is not predicted, whatever its guidance.
    assert count("p2p", source_guidance=7.5) == 3
    config = method_config("infedit")
    layout = edit_layout(3, config)
    early, late = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    mixed = torch.tensor([True, False, True])
    assert layout_of_step(layout, config, early).kinds == (SU, TU, S, T)
    assert layout_of_step(layout, config, late).kinds == (TU, S, T, A)
    assert layout_of_step(layout, config, mixed).kinds == (SU, TU, S, T, A)


def test_routes() -> None:
    def rows(method: str, layout: RowLayout, open_now: bool) -> list[list[int] | None]:
        windows = dict.fromkeys(("self", "image", "feature", "text"), torch.tensor([[open_now]]))
        routes = route_rows(layout, METHODS[method], windows, torch.device("cpu"))
        return [None if r is None else r[0].tolist() for r in (routes.queries, routes.keys, routes.values, routes.features)]

    layout = RowLayout(1, (TU, S, T))
    assert rows("p2p", layout, True) == [[0, 1, 1], None, None, None]
    assert rows("pnp", layout, True) == [[1, 1, 1], None, None, [1, 1, 1]]
    assert rows("masactrl", layout, True) == [[0, 1, 2], [1, 1, 1], [1, 1, 1], None]
    assert rows("pnp", layout, False) == [[0, 1, 2], None, None, [0, 1, 2]]
    assert rows("edit-friendly", layout, True) == [None, None, None, None]
    # source and target without text, then source, target and auxiliary with it
    both = RowLayout(1, (SU, TU, S, T, A))
    assert rows("infedit", both, True) == [[0, 0, 2, 2, 2], [0, 0, 2, 2, 2], [0, 1, 2, 3, 2], None]
    assert rows("infedit", both, False) == [[0, 1, 2, 3, 3], [0, 1, 2, 3, 2], [0, 1, 2, 3, 2], None]


def test_layers_by_path_and_side() -> None:
    sides = {"down": (1.0, 1.0, 0.5, 0.5, 0.25, 0.25), "mid": (0.125,), "up": (0.25,) * 3 + (0.5,) * 3 + (1.0,) * 3}
    names = [(path, side, n) for path, each in sides.items() for n, side in enumerate(each)]
    sites = tuple(Site(name=str(i), path=path, side=side, cross=False) for i, (path, side, _) in enumerate(names))

    def routed(kind: str) -> list[int]:
        chosen = choose_sites(sites, window_side=0.5, self_side=None, cross_side=None, routed=kind)
        return sorted(int(name) for name in chosen.self_routing)

    assert routed("coarse") == list(range(2, 13))
    assert routed("coarser") == [4, 5, 6, 7, 8, 9]
    assert routed("fine-decoder") == list(range(10, 16))
    assert routed("decoder") == list(range(8, 16))
    assert routed("all") == list(range(16))


def test_one_step_covers_the_first_order_solvers() -> None:
    schedule = noise_schedule((900, 700), (0.02, 0.1), (0.1, 0.4))
    generator = torch.Generator().manual_seed(1)
    x, x0, n = torch.randn(3, 2, 2, 3, 5, generator=generator).unbind(0)
    eps = (x - math.sqrt(0.02) * x0) / math.sqrt(0.98)
    for sigma in (0.0, 0.3, math.sqrt(0.9)):
        own = spread_step(x, x0, schedule, 0, torch.tensor(sigma**2), n)
        expected = math.sqrt(0.1) * x0 + math.sqrt(max(0.9 - sigma**2, 0)) * eps + sigma * n
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=0)
    h, before = (0.5 * math.log(b / (1 - b) * (1 - a) / a) for a, b in ((0.1, 0.4), (0.02, 0.1)))
    expected = 0.5 * math.sqrt(0.4) * (1 - math.exp(-2 * h)) * (x0 - x) / (before / h)
    torch.testing.assert_close(second_order_term(x0, x, schedule, 1), expected)
    assert not second_order_term(x0, None, schedule, 0).any()
    assert not second_order_term(x0, x, noise_schedule((1,), (0.9,), (1.0,)), 0).any()


def test_proximal_guidance() -> None:
    layout = RowLayout(2, (TU, S, T))
    eps = torch.randn(6, 3, 5, 7, generator=torch.Generator().manual_seed(2))
    free, source, target = eps.view(3, 2, 3, 5, 7)
    scale = torch.tensor([2.0, 7.5])
    hard = proximal_guidance(eps, layout, scale, 0.75, soft=False)
    soft = proximal_guidance(eps, layout, scale, 0.75, soft=True)
    assert torch.equal(hard[0], source) and torch.equal(soft[0], source)
    for b in range(2):
        d = (target[b] - free[b]).numpy()
        kept = np.where(np.abs(d) > np.quantile(np.abs(d), 0.75), d, 0)
        np.testing.assert_allclose(hard[1, b], free[b] + scale[b] * torch.from_numpy(kept), atol=1e-5)
        assert abs((kept != 0).mean() - 0.25) < 0.01
        both = np.quantile(np.concatenate([np.zeros(d.size), np.abs(d).ravel()]), 0.75)
        shrunk = np.sign(d) * np.maximum(np.abs(d) - both, 0)
        np.testing.assert_allclose(soft[1, b], free[b] + scale[b] * torch.from_numpy(shrunk).float(), atol=1e-5)
        assert abs((shrunk != 0).mean() - 0.5) < 0.01


def test_a_sparser_direction_keeps_its_largest_entries() -> None:
    image, source, target = torch.randn(3, 2, 31, generator=torch.Generator().manual_seed(3))
    full = estimate_target_embedding(image, source, target) - image
    sparse = estimate_target_embedding(image, source, target, 90.0) - image
    for b in range(2):
        cut = np.quantile(full[b].abs().numpy(), 0.1)
        np.testing.assert_allclose(sparse[b], np.where(full[b].abs() >= cut, full[b], 0), atol=1e-6)
        assert 0 < int((sparse[b] == 0).sum()) == 3


def test_the_laplacian_solves_its_system() -> None:
    generator = torch.Generator().manual_seed(4)
    words, attention = torch.rand(2, 6, generator=generator), torch.rand(2, 24, 24, generator=generator).softmax(-1)
    options = Laplacian(alpha=3.0, tau=0.4, weight=0.7)
    own = smooth_map(words, attention, ((2, 3), (4, 6)), options)
    for row in range(2):
        m0 = F.interpolate(words[row].view(1, 1, 2, 3), size=(4, 6), mode="nearest").flatten().double().numpy()
        graph = (attention[row] + attention[row].T).double().numpy() / 2
        trust = np.diag((1 / (1 + np.exp(-3.0 * (m0 - 0.4)))) ** 2)
        laplacian = np.diag(graph.sum(1)) - graph
        np.testing.assert_allclose(own[row], np.linalg.solve(trust + 0.7 * laplacian, trust @ m0), atol=1e-5)
    # Without smoothing the map stays what it is.
    same = smooth_map(words, attention, ((2, 3), (4, 6)), Laplacian(weight=0.0))
    torch.testing.assert_close(same, F.interpolate(words.view(2, 1, 2, 3), size=(4, 6)).flatten(1))


def test_blend_masks_are_pooled_and_over_their_maximum() -> None:
    sums = torch.zeros(4, 35)
    sums[0, 0], sums[1, 17], sums[3, 34] = 2.0, 1.0, 5.0  # two sources, then two targets, a grid of 5 x 7
    sums[0, 30] = 0.5
    masks = blend_masks(sums, (5, 7), (10, 14), torch.tensor([0.3, 0.2]), has_words_B=torch.tensor([False, False]))
    first, second = masks.edit[:, 0].numpy()
    assert first[:4, :4].all() and first.sum() == 16
    expected = np.zeros((5, 7), dtype=bool)
    expected[1:4, 2:5] = expected[3:, 5:] = True
    np.testing.assert_array_equal(second, expected.repeat(2, 0).repeat(2, 1))
    assert masks.exists.tolist() == [True, True] and not masks.critical.any()
    empty = blend_masks(sums * 0, (5, 7), (10, 14), torch.tensor([0.3, 0.2]), has_words_B=torch.tensor([False, True]))
    assert empty.exists.tolist() == [False, True] and not empty.edit.any()


def test_auxiliary_masks_and_blend() -> None:
    generator = torch.Generator().manual_seed(5)
    maps = torch.rand(6, 6, 5, generator=generator)  # three branches of two requests, 2 x 3 cells, 5 tokens
    fold, keep = torch.rand(2, 5, 5, generator=generator), torch.rand(2, 5, generator=generator)
    words, mutual = torch.tensor([[0.0, 1, 1, 0, 0]] * 2), torch.tensor([[0.0, 0, 1, 1, 0]] * 2)
    own = auxiliary_maps(maps, fold, keep, words, mutual)
    for b in range(2):
        source, target, auxiliary = maps[b], maps[2 + b], maps[4 + b]
        follow_aux, follow_source = (m @ fold[b] + target * keep[b] for m in (auxiliary, source))
        torch.testing.assert_close(own[0, b], follow_aux[:, [1, 2]].amax(1))
        torch.testing.assert_close(own[1, b], follow_source[:, 3])
        torch.testing.assert_close(own[2, b], follow_aux[:, 2])
    exists = torch.tensor([True, False])
    masks = auxiliary_masks(own, (2, 3), (2, 3), torch.tensor([0.5, 0.5]), 0.9, 0.5, exists)
    normalised = (own / own.amax(-1, keepdim=True)).view(3, 2, 1, 2, 3)
    assert torch.equal(masks.edit, normalised[0] > 0.5)
    assert masks.mutual is not None and torch.equal(masks.mutual, normalised[1] > 0.9)
    assert masks.shared is not None and torch.equal(masks.shared, normalised[2] > 0.5)
    assert not auxiliary_masks(
        own, (2, 3), (2, 3), torch.tensor([0.5, 0.5]), 0.9, 0.02, exists
    ).edit.any()  # 0.15 / sqrt(a) > 1
    x = torch.stack([torch.full((2, 1, 2, 3), float(branch)) for branch in range(3)])
    for overwrites in (False, True):
        target = blend_auxiliary(x, masks, overwrites=overwrites)[1]
        expected = torch.where(masks.edit | torch.tensor([False, True]).view(2, 1, 1, 1), 1.0, 2.0)
        expected = torch.where(masks.mutual, 0.0, expected)
        assert torch.equal(target, torch.where(masks.shared, 2.0, expected) if overwrites else expected)
    plain = Masks(edit=masks.edit, critical=masks.edit, exists=exists)
    assert torch.equal(blend_auxiliary(x, plain, overwrites=True), x)


def test_tokens_are_linked_by_likeness() -> None:
    states = np.eye(7, dtype=np.float32)
    mapper = np.array([0, -1, -1, 3, 4, 5, 6])
    target = states.copy()
    target[2] = states[1] + 0.1 * states[2]  # token 2 is likest to source token 1, token 1 is not in reach of any better
    target[1] = states[6]
    assert link_tokens(mapper, 5, states, target).tolist() == [0, -1, 1, 3, 4, 5, 6]
    # Nothing lies between the neighbours' partners, so nothing is linked.
    assert link_tokens(np.array([0, -1, 1, 2]), 4, states[:4], target[:4]).tolist() == [0, -1, 1, 2]
    assert scan_tokens([9, 5, 7, 5, 6], [5, 6]) == [1, 4] and scan_tokens([9, 5, 7], [5, 8, 7]) == [1]
    linked = link_tokens(mapper, 5, states, target)
    assert edited_tokens(mapper, linked, [9, 50, 51, 52, 53], [9, 60, 61, 62, 63], [50, 62]) == [2]
    assert edited_tokens(mapper, linked, [9, 50, 51, 52, 53], [9, 60, 61, 62, 63], [62]) == [3]


def test_a_window_of_features_is_an_option() -> None:
    assert dataclasses.replace(method_config("pnp"), windows=Windows(self=0.5, feature=0.2)).windows.feature == 0.2
