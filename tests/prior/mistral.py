"""Mistral-7B-v0.1's own tokenizer, as a folder like the hub's, from the model file in the package mistral-common."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import sentencepiece

# The hub's tokenizer.model, byte for byte (sha256 dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055).
MODEL = "data/tokenizer.model.v1"
SPECIAL = ["<unk>", "<s>", "</s>"]
# Where byte pieces such as <0x0A> end and learned ones begin.
LEARNED = 259


def sentence_pieces() -> sentencepiece.SentencePieceProcessor:
    """The tokenizer as it was trained: 32,000 pieces, by the library that trained it."""
    return sentencepiece.SentencePieceProcessor(model_proto=(files("mistral_common") / MODEL).read_bytes())


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files as they are on the hub into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # As the hub's say: the former vocabulary file, whose leading space is kept for every text.
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(number): token for number, token in enumerate(map(_added, SPECIAL))},
        "additional_special_tokens": [],
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    for name, content in (
        ("tokenizer.json", _fast(sentence_pieces())),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes((files("mistral_common") / MODEL).read_bytes())


def _fast(pieces: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """tokenizer.json: the same pieces, merged in the order of their scores, with a space before each text."""
    vocabulary = {pieces.id_to_piece(number): number for number in range(pieces.vocab_size())}
    learned = sorted(range(LEARNED, len(vocabulary)), key=lambda number: -pieces.get_score(number))
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in map(pieces.id_to_piece, learned)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, **_added(token)} for number, token in enumerate(SPECIAL)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _added(token: str) -> dict[str, Any]:
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": token, **marks}
