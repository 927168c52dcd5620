"""Small real tokenizers, trained on a few sentences, with the families' own special tokens."""

from __future__ import annotations

import json
from pathlib import Path

import transformers as hf
from llava_fixtures import write_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = ["user assistant system", "What is the colour of the small circle? blue", "a red square on the left, 42"]
CHAT_ML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_byte_tokenizer(folder: Path, special: list[str], settings: dict) -> int:
    """A byte-level BPE as Qwen2's; returns the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    given = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "additional_special_tokens": special}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", **given, **settings})
    return tokenizer.get_vocab_size()


def write_llama_tokenizer(folder: Path, *added: str) -> int:
    """A sentencepiece BPE as Llama's, with the tokens that llava-hf adds; returns the size of its vocabulary."""
    write_tokenizer(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, config=hf.LlamaConfig(), legacy=True, add_bos_token=True)
    tokenizer.add_tokens([*added], special_tokens=True)
    tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "LlamaTokenizer"})
    return len(tokenizer)


def ids_of(folder: Path, *tokens: str) -> list[int]:
    known = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    found = {token["content"]: token["id"] for token in known}
    return [found[token] for token in tokens]
