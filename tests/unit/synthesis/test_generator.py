"""Prompt pairs from text generators: replies good and bad, a server over HTTP, a local model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vimaedit import chat
from vimaedit.errors import ConfigError, RequestError
from vimaedit.synthesis.generator import EndpointGenerator, LocalGenerator, Question, generate_pairs, read_reply
from vimaedit.synthesis.pairs import PromptPair
from vimaedit.types import BlendPhrase

QUESTION = Question(caption="a cat on a sofa", category="change_object", seed=3)
GOOD = {
    "target_prompt": "a dog  on a sofa",
    "instruction": "make it a dog",
    "blend_words": [{"source": "cat", "target": "dog"}],
}


class Scripted:
    """A generator that says what it is given."""

    def __init__(self, *replies: str) -> None:
        self.replies = replies

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        return list(self.replies)


def test_a_reply_is_read_whatever_stands_around_it() -> None:
    pair = read_reply(QUESTION, f"Sure {{really}}! ```json\n{json.dumps(GOOD)}\n``` Anything else?")
    assert pair == PromptPair(
        source_prompt="a cat on a sofa",
        target_prompt="a dog on a sofa",
        blend=(BlendPhrase(source="cat", target="dog"),),
        instruction="make it a dog",
        category="change_object",
    )
    assert "one thing becomes another" in QUESTION.prompt and "a cat on a sofa" in QUESTION.prompt
    assert read_reply(QUESTION, json.dumps({**GOOD, "blend_words": None})).blend == ()
    assert read_reply(QUESTION, json.dumps({**GOOD, "blend_words": [{"source": "", "target": None}]})).blend == ()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "generator: got ''; allowed: a JSON object with the texts"),
        ("no { json", "generator: got 'no { json'; allowed: a JSON object"),
        ("[" * 5000, "generator: got '[[["),
        (json.dumps({"target_prompt": "a dog"}), 'generator: got \'{"target_prompt": "a dog"}\'; allowed'),
        (json.dumps({**GOOD, "instruction": 3}), "generator: got "),
        (json.dumps({**GOOD, "blend_words": "cat dog"}), "generator: got "),
        (json.dumps({**GOOD, "blend_words": [{"source": 1}]}), "generator: got "),
        (
            json.dumps({**GOOD, "target_prompt": "a cat on a sofa"}),
            "target_prompt: got 'a cat on a sofa'; allowed: a text that differs",
        ),
        (json.dumps({**GOOD, "target_prompt": "a cow on a sofa"}), "blend_words: got 'dog', which is not in target_prompt"),
    ],
)
def test_a_bad_reply_is_an_error_of_its_own_pair(reply: str, message: str) -> None:
    bad, good = generate_pairs(Scripted(reply, json.dumps(GOOD)), [QUESTION, QUESTION])
    assert isinstance(bad, RequestError) and str(bad).startswith(message)
    assert isinstance(good, PromptPair)


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any], list[tuple[int, bytes]]]]:
    """Serve chat completions: the address, what was asked, and the answers to give (the last one again and again)."""
    asked: list[Any] = []
    answers: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            status, content = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}/v1", asked, answers
    served.shutdown()
    served.server_close()
    thread.join()


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def test_a_server_is_asked_with_its_key_and_again_when_it_is_busy(
    server: tuple[str, list[Any], list[tuple[int, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "FIRST_DELAY_S", 0.001)
    url, asked, answers = server
    answers[:] = [(429, b"slow down"), (200, completion(json.dumps(GOOD)))]
    generator = EndpointGenerator(url, model="some-model", key="secret", max_tokens=99)
    (pair,) = generate_pairs(generator, [QUESTION])
    assert isinstance(pair, PromptPair) and pair.target_prompt == "a dog on a sofa"
    path, key, body = asked[-1]
    assert len(asked) == 2 and path == "/v1/chat/completions" and key == "Bearer secret"
    assert (body["model"], body["max_tokens"], body["seed"], body["temperature"]) == ("some-model", 99, 3, 0)
    assert body["messages"] == [{"role": "user", "content": QUESTION.prompt}]


def test_a_server_that_answers_something_else_gives_a_rejected_pair(
    server: tuple[str, list[Any], list[tuple[int, bytes]]],
) -> None:
    url, asked, answers = server
    answers[:] = [(200, b"<html>welcome</html>")]
    (error,) = generate_pairs(EndpointGenerator(url, model="m", key=None, max_tokens=9), [QUESTION])
    assert isinstance(error, RequestError) and "<html>welcome" in str(error) and asked[0][1] is None


def test_a_server_that_refuses_is_a_wrong_setting(
    server: tuple[str, list[Any], list[tuple[int, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "FIRST_DELAY_S", 0.001)
    url, asked, answers = server
    answers[:] = [(401, b"")]
    generator = EndpointGenerator(url, model="m", key="secret", max_tokens=9)
    with pytest.raises(
        ConfigError, match=r"^generator.url: got 127.0.0.1:\d+, which answers 401 Unauthorized; allowed: a server"
    ):
        generator(["x"], [0])
    answers[:] = [(503, b"")]
    with pytest.raises(OSError, match="503"):
        generator(["x"], [0])
    assert len(asked) == 1 + chat.ATTEMPTS


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a causal language model of a few thousand random weights with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("language")
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate([*symbols, "<end>"])}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(symbols) + 1, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 1100}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=len(symbols), bos_token_id=len(symbols))).save_pretrained(folder)
    return folder


def test_a_local_model_answers_in_batches_as_it_answers_alone(language_model: Path) -> None:
    generator = LocalGenerator(str(language_model), batch_size=2, max_tokens=7, device="cpu", dtype="float32")
    questions = [QUESTION, Question(caption="two dogs", category=None, seed=0), QUESTION]
    replies = generator([each.prompt for each in questions], [0, 0, 0])
    assert replies[0] == replies[2] and len(replies) == 3
    assert generator([questions[1].prompt], [5]) == [replies[1]]
    errors = generate_pairs(generator, questions)
    assert [error.code for error in errors if isinstance(error, RequestError)] == ["generator_reply"] * 3


def test_a_local_model_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^generator.model: got '.*', which does not load \(.*; allowed: a causal language model"
    ):
        LocalGenerator(str(tmp_path), batch_size=1, max_tokens=1, device="cpu", dtype="float32")
