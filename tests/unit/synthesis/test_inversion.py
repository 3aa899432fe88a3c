"""Pairs turned round: prompts, words and the instruction that asks for the way back."""

from __future__ import annotations

import pytest

from vimaedit.synthesis.inversion import invert_pair
from vimaedit.synthesis.pairs import PromptPair, check_pair
from vimaedit.types import BlendPhrase


@pytest.mark.parametrize(
    ("source", "target", "blend", "category", "instruction", "back"),
    [
        ("a red star on a lawn", "an orange star on a lawn", [("red star", "orange star")], "change_attribute_color",
         "change the orange star to a red star", "change_attribute_color"),
        ("two cats", "two dogs", [("cats", "dogs")], "change_object", "change the dogs to cats", "change_object"),
        ("The cat sleeps", "The dog sleeps", [("cat", "dog")], None, "change the dog to the cat", None),
        ("a cat", "a cat and a hat", [(None, "hat")], "add_object", "remove the hat", "delete_object"),
        ("a cat and a hat", "a cat", [("hat", None)], "delete_object", "add a hat", "add_object"),
        ("a cat on a bed", "a dog on a sofa", [("cat", "dog"), ("bed", "sofa")], "random",
         "change the dog to a cat and change the sofa to a bed", "random"),
        ("a photo of a cat", "a sketch of a cat", [], "change_style", "make it a photo of a cat", "change_style"),
    ],
)  # fmt: skip
def test_a_pair_is_turned_round(
    source: str, target: str, blend: list[tuple[str | None, str | None]], category: str, instruction: str, back: str
) -> None:
    phrases = tuple(BlendPhrase(source=old, target=new) for old, new in blend)
    pair = PromptPair(source_prompt=source, target_prompt=target, blend=phrases, instruction="do it", category=category)
    turned = check_pair(invert_pair(pair))
    assert (turned.source_prompt, turned.target_prompt, turned.instruction) == (target, source, instruction)
    assert turned.category == back
    again = invert_pair(turned)
    assert (again.source_prompt, again.blend, again.category) == (source, phrases, category)
