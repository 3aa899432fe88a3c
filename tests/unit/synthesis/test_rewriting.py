"""Instructions written anew by a model that sees both pictures, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.options import Judge
from pipelines.records.types import with_features
from pipelines.synthesis.columns import DATA_FIELDS
from pipelines.synthesis.config import SynthesizeConfig
from pipelines.synthesis.dataset import Rewriter
from tests.chat_server import Server, said
from vimaedit import chat
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import encode_image, encode_mask
from vimaedit.synthesis.rewriting import read_instruction


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(chat, "FIRST_DELAY_S", 0.001)
    made = Server()
    yield made
    made.close()


def record(number: int, mask: bool) -> dict[str, Any]:
    source, edited = np.random.default_rng(number).integers(0, 256, (2, 23, 31, 3), dtype=np.uint8)
    values: dict[str, Any] = dict.fromkeys(field.name for field in DATA_FIELDS)
    pictures = {"original_image": source, "edited_image": edited}
    values |= {name: {"bytes": encode_image(picture, "png"), "path": None} for name, picture in pictures.items()}
    values["mask"] = {"bytes": encode_mask(np.eye(23, 31, dtype=bool)), "path": None} if mask else None
    return values | {"edit_prompt": f"asked {number}"}


def test_what_was_done_takes_the_place_of_what_was_asked(server: Server, tmp_path: Path) -> None:
    def answer(content: list[dict[str, Any]], times: int) -> tuple[int, Any]:
        text, pictures = content[-1]["text"], len(content) - 1
        if "asked 2" in text:
            return 200, said(None, refusal="no")
        if "asked 3" in text:
            return 200, said("who knows")
        return 200, said(f'{{"instruction": "turn  it blue, seen in {pictures} pictures"}}')

    server.answer = answer
    config = SynthesizeConfig(input="in", output="out", rewrite="judge", judge=Judge(url=server.url, model="m"))
    table = pa.Table.from_pylist([record(n, mask=n == 1) for n in range(4)], schema=with_features(DATA_FIELDS))
    written = Rewriter(config, str(tmp_path))(table)
    assert written.column("edit_prompt").to_pylist() == [
        *("turn it blue, seen in 2 pictures", "turn it blue, seen in 3 pictures", "asked 2", "asked 3"),
    ]
    assert written.column("edit_prompt_before").to_pylist() == ["asked 0", "asked 1", None, None]
    assert written.schema.equals(table.schema, check_metadata=True)
    others = [name for name in table.column_names if not name.startswith("edit_prompt")]
    assert written.select(others).equals(table.select(others))
    asked = len(server.asked)
    assert Rewriter(config, str(tmp_path))(table).equals(written) and len(server.asked) == asked


@pytest.mark.parametrize(
    "answer", ["", "{}", '{"instruction": 3}', '{"instruction": " . "}', f'{{"instruction": "{"x" * 2000}"}}']
)
def test_an_answer_that_is_no_instruction(answer: str) -> None:
    with pytest.raises(RequestError, match="^instruction: got .*; allowed: a JSON object"):
        read_instruction(answer)


def test_a_server_is_needed() -> None:
    with pytest.raises(
        ConfigError, match="^judge.url: got nothing with rewrite=judge; allowed: a server whose model sees pictures"
    ):
        SynthesizeConfig(input="in", output="out", rewrite="judge")
