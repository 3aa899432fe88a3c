"""Prompt pairs from a text generator: what is asked, how a reply is read, and the two kinds of generators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vimaedit.chat import ChatServer, Refused
from vimaedit.errors import ConfigError, RequestError
from vimaedit.synthesis.pairs import PromptPair, check_pair
from vimaedit.types import BlendPhrase

TASK = """You write training data for picture editors. Given the caption of a picture, invent one edit of the picture{kind}.
Answer with one JSON object and nothing else:
{{"target_prompt": the caption of the picture after the edit, with everything else as it was,
 "instruction": how a person would ask for the edit, in a few words,
 "blend_words": [{{"source": the words of the caption that change, or null, "target": the words that replace them, or null}}]}}

Caption: {caption}
JSON:"""
KINDS = {
    "change_object": ": one thing becomes another",
    "add_object": ": something is added",
    "delete_object": ": something is removed",
    "change_attribute_color": ": something gets another color",
    "change_attribute_material": ": something is made of another material",
    "change_background": ": the background becomes another",
    "change_style": ": the style of the whole picture becomes another",
}
ALLOWED = 'a JSON object with the texts "target_prompt" and "instruction", and perhaps "blend_words": [{"source", "target"}]'
SHOWN_CHARACTERS = 160


class TextGenerator(Protocol):
    """Writes one text for each prompt, in order. `seeds` has one for each prompt; not every generator can use them."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a generator is asked for: an edit of a caption, of a category (None: any)."""

    caption: str
    category: str | None
    seed: int

    @property
    def prompt(self) -> str:
        kind = KINDS[self.category] if self.category is not None else ""
        return TASK.format(kind=kind, caption=self.caption)


def generate_pairs(generator: TextGenerator, questions: Sequence[Question]) -> list[PromptPair | RequestError]:
    """Ask for one pair per question; an answer that cannot be used is an error that quotes it."""
    replies = generator([each.prompt for each in questions], [each.seed for each in questions])
    pairs: list[PromptPair | RequestError] = []
    for question, reply in zip(questions, replies, strict=True):
        try:
            pairs.append(check_pair(read_reply(question, reply)))
        except RequestError as error:
            pairs.append(error)
    return pairs


def read_reply(question: Question, reply: str) -> PromptPair:
    """Read a generator's reply: the first JSON object in it, whatever stands around.

    Raises: RequestError `generator_reply`.
    """
    content = first_object(reply)
    texts = {name: content.get(name) for name in ("target_prompt", "instruction")} if content is not None else {}
    if content is None or not all(isinstance(text, str) for text in texts.values()):
        raise _refused(reply)
    return PromptPair(
        source_prompt=question.caption,
        target_prompt=" ".join(str(texts["target_prompt"]).split()),
        blend=_read_blend(content.get("blend_words"), reply),
        instruction=" ".join(str(texts["instruction"]).split()),
        category=question.category,
    )


def _read_blend(value: Any, reply: str) -> tuple[BlendPhrase, ...]:
    entries = [] if value is None else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _refused(reply)
    phrases = []
    for entry in entries:
        sides = [entry.get(side) or None for side in ("source", "target")]
        if not all(side is None or isinstance(side, str) for side in sides):
            raise _refused(reply)
        if sides != [None, None]:
            phrases.append(BlendPhrase(source=sides[0], target=sides[1]))
    return tuple(phrases)


def first_object(text: str) -> dict[str, Any] | None:
    """Return the first JSON object in a text, None where there is none."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        return found if isinstance(found, dict) else None
    return None


def _refused(reply: str) -> RequestError:
    shown = reply if len(reply) <= SHOWN_CHARACTERS else f"{reply[:SHOWN_CHARACTERS]}..."
    return RequestError("generator_reply", field="generator", got=repr(shown), allowed=ALLOWED)


class LocalGenerator:
    """A causal language model of `transformers` in a local folder or on the hub: batched, and greedy, so that it repeats itself."""

    def __init__(self, name: str, *, batch_size: int, max_tokens: int, device: str, dtype: str) -> None:
        """Load it.

        Raises: ConfigError where it does not load.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from vimaedit.models.losses import all_tensors, check_finite, check_whole

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
            model, info = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), output_loading_info=True)
            self.model = model.to(device).eval()
        except Exception as error:  # each kind of model stumbles over a wrong file in its own way
            first = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"generator.model: got {name!r}, which does not load ({first}); allowed: a causal language model of transformers, a "
                "folder or a hub id"
            ) from error
        check_whole("generator.model", repr(name), info["missing_keys"], len(self.model.state_dict()))
        check_finite("generator.model", repr(name), all_tensors(self.model))
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.batch_size, self.max_tokens = batch_size, max_tokens

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Write one text for each prompt; `seeds` do not matter, since the likeliest word is taken."""
        replies: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            replies += self._write([self._as_chat(prompt) for prompt in prompts[start : start + self.batch_size]])
        return replies

    def _write(self, prompts: list[str]) -> list[str]:
        import torch

        inputs = self.tokenizer(
            prompts, return_tensors="pt", padding=True, add_special_tokens=self.tokenizer.chat_template is None
        )
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.max_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        written = output[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def _as_chat(self, prompt: str) -> str:
        if self.tokenizer.chat_template is None:
            return prompt
        message = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


class EndpointGenerator:
    """A server that speaks the protocol of OpenAI's chat completions."""

    def __init__(self, url: str, *, model: str, key: str | None, max_tokens: int) -> None:
        self.server = ChatServer(url, model=model, key=key, max_tokens=max_tokens, option="generator")

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Write one text for each prompt; a question that is refused has the refusal as its reply.

        Raises: ConfigError where the server refuses what it is asked; OSError where it does not answer after retries.
        """
        return [self._ask(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _ask(self, prompt: str, seed: int) -> str:
        try:
            return self.server.ask(prompt, seed)
        except Refused as error:
            return str(error)
