"""English word lists for `blend=auto`, case-folded. Data only: another language or taste is another `WordLists`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class WordLists:
    """Which words do not say what changes in a picture.

    `articles`, `relations` and `connectives` are function words: trimmed at the ends of a changed phrase. Where nothing else
    changes, `relations` do say what does ("without" -> "with").

    `media` name the medium or style of the picture where they head it or are set off ("a photo of", "..., oil painting"); what
    stands in `object_followers` behind one makes it a thing in the picture ("a poster on a wall"), unless `media_supports`
    follow ("on canvas"). `media_modifiers` speak of the medium only in front of one ("oil painting", but not "olive oil").
    `style_markers` make a style of the words between them and `style_opener` ("in pop art style") and of those behind
    `style_link` ("in the style of Monet"), as does `author_link` behind a medium ("painting by Monet").
    """

    articles: frozenset[str]
    relations: frozenset[str]
    connectives: frozenset[str]
    media: frozenset[str]
    media_modifiers: frozenset[str]
    media_supports: frozenset[str]
    object_followers: frozenset[str]
    style_markers: frozenset[str]
    style_opener: str
    style_link: str
    author_link: str

    @cached_property
    def function_words(self) -> frozenset[str]:
        """All words that are trimmed at the ends of a changed phrase."""
        return self.articles | self.relations | self.connectives


ENGLISH = WordLists(
    articles=frozenset({"a", "an", "the"}),
    relations=frozenset(
        "above across after against along amid among around at atop before behind below beneath beside besides between beyond "
        "by down from in inside into near next off on onto out outside over past through throughout to toward towards under "
        "underneath up upon with within without".split()
    ),
    connectives=frozenset("about and as but during for nor of or per so than that though via when where while yet".split()),
    media=frozenset(
        "anime art artwork caricature cartoon clipart close-up closeup collage comic daguerreotype doodle drawing engraving etching fresco "
        "graffiti illustration image linocut lithograph manga mosaic mural painting photo photograph photography picture poster "
        "portrait print render rendering scan screenshot silhouette sketch snapshot still-life watercolor watercolour woodcut "
        "abstract baroque black-and-white cinematic cubism cubist cyberpunk expressionism expressionist hyperrealistic "
        "impressionism impressionist minimalist monochrome photorealistic pixelated pointillism pointillist realistic "
        "renaissance romanticism sepia steampunk stylized stylised surreal surrealism surrealist ukiyo-e vaporwave "
        "vectorized".split()
    ),
    media_modifiers=frozenset(
        "3d acrylic aerial airbrush analog ballpoint beautiful black blurry brush bw chalk charcoal childish children's chinese "
        "classical color colored colorful colour coloured crayon cgi detailed digital disney dslr faded fantasy "
        "film flat grainy grayscale greyscale hdr ink japanese line low-poly macro modern ms oil old op painted paper pastel pen "
        "pencil pixar pixel polaroid pop professional retro rough stick stock traditional vector vintage white".split()
    ),
    media_supports=frozenset({"canvas", "paper", "parchment"}),
    object_followers=frozenset(
        "above against and behind below beneath beside between book books box booth frame frames gallery hanging hangs leaning "
        "leans lies lying museum near next on or over stand standing stands studio under underneath".split()
    ),
    style_markers=frozenset({"style", "styles", "manner"}),
    style_opener="in",
    style_link="of",
    author_link="by",
)
