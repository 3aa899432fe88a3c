"""Edits of a caption by rule: one word or phrase is put for another, so that blend words and instruction follow from the edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vimaedit.errors import RequestError
from vimaedit.scenes.draws import Draws
from vimaedit.synthesis.captions import Caption, Item, read_caption, words_of
from vimaedit.synthesis.lexicon import CATEGORIES, PLACE, Lexicon
from vimaedit.synthesis.pairs import PromptPair
from vimaedit.types import BlendPhrase
from vimaedit.words.phrases import Span, find_phrase, fold_word

TRIES = 3  # of every category for one more edit of a caption
CONSONANT_SOUNDS = ("uni", "eu", "one", "use")  # written with a vowel
VOWEL_SOUNDS = ("hour", "honest", "heir")
SHOWN_CHARACTERS = 120


def propose_pairs(
    text: str, lexicon: Lexicon, categories: Sequence[str], count: int, seed: int
) -> list[PromptPair | RequestError]:
    """Make `count` different edits of a caption, of different categories as far as they apply; the same for the same seed.

    Where fewer can be made, the rest are errors `no_edit_applies`.
    """
    caption = read_caption(text, lexicon)
    made: dict[str, PromptPair] = {}
    draws = Draws(seed, 0)
    for _ in range(TRIES * count):
        for category in draws.shuffled(categories or CATEGORIES):
            pair = RULES[category](caption, lexicon, draws) if len(made) < count else None
            if pair is not None:
                made.setdefault(pair.target_prompt, pair)
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    missing = RequestError(
        "no_edit_applies",
        field="source_prompt",
        got=f"{shown!r}, of which the word lists allow {len(made)} edits",
        allowed=f"captions that name things, colours or a background of the word lists, for {', '.join(categories or CATEGORIES)}",
    )
    return [*made.values(), *[missing] * (count - len(made))]


def with_article(phrase: str) -> str:
    """Put the indefinite article before a phrase."""
    return f"{_indefinite(phrase)} {phrase}"


def _change_object(caption: Caption, lexicon: Lexicon, draws: Draws) -> PromptPair | None:
    item = _choose_item(caption, lexicon, draws, "change_object")
    if item is None or item.head is None or item.group is None:
        return None
    words = lexicon.objects[item.group]
    new = draws.choose([word for word in words.written if word != words.find(caption.cut(item.head))])
    return _reword(caption, lexicon, draws, item, [(item.head, new)], "change_object", new=None)


def _change_colour(caption: Caption, lexicon: Lexicon, draws: Draws) -> PromptPair | None:
    background = [] if caption.background_noun is None else _colours(caption, caption.background_noun, lexicon)
    places = [
        (item, word)
        for item in _items(caption, lexicon, "change_attribute_color")
        for word in _adjectives(caption, item)
        if lexicon.colours.find(caption.cut(word))
    ]
    if not places:
        return None
    item, word = draws.choose(places)
    old = lexicon.colours.find(caption.cut(word))
    others = [colour for colour in lexicon.colours.written if colour != old and colour not in background]
    if not others:
        return None
    new = draws.choose(others)
    return _reword(caption, lexicon, draws, item, [(word, new)], "change_attribute_color", new=new)


def _change_material(caption: Caption, lexicon: Lexicon, draws: Draws) -> PromptPair | None:
    item = _choose_item(caption, lexicon, draws, "change_attribute_material")
    if item is None or item.head is None:
        return None
    of = [word for word in _adjectives(caption, item) if lexicon.materials.find(caption.cut(word))]
    old = lexicon.materials.find(caption.cut(of[0])) if of else None
    # Words that are a material and a colour ("golden") are left to the colours.
    new = draws.choose([word for word in lexicon.materials.written if word != old and not lexicon.colours.find(word)])
    change = (of[0], new) if of else ((item.head[0], item.head[0]), f"{new} ")
    return _reword(caption, lexicon, draws, item, [change], "change_attribute_material", new=new)


def _change_background(caption: Caption, lexicon: Lexicon, draws: Draws) -> PromptPair | None:
    if caption.background is None or caption.background_noun is None or caption.background_article is None:
        return None
    taken = {colour for item in caption.items for colour in _colours(caption, item.span, lexicon)}
    old = caption.cut(caption.background_noun)
    others = [
        (preposition, phrase)
        for preposition, phrase in map(lexicon.split_background, lexicon.backgrounds)
        if fold_word(_bare(phrase, lexicon)) != fold_word(old) and not taken & set(_colours_of(phrase, lexicon))
    ]
    if not others:
        return None
    preposition, new = draws.choose(others)
    text = new
    start = caption.background_article[0]
    if preposition is not None:
        text, start = f"{preposition} {new}", caption.background[0]
    target = _put(caption.text, [((start, caption.background_noun[1]), _cased(text, caption.text[start]))])
    return _pair(caption, lexicon, draws, "change_background", target, old, _bare(new, lexicon), thing=f"the {old}", new=new)


def _change_style(caption: Caption, lexicon: Lexicon, draws: Draws) -> PromptPair | None:
    common = next(iter(lexicon.styles), None)  # of a caption that names none
    others = [style for style in lexicon.styles if style != (caption.style or common)]
    if not others:
        return None
    opening = lexicon.styles[draws.choose(others)][0]
    if caption.opening is None and caption.background is not None and not caption.text[: caption.background[0]].strip():
        return None  # "a sketch of on the beach, a dog"
    if caption.opening is not None:
        first = caption.cut(caption.opening).strip()
        target = f"{_cased(opening, first)} {caption.text[caption.opening[1] :]}"
    else:
        words = words_of(caption.text, (0, len(caption.text)))
        is_article = bool(words) and fold_word(caption.cut(words[0])) in lexicon.articles
        rest = caption.text[:1].lower() + caption.text[1:] if is_article else caption.text
        target = f"{_cased(opening, caption.text)} {rest}"
    return _pair(caption, lexicon, draws, "change_style", target, None, None, thing="it", new=opening.removesuffix(" of"))


def _add_object(caption: Caption, lexicon: Lexicon, draws: Draws) -> PromptPair | None:
    if not caption.items or len(caption.items) >= lexicon.max_items or not lexicon.additions:
        return None
    new = _fill_addition(draws.choose(lexicon.additions), caption, lexicon, draws)
    heads = [fold_word(caption.cut(item.head)) for item in caption.items if item.head]
    if new is None or any(fold_word(new[slice(*word)]) in heads for word in words_of(new, (0, len(new)))):
        return None
    changes: list[tuple[Span, str]] = [((caption.items[-1].span[1],) * 2, f" and {new}")]
    if caption.joiners and _is_and(caption, caption.joiners[-1]):
        # "A and B" becomes "A, B and C".
        changes.append((caption.joiners[-1], ", "))
    target = _put(caption.text, changes)
    return _pair(caption, lexicon, draws, "add_object", target, None, _bare(new, lexicon), thing="", new=new)


def _delete_object(caption: Caption, lexicon: Lexicon, draws: Draws) -> PromptPair | None:
    items = caption.items
    able = [n for n, item in enumerate(items) if item in _items(caption, lexicon, "delete_object")]
    if len(items) < 2 or not able:
        return None
    index = draws.choose(able)
    gone = items[index]
    if gone.noun is None:
        return None
    if index == 0:
        changes: list[tuple[Span, str]] = [((gone.span[0], items[1].span[0]), "")]
    else:
        changes = [((caption.joiners[index - 1][0], gone.span[1]), "")]
    if index == len(items) - 1 > 1 and caption.cut(caption.joiners[-2]).strip() == ",":
        changes.append((caption.joiners[-2], " and "))  # "A, B and C" becomes "A and B"
    target = _put(caption.text, changes)
    if index == 0 and caption.text[:1].isupper():
        target = target[:1].upper() + target[1:]
    old = caption.cut(gone.noun)
    return _pair(caption, lexicon, draws, "delete_object", target, old, None, thing=f"the {old}", new="")


RULES: dict[str, Callable[[Caption, Lexicon, Draws], PromptPair | None]] = {
    "change_object": _change_object,
    "add_object": _add_object,
    "delete_object": _delete_object,
    "change_attribute_color": _change_colour,
    "change_attribute_material": _change_material,
    "change_background": _change_background,
    "change_style": _change_style,
}


def _items(caption: Caption, lexicon: Lexicon, category: str) -> list[Item]:
    """Return the items with a known head that no blocked word keeps this category away from."""
    blocked = lexicon.blocked.get(category, frozenset())
    return [
        item
        for item in caption.items
        if item.noun is not None
        and not any(fold_word(caption.cut(word)) in blocked for word in words_of(caption.text, item.span))
    ]


def _choose_item(caption: Caption, lexicon: Lexicon, draws: Draws, category: str) -> Item | None:
    items = _items(caption, lexicon, category)
    return draws.choose(items) if items else None


def _adjectives(caption: Caption, item: Item) -> list[Span]:
    if item.noun is None or item.head is None:
        return []
    return words_of(caption.text, (item.noun[0], item.head[0]))


def _colours(caption: Caption, span: Span, lexicon: Lexicon) -> list[str]:
    return _colours_of(caption.cut(span), lexicon)


def _colours_of(text: str, lexicon: Lexicon) -> list[str]:
    found = (lexicon.colours.find(text[slice(*word)]) for word in words_of(text, (0, len(text))))
    return [colour for colour in found if colour is not None]


def _reword(
    caption: Caption,
    lexicon: Lexicon,
    draws: Draws,
    item: Item,
    changes: Sequence[tuple[Span, str]],
    category: str,
    new: str | None,
) -> PromptPair | None:
    """Change words of an item's noun, and its article with them. `new` of None: what it is called then, with an article."""
    assert item.noun is not None
    old = caption.cut(item.noun)
    inner = [((start - item.noun[0], end - item.noun[0]), text) for (start, end), text in changes]
    noun = _put(old, inner)
    full = [(item.noun, noun)]
    if item.article is not None:
        article = caption.cut(item.article)
        if fold_word(article) in ("a", "an"):
            full.append((item.article, _cased(_indefinite(noun), article)))
    target = _put(caption.text, full)
    return _pair(
        caption, lexicon, draws, category, target, old, noun, thing=f"the {old}", new=with_article(noun) if new is None else new
    )


def _pair(
    caption: Caption,
    lexicon: Lexicon,
    draws: Draws,
    category: str,
    target: str,
    old_phrase: str | None,
    new_phrase: str | None,
    *,
    thing: str,
    new: str,
) -> PromptPair | None:
    """Write the pair down; None where a blend phrase would stand for more than the one place that changes."""
    for text, phrase in ((caption.text, old_phrase), (target, new_phrase)):
        if phrase is not None and len(find_phrase(text, phrase)) != 1:
            return None
    blend = () if old_phrase is None and new_phrase is None else (BlendPhrase(source=old_phrase, target=new_phrase),)
    instruction = draws.choose(lexicon.instructions[category]).replace("{object}", thing).replace("{new}", new)
    return PromptPair(source_prompt=caption.text, target_prompt=target, blend=blend, instruction=instruction, category=category)


def _fill_addition(template: str, caption: Caption, lexicon: Lexicon, draws: Draws) -> str | None:
    taken = [] if caption.background_noun is None else _colours(caption, caption.background_noun, lexicon)
    text = template
    for place in PLACE.findall(template):
        if place == "colour":
            options = [colour for colour in lexicon.colours.written if colour not in taken]
        else:
            options = list((lexicon.materials if place == "material" else lexicon.objects[place]).written)
        if not options:
            return None
        text = text.replace(f"{{{place}}}", draws.choose(options), 1)
    first, _, rest = text.partition(" ")
    return with_article(rest) if fold_word(first) in ("a", "an") and rest else text


def _is_and(caption: Caption, joiner: Span) -> bool:
    words = words_of(caption.text, joiner)
    return len(words) == 1 and fold_word(caption.cut(words[0])) == "and"


def _bare(phrase: str, lexicon: Lexicon) -> str:
    """Take the article off a phrase."""
    first, _, rest = phrase.partition(" ")
    return rest if fold_word(first) in lexicon.articles and rest else phrase


def _indefinite(phrase: str) -> str:
    word = phrase.casefold()
    if word.startswith(VOWEL_SOUNDS):
        return "an"
    return "a" if word.startswith(CONSONANT_SOUNDS) or word[:1] not in "aeiou" else "an"


def _cased(text: str, like: str) -> str:
    return text[:1].upper() + text[1:] if like[:1].isupper() else text


def _put(text: str, changes: Sequence[tuple[Span, str]]) -> str:
    """Put texts for spans that do not overlap."""
    for (start, end), new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    return text
