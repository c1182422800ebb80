"""Tokenizers: bytes, and a tokenizer.json of the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from exec.tokenizer import ByteTokenizer, load_tokenizer
from sim.errors import UserError


@given(st.text())
def test_bytes_come_back(text: str) -> None:
    for vocab in (256, 257, 8192):
        tokenizer = ByteTokenizer(vocab)
        ids = tokenizer.encode(text)
        assert all(0 <= i < vocab for i in ids) and tokenizer.decode(ids) == text


def test_byte_tokenizer_s_special_ids() -> None:
    tokenizer = load_tokenizer(None, 8192)
    assert tokenizer.encode("hi") == [256, 104, 105] and tokenizer.eos == 257
    assert tokenizer.decode([104, 257, 300, 0xFF]) == "h\ufffd"
    assert ByteTokenizer(256).encode("hi") == [104, 105]
    with pytest.raises(UserError, match="vocab_size: 100 is too small"):
        ByteTokenizer(100)


def test_directory_without_a_tokenizer_gets_bytes(tmp_path: Path) -> None:
    assert isinstance(load_tokenizer(tmp_path, 300), ByteTokenizer)


def test_tokenizer_json(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [2, 5], "bos_token_id": 1}))
    tokenizer = load_tokenizer(tmp_path, 3)
    assert tokenizer.encode("hello world there") == [1, 2, 0]
    assert tokenizer.decode([1, 2]) == "hello world" and (tokenizer.bos, tokenizer.eos) == (1, 2)


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer"):
        load_tokenizer(tmp_path, 300)
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not a JSON object"):
        load_tokenizer(tmp_path, 300)
