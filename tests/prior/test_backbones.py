"""Backbones from folders that look like a hub's: they fit together and train, or one line says why not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image

from eval.predict import Model, load_model, reply
from prior import models
from prior.backbones import hub_llm, hub_tokenizer, hub_vision, load_tokenizer
from prior.cli import app
from prior.config import Architectures
from prior.corpus.store import write_corpus
from prior.errors import UserError
from prior.loss import token_nll
from prior.models.attention import pack
from prior.packing import Packer, model_inputs, tokenize_captions, tokenize_exchanges, tokenize_texts

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

    # The reference LLM starts from the fetched folder as it stands.
    assert AutoModelForCausalLM.from_pretrained(fetched / "llm").dtype == torch.float32
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
    exchanges = tokenize_exchanges(TRAPS, TRAPS, TRAPS, words, None)
    for index, text in enumerate(TRAPS):
        for made in (documents, tokenize_texts(TRAPS, TRAPS, words), exchanges):
            *ids, end = made.targets[index].tolist()
            assert end == words.eos_token_id and not special & set(ids)
            assert words.decode(ids) == text
        assert exchanges.prompts is not None and words.decode(exchanges.prompts[index]) == text
    relevant = documents.relevant[: documents.targets.offsets[1]] == 1
    assert words.decode(documents.targets[0][relevant]).strip() == "<image>"


def test_backbones_that_do_not_fit_are_refused_in_one_line(hub: Path, tokenizer: Any, tmp_path: Path) -> None:
    def fails(load: Any, *words: str) -> None:
        with pytest.raises(UserError) as caught:
            load()
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)

    llama, clip, gpt2 = (str(hub / name) for name in ("llama", "clip", "gpt2"))
    fails(lambda: hub_llm(llama, tokenizer), "embeddings for 275 tokens", "tokenizer has 330")
    fails(lambda: hub_llm(gpt2, tokenizer), "gpt2", "like Llama")
    fails(lambda: hub_vision(llama, tmp_path), "no weights")
    for load in (hub_tokenizer, lambda source: hub_llm(source, tokenizer), lambda source: hub_vision(source, tmp_path)):
        fails(lambda load=load: load(str(tmp_path / "none")), "there is no folder")
        fails(lambda load=load: load(str(tmp_path)), "cannot be loaded")
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((hub / "llama" / "config.json").read_text())
    fails(lambda: hub_llm(str(tmp_path), tokenizer), "safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    fails(lambda: hub_llm(str(tmp_path), tokenizer), "cannot be loaded")
