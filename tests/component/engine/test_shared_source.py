"""Several edits of one picture: the work on the source is done once where it is the same, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.edit.actor import EditActor
from pipelines.output.config import EditJobConfig
from pipelines.output.plan import Unit
from pipelines.records.row import Row
from tests.component.conftest import picture, request, rows_and_states
from tests.contexts import make_context, make_row, with_picture
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import ConfigError
from vimaedit.images import FittedImage, clip_view
from vimaedit.models.files import model_facts, resolve_model
from vimaedit.types import BlendPhrase, EditRequest, Status

SOURCE = "a red circle on a blue background"
TARGETS = ("star", "square", "moon", "house")


def edits_of(number: int, count: int) -> list[EditRequest]:
    """Return edits of one picture into several things."""
    return [
        request(
            number,
            id=f"{number}-{word}",
            source_prompt=SOURCE,
            target_prompt=SOURCE.replace("circle", word),
            blend=(BlendPhrase(source="circle", target=word),),
        )
        for word in TARGETS[:count]
    ]


@pytest.mark.parametrize(
    ("options", "num_shared"),
    [
        ({"grounding_start": 0.5}, 2),  # at step 1 the first masks are found, after its prediction
        ({"variance": "zero"}, 4),
        ({"eta": 0.0}, 4),
        ({"source_variance": False}, 4),
        ({"source_variance": False, "solver": "dpmsolver++", "target_guidance": 2.0}, 4),
        ({"blend": "none"}, 4),
        ({"grounding": "given"}, 1),
        ({"source_guidance": 2.0, "image_order": "conventional", "grounding_start": 0.5}, 2),
        ({"method": "virtual-p2p", "image_guidance": False, "grounding": "local-blend"}, 4),
    ],
)
def test_sharing_changes_nothing_but_the_number_of_rows(
    make_editor: Callable[..., BatchEditor], options: dict[str, Any], num_shared: int
) -> None:
    requests = [*edits_of(0, 2), *edits_of(1, 2)]
    apart, separate = rows_and_states(make_editor(steps=4, **options), requests)
    rows, states = rows_and_states(make_editor(steps=4, targets_per_source=2, **options), requests)
    per_edit = 4 if options.get("source_guidance") else 3
    source_rows = per_edit - 2
    assert apart == [4 * per_edit] * 4
    assert rows == [8 + 2 * source_rows] * num_shared + [4 * per_edit] * (4 - num_shared)
    for own, other in zip(states, separate, strict=True):
        assert torch.equal(own.masks.edit, other.masks.edit) and torch.equal(own.masks.critical, other.masks.critical)
        torch.testing.assert_close(own.latents, other.latents, atol=1e-5 * float(other.latents.abs().max()), rtol=0)


def test_a_source_without_variance_stays_on_its_way(make_editor: Callable[..., BatchEditor]) -> None:
    requests = edits_of(0, 2)
    _, noised = rows_and_states(make_editor(steps=4, variance="uniform"), requests)
    _, quiet = rows_and_states(make_editor(steps=4, variance="uniform", source_variance=False), requests)
    source = [state.latents[0] for state in (noised[-2], quiet[-2])]
    assert not torch.allclose(source[0], source[1], atol=1e-3)
    assert torch.equal(quiet[-2].latents[0, 0], quiet[-2].latents[0, 1])
    assert not torch.allclose(quiet[-2].latents[1, 0], quiet[-2].latents[1, 1], atol=1e-3)  # the targets are noised


def test_an_edit_is_the_same_beside_holes_and_other_pictures(make_editor: Callable[..., BatchEditor]) -> None:
    editor = make_editor(steps=3, targets_per_source=2)
    requests: list[EditRequest | None] = [*edits_of(0, 2), *edits_of(1, 2)]
    whole = editor(requests)
    for slot, each in enumerate(requests):
        alone = editor([each if other == slot else None for other in range(4)])[slot]
        assert whole[slot] is not None and alone is not None and alone.status == Status.OK
        assert np.array_equal(whole[slot].image, alone.image) and np.array_equal(whole[slot].edit_mask, alone.edit_mask)
    half = editor(requests[:1])[0]  # without memory for the whole batch
    assert half is not None and half.status == Status.OK


def test_edits_of_different_pictures_are_refused_where_one_source_is_expected(
    make_editor: Callable[..., BatchEditor],
) -> None:
    first, second = edits_of(0, 2)
    other = request(0, id="other", image=picture(7), source_prompt=SOURCE, target_prompt=second.target_prompt)
    with pytest.raises(ConfigError, match="targets_per_source: got 2, but edits '0-star' and 'other' of a batch differ"):
        make_editor(steps=1, targets_per_source=2)([first, other])


def test_rows_of_one_branch_are_attended_once_before_any_text(make_editor: Callable[..., BatchEditor]) -> None:
    editor = make_editor(steps=3)
    requests: list[EditRequest | None] = [*edits_of(0, 2), None, None]
    (first,) = editor.backbone.sites.before_text
    processor = editor.backbone.networks.denoiser.get_submodule(first)
    counted: list[int] = []
    attend = processor._attend

    def count(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        counted.append(len(query))
        return attend(query, key, value)

    processor._attend = count
    once = editor(requests)
    assert counted == [8] * 3  # source and target of four slots
    processor.is_before_text = False
    apart = editor(requests)
    assert counted[3:] == [12] * 3
    for own, other in zip(once[:2], apart[:2], strict=True):
        assert own is not None and other is not None
        assert np.array_equal(own.image, other.image) and np.array_equal(own.edit_mask, other.edit_mask)


def test_an_actor_lets_the_edits_of_a_record_share_their_source() -> None:
    """Records of three targets and of one: each ends in a group with a hole."""

    def edit(targets_per_source: int) -> tuple[list[Row], list[int]]:
        options = {"model": "random", "steps": 2, "device": "cpu", "dtype": "float32", "variance": "zero"}
        job = EditJobConfig(input="in", output="out", targets_per_source=targets_per_source, **options)
        facts = model_facts(resolve_model(job))
        actor = EditActor(make_context(job, facts, batch_size=8))
        rows = [
            make_row(
                str(record),
                edit_index=index,
                input_row=record,
                source_prompt=SOURCE,
                target_prompt=SOURCE.replace("circle", TARGETS[index]),
                seed=record,
            )
            for record, count in enumerate((3, 1))
            for index in range(count)
        ]
        for row in rows:
            own = picture(row.input_row)
            fitted = FittedImage(image=own, crop_box=(0, 0, 128, 128), size=(128, 128))
            with_picture(row, fitted, clip_image=clip_view(own, facts.clip_side))
        counted: list[int] = []
        unet = actor.editor.backbone.networks.denoiser
        unet.register_forward_pre_hook(lambda module, inputs: counted.append(len(inputs[0])))
        actor.edit_rows(Unit(file=0, start=0, first_row=0, first_edit=0, count=4, take=4), rows)
        return rows, counted

    apart, rows_apart = edit(1)
    together, rows_together = edit(2)
    assert rows_apart == [4 * 3] * 2
    assert rows_together == [8 // 2 + 8 * 2] * 2  # six places, of which two are holes, in a batch of eight
    for own, other in zip(together, apart, strict=True):
        assert own.status == other.status == Status.OK and own.seed == other.seed
        assert np.abs(own.result.image.astype(int) - other.result.image.astype(int)).max() <= 1
