"""A small tokenizer of CLIP's kind: byte-level byte-pair encoding in which every everyday word is one token."""

from __future__ import annotations

import json
from pathlib import Path

START = "<|startoftext|>"
END = "<|endoftext|>"  # also the padding
LENGTH = 77
WORD_END = "</w>"

# The scene world draws a part of these only. The others stay: a token's number is its row of the embeddings in every text encoder
# that was trained or drawn with this list, the shipped ones among them, so none may be taken out or moved.
WORDS = """
a an the and or of in on at to by with without near under over behind beside between above below inside outside into from for
is are was has no not its his her their this that some two three four five six seven eight nine ten one many
left right top bottom middle front back side corner center centre
photo photograph picture image painting drawing sketch watercolor watercolour oil pencil cartoon render portrait poster style
illustration art scene view
red orange yellow green blue purple violet pink brown black white grey gray gold golden silver cyan magenta beige teal
dark light bright pale colorful
small big large tiny huge tall short long wide old young new round flat soft hard wet dry hot cold empty full open closed
shiny striped spotted checkered dotted plain smooth rough
circle square triangle rectangle star heart cross ring diamond hexagon pentagon oval ellipse cube sphere cone cylinder pyramid
ball box disc shape dot line
wooden wood metal metallic glass stone brick paper plastic leather marble clay ice rubber wool fabric steel iron copper bronze
cat cats dog dogs tiger lion leopard wolf fox bear rabbit mouse horse cow sheep goat pig deer elephant giraffe zebra monkey
panda bird owl eagle duck goose chicken parrot penguin fish shark whale dolphin turtle frog snake lizard bee butterfly kitten puppy
person people man men woman women boy girl child children baby face hair eyes hand hands head hat cap shirt dress coat shoes
glasses scarf jacket crown smile king queen astronaut robot
sitting standing lying walking running jumping flying swimming sleeping eating drinking playing riding holding wearing looking
smiling reading driving dancing
house castle tower bridge church barn tent building window door wall roof fence street road path city town village garden park
field forest beach desert mountain mountains hill river lake sea ocean island sky cloud clouds sun moon stars snow rain fire
smoke water grass sand rock rocks ground floor tree trees flower flowers rose tulip sunflower leaf leaves branch
car truck bus train bike bicycle motorcycle boat ship plane airplane balloon rocket wheel
table chair bench bed sofa lamp clock book books cup mug bottle bowl plate vase basket knife fork spoon phone laptop computer
camera umbrella bag guitar piano candle mirror
apple banana orange lemon pear cherry strawberry grape peach tomato carrot pumpkin bread cake pizza cheese egg cookie sandwich
coffee tea milk soup
against next turned tilted leaning upside down sad fading gradient dots spots stripes
summer winter autumn spring day night morning evening sunset sunrise background
""".split()


def byte_symbols() -> list[str]:
    """Return one printable character for each of the 256 bytes, in byte-pair encoding's customary table.

    Printable Latin-1 bytes stand for themselves; the others follow from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_in = {byte: chr(0x100 + n) for n, byte in enumerate(others)}
    return [stand_in.get(byte, chr(byte)) for byte in range(256)]


def build_merges(words: list[str]) -> list[tuple[str, str]]:
    """Return merges under which every word is one token.

    Each word is first cut by the merges so far, then what remains is joined from the left by new merges of lower priority;
    those can no longer touch a word that is already whole.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _cut(word, ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = _cut(word, ranks)
    return list(ranks)


def _cut(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    pieces = [*word[:-1], word[-1] + WORD_END]
    while True:
        pairs = [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in ranks]
        if not pairs:
            return pieces
        best = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            # The left half was just put there as a piece of its own: a joined pair never equals it, so `xxx` joins once.
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the token ids and the merges: bytes, bytes at a word's end, merged pieces, then start and end of text."""
    merges = build_merges(WORDS)
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols)]
    tokens += dict.fromkeys(left + right for left, right in merges)  # two pairs may join to one piece
    tokens += [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path, *, length: int = LENGTH, padding: str = END) -> None:
    """Write the tokenizer's files, as `CLIPTokenizer.from_pretrained` reads them; `length` in tokens, start and end included."""
    ids, merges = vocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", ids)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": padding, "unk_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, "errors": "replace", **special},
    )


def write_json(path: Path, content: object) -> None:
    """Write a JSON file the same way each time."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
