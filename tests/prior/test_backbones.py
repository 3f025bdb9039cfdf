"""Backbones from folders that look like a hub's: they fit together and train, or one line says why not."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from safetensors.torch import save_file

from eval.predict import Model, load_model, reply
from prior import models
from prior.backbones import (
    IMAGE,
    PAD,
    VISION,
    check_config,
    hub_llm,
    hub_tokenizer,
    hub_vision,
    load_tokenizer,
)
from prior.cli import app
from prior.config import Architectures
from prior.corpus.store import write_corpus
from prior.documents import encode, tokenize_captions, tokenize_exchanges, tokenize_texts
from prior.errors import UserError
from prior.loss import token_nll
from prior.models.attention import pack
from prior.packing import Packer, model_inputs
from tests.prior.mistral import sentence_pieces, write_tokenizer
from tests.prior.small_hub import LLM, TOWER, write_clip, write_llm

TRAPS = ["a <image> of a <vpatch>", "</s>red on the left</s>", "<s><pad></vision> a <vrow_sep>"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16 with sampling settings and a tokenizer without our tokens; a whole CLIP; a GPT-2."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as algorithms
    from transformers import (
        CLIPConfig,
        CLIPModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("hub")
    bpe = Tokenizer(algorithms.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["a red circle on the left"] * 9,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **shape))
    llama.to(torch.bfloat16).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    (folder / "llama" / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6}))
    size = {"shortest_edge": 48}
    clip = CLIPConfig(
        text_config={**shape, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**shape, "image_size": 48, "patch_size": 16},
    )
    CLIPModel(clip).to(torch.bfloat16).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size=size, crop_size={"height": 48, "width": 48}).save_pretrained(folder / "clip")
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def fetched(hub: Path, records: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the `prior backbone` commands make of them."""
    folder = tmp_path_factory.mktemp("fetched")
    write_corpus(records, folder / "train")
    llama = str(hub / "llama")
    preset = folder / "preset.yaml"
    named = {"tokenizer": llama, "backbones": {"llm": llama, "vision": str(hub / "clip")}, "scales": [20, 40, 80]}
    preset.write_text(yaml.safe_dump(named))
    corpora = ["--train", folder / "train", "--text-only", folder]
    words, state = ["--tokenizer", folder / "tokenizer"], ["--state", folder / "state"]
    for name, arguments in (
        ("tokenizer", corpora),
        ("llm", [*corpora[2:], *words, *state]),
        ("vision", [*corpora[:2], *words, *state]),
    ):
        command = ["backbone", name, "--preset", preset, "--out", folder / name, *arguments]
        app([str(part) for part in command], standalone_mode=False)
    return folder


def test_hub_folders_become_an_lvlm_that_trains(
    arch: str, hub: Path, fetched: Path, records: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(fetched / "tokenizer")
    settings = getattr(Architectures(), arch)
    lvlm = models.build(arch, settings, tokenizer, fetched / "llm", fetched / "vision", seed=0)
    assert {parameter.dtype for parameter in lvlm.model.parameters()} == {torch.float32}
    state = lvlm.model.state_dict()
    from transformers import AutoModelForCausalLM, CLIPModel

    # On disk it is what was published, at half the size; whoever trains it asks for float32.
    assert AutoModelForCausalLM.from_pretrained(fetched / "llm").dtype == torch.bfloat16
    stock = AutoModelForCausalLM.from_pretrained(hub / "llama", dtype=torch.float32)
    for name, weight in stock.model.state_dict().items():
        assert torch.equal(state[f"model.language_model.{name}"][: len(weight)], weight), name
    if arch == "hlvlm":
        clip = CLIPModel.from_pretrained(hub / "clip", dtype=torch.float32)
        for name, weight in clip.vision_model.state_dict().items():
            assert torch.equal(state[f"model.vision_tower.{name}"], weight), name

    traps = Dataset.from_dict({"id": TRAPS, "caption": TRAPS, "image": records["image"][: len(TRAPS)]})
    pack(lvlm.model.train())
    batch = Packer(tokenize_captions(traps, tokenizer), tokenizer.bos_token_id, lvlm).row(range(len(TRAPS)))
    optimizer = torch.optim.SGD([p for p in lvlm.model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(2):
        loss = token_nll(lvlm.model(**model_inputs(batch)).logits, batch["labels"]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0] < 20

    shown = lvlm.read([Image.open(io.BytesIO(picture)).convert("RGB") for picture in traps["image"]])
    before = reply(Model(lvlm, tokenizer), Model(lvlm, tokenizer).encode(TRAPS), shown, 4)
    lvlm.save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert reply(load_model(tmp_path), load_model(tmp_path).encode(TRAPS), shown, 4) == before


@pytest.mark.parametrize("own", [True, False])
def test_text_never_becomes_a_special_token(own: bool, tokenizer: Any, fetched: Path) -> None:
    words = tokenizer if own else load_tokenizer(fetched / "tokenizer")
    special = set(words.all_special_ids)
    assert len(special) == 8
    captions = Dataset.from_dict({"id": TRAPS, "caption": TRAPS, "relevant": [[[2, 9]], [[4, 7]], [[18, 19]]]})
    documents = tokenize_captions(captions, words, image=False)
    exchanges = tokenize_exchanges(TRAPS, [[(text, text)] for text in TRAPS], words, None)
    for index, text in enumerate(TRAPS):
        labelled = exchanges.labelled[index]
        prompt, answer = exchanges.targets[index][~labelled].tolist(), exchanges.targets[index][labelled].tolist()
        for ids in (documents.targets[index].tolist(), tokenize_texts(TRAPS, TRAPS, words).targets[index].tolist()):
            assert ids == answer
        assert answer == [*prompt, words.eos_token_id] and not special & set(prompt)
        assert words.decode(prompt) == text
    assert words.decode(documents.targets[0][documents.relevant[0] == 1]).strip() == "<image>"


def test_mistrals_own_tokenizer_reads_as_sentencepiece_does(tmp_path: Path) -> None:
    """From the hub's files to what training loads, in many scripts: the library that trained it says the same."""
    write_tokenizer(tmp_path / "hub")
    model = (tmp_path / "hub" / "tokenizer.model").read_bytes()
    assert hashlib.sha256(model).hexdigest().startswith("dadfd56d766715c6")
    hub_tokenizer(str(tmp_path / "hub")).save_pretrained(tmp_path / "saved")
    words, pieces = load_tokenizer(tmp_path / "saved"), sentence_pieces()
    assert (words.vocab_size, len(words)) == (32_000, 32_000 + len([PAD, IMAGE, *VISION]))
    assert words.convert_ids_to_tokens(range(32_000)) == [pieces.id_to_piece(number) for number in range(32_000)]
    assert sorted(words.all_special_ids) == [0, 1, 2, *range(32_000, 32_006)]

    rng = np.random.default_rng(0)
    letters = [chr(number) for number in (*range(32, 127), *range(0xA1, 0x250), *range(0x4E00, 0x4E80), 0x1F984, 10)]
    learned = [pieces.decode([number]) for number in rng.integers(259, 32_000, 400).tolist()]
    texts = ["", " ", "  two  spaces ", "line\nbreak\ttab", "日本語 naïve — 12,345.67 €", "👩‍👩‍👧", *TRAPS]
    texts += ["".join(rng.choice(letters, size=rng.integers(1, 40))) for _ in range(300)]
    texts += [" ".join(rng.choice(learned, size=rng.integers(1, 12))) for _ in range(300)]
    encoded = encode(words, texts)
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        assert ids == pieces.encode(text), text
        assert words.decode(ids) == text
        # Each piece stands for its characters, the first one also for the space that is put before a text.
        for index, (number, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
            piece = pieces.id_to_piece(number).replace("▁", " ")
            first = [" ", " " + text[start:end]] if index == 0 else []
            assert number < 259 or piece in [text[start:end], *first], text
        covered = sorted({position for start, end in offsets for position in range(start, end)})
        assert covered == list(range(len(text))), text


def test_spans_find_their_words_under_mistrals_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "hub")
    words = hub_tokenizer(str(tmp_path / "hub"))
    caption = "turquoise parrots on a branch, sold by Æsop"
    marked = ["turquoise", "a", "branch", "Æsop"]
    spans = [[[caption.index(f" {word}") + 1 if index else 0, 0]] for index, word in enumerate(marked)]
    for (span,), word in zip(spans, marked, strict=True):
        span[1] = span[0] + len(word)
    captions = Dataset.from_dict({"id": marked, "caption": [caption] * len(marked), "relevant": spans})
    documents = tokenize_captions(captions, words, image=False)
    for index, word in enumerate(marked):
        relevant = documents.relevant[index] == 1
        assert words.decode(documents.targets[index][relevant]) == word


def test_a_hubs_models_in_small_are_joined(arch: str, records: Any, tmp_path: Path) -> None:
    write_llm(tmp_path / "mistral", {**LLM, "rope_theta": 5000.0})
    write_clip(tmp_path / "clip", TOWER)
    weights = torch.load(tmp_path / "clip/pytorch_model.bin", weights_only=True)
    save_file(weights, tmp_path / "clip/model.safetensors", metadata={"format": "pt"})
    check_config(tmp_path / "clip", TOWER, "vision")
    stated = {**LLM, "torch_dtype": "bfloat16", "rope_theta": 5000.0}
    check_config(tmp_path / "mistral", stated, "llm")
    others = {"num_hidden_layers": 3, "rope_theta": 1e4, "torch_dtype": "float32", "model_type": "llama"}
    for key, other in others.items():
        changed = {**stated, key: other}
        fails(lambda changed=changed: check_config(tmp_path / "mistral", changed, "llm"), str(other))

    words = hub_tokenizer(str(tmp_path / "mistral"))
    hub_llm(str(tmp_path / "mistral"), words).save_pretrained(tmp_path / "llm")
    hub_vision(str(tmp_path / "clip"), tmp_path / "vision")
    lvlm = models.build(arch, getattr(Architectures(), arch), words, tmp_path / "llm", tmp_path / "vision", seed=0)
    assert type(lvlm.model.model.language_model).__name__ == "MistralModel"
    assert {parameter.dtype for parameter in lvlm.model.parameters()} == {torch.float32}
    pack(lvlm.model.train())
    batch = Packer(tokenize_captions(records, words, limit=4), words.bos_token_id, lvlm).row(range(4))
    loss = token_nll(lvlm.model(**model_inputs(batch)).logits, batch["labels"]).mean()
    assert abs(loss.item() - np.log(len(words))) < 0.5


def fails(load: Any, *said: str) -> None:
    with pytest.raises(UserError) as caught:
        load()
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


def test_backbones_that_do_not_fit_are_refused_in_one_line(hub: Path, tokenizer: Any, tmp_path: Path) -> None:
    llama, clip, gpt2 = (str(hub / name) for name in ("llama", "clip", "gpt2"))
    fails(lambda: hub_llm(llama, tokenizer), "embeddings for 275 tokens", "tokenizer has 330")
    fails(lambda: hub_llm(gpt2, tokenizer), "gpt2", "like Llama")
    fails(lambda: hub_vision(llama, tmp_path), "no weights")
    for load in (hub_tokenizer, lambda source: hub_llm(source, tokenizer), lambda source: hub_vision(source, tmp_path)):
        fails(lambda load=load: load(str(tmp_path / "none")), "there is no folder")
        fails(lambda load=load: load(str(tmp_path)), "tokenizer.json" if load is hub_tokenizer else "cannot be loaded")
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((hub / "llama" / "config.json").read_text())
    fails(lambda: hub_llm(str(tmp_path), tokenizer), "safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    fails(lambda: hub_llm(str(tmp_path), tokenizer), "cannot be loaded")

    whole_clip = {**TOWER, "num_hidden_layers": 2, "image_size": 48, "patch_size": 16}
    check_config(hub / "clip", whole_clip, "vision")
    fails(lambda: check_config(hub / "clip", {**whole_clip, "patch_size": 14}, "vision"), "patch_size 14", "says 16")
    for wrong, *words in (
        ({"hiden_size": 3}, "hiden_size", "no setting of mistral"),
        ({"model_type": "mistrall"}, "mistrall"),
    ):
        fails(lambda wrong=wrong: check_config(hub / "llama", {**LLM, **wrong}, "llm"), "llm: ", *words)
