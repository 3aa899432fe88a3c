"""English word lists for `blend=auto`, case-folded. Data only: another language or taste is another `WordLists`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WordLists:
    """Which words do not say what changes in a picture.

    `function_words` are trimmed at the ends of a changed phrase. `media` name the medium or style of the whole picture;
    `media_modifiers` do so only in front of one of them ("oil painting", but not "olive oil"). `style_markers` make a style of
    the words between them and `style_opener` ("in pop art style") and of those behind `style_link` ("in the style of Monet").
    """

    function_words: frozenset[str]
    media: frozenset[str]
    media_modifiers: frozenset[str]
    style_markers: frozenset[str]
    style_opener: str
    style_link: str


ENGLISH = WordLists(
    function_words=frozenset(
        # articles
        "a an the "
        # prepositions
        "about above across after against along amid among around as at atop before behind below beneath beside besides between "
        "beyond by down during for from in inside into near next of off on onto out outside over past per through throughout to "
        "toward towards under underneath up upon via with within without "
        # conjunctions
        "and but nor or so than that though when where while yet".split()
    ),
    media=frozenset(
        "anime art artwork caricature cartoon clipart collage comic daguerreotype doodle drawing engraving etching fresco "
        "graffiti illustration image linocut lithograph manga mosaic mural painting photo photograph photography picture poster "
        "portrait print render rendering scan screenshot silhouette sketch snapshot still-life watercolor watercolour woodcut "
        "abstract baroque black-and-white cinematic cubism cubist cyberpunk expressionism expressionist hyperrealistic "
        "impressionism impressionist minimalist monochrome photorealistic pixelated pointillism pointillist realistic "
        "renaissance romanticism sepia steampunk stylized stylised surreal surrealism surrealist ukiyo-e vaporwave "
        "vectorized".split()
    ),
    media_modifiers=frozenset(
        "3d acrylic airbrush analog ballpoint black blurry brush bw chalk charcoal childish children's chinese classical color "
        "colored colorful colour coloured crayon cgi detailed digital disney dslr fantasy film flat grayscale greyscale hdr "
        "ink japanese line low-poly macro modern ms oil old op painted paper pastel pen pencil pixar pixel polaroid pop "
        "professional retro rough stick stock traditional vector vintage white".split()
    ),
    style_markers=frozenset({"style", "styles", "manner"}),
    style_opener="in",
    style_link="of",
)
