"""Downloads from a hub: the commit that is locked and no other, whole files, one line about what cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM

from prior.backbones import check_config, hub_llm, hub_tokenizer
from prior.config.fields import _source
from prior.hub import is_local, locked_revisions
from prior.presets import PRESETS, lock_file
from tests.prior.fake_hub import FakeHub, fake_hub
from tests.prior.mistral import write_tokenizer

MODEL, DATA = "an-org/a-model", "an-org/some-data"
SHARD = "data/train-0000.tar"
# The client reads the hub's address when it is imported, so each case is a process of its own.
CLIENT = """
import json, sys
from pathlib import Path
from prior import hub
from prior.errors import UserError

name, *rest, lock, options = json.loads(sys.argv[1])
try:
    getattr(hub, name)(*rest[:-1], Path(rest[-1]), Path(lock), **options)
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A model whose repository also holds pickles, code and its weights in another layout; a dataset of two files."""
    model, data = tmp_path / "made" / "model", tmp_path / "made" / "data"
    (model / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json", "onnx/config.json"):
        (model / name).write_text(json.dumps({"name": name}))
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (model / name).write_bytes(name.encode() * 4000)
    for name in ("pytorch_model.bin", "training_args.pt", "modeling.py", "consolidated.safetensors", "README.md"):
        (model / name).write_bytes(b"not wanted")
    (model / "tokenizer.model").write_bytes(b"pieces")
    (data / "data").mkdir(parents=True)
    for number in range(2):
        (data / "data" / f"train-000{number}.tar").write_bytes(bytes([65 + number]) * 500_000)
    with fake_hub(tmp_path / "served") as server:
        server.commit(MODEL, model)
        server.commit(f"datasets/{DATA}", data)
        yield server


class Client:
    """Processes that fetch, with a cache, a lock file and a place for what is fetched."""

    def __init__(self, hub: FakeHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.lock, self.out = folder / "mine.lock", folder / "out"

    def start(self, what: str, *arguments: Any, home: str = "home", options: Any = None, **extra: str) -> Any:
        *given, target = arguments
        call = json.dumps([what, *given, str(self.out / target), str(self.lock), options or {}])
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, call],
            env={**self.hub.environment(self.folder / home), **extra},
            stderr=subprocess.PIPE,
            text=True,
        )

    def model(self, target: str = "model", repo: str = MODEL, **options: Any) -> None:
        self.finish(self.start("fetch_model", repo, target, **options))

    def file(self, target: str = "0.tar", name: str = SHARD, **options: Any) -> None:
        self.finish(self.start("fetch_file", DATA, name, target, **options))

    def finish(self, process: Any) -> None:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said

    def refused(self, *arguments: Any, **options: Any) -> str:
        """The one line in which a download is refused; nothing of it is left."""
        before = self.found()
        process = self.start(*arguments, **options)
        said = process.communicate(timeout=120)[1].strip()
        assert process.returncode == 2, said
        last = str(said.splitlines()[-1])
        assert self.found() == before
        return last

    def found(self) -> list[str]:
        return sorted(path.relative_to(self.out).as_posix() for path in self.out.rglob("*"))


@pytest.fixture
def client(hub: FakeHub, tmp_path: Path) -> Client:
    return Client(hub, tmp_path)


def test_the_first_download_locks_the_commit_for_all_later_ones(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    [first], [of_data] = hub.commits[MODEL], hub.commits[f"datasets/{DATA}"]
    client.model()
    client.file()
    assert locked_revisions(client.lock) == {MODEL: first, f"datasets/{DATA}": of_data}
    lines = [line for line in client.lock.read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{MODEL}: {first}", f"datasets/{DATA}: {of_data}"]
    assert (client.out / "0.tar").read_bytes() == b"A" * 500_000

    model = tmp_path / "made" / "model"
    (model / "config.json").write_text('{"name": "another"}')
    (tmp_path / "made" / "data" / SHARD).write_bytes(b"another")
    second = hub.commit(MODEL, model)
    hub.commit(f"datasets/{DATA}", tmp_path / "made" / "data")
    client.model("again", home="elsewhere")
    client.file("again.tar", home="elsewhere")
    for name in ("config.json", "model-00002-of-00002.safetensors"):
        assert (client.out / "again" / name).read_bytes() == (client.out / "model" / name).read_bytes()
    assert (client.out / "again.tar").read_bytes() == (client.out / "0.tar").read_bytes()

    text = client.lock.read_text()
    client.lock.write_text(text.replace(f"{MODEL}: {first}\n", ""))
    client.model("latest")
    assert json.loads((client.out / "latest" / "config.json").read_text()) == {"name": "another"}
    assert client.lock.read_text() == text.replace(first, second)


def test_pickles_code_and_second_copies_stay_on_the_hub(hub: FakeHub, client: Client) -> None:
    client.model()
    settings = ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model"]
    weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert client.found() == sorted(["model", *(f"model/{name}" for name in [*settings, *weights])])
    client.model("tokenizer", options={"weights": False})
    assert sorted(path.name for path in (client.out / "tokenizer").iterdir()) == settings
    files = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET" and "/resolve/" in path}
    assert files <= {*settings, *weights}
    one, cached = client.out / "model" / weights[0], client.folder / "home" / "hub"
    assert any(file.samefile(one) for file in cached.rglob(weights[0])), "the weights take their room twice"
    # A file of a dataset is not kept in the cache beside its place: there are hundreds, and they are large.
    client.file()
    assert not [file for file in cached.rglob("*") if file.is_file() and file.stat().st_size == 500_000]


def test_a_fetched_model_is_the_one_on_the_hub(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    shape = {"model_type": "mistral", "vocab_size": 32_000, "hidden_size": 16, "num_hidden_layers": 2}
    shape |= {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    made, fetched = tmp_path / "made" / "mistral", client.out / "mistral"
    torch.manual_seed(0)
    published = MistralForCausalLM(MistralConfig(**shape)).to(torch.bfloat16)
    published.save_pretrained(made, max_shard_size="1MB")
    write_tokenizer(made)
    hub.commit("mistralai/Mistral-7B-v0.1", made)
    client.model("mistral", repo="mistralai/Mistral-7B-v0.1")
    assert len(list(fetched.glob("*.safetensors"))) > 1 and (fetched / "tokenizer.model").exists()
    check_config(fetched, shape, "llm")
    words = hub_tokenizer(str(fetched))
    llm = hub_llm(str(fetched), words)
    assert llm.dtype == torch.bfloat16 and llm.get_input_embeddings().num_embeddings == len(words)
    state = llm.state_dict()
    for name, weight in published.state_dict().items():
        assert torch.equal(state[name][: len(weight)], weight), name


def test_another_commit_than_the_locked_one_is_refused(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    fetch_model, fetch_file = ("fetch_model", MODEL, "m"), ("fetch_file", DATA, SHARD, "f")
    first, other = hub.commits[MODEL][0], "0123456789" * 4
    client.lock.write_text(f"{MODEL}: {other}\ndatasets/{DATA}: {other}\n")
    for call, repo in ((fetch_model, MODEL), (fetch_file, f"datasets/{DATA}")):
        said = client.refused(*call)
        assert said.startswith(f"{client.lock}: {repo} is locked at {other}, which the hub does not have; ")
    client.lock.write_text(f"{MODEL}: {first}\ndatasets/{DATA}: {hub.commits[f'datasets/{DATA}'][0]}\n")
    hub.forgetful = True
    for repo, made in ((MODEL, "model"), (f"datasets/{DATA}", "data")):
        now = hub.commit(repo, tmp_path / "made" / made)
        said = client.refused(*(fetch_model if made == "model" else fetch_file))
        assert f"{repo} is locked at {hub.commits[repo][0]}, but the hub gives {now}" in said
    client.lock.write_text(f"{MODEL}: main\n")
    assert "line 1 is not `repository: commit of 40 hexadecimals`" in client.refused(*fetch_model)
    client.lock.write_text(f"{MODEL}: {first}\n{MODEL}: {first}\n")
    assert "line 2 names a repository a second time" in client.refused(*fetch_model)


def test_a_download_that_is_cut_off_leaves_nothing_and_the_next_goes_on(hub: FakeHub, client: Client) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    hub.cut = {second: first}
    assert "start again" in client.refused("fetch_model", MODEL, "model")
    hub.closed = False
    hub.asked.clear()
    client.model()
    got = [path.rpartition("/")[2] for method, path in hub.asked if method == "GET"]
    assert second in got and first not in got
    assert (client.out / "model" / second).read_bytes() == second.encode() * 4000

    hub.stalled = {SHARD}
    process = client.start("fetch_file", DATA, SHARD, "0.tar")
    assert hub.half_way.wait(60)
    process.kill()
    process.communicate()
    assert not (client.out / "0.tar").exists()
    hub.stalled = set()
    client.file()
    assert (client.out / "0.tar").read_bytes() == b"A" * 500_000
    assert [name for name in client.found() if "model" not in name] == ["0.tar"]


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    large = tmp_path / "made" / "large"
    large.mkdir()
    content = b"".join(number.to_bytes(8, "big") for number in range(3 * 2**20))
    (large / "large.tar").write_bytes(content)
    hub.commit("datasets/an-org/large", large)
    hub.broken = {"large.tar"}
    client.finish(client.start("fetch_file", "an-org/large", "large.tar", "large.tar"))
    assert (client.out / "large.tar").read_bytes() == content
    # The client keeps pieces of 10 MiB.
    assert hub.resumed == [("large.tar", 10 * 2**20)]


def test_processes_that_fetch_at_once_agree_on_one_commit(hub: FakeHub, client: Client) -> None:
    hub.restless = True
    calls = [("fetch_file", DATA, f"data/train-000{number % 2}.tar", f"{number}.tar") for number in range(4)]
    for process in [client.start(*call) for call in [*calls, ("fetch_model", MODEL, "m")]]:
        client.finish(process)
    assert [(client.out / f"{number}.tar").read_bytes()[:1] for number in range(4)] == [b"A", b"B", b"A", b"B"]
    locked = locked_revisions(client.lock)
    assert set(locked) == set(hub.commits)
    for repo, commit in locked.items():
        assert {path.split("/resolve/")[1][:40] for _, path in hub.asked if f"/{repo}/resolve/" in path} == {commit}
    assert not [path for path in client.folder.iterdir() if path.name.startswith(".")]


def test_pickled_weights_arrive_as_safetensors(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    """Tensors that share memory or lie crosswise among them; the pickle itself is not handed on."""
    old = tmp_path / "made" / "old"
    old.mkdir()
    (old / "config.json").write_text("{}")
    first = torch.arange(6.0).reshape(2, 3)
    weights = {"first": first, "tied": first, "turned": first.T, "half": first.half()}
    torch.save(weights, old / "pytorch_model.bin")
    hub.commit("an-org/old", old)
    client.model(repo="an-org/old")
    assert sorted(path.name for path in (client.out / "model").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_file(client.out / "model" / "model.safetensors")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_what_cannot_be_had_is_one_line(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    assert "is not on the hub, or private" in client.refused("fetch_model", "an-org/none", "m")
    assert "write a hub id as organisation/name" in client.refused("fetch_model", "../a/b", "m")
    assert "has no file 'data/none.tar'" in client.refused("fetch_file", DATA, "data/none.tar", "f")
    bare = tmp_path / "made" / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    hub.commit("an-org/bare", bare)
    assert "and none in pytorch_model.bin" in client.refused("fetch_model", "an-org/bare", "m")
    torch.save({"weights": torch.zeros(2), "code": Path("not a tensor")}, bare / "pytorch_model.bin")
    hub.commit("an-org/pickled", bare)
    assert "and more than weights in pytorch_model.bin" in client.refused("fetch_model", "an-org/pickled", "m")

    hub.gated = {MODEL}
    said = client.refused("fetch_model", MODEL, "m", home="empty")
    assert "is gated" in said and f"{hub.url}/{MODEL}" in said and "HF_TOKEN" in said
    client.model(home="empty", HF_TOKEN="hf_secret")

    offline = {"HF_HUB_OFFLINE": "1"}
    client.model("offline", home="empty", **offline)
    assert (client.out / "offline" / "config.json").exists()
    assert "HF_HUB_OFFLINE is set" in client.refused("fetch_model", MODEL, "m", home="new", **offline)
    assert "HF_HUB_OFFLINE is set" in client.refused("fetch_file", DATA, SHARD, "f", home="new", **offline)
    hub.announced = {SHARD: 10**15, "tokenizer.json": 10**15}
    for call in (("fetch_file", DATA, SHARD, "f"), ("fetch_model", MODEL, "m")):
        assert "takes 1000000.0 GB" in client.refused(*call, home="new", HF_TOKEN="hf_secret")
    hub.commits.pop(MODEL)
    assert "is not on the hub, or private" in client.refused("fetch_model", MODEL, "m", home="new")
    hub.closed = True
    client.lock.unlink()
    assert "the hub answers 403" in client.refused("fetch_file", DATA, SHARD, "f", home="new")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "http://127.0.0.1:9 failed" in client.refused("fetch_model", MODEL, "m", home="new", **nowhere)


def test_the_lock_lies_beside_its_preset_and_a_folder_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lock_file("paper") == PRESETS / "paper.lock"
    assert lock_file(str(tmp_path / "mine.yaml")) == tmp_path / "mine.lock"
    assert locked_revisions(tmp_path / "none.lock") == {}
    monkeypatch.chdir(tmp_path)
    os.makedirs("an-org/here")
    for source in ("an-org/here", "./an-org/here", str(tmp_path)):
        assert _source(source) == source and is_local(source)
    assert _source("an-org/there") == "an-org/there" and not is_local("an-org/there")
    for source in ("./there", "an-org/there/deeper", str(tmp_path / "there")):
        with pytest.raises(ValueError, match="there is no folder"):
            _source(source)
