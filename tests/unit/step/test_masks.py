"""Grounding's pure functions against loops over numpy arrays."""

import numpy as np
import pytest
import torch

from vimaedit.step.masks import (
    Masks,
    blend_latents,
    combine_masks,
    given_masks,
    masks_from_sum,
    no_masks,
    refine_map,
    variance_region,
)


def test_refinement_repeats_the_mix_with_self_attention() -> None:
    rng = np.random.default_rng(0)
    words = rng.random((2, 3 * 5))
    attention = rng.random((2, 6 * 10, 6 * 10))
    attention /= attention.sum(-1, keepdims=True)
    own = refine_map(torch.tensor(words), torch.tensor(attention), ((3, 5), (6, 10)), 4, 0.3)
    expected = words.reshape(2, 3, 5).repeat(2, axis=1).repeat(2, axis=2).reshape(2, 60, 1)
    for _ in range(4):
        expected = 0.3 * expected + 0.7 * attention @ expected
    np.testing.assert_allclose(own.numpy(), expected[..., 0], rtol=1e-12)


def test_without_rounds_the_map_is_only_enlarged() -> None:
    words = torch.arange(6.0).view(1, 6)
    assert refine_map(words, None, ((2, 3), (2, 3)), 5, 0.5).tolist() == words.tolist()


def sums(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_masks_are_the_union_of_both_branches_strictly_above() -> None:
    source, target = [0.0, 1.0, 2.0, 4.0], [8.0, 4.0, 0.0, 0.0]
    masks = masks_from_sum(sums(source, target), (2, 2), (2, 2), torch.tensor([0.5]), torch.tensor([0.8]))
    assert masks.edit.flatten().tolist() == [True, False, False, True]  # 2/4 and 4/8 are not above 0.5
    assert masks.critical.flatten().tolist() == [True, False, False, True]
    assert masks.exists.tolist() == [True]


def test_each_request_has_its_own_thresholds() -> None:
    rows = [[0.0, 1.0, 2.0, 4.0]] * 4
    masks = masks_from_sum(sums(*rows), (2, 2), (4, 4), torch.tensor([0.1, 0.9]), torch.tensor([-1.0, 1.0]))
    assert masks.edit.flatten(1).sum(1).tolist() == [12, 4]
    assert masks.critical.flatten(1).sum(1).tolist() == [16, 0]


def test_a_constant_map_gives_no_mask_in_its_row() -> None:
    rows = [[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]]  # two sources, two targets
    masks = masks_from_sum(sums(*rows), (2, 2), (2, 2), torch.tensor([0.5, 0.5]), torch.tensor([-1.0, -1.0]))
    assert masks.exists.tolist() == [True, False]
    assert masks.edit[0].flatten().tolist() == [False, True, True, True]


def test_blending_takes_the_source_outside_and_leaves_maskless_requests_alone() -> None:
    x = torch.randn(2, 2, 3, 2, 2)
    edit = torch.tensor([[[[True, False], [False, True]]], [[[False] * 2] * 2]])
    masks = Masks(edit=edit, critical=edit, exists=torch.tensor([True, False]))
    source, target = blend_latents(x, masks)
    assert torch.equal(source, x[0])
    assert torch.equal(target[0][:, edit[0, 0]], x[1, 0][:, edit[0, 0]])
    assert torch.equal(target[0][:, ~edit[0, 0]], x[0, 0][:, ~edit[0, 0]])
    assert torch.equal(target[1], x[1, 1])


@pytest.mark.parametrize(("variance", "expected"), [("zero", [0, 0]), ("uniform", [4, 0]), ("adaptive", [1, 0])])
def test_variance_region(variance: str, expected: list[int]) -> None:
    critical = torch.tensor([[[[True, False], [False, False]]]]).repeat(2, 1, 1, 1)
    masks = Masks(edit=critical, critical=critical, exists=torch.tensor([True, False]))
    assert variance_region(masks, variance).flatten(1).sum(1).tolist() == expected


def test_given_and_absent_masks() -> None:
    mask = torch.rand(3, 5, 7) > 0.5
    assert torch.equal(given_masks(mask).critical[:, 0], mask) and given_masks(mask).exists.all()
    assert not no_masks(3, (5, 7), torch.device("cpu")).exists.any()


@pytest.mark.parametrize("combine", ["replace", "union", "intersection"])
def test_a_mask_from_outside_is_joined_with_that_of_attention_where_both_are(combine: str) -> None:
    """Rows: both; no mask from outside; none of attention; neither."""
    rng = np.random.default_rng(5)
    edit, critical, given = (rng.random((4, 3, 5)) > 0.5 for _ in range(3))
    given[[1, 3]] = False
    exists = np.array([True, True, False, False])
    own = Masks(*(torch.from_numpy(each)[:, None] for each in (edit, critical)), exists=torch.from_numpy(exists))
    joined = combine_masks(own, torch.from_numpy(given), combine)
    assert joined.exists.tolist() == [True, True, True, False]
    for mask, before in ((joined.edit, edit), (joined.critical, critical)):
        both = {"replace": given[0], "union": before[0] | given[0], "intersection": before[0] & given[0]}[combine]
        assert (mask[0, 0].numpy() == both).all()
        assert (mask[1, 0].numpy() == before[1]).all() and (mask[2, 0].numpy() == given[2]).all()
    again = combine_masks(joined, torch.from_numpy(given), combine)
    assert (again.edit[:3] == joined.edit[:3]).all()
