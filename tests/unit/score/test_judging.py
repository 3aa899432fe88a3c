"""A judge on a real server that answers well, badly, slowly, not at all; answers kept; what it says of edits of known quality."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import vimaedit.chat as chat
from pipelines.options import Judge
from pipelines.score.begin import ScoreSummary
from pipelines.score.config import SCORE_SCHEMA, ScoreConfig
from pipelines.score.judging import CALIBRATION_EDITS, KINDS, AskingJudge, _calibrate, calibration_samples, judge_facts
from pipelines.score.table import judge_table, overall
from tests.chat_server import Reply, Server, said, scored
from tests.vision_language import write_llava
from vimaedit.errors import ConfigError
from vimaedit.metrics.judge import Unreadable, judge_values, read_scores
from vimaedit.metrics.samples import EditSample


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(chat, "FIRST_DELAY_S", 0.001)
    made = Server()
    yield made
    made.close()


def sample(number: int, instruction: str | None = "make it blue") -> EditSample:
    source, edited = np.random.default_rng(number).integers(0, 256, (2, 23, 31, 3), dtype=np.uint8)
    return EditSample(source=source, edited=edited, source_prompt="a cat", target_prompt="a dog", instruction=instruction)


def judge(server: Server, **options: Any) -> Judge:
    return Judge(url=server.url, model="m", **options)


def is_quality(content: list[dict[str, Any]]) -> bool:
    return sum(part["type"] == "image_url" for part in content) == 1


def test_scores_are_the_least_of_their_parts_and_answers_are_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "hush")
    server.answer = lambda content, times: scored(9, 4) if is_quality(content) else scored(7.5, 9)
    asking = AskingJudge(judge(server, key_variable="KEY"), str(tmp_path))
    (first, second) = asking([sample(1), sample(2, None)])
    assert (first["judge_semantics"], first["judge_quality"]) == (7.5, 4.0) and first["judge_overall"] == pytest.approx(30**0.5)
    assert first["judge_reason"] is None and len(first["judge_answers"]) == 2 == len(second["judge_answers"])
    assert {headers["Authorization"] for _, headers in server.bodies} == {"Bearer hush"} and len(server.bodies) == 4
    texts = [part["text"] for body, _ in server.bodies for part in body["messages"][0]["content"] if part["type"] == "text"]
    assert any('"make it blue"' in text for text in texts) and any("'a cat' into one of 'a dog'" in text for text in texts)
    assert all(body["temperature"] == 0 and body["model"] == "m" for body, _ in server.bodies)
    again = AskingJudge(judge(server, key_variable="KEY"), str(tmp_path))
    assert again([sample(1), sample(2, None)]) == [first, second] and len(server.bodies) == 4
    AskingJudge(Judge(url=server.url, model="other"), str(tmp_path))([sample(1)])
    assert len(server.bodies) == 6  # another judge has answers of its own
    assert "hush" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, said("I think it is fine.")), "unreadable: 'I think it is fine.'"),
        ((200, said('{"score": [11, 3]}')), "unreadable: "),
        ((200, said(None, refusal="I cannot help with faces")), "refusal: I cannot help with faces"),
        ((200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}), "filter: the answer was held back"),
        ((400, b'{"error": {"code": "content_filter", "message": "blocked"}}'), "filter: {"),
        ((413, b"too many pixels"), "too_large: 413 too many pixels"),
        ((200, b"<html>"), "unreadable: '<html>'"),
    ],
)  # fmt: skip
def test_no_score_is_null_with_its_reason_never_zero(server: Server, tmp_path: Path, reply: Reply, reason: str) -> None:
    server.answer = lambda content, times: scored(9, 9) if is_quality(content) else reply
    (row,) = AskingJudge(judge(server), str(tmp_path))([sample(1)])
    assert (row["judge_semantics"], row["judge_overall"], row["judge_quality"]) == (None, None, 9.0)
    assert row["judge_reason"].startswith(reason)
    assert AskingJudge(judge(server), str(tmp_path))([sample(1)]) == [row] and len(server.asked) == 2


def test_a_busy_and_slow_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    def answer(content: list[dict[str, Any]], times: int) -> Reply:
        time.sleep(0.02)
        return (429, b"later") if times == 1 else (503, b"") if times == 2 else scored(5, 5)

    server.answer = answer
    rows = AskingJudge(judge(server, parallel=4), str(tmp_path))([sample(number) for number in range(4)])
    assert [row["judge_overall"] for row in rows] == [5.0] * 4 and len(server.asked) == 24


def test_what_a_dying_server_has_answered_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    samples = [sample(number) for number in range(6)]
    expected = AskingJudge(judge(server), str(tmp_path / "clean"))(samples)
    server.asked.clear()
    server.answer = lambda content, times: scored(8, 6) if len(set(server.asked)) <= 5 else (500, b"")
    with pytest.raises(OSError, match=r"judge.url: 127.0.0.1:\d+ does not answer, asked \d times .HTTPError: HTTP Error 500"):
        AskingJudge(judge(server, parallel=1), str(tmp_path / "out"))(samples)
    kept = len(list((tmp_path / "out").rglob("*.json")))
    assert kept == 5
    server.asked.clear()
    server.answer = lambda content, times: scored(8, 6)
    assert AskingJudge(judge(server), str(tmp_path / "out"))(samples) == expected and len(server.asked) == 12 - kept


def test_calibration_tells_a_judge_that_sees_from_one_that_guesses(server: Server, tmp_path: Path) -> None:
    done, undone, other = calibration_samples()
    assert len(done) == CALIBRATION_EDITS and all((each.source == each.edited).all() for each in undone)
    assert all((one.edited != two.edited).any() for one, two in zip(done, other, strict=True))
    blind = _calibrate(judge(server), str(tmp_path / "blind"))
    assert blind["ranked"] == 0.0 and blind["compared"] == 2 * CALIBRATION_EDITS
    known = {json.dumps(body["messages"][0]["content"]) for body, _ in server.bodies[: 2 * CALIBRATION_EDITS]}
    server.answer = lambda content, times: scored(9, 9) if json.dumps(content) in known else scored(2, 7)
    seeing = _calibrate(judge(server, side_px=512), str(tmp_path / "seeing"))
    assert seeing["ranked"] == 1.0 and seeing["means"][KINDS[0]] > seeing["means"][KINDS[1]]
    rows = [{"judge_reason": reason} for reason in (None, "filter: a", "refusal: b; unreadable: c", "filter: d")]
    facts = judge_facts(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), seeing)
    assert facts["without_score"] == {"filter": 2, "refusal": 1}
    table = judge_table(facts).text()
    assert "Judge m, questions 1" in table and "1.00 of 12 pairs" in table and "edits without a score: filter" in table
    scores = pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)
    numbers = {"overall": overall(scores), "records": 4, "statuses": {}, "unmatched": 0, "compared": None, "judge": facts}
    assert table in ScoreSummary(exit_code=0, name="n", aggregates=numbers, places=(), warnings=()).text()


def test_what_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^judge.model: got nothing with judge.url; allowed: the server's name of its model"):
        Judge(url="http://x")
    with pytest.raises(
        ConfigError, match=r"^judge.model: got nothing with metrics=\[judge\]; allowed: a vision-language model, or a"
    ):
        ScoreConfig(benchmark="b", edited="e", output="o", metrics=["judge"])
    assert "judge" not in ScoreConfig(benchmark="b", edited="e", output="o").groups
    assert "judge" in ScoreConfig(benchmark="b", edited="e", output="o", judge=Judge(url="u", model="m")).groups
    with pytest.raises(ConfigError, match="judge.key_variable: got 'NOT_SET', which is not set on the worker"):
        AskingJudge(judge(server, key_variable="NOT_SET"), str(tmp_path))
    server.answer = lambda content, times: (401, b"who are you?")
    with pytest.raises(
        ConfigError, match=r"^judge.url: got 127.0.0.1:\d+, which answers 401 Unauthorized \(who are you\?\); allowed: a server"
    ):
        AskingJudge(judge(server), str(tmp_path))([sample(1)])
    for text in ("", "score: 3", '{"score": [1]}', '{"score": ["a", "b"]}', '{"score": [nan, 3]}'):
        with pytest.raises(Unreadable):
            read_scores(text)
    assert judge_values((0.0, 9.0), (5.0, 5.0)) == {"judge_semantics": 0.0, "judge_quality": 5.0, "judge_overall": 0.0}


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_not_followed_and_takes_no_key_along(
    status: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "hush")
    other = Server()
    server.answer = lambda content, times: (status, other.url.encode())
    with pytest.raises(ConfigError, match=rf"^judge.url: got 127.0.0.1:\d+, which answers {status} "):
        AskingJudge(judge(server, key_variable="KEY"), str(tmp_path))([sample(1)])
    other.close()
    assert other.bodies == []


@pytest.mark.parametrize(
    "reply",
    [b"[" * 100_000, b" " * 9_000_000, said("\ud800"), said(None, refusal="\udfff")],
    ids=["deep", "huge", "half of a character", "refused in halves"],
)
def test_an_answer_that_is_no_text_costs_its_own_score(reply: Any, server: Server, tmp_path: Path) -> None:
    server.answer = lambda content, times: (200, reply)
    (row,) = AskingJudge(judge(server), str(tmp_path))([sample(1)])
    assert row["judge_overall"] is None and row["judge_reason"]
    pa.Table.from_pylist([row], schema=pa.schema([each for each in SCORE_SCHEMA if each.name in row]))


def test_an_answer_that_drips_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "TIMEOUT_S", 0.05)
    server.answer = lambda content, times: (time.sleep(0.1), scored(8, 6))[1]
    with pytest.raises(ConnectionError, match="TimeoutError"):
        AskingJudge(judge(server), str(tmp_path))([sample(1)])


@pytest.mark.parametrize(("value", "sent"), [("hush\n", "Bearer hush"), ("hu\nsh", None), ("h\u201csh", None), ("hu sh", None)])
def test_a_key_with_a_line_end_is_sent_without_it_and_no_key_is_ever_quoted(
    value: str, sent: str | None, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", value)
    if sent is not None:
        AskingJudge(judge(server, key_variable="KEY"), str(tmp_path))([sample(1)])
        assert {headers["Authorization"] for _, headers in server.bodies} == {sent}
        return
    with pytest.raises(ConfigError, match="^judge.key_variable: got 'KEY', whose value holds") as raised:
        AskingJudge(judge(server, key_variable="KEY"), str(tmp_path))
    assert value not in str(raised.value)


def test_a_local_model_is_asked_the_same(tmp_path: Path) -> None:
    asked = Judge(model=str(write_llava(tmp_path / "model", answer='{"score": [7, 4]}')), max_tokens=9)
    assert "judge" in ScoreConfig(benchmark="b", edited="e", output="o", judge=asked).groups
    asking = AskingJudge(asked, str(tmp_path / "out"))
    (row,) = asking([sample(1)])
    assert (row["judge_semantics"], row["judge_quality"], row["judge_overall"]) == (4.0, 4.0, 4.0)
    assert row["judge_answers"] == ['{"score": [7, 4]}'] * 2 and row["judge_reason"] is None
    kept = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*.json")]
    assert len(kept) == 2 and {each["model"] for each in kept} == {asking.server.model} and asked.model in asking.server.model
    asking.server.server.ask = pytest.fail  # type: ignore[assignment,method-assign]  # what is kept is not asked for again
    assert asking([sample(1)]) == [row]


def test_what_a_local_model_says_may_be_unreadable(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "model")
    (row,) = AskingJudge(Judge(model=str(folder), max_tokens=5), str(tmp_path / "out"))([sample(1)])
    assert row["judge_overall"] is None and row["judge_quality"] is None
    assert row["judge_reason"].startswith("unreadable: ") and row["judge_reason"].count("unreadable: ") == 2
    other = write_llava(tmp_path / "other", answer='{"score": [7, 4]}')
    shutil.copytree(other, folder, dirs_exist_ok=True)  # other weights under the same name have answers of their own
    (again,) = AskingJudge(Judge(model=str(folder), max_tokens=5), str(tmp_path / "out"))([sample(1)])
    assert again["judge_overall"] == 4.0


def test_models_that_cannot_judge_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^judge.model: got .*none', which does not load .*; allowed: an image-text-to-text model"
    ):
        folder = tmp_path / "none"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
        AskingJudge(Judge(model=str(folder)), str(tmp_path / "out"))
    silent = write_llava(tmp_path / "silent", template=None)
    with pytest.raises(ConfigError, match=r"^judge.model: got .*silent', whose processor has no chat template"):
        AskingJudge(Judge(model=str(silent)), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"^judge.key_variable: got 'KEY' without judge.url; allowed: both, or neither$"):
        Judge(model="m", key_variable="KEY")
