"""Text to token ids and back: the model directory's tokenizer.json, or plain bytes where it has none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sim.errors import UserError


class Tokenizer(Protocol):
    bos: int | None
    """Id that `encode` puts first, if any."""
    eos: int | None
    """Id that ends a sequence, if any."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """UTF-8 bytes are ids 0 to 255, then bos 256 and eos 257 where the vocabulary has room for them."""

    def __init__(self, vocab: int) -> None:
        if vocab < 256:
            raise UserError(f"vocab_size: {vocab} is too small for byte tokens; at least 256 is needed")
        self.bos = 256 if vocab > 256 else None
        self.eos = 257 if vocab > 257 else None

    def encode(self, text: str) -> list[int]:
        start = [] if self.bos is None else [self.bos]
        return start + list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Ids beyond the bytes are left out; broken UTF-8 shows as replacement characters."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class JsonTokenizer:
    """`tokenizer.json` of the `tokenizers` library, with eos from `config.json` or `generation_config.json`."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self._backend: Any = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer of the tokenizers library ({error})") from None
        self.bos = _special(path.parent, "bos_token_id")
        self.eos = _special(path.parent, "eos_token_id")

    def encode(self, text: str) -> list[int]:
        """With the special tokens that the file's own post-processor adds."""
        return list(self._backend.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids)))


def _special(directory: Path, key: str) -> int | None:
    """A special token's id; the first where a config lists several."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if not path.exists():
            continue
        try:
            value = json.loads(path.read_text()).get(key)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a JSON object ({error})") from None
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, int):
            return value
    return None


def load_tokenizer(directory: Path | None, vocab: int) -> Tokenizer:
    """The directory's `tokenizer.json`, or byte tokens for a model of `vocab` ids.

    Raises `UserError` for a file that is no tokenizer, or a vocabulary of fewer than 256 ids.
    """
    path = None if directory is None else Path(directory) / "tokenizer.json"
    return JsonTokenizer(path) if path is not None and path.exists() else ByteTokenizer(vocab)
