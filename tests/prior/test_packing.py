"""Packed rows: each caption's loss is what it is alone, in every architecture and against transformers' own loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prior.models.attention import document_layout, pack, packed_attention, unpack
from prior.packing import Packer, blind_inputs, model_inputs, nested_subset, plan_rows, tokenize_captions
from prior.scores import token_logprobs


@torch.no_grad()
def stock_logprobs(architecture: Any, tokenizer: Any, records: Any, picture: bool) -> list[np.ndarray]:
    """Each caption on its own through the model's ordinary padded path and transformers' own labels."""
    model = architecture.model.eval()
    unpack(model)
    result = []
    for record in records:
        ids = [*tokenizer(record["caption"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        prefix, extra = [], {}
        if picture:
            import io

            from PIL import Image

            read = architecture.read([Image.open(io.BytesIO(record["image"]))])
            prefix, extra = read[0].ids, {"pixel_values": architecture.collate(read)}
        sequence = torch.tensor([[tokenizer.bos_token_id, *prefix, *ids]])
        labels = sequence.clone()
        labels[:, : 1 + len(prefix)] = -100
        output = model(input_ids=sequence, attention_mask=torch.ones_like(sequence), labels=labels, **extra)
        logprob = output.logits[0, len(prefix) : -1].log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
        assert float(output.loss) == pytest.approx(-float(logprob.mean()), rel=1e-5)
        result.append(logprob.numpy())
    return result


@pytest.mark.parametrize("picture", [True, False])
def test_packed_captions_score_as_if_alone(lvlm: Any, tokenizer: Any, records: Any, picture: bool) -> None:
    documents = tokenize_captions(records, tokenizer, image=picture)
    pack(lvlm.model.eval())
    packed = token_logprobs(lvlm.model, Packer(documents, tokenizer.bos_token_id, lvlm), row_tokens=200)
    alone = np.concatenate(stock_logprobs(lvlm, tokenizer, records, picture))
    np.testing.assert_allclose(packed, alone, atol=2e-5)
    # The check can fail: what the model says does depend on the picture.
    other = np.concatenate(stock_logprobs(lvlm, tokenizer, records, not picture))
    assert np.abs(packed - other).max() > 1e-3


def test_a_blind_pass_equals_the_captions_without_pictures(lvlm: Any, tokenizer: Any, records: Any) -> None:
    documents = tokenize_captions(records, tokenizer)
    pack(lvlm.model.eval())
    indices = [3, 0, 7]
    row = Packer(documents, tokenizer.bos_token_id, lvlm).row(indices)
    with torch.no_grad():
        blind = lvlm.model(**blind_inputs(row), use_cache=False).logits
        text = Packer(documents.without_pictures(), tokenizer.bos_token_id).row(indices)
        expected = lvlm.model(**model_inputs(text), use_cache=False).logits
    torch.testing.assert_close(blind, expected)


def test_only_label_positions_reach_the_head(lvlm: Any, tokenizer: Any, records: Any) -> None:
    documents = tokenize_captions(records, tokenizer)
    pack(lvlm.model)
    row = Packer(documents, tokenizer.bos_token_id, lvlm).row([0, 1, 2])
    logits = lvlm.model(**model_inputs(row), use_cache=False).logits
    assert logits.shape == (int(documents.targets.lengths[:3].sum()), len(tokenizer))
    assert len(row["input_ids"][0]) > 3 * 9 + len(logits) - 3


def test_a_caption_sees_neither_neighbour_nor_future(llm: Path, tokenizer: Any, records: Any) -> None:
    """Other captions in the row may change, and so may later tokens: earlier log-probabilities do not."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llm).eval()
    pack(model)
    documents = tokenize_captions(records, tokenizer, image=False)
    before = token_logprobs(model, Packer(documents, tokenizer.bos_token_id), row_tokens=10_000)
    values = documents.targets.values.copy()
    start, end = documents.targets.offsets[5:7]
    middle = (start + end) // 2
    values[middle:end] = np.random.default_rng(0).permutation(values[middle:end]) + 1
    changed = replace(documents, targets=replace(documents.targets, values=values))
    after = token_logprobs(model, Packer(changed, tokenizer.bos_token_id), row_tokens=10_000)
    same = np.ones(len(values), dtype=bool)
    same[middle:end] = False
    np.testing.assert_allclose(before[same], after[same], atol=1e-5)
    assert not np.allclose(before[~same], after[~same])


def test_ordinary_generation_without_the_layout_is_refused(llm: Path) -> None:
    with pytest.raises(ValueError, match="unpack"):
        packed_attention(torch.nn.Module(), *[torch.zeros(1, 2, 4, 8)] * 3, None)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=10))
def test_the_grid_holds_every_token_once(lengths: list[int]) -> None:
    layout = document_layout(lengths)
    flat = layout["document_rows"].flatten()[layout["document_cells"]]
    assert flat.tolist() == list(range(sum(lengths)))
    assert layout["position_ids"][0].tolist() == [step for length in lengths for step in range(length)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(30, 80))
def test_rows_hold_whole_documents_in_order(lengths: list[int], row_tokens: int) -> None:
    rows = plan_rows(np.array(lengths), range(len(lengths)), row_tokens)
    assert [index for row in rows for index in row] == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= row_tokens for row in rows)
    # Greedy: the next document would not have fitted.
    for row, following in zip(rows, rows[1:], strict=False):
        assert sum(lengths[index] for index in row) + lengths[following[0]] > row_tokens


@given(st.integers(0, 5), st.lists(st.integers(1, 30), min_size=5, max_size=60))
def test_scales_are_nested_and_just_large_enough(seed: int, lengths: list[int]) -> None:
    sizes = np.array(lengths)
    small, large = (nested_subset(sizes, tokens, seed) for tokens in (sum(lengths) // 3 + 1, sum(lengths)))
    assert small.tolist() == large[: len(small)].tolist()
    assert sizes[small].sum() >= sum(lengths) // 3 + 1 > sizes[small[:-1]].sum()
    with pytest.raises(ValueError, match="caption tokens are asked for"):
        nested_subset(sizes, sum(lengths) + 1, seed)


def test_tokens_of_relevant_words_are_relevant(tokenizer: Any, records: Any) -> None:
    documents = tokenize_captions(records, tokenizer)
    for index, record in enumerate(records):
        begin, end = documents.targets.offsets[index : index + 2]
        tokens = documents.targets.values[begin:end]
        marked = tokenizer.decode(tokens[documents.relevant[begin:end] == 1]).split()
        assert marked == [word for word in record["caption"].split() if word in ("red", "blue", "green")]
