"""Records whose types and texts are wrong: prompts, labels, seeds, overrides, blend words."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tests.fuzz.registry import Columns, add, each, not_utf8, picks, wrong_column
from tests.fuzz.verdicts import ok, rejected
from tests.fuzz.world import PROMPTS, World

PAIR = pa.struct([("source", pa.string()), ("target", pa.string())])
CONTROLS = ("\0", "\n", "\r\n", "\t", "\x1b[31m", "\x07", "\x7f", "\u202e", "\u200b", "\ufeff", "\ufffe", "\U000e0001", "\x85")


@add(rejected("record", "image"))
def image_null(world: World, count: int) -> Columns:
    kind = world.chance.choice(
        (pa.binary(), pa.string(), pa.null(), pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    )
    return {"image": pa.array([None] * count, kind)}


@add(rejected("record", "image"))
def image_wrong_type(world: World, count: int) -> Columns:
    return {"image": wrong_column(world, count)}


@add(rejected("record", "image"))
def image_struct_wrong(world: World, count: int) -> Columns:
    kind, value = world.chance.choice(
        [
            (pa.struct([("bytes", pa.binary()), ("path", pa.int64())]), {"bytes": None, "path": 7}),
            (pa.struct([("bytes", pa.int64()), ("path", pa.string())]), {"bytes": 7, "path": None}),
            (pa.struct([("bytes", pa.list_(pa.uint8()))]), {"bytes": [1, 2, 3]}),
            (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"bytes": None, "path": None}),
            (pa.struct([("path", pa.list_(pa.string()))]), {"path": ["a", "b"]}),
            (pa.struct([("data", pa.binary())]), {"data": b"x"}),
        ]
    )
    return {"image": pa.array([value] * count, kind)}


@add(rejected("record", "source_prompt"))
def source_null(world: World, count: int) -> Columns:
    return {"source_prompt": pa.array([None] * count, pa.string())}


@add(rejected("record", "source_prompt target_prompt"))
def prompt_blank(world: World, count: int) -> Columns:
    name = world.chance.choice(("source_prompt", "target_prompt"))
    return {name: picks(world, count, ("", " ", "\t\n", "\u2003", "\u00a0 ", " " * 50_000, "\x1c\x1f"))}


@add(rejected("record", "source_prompt"))
def source_wrong_type(world: World, count: int) -> Columns:
    return {"source_prompt": wrong_column(world, count)}


@add(rejected("record", "source_prompt"))
def source_bytes(world: World, count: int) -> Columns:
    return {"source_prompt": pa.array([b"a cat"] * count, world.chance.choice((pa.binary(), pa.large_binary())))}


@add(rejected("record", "source_prompt target_prompt"))
def prompt_not_utf8(world: World, count: int) -> Columns:
    return {world.chance.choice(("source_prompt", "target_prompt")): not_utf8(world, count)}


@add(rejected("record", "target_prompt"))
def target_null(world: World, count: int) -> Columns:
    return {"target_prompt": pa.array([None] * count, world.chance.choice((pa.string(), pa.null(), pa.list_(pa.string()))))}


@add(rejected("record", "target_prompt"))
def target_wrong_type(world: World, count: int) -> Columns:
    return {"target_prompt": wrong_column(world, count)}


@add(rejected("record", "target_prompt"))
def targets_empty(world: World, count: int) -> Columns:
    return {"target_prompt": pa.array([[]] * count, world.chance.choice((pa.list_(pa.string()), pa.large_list(pa.string()))))}


@add(rejected("record", "target_prompt"))
def targets_of_nulls_and_blanks(world: World, count: int) -> Columns:
    lists = [picks(world, world.chance.randint(1, 4), (None, "", "  ")) for _ in range(count)]
    return {"target_prompt": pa.array(lists, pa.list_(pa.string()))}


@add(rejected("record", "target_prompt"))
def targets_nested(world: World, count: int) -> Columns:
    value, kind = world.chance.choice(
        [
            ([["a dog"]], pa.list_(pa.list_(pa.string()))),
            ([["a dog"], None], pa.list_(pa.list_view(pa.string()))),
            ([[[["a dog"]]]], pa.list_(pa.list_(pa.list_(pa.list_(pa.string()))))),
            ([{"text": "a dog"}], pa.list_(pa.struct([("text", pa.string())]))),
            ([5, None], pa.list_(pa.int8())),
        ]
    )
    return {"target_prompt": pa.array([value] * count, kind)}


@add(rejected("record", "target_prompt"))
def targets_not_utf8(world: World, count: int) -> Columns:
    return {"target_prompt": pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), not_utf8(world, count))}


@add(ok())
def prompt_control_characters(world: World, count: int) -> Columns:
    def prompt(world: World) -> str:
        words = PROMPTS[0].split()
        words.insert(world.chance.randint(0, 6), world.chance.choice(CONTROLS))
        return world.chance.choice((" ", world.chance.choice(CONTROLS))).join(words)

    return {"source_prompt": each(world, count, prompt)}


@add(rejected("record prepare", "source_prompt target_prompt", or_ok=True))
def prompt_huge(world: World, count: int) -> Columns:
    def prompt(world: World) -> str:
        size = world.chance.choice((400, 5000, 60_000, 300_000))
        return world.chance.choice(("cat ", "x", "漢", "🙂 ", "a\u0301", "'", "-a", "\u0301")) * size

    return {world.chance.choice(("source_prompt", "target_prompt")): each(world, count, prompt)}


@add(rejected("record prepare", "source_prompt target_prompt blend_words", or_ok=True))
def prompt_of_any_characters(world: World, count: int) -> Columns:
    return {name: each(world, count, lambda world: world.text(200)) for name in ("source_prompt", "target_prompt")}


@add(rejected("record", "id", or_ok=True))  # some hold whole numbers
def id_wrong_type(world: World, count: int) -> Columns:
    return {"id": wrong_column(world, count, pa.int64())}


@add(rejected("record", "id"))
def id_not_utf8(world: World, count: int) -> Columns:
    return {"id": not_utf8(world, count)}


@add(ok())
def id_twice(world: World, count: int) -> Columns:
    return {"id": world.chance.choice((["same"] * count, pa.array([7] * count, pa.uint8()), [""] * count))}


@add(ok())
def id_hostile(world: World, count: int) -> Columns:
    texts = (
        "x" * 100_000,
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "' OR 1=1 --",
        "%s%n",
        "{0}",
        "a\nERROR b",
        *CONTROLS,
    )
    return {"id": picks(world, count, texts)}


@add(rejected("record", "source_prompt"))
def id_hostile_of_a_bad_record(world: World, count: int) -> Columns:
    return {**id_hostile(world, count), **source_null(world, count)}


@add(rejected("record", "seed"))
def seed_out_of_range(world: World, count: int) -> Columns:
    if world.chance.random() < 0.5:
        return {"seed": pa.array(picks(world, count, (2**63, 2**64 - 1)), pa.uint64())}
    return {"seed": pa.array(picks(world, count, (-1, -(2**63))), pa.int64())}


@add(rejected("record", "seed", or_ok=True))  # some hold whole numbers
def seed_wrong_type(world: World, count: int) -> Columns:
    return {"seed": world.chance.choice((["seven"] * count, [7.5] * count, wrong_column(world, count, pa.int64())))}


def overrides(world: World, count: int, value: Any) -> Columns:
    return {"overrides": [value] * count}


@add(rejected("prepare", "overrides"))
def overrides_out_of_range(world: World, count: int) -> Columns:
    far = world.chance.choice((-1.5, 7.0, 1e300, -1e300, 1e9))
    name = world.chance.choice(("thresholds.edit", "thresholds.critical", "windows.self", "windows.text", "windows.image"))
    outer, inner = name.split(".")
    return overrides(world, count, {outer: {inner: far}})


@add(rejected("prepare", "overrides"))
def overrides_not_finite(world: World, count: int) -> Columns:
    number = world.chance.choice((float("nan"), float("inf"), float("-inf")))
    values = (
        {"target_guidance": number},
        {"image_strength": number},
        {"thresholds": {"edit": number}},
        {"windows": {"self": number}},
    )
    return overrides(world, count, world.chance.choice(values))


@add(rejected("record", "overrides"))
def overrides_unknown(world: World, count: int) -> Columns:
    values = (
        {"tresholds": {"edit": 0.5}},
        {"thresholds": 0.5},
        {"thresholds": {"edti": 0.5}},
        {"steps": 3},
        {"": 1.0},
        {"a\0b": 1},
    )
    return overrides(world, count, world.chance.choice(values))


@add(rejected("record", "overrides"))
def overrides_wrong_type(world: World, count: int) -> Columns:
    if world.chance.random() < 0.3:
        return {"overrides": wrong_column(world, count, pa.struct([("text", pa.string())]))}
    values = (
        '{"thresholds": {"edit": 0.5}}',
        {"target_guidance": "7"},
        {"target_guidance": True},
        {"thresholds": {"edit": [0.5]}},
    )
    return overrides(world, count, world.chance.choice((*values, {"thresholds": {"edit": {"deep": {"deeper": 1}}}}, [0.5])))


@add(rejected("prepare", "blend_words"))
def blend_not_found(world: World, count: int) -> Columns:
    values = [
        [{"source": "horse", "target": "dog"}],
        [{"source": "cat", "target": "horse"}],
        [{"source": "ca", "target": None}],
    ]
    values += [
        [{"source": "cat", "target": "\0"}],
        [{"source": "🙂", "target": None}],
        [{"source": "x" * 20_000, "target": None}],
    ]
    return {"blend_words": pa.array(picks(world, count, values), pa.list_(PAIR))}


@add(rejected("record", "blend_words"))
def blend_without_words(world: World, count: int) -> Columns:
    values = ([{"source": None, "target": None}], [{"source": " ", "target": "\t"}], [{"source": "cat", "target": "dog"}, {}])
    return {"blend_words": pa.array(picks(world, count, values), pa.list_(PAIR))}


@add(rejected("record", "blend_words"))
def blend_not_two_words(world: World, count: int) -> Columns:
    return {"blend_words": picks(world, count, ("cat", "a red cat a red dog", "cat,dog", "cat\u2003dog fox", "x " * 9000))}


@add(rejected("record", "blend_words"))
def blend_wrong_length(world: World, count: int) -> Columns:
    blends = picks(world, count, [["cat dog"] * 3, ["cat dog", None], [None] * 7])
    return {"blend_words": pa.array(blends, pa.list_(pa.string())), "target_prompt": [[PROMPTS[1]]] * count}


@add(rejected("record", "blend_words"))
def blend_wrong_type(world: World, count: int) -> Columns:
    kinds = (pa.list_(pa.int32()), pa.struct([("text", pa.string())]))
    odd = [pa.array([[1]] * count, pa.list_(pa.int8())), pa.array([[b"cat dog"]] * count, pa.list_(pa.binary()))]
    sides = pa.list_(pa.struct([("source", pa.int64()), ("target", pa.list_(pa.string()))]))
    odd += [
        pa.array([[{"source": 7, "target": None}]] * count, sides),
        pa.array([[{"source": None, "target": ["a"]}]] * count, sides),
    ]
    odd += [pa.array([[[["cat"]]]] * count, pa.list_(pa.list_(pa.list_(pa.string())))), wrong_column(world, count, *kinds)]
    return {"blend_words": world.chance.choice(odd)}


@add(rejected("record", "blend_words"))
def blend_not_utf8(world: World, count: int) -> Columns:
    texts = not_utf8(world, count)
    pairs = pa.StructArray.from_arrays([texts, texts], names=["source", "target"])
    lists = pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), pairs)
    return {"blend_words": world.chance.choice((texts, lists))}


@add(ok())
def good(world: World, count: int) -> Columns:
    return {}


@add(ok())
def good_with_everything(world: World, count: int) -> Columns:
    settings = {
        "thresholds": {"edit": 0.4, "critical": None},
        "windows": {"self": 0.5},
        "target_guidance": 7,
        "image_strength": None,
    }
    return {
        "blend_words": pa.array([[{"source": "cat", "target": "dog"}]] * count, pa.list_(PAIR)),
        "overrides": [settings] * count,
        "seed": pa.array([2**63 - 1] * count, pa.int64()),
    }
