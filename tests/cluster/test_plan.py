"""The plan against closed forms, real models, torch's own counters, the real packing and the workflow's dry run."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cluster.plan import costs, shapes
from cluster.plan.assumptions import Assumptions, read_assumptions
from cluster.plan.checks import warnings
from cluster.plan.costs import Document
from cluster.plan.jobs import Task, longest_chain, tasks_of
from cluster.plan.page import page, table
from cluster.plan.work import Work
from prior.config import Architectures, Preset
from prior.errors import UserError
from prior.loss import token_nll
from prior.models.attention import document_layout, pack
from prior.packing import plan_rows
from prior.presets import load_preset
from tests.end_to_end.running import ROOT, snakemake

MISTRAL, CLIP = 7_241_732_096, 303_507_456


@pytest.fixture(scope="module")
def paper() -> Work:
    return Work(load_preset("paper"), Assumptions())


def small_preset(tokenizer: Any, **more: Any) -> Preset:
    """A preset whose models are those that the fixtures build."""
    llm = {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 48}
    return Preset.model_validate(
        {
            "name": "small",
            "tokenizer": {"scratch": {"vocab_size": len(tokenizer)}},
            "backbones": {"llm": {"scratch": llm}, "vision": {"scratch": llm | {"image_size": 48, "patch_size": 16}}},
        }
        | more
    )


def decoder_parameters(vocabulary: int, width: int, inner: int, layers: int, keys: int) -> int:
    """A Llama-like LM whose queries are as wide as it is and whose head is a matrix of its own."""
    attention = 2 * width * width + 2 * width * keys
    return 2 * vocabulary * width + layers * (attention + 3 * width * inner + 2 * width) + width


def tower_parameters(width: int, inner: int, layers: int, side: int, patch: int) -> int:
    """A CLIP vision tower: biases everywhere but at its patches, two norms a layer, one before and one after."""
    attention = 4 * (width * width + width)
    mlp = 2 * width * inner + inner + width
    entrance = 3 * patch**2 * width + width + ((side // patch) ** 2 + 1) * width
    return layers * (attention + mlp + 4 * width) + entrance + 4 * width


def test_parameters_of_the_papers_models_follow_the_closed_form(paper: Work) -> None:
    assert decoder_parameters(32_000, 4096, 14_336, 32, 1024) == MISTRAL
    assert tower_parameters(1024, 4096, 24, 336, 14) == CLIP
    llm = decoder_parameters(32_000 + len(shapes.ADDED), 4096, 14_336, 32, 1024)
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    models = paper.models
    assert models["reference"].parameters == models["reference"].trainable == llm
    assert models["hlvlm"].parameters == llm + CLIP + projector
    assert models["hlvlm"].trainable == llm + projector
    assert models["ulvlm"].parameters == models["ulvlm"].trainable == llm + 3 * 32**2 * 4096


def test_low_rank_adapters_are_all_that_is_trained(paper: Work) -> None:
    lora = paper.preset.model_dump()["reference"] | {"lora": {"rank": 64, "alpha": 128}}
    shape = shapes.reference_shape(Preset.model_validate(paper.preset.model_dump() | {"reference": lora}))
    each = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14_336)
    assert shape.trainable == shape.adapters == 32 * 64 * each


def test_full_size_models_without_memory(paper: Work) -> None:
    """Shapes of what joins pictures to the LLM, and the layers by which FSDP shards."""
    for arch, layers in (("hlvlm", {"MistralDecoderLayer", "CLIPEncoderLayer"}), ("ulvlm", {"MistralDecoderLayer"})):
        model = shapes.lvlm(arch, paper.preset)
        assert all(part.is_meta for part in model.parameters())
        assert model.lm_head.weight.shape == model.get_input_embeddings().weight.shape == (32_006, 4096)
        lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
        assert {type(layer).__name__ for part in lists for layer in part} & set(model._no_split_modules) == layers
        if arch == "hlvlm":
            projector = model.model.multi_modal_projector
            assert projector.linear_1.weight.shape == (4096, 1024)
            assert projector.linear_2.weight.shape == (4096, 4096)
        else:
            assert model.model.patch_embedding.weight.shape == (4096, 3072)


def test_sizes_are_those_of_the_models_that_are_built(arch: str, lvlm: Any, tokenizer: Any) -> None:
    parts = ["projector", "llm"] + ["vision"] * (arch == "hlvlm")
    sets = [part for size in range(1, 4) for part in itertools.combinations(parts, size)]
    for trainable in sets:
        settings = getattr(Architectures(), arch).model_copy(update={"trainable": trainable})
        preset = small_preset(tokenizer, architectures={arch: settings.model_dump()})
        lvlm.set_trainable(trainable)
        shape = shapes.lvlm_shape(arch, preset)
        assert shape.parameters == sum(part.numel() for part in lvlm.model.parameters())
        assert shape.trainable == sum(part.numel() for part in lvlm.model.parameters() if part.requires_grad)
        work = Work(preset, Assumptions())
        assert work.shown(arch, work.text).picture == lvlm.prefix_length((48, 48))


@pytest.mark.parametrize("trainable", [("projector", "llm"), ("projector",), ("llm",), ("llm", "vision")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_that_torch_counts(
    arch: str, lvlm: Any, tokenizer: Any, trainable: tuple[str, ...], checkpointing: bool
) -> None:
    """Forward and backward on a packed row. Torch counts masked pairs of attention, too.

    Under checkpointing a frozen layer's last product is not computed anew, which the plan ignores: up to 4 %.
    """
    trainable = tuple(part for part in trainable if part != "vision" or arch == "hlvlm")
    lvlm.set_trainable(trainable)
    settings = getattr(Architectures(), arch).model_copy(update={"trainable": trainable})
    work = Work(small_preset(tokenizer, architectures={arch: settings.model_dump()}), Assumptions())
    documents, labels = 3, 20
    document = work.shown(arch, Document(labels=labels))
    picture = lvlm.read([Image.new("RGB", (48, 48))])[0]
    ids = torch.tensor([tokenizer.bos_token_id, *picture.ids, *range(300, 300 + labels - 1)] * documents)[None]
    length = ids.shape[1] // documents
    assert length == document.positions

    model = lvlm.model.train()
    pack(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    keep = (torch.arange(ids.shape[1]) % length >= length - labels)[None]
    pixels = lvlm.collate([picture] * documents)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        layout = document_layout([length] * documents)
        output = model(input_ids=ids, pixel_values=pixels, logits_to_keep=keep, use_cache=False, **layout)
        token_nll(output.logits, ids[keep]).mean().backward()

    parts = costs.flops_by_part(work.models[arch], document, True, checkpointing)
    parts["attention"] *= length**2 / document.pairs
    assert documents * sum(parts.values()) == pytest.approx(counter.get_total_flops(), rel=0.04)


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_those_that_autograd_keeps(bf16: bool) -> None:
    """What grows with the number of layers, over the positions of a packed row."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 8, "num_key_value_heads": 2}
    kept = {}
    for layers in (2, 4):
        config = AutoConfig.for_model("mistral", vocab_size=320, num_hidden_layers=layers, **sizes)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16 if bf16 else torch.float32)
        pack(model)
        weights = {part.untyped_storage().data_ptr() for part in model.parameters()}
        storages: dict[int, Any] = {}

        def keep(tensor: torch.Tensor, weights: set[int] = weights, storages: dict[int, Any] = storages) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(torch.arange(512)[None] % 320, use_cache=False, **document_layout([64] * 8))
        kept[layers] = sum(storage.nbytes() for storage in storages.values())
        del output
    stack = shapes._stack(config, model.model.layers)
    assert costs.activation_bytes(stack, bf16) == pytest.approx((kept[4] - kept[2]) / 2 / 512, rel=0.01)


@pytest.mark.parametrize(
    "picture, mean, spread, row_tokens",
    [(0, 27, 0.8, 4096), (576, 27, 0.8, 4096), (316, 27, 0.8, 4096), (10, 14, 0.3, 512), (576, 27, 0.8, 600)],
)
def test_steps_are_those_of_the_real_packing(picture: int, mean: float, spread: float, row_tokens: int) -> None:
    """On skewed lengths, which are not the normal ones of the formula."""
    rng = np.random.default_rng(0)
    sigma = np.sqrt(np.log(1 + spread**2))
    labels = np.maximum(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, 40_000).round().astype(int), 1)
    rows = plan_rows(1 + picture + labels, range(len(labels)), row_tokens)
    document = Document(labels=labels.mean(), picture=picture, spread=labels.std())
    estimate = costs.documents_per_row(document.positions + 1, document.spread, row_tokens)
    assert len(labels) / estimate == pytest.approx(len(rows), rel=0.03)


def test_memory_of_the_papers_trainings(paper: Work) -> None:
    memory = {task.name: task.memory for task in tasks_of(paper) if task.memory}
    hlvlm = paper.models["hlvlm"]
    pretrain = memory["pretrain hlvlm prior 70M"]
    assert pretrain["weights"] == 4 * hlvlm.parameters / 8
    assert pretrain["gradients"] + pretrain["optimizer"] == 12 * hlvlm.trainable / 8
    assert warnings(paper, tasks_of(paper)) == []
    # Without a share for each GPU, the optimizer alone takes up more than all of one.
    jobs = paper.preset.jobs
    alone = jobs.model_copy(update={"pretrain": jobs.pretrain.model_copy(update={"fsdp": False})})
    crowded = Work(paper.preset.model_copy(update={"jobs": alone}), paper.given)
    assert any(line.startswith("pretrain hlvlm") and "has 80;" in line for line in warnings(crowded, tasks_of(crowded)))
    # Mistral keeps 128 kB of keys and values for each position.
    assert costs.inference_bytes(hlvlm, 0, 0, bf16=True, cached=1)["keys and values"] == 2**17


def test_checkpointing_trades_memory_for_flops(paper: Work) -> None:
    shape, document = paper.models["hlvlm"], paper.shown("hlvlm", paper.text)
    sizes = {
        again: costs.training_bytes(shape, 4096, 6, 576, 162, bf16=True, processes=8, fsdp=True, checkpointing=again)
        for again in (False, True)
    }
    assert sizes[True]["activations"] < sizes[False]["activations"] / 5
    once, twice = (costs.flops(shape, document, True, again) for again in (False, True))
    # Kaplan's 6·N·D, and 8·N·D with a second forward pass; the rest is the frozen tower, the head and attention.
    linear = 2 * shape.decoder.weights * document.positions
    assert 3 * linear < once < 3.2 * linear and 4 * linear < twice < 4.3 * linear


def test_a_trajectory_beyond_the_last_step_is_told(paper: Work) -> None:
    preset = paper.preset.model_copy(update={"pretrain": paper.preset.pretrain.model_copy(update={"row_tokens": 9000})})
    work = Work(preset, paper.given)
    assert any(line.startswith("trajectory: until 5000") for line in warnings(work, tasks_of(work)))


def test_the_longest_chain() -> None:
    waiting = {"a": (1.0, ()), "b": (5.0, ()), "c": (2.0, ("a",)), "d": (1.0, ("c", "b"))}
    tasks = [Task("kind", name, 1, after, hours) for name, (hours, after) in waiting.items()]
    assert longest_chain(tasks) == (6.0, ["b", "d"])


@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_jobs_are_those_of_the_workflow(name: str, tmp_path: Path) -> None:
    told = snakemake(tmp_path, name, "--dry-run", "--quiet", "rules")
    expected = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", told, re.MULTILINE)}
    total = expected.pop("total")
    counts: dict[str, int] = {"all": 1}
    for task in tasks_of(Work(load_preset(name), Assumptions())):
        counts[task.rule] = counts.get(task.rule, 0) + task.count
    assert counts == expected and sum(counts.values()) == total


def test_an_aligned_table() -> None:
    lines = table(["name", "size"], [["a", "1,000"], ["bcdef", "2"]]).splitlines()
    assert lines == ["| name  |  size |", "| ----- | ----: |", "| a     | 1,000 |", "| bcdef |     2 |"]


def test_the_command_prints_and_writes_the_page(tmp_path: Path) -> None:
    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster.plan", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    done = plan("--preset", "tiny", "--out", str(tmp_path / "plan.md"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan.md").read_text() == done.stdout == page(Work(load_preset("tiny"), Assumptions()))
    done = plan("--preset", "tiny", "--assume", "utilisation=0.5", "--assume", "picture=large")
    assert (done.returncode, done.stdout) == (2, "")
    said = "picture: 'large' is no size; write width and height in pixels, as in 640x480"
    assert done.stderr == f"error: --assume: {said}\n"


def test_assumptions_are_given_as_keys_and_values() -> None:
    given = read_assumptions(["utilisation=0.5", "picture=512x384", "captions=1000"])
    assert given == Assumptions(utilisation=0.5, picture=(512, 384), captions=1000)
    assert read_assumptions([]) == Assumptions()


@pytest.mark.parametrize(
    "text, said",
    [
        ("utilisation", "'utilisation' gives no value; write key=value, as in utilisation=0.5"),
        ("gpus=8", "'gpus' is no assumption; there are caption_tokens, caption_spread, captions, .*, small_minutes"),
        ("utilisation=1.5", r"utilisation: should be less than or equal to 1 \(got '1.5'\)"),
        ("utilisation=nan", r"utilisation: should be a finite number \(got 'nan'\)"),
        ("captions=1e3", r"captions: should be a whole number \(got '1e3'\)"),
        ("decode_ms=", r"decode_ms: should be a number \(got ''\)"),
    ],
)
def test_what_is_no_assumption_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^--assume: {said}$"):
        read_assumptions([text])


def test_what_is_not_known_is_asked_for(paper: Work, tmp_path: Path) -> None:
    changed = paper.preset.model_dump()
    changed["backbones"]["llm"] = "mistralai/Mistral-7B-v0.1"
    with pytest.raises(UserError, match=r"backbones\.llm: the size of 'mistralai/Mistral-7B-v0\.1' is not known"):
        _ = Work(Preset.model_validate(changed), Assumptions()).models
    corpus = {"kind": "folder", "folder": str(tmp_path)}
    folder = Preset.model_validate(load_preset("tiny").model_dump() | {"corpus": corpus, "tune": None})
    with pytest.raises(UserError, match="give --assume captions="):
        page(Work(folder, Assumptions()))
    assert "1,234" in page(Work(folder, Assumptions(captions=1234)))


def test_the_page_in_the_documentation_is_what_the_command_says() -> None:
    """Made anew by `make plan PRESET=paper ARGS="--out docs/plan.md"`."""
    shown = Path(__file__).resolve().parents[2] / "docs/plan.md"
    assert shown.read_text() == page(Work(load_preset("paper"), Assumptions()))
