"""Rows, guidance and noise: small contracts that everything else stands on."""

import hashlib

import numpy as np
import pytest
import torch

from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError
from vimaedit.seeds import derive_seed
from vimaedit.step.guidance import combine_guidance, estimate_target_embedding
from vimaedit.step.noise import START, SeededNoise
from vimaedit.step.rows import RowKind, RowLayout, edit_layout, image_embedding_rows


def rows_of(num_requests: int, guided: bool) -> RowLayout:
    return edit_layout(num_requests, EditConfig(source_guidance=2.0 if guided else 1.0))


@pytest.mark.parametrize(("guided", "rows_per_edit"), [(False, 3), (True, 4)])
def test_rows_per_edit(guided: bool, rows_per_edit: int) -> None:
    layout = rows_of(5, guided)
    assert layout.num_rows == 5 * rows_per_edit
    expanded = layout.expand(torch.stack([torch.full((5,), 0.0), torch.full((5,), 1.0)]))
    for kind in layout.kinds:
        assert (expanded[layout.indices(kind)] == kind.branch).all()


@pytest.mark.parametrize(
    ("order", "expected"),
    [("reference", [0, 1, 0, 2]), ("conventional", [0, 0, 1, 2])],
)
def test_which_row_sees_which_picture(order: str, expected: list[int]) -> None:
    source, target = torch.full((3, 7), 1.0), torch.full((3, 7), 2.0)
    rows = image_embedding_rows(rows_of(3, True), source, target, order)
    assert rows[:, 0].view(4, 3).tolist() == [[value] * 3 for value in expected]


def test_unknown_image_order() -> None:
    with pytest.raises(ConfigError, match="image_order: got 'other'; allowed: reference, conventional"):
        image_embedding_rows(rows_of(1, False), torch.ones(1, 2), torch.ones(1, 2), "other")


def test_target_embedding_moves_along_the_text_difference() -> None:
    rng = np.random.default_rng(3)
    image, source, target = rng.normal(size=(3, 2, 11))
    own = estimate_target_embedding(*(torch.tensor(e, dtype=torch.float32) for e in (image, source, target)))
    for b in range(2):
        step = target[b] / np.linalg.norm(target[b]) - source[b] / np.linalg.norm(source[b])
        np.testing.assert_allclose(own[b], image[b] + np.linalg.norm(image[b]) * step, rtol=1e-5)


def test_guidance_per_branch_and_request() -> None:
    layout = rows_of(3, True)
    eps = torch.randn(12, 2, 5, 7)
    scales = torch.tensor([1.0, 2.0, 7.5])
    source, target = combine_guidance(eps, layout, 3.0, scales)
    su, tu, sc, tc = eps.view(4, 3, 2, 5, 7)
    torch.testing.assert_close(source, su + 3 * (sc - su))
    torch.testing.assert_close(target, tu + scales.view(3, 1, 1, 1) * (tc - tu))


def test_unguided_source_is_its_conditional_row_bit_for_bit() -> None:
    layout = rows_of(2, False)
    eps = torch.randn(6, 2, 5, 7)
    assert torch.equal(combine_guidance(eps, layout, 1.0, torch.ones(2))[0], eps[layout.block(RowKind.SOURCE_COND)])


def test_an_unguided_target_is_its_conditional_row_bit_for_bit() -> None:
    layout = RowLayout(2, (RowKind.SOURCE_COND, RowKind.TARGET_COND))
    eps = torch.randn(4, 2, 5, 7)
    assert torch.equal(combine_guidance(eps, layout, 1.0, torch.full((2,), 7.5))[1], eps[2:])


def test_noise_depends_on_seed_and_step_alone() -> None:
    shape = (3, 5, 7)
    together = SeededNoise([11, 13, 17], shape)
    alone = SeededNoise([13], shape)
    for step in (START, 0, 1, 49):
        assert torch.equal(together.draw(step)[1], alone.draw(step)[0])
        assert torch.equal(together.draw(step), together.draw(step))
    draws = [SeededNoise([seed], shape).draw(step) for seed in (0, 1, 2**63 - 1) for step in (START, 0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_noise_is_standard_normal() -> None:
    noise = SeededNoise(range(50), (4, 32, 32)).draw(0)
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01 and noise.dtype == torch.float32


def test_the_seed_of_a_record_is_the_stated_hash() -> None:
    digest = hashlib.blake2b(b"7:a/b.parquet#3", digest_size=8).digest()
    assert derive_seed(7, "a/b.parquet#3") == int.from_bytes(digest, "big") >> 1
    assert derive_seed(7, "x") != derive_seed(8, "x") and 0 <= derive_seed(7, "x") < 2**63


def test_rows_that_share_a_source_and_those_that_text_alone_tells_apart() -> None:
    layout = RowLayout(4, (RowKind.TARGET_UNCOND, RowKind.SOURCE_COND, RowKind.TARGET_COND), shared=2)
    assert layout.num_rows == 10 and layout.block(RowKind.TARGET_COND) == slice(6, 10)
    assert layout.indices(RowKind.SOURCE_COND).tolist() == [4, 4, 5, 5]
    branches = torch.stack([torch.tensor([10, 10, 20, 20]), torch.tensor([1, 2, 3, 4])])
    rows = layout.expand(branches)
    assert rows.tolist() == [1, 2, 3, 4, 10, 20, 1, 2, 3, 4]
    assert layout.of_kind(rows, RowKind.SOURCE_COND).tolist() == [10, 10, 20, 20]
    assert layout.of_kind(rows, RowKind.TARGET_COND).tolist() == [1, 2, 3, 4]
    apart = layout.apart()
    assert apart is not None and torch.equal(rows[apart[0]][apart[1]], rows) and len(apart[0]) == 6
    assert RowLayout(2, (RowKind.SOURCE_COND, RowKind.TARGET_COND)).apart() is None
