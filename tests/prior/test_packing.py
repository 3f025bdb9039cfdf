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

from prior.documents import Documents, Ragged, nested_subset, tokenize_captions, tokenize_exchanges
from prior.hashing import uniform
from prior.models.attention import document_layout, pack, packed_attention, unpack
from prior.packing import Packer, blind_inputs, model_inputs, plan_rows
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
    lvlm.model.double()  # In single precision what differs is rounding, and how much depends on the processor.
    pack(lvlm.model.eval())
    packed = token_logprobs(lvlm.model, Packer(documents, tokenizer.bos_token_id, lvlm), row_tokens=200)
    alone = np.concatenate(stock_logprobs(lvlm, tokenizer, records, picture))
    np.testing.assert_allclose(packed, alone, rtol=1e-6)  # Scores are kept in single precision.
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
    changed = replace(documents, targets=documents.targets.beside(values))
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
    documents = Documents([f"c{k}" for k in range(len(sizes))], Ragged.of([[0] * size for size in sizes], np.int32))
    small, large = (nested_subset(documents, tokens, seed) for tokens in (sum(lengths) // 3 + 1, sum(lengths)))
    assert small.tolist() == large[: len(small)].tolist()
    assert sizes[small].sum() >= sum(lengths) // 3 + 1 > sizes[small[:-1]].sum()
    with pytest.raises(ValueError, match="caption tokens are asked for"):
        nested_subset(documents, sum(lengths) + 1, seed)
    # A caption's place depends on its name: when others go, those that stay keep their order.
    names = [documents.ids[index] for index in large if index % 2]
    fewer = Documents(documents.ids[1::2], Ragged.of([[0] * size for size in sizes[1::2]], np.int32))
    kept = nested_subset(fewer, int(sizes[1::2].sum()), seed)
    assert [fewer.ids[index] for index in kept] == names


def test_captions_are_dealt_out_by_the_beginning_of_a_sha256() -> None:
    """As `printf '0:c1' | sha256sum` says; another number would deal out every corpus anew."""
    assert uniform("0:c1") == 0xCABF4DD4BC3F / 2**48


def test_tokens_of_relevant_words_are_relevant(tokenizer: Any, records: Any) -> None:
    documents = tokenize_captions(records, tokenizer)
    for index, record in enumerate(records):
        marked = tokenizer.decode(documents.targets[index][documents.relevant[index] == 1]).split()
        assert marked == [word for word in record["caption"].split() if word in ("red", "blue", "green")]


def test_only_answers_of_a_conversation_carry_labels(lvlm: Any, tokenizer: Any, records: Any) -> None:
    """Packed with others, each answer's tokens are predicted as in the whole conversation on its own."""
    turns = [[("a red", " circle"), ("on the", " left of")], [("photo", " by")], [("a", " star"), ("b", " 12 99")]]
    documents = tokenize_exchanges(["0", "1", "2"], turns, tokenizer, lambda index: records[index]["image"])
    lvlm.model.double()
    pack(lvlm.model.eval())
    row = Packer(documents, tokenizer.bos_token_id, lvlm).row([2, 0, 1])
    said = "".join(answer + "</s>" for index in (2, 0, 1) for _, answer in turns[index])
    assert tokenizer.decode(row["labels"]) == said
    assert np.bincount(row["caption_index"]).tolist() == documents.labels[[2, 0, 1]].tolist()
    with torch.no_grad():
        packed = lvlm.model(**model_inputs(row), use_cache=False).logits.log_softmax(-1)
        alone = []
        for index in (2, 0, 1):
            picture = documents.pictures(lvlm, [index])
            ids = torch.tensor([[tokenizer.bos_token_id, *picture[0].ids, *documents.targets[index]]])
            unpack(lvlm.model)
            logits = lvlm.model(input_ids=ids, pixel_values=lvlm.collate(picture)).logits[0]
            places = len(picture[0].ids) + np.flatnonzero(documents.labelled[index])
            alone.append(logits[places].log_softmax(-1))
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-10, rtol=0)


@given(
    st.lists(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=5), min_size=1, max_size=4),
    st.integers(0, 2**31),
)
def test_joined_parts_are_one_sequence_of_sequences(parts: list[list[list[int]]], seed: int) -> None:
    joined = Ragged.join(Ragged.of(part, np.int32) for part in parts)
    expected = [sequence for part in parts for sequence in part]
    assert [joined[index].tolist() for index in range(len(joined))] == expected
    assert joined.lengths.tolist() == list(map(len, expected))
    assert joined.values.tolist() == [value for sequence in expected for value in sequence]
    chosen = np.random.default_rng(seed).permutation(len(expected))[:3]
    assert joined.gather(chosen).tolist() == [value for index in chosen for value in expected[index]]
    other = joined.beside(np.arange(len(joined.values)) * 10)
    assert other.lengths.tolist() == joined.lengths.tolist()
    assert other.values.tolist() == [10 * place for place in range(len(joined.values))]
