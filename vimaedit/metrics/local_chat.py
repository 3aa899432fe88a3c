"""A vision-language model of transformers on this machine, asked as a server is (`vimaedit/chat.py`)."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from vimaedit.errors import ConfigError
from vimaedit.models.files import network_weights
from vimaedit.models.names import download, first_line, local_path, split_hub_id

PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]  # of a repository, all that is loaded


class LocalChat:
    """One model that sees pictures and writes texts. `option` is what errors call it by, such as `judge`; `name`: with the digest of
    its weights."""

    def __init__(self, model: str, *, max_tokens: int, device: str, option: str) -> None:
        """Load it: float32 on a CPU, else bfloat16.

        Raises: ConfigError where it does not load, or has no template of a chat.
        """
        import torch
        import transformers

        from vimaedit.models.losses import all_tensors, check_finite, check_whole
        from vimaedit.models.networks import quiet_libraries

        folder = local_path(model)
        if not folder.is_dir():
            folder = download(split_hub_id(f"{option}.model", model)[0], f"{option}.model", None, PATTERNS)
        self.max_tokens, self.option, self.turn = max_tokens, option, threading.Lock()
        self.name = f"{model} {_digest(option, folder)}"
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            with quiet_libraries():
                self.processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
                load: Any = transformers.AutoModelForImageTextToText.from_pretrained
                network, info = load(folder, local_files_only=True, dtype=dtype, output_loading_info=True)
                self.network = network.to(device).eval()
        except Exception as error:  # each kind of model stumbles over a wrong file in its own way
            raise ConfigError(
                f"{option}.model: got {model!r}, which does not load ({first_line(error)}); allowed: an image-text-to-text model of "
                f"transformers, a folder or a hub id; or {option}.url with the name of a server's model"
            ) from error
        check_whole(f"{option}.model", repr(model), info["missing_keys"], len(self.network.state_dict()))
        check_finite(f"{option}.model", repr(model), all_tensors(self.network))
        if getattr(self.processor, "chat_template", None) is None:
            raise ConfigError(
                f"{option}.model: got {model!r}, whose processor has no chat template; allowed: a model for chats"
            )

    def ask(self, content: list[dict[str, Any]], seed: int) -> str:
        """Ask one question of texts and pictures for the likeliest answer; `seed` does not matter. One is asked at a time."""
        import torch

        message = [{"role": "user", "content": [_part(part) for part in content]}]
        with self.turn, torch.inference_mode():
            inputs = self.processor.apply_chat_template(
                message, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self.network.device, self.network.dtype)
            output = self.network.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False, num_beams=1)
            written = output[:, inputs["input_ids"].shape[1] :]
        return str(self.processor.batch_decode(written, skip_special_tokens=True)[0])


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """Turn a part of a server's question into one of a processor's."""
    if part["type"] == "text":
        return part
    coded = part["image_url"]["url"].partition(",")[2]
    return {"type": "image", "image": Image.open(io.BytesIO(base64.b64decode(coded))).convert("RGB")}


def _digest(option: str, folder: Path) -> str:
    digest = hashlib.sha256()
    texts = sorted(path for pattern in PATTERNS[:-1] for path in folder.glob(pattern))
    for path in (*texts, *network_weights(f"{option}.model", folder, None)[1]):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
