"""What SLURM is asked for: the cluster file, the resources of rules, and the command that starts a training."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.iocontainers import ResourceList
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from cluster.requests import TRAININGS, check, launcher, request
from cluster.settings import Cluster, load_cluster
from prior.config import Preset
from prior.config.jobs import Jobs
from prior.errors import UserError
from prior.presets import load_preset

PROFILE = Path(__file__).resolve().parents[2] / "workflow/profiles/slurm"
FILES = [PROFILE / "cluster.yaml", *sorted((PROFILE / "examples").glob("*.yaml"))]
KINDS = list(Jobs.model_fields)

H100 = Cluster.model_validate(
    {
        "partition": "cpu",
        "gpu_partition": "gpu",
        "account": "my lab",
        "constraint": "rome",
        "gpu_constraint": "a100&ib",
        "gpu_model": "h100",
        "node": {"cpus": 16, "memory_gb": 64.0},
        "gpu_node": {"cpus": 96, "memory_gb": 1000.0, "gpus": 8},
        "max_minutes": 240,
    }
)


def preset(threads: int = 1, **jobs: dict[str, Any]) -> Preset:
    return Preset.model_validate({"name": "mine", "jobs": jobs, "pretrain": {"threads": threads, "rows_per_step": 720}})


def asked(preset: Preset, kind: str, cluster: Cluster, attempt: int = 1) -> dict[str, Any]:
    """The resources of a rule as Snakemake evaluates them."""
    resources = request(preset, kind, cluster)
    return {name: value(None, attempt) if callable(value) else value for name, value in resources.items()}


def options(preset: Preset, kind: str, cluster: Cluster) -> set[str]:
    """What Snakemake's plugin makes of them: the options of ``sbatch``, without those that are the plugin's own."""
    job: Any = SimpleNamespace(resources=ResourceList(fromdict=asked(preset, kind, cluster)), threads=1)
    validate_slurm_extra(job)
    place = {"run_uuid": "", "slurm_logfile": "", "comment_str": "", "account": "", "partition": "", "workdir": ""}
    command = get_submit_command(job, place) + set_gres_string(job)
    return set(command.partition("--comment ''")[2].replace(" -t ", " -t=").replace("--mem ", "--mem=").split())


# The cluster file.


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_our_cluster_files_are_valid_and_bear_the_small_presets(path: Path) -> None:
    cluster = load_cluster(path)
    for name in ("tiny", "scenes"):
        check(load_preset(name), cluster)
    assert (cluster == Cluster()) == (path.name == "cluster.yaml"), "the default file states the defaults"
    assert len(FILES) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "'partitoin' is not a setting; did you mean 'partition'?"),
        ("node: {cpus: 1, memory: 2}", "'node.memory' is not a setting; did you mean 'node.memory_gb'?"),
        ("node: {memory_gb: 2}", "node.cpus: is missing; add it"),
        ("node: {cpus: 4, memory_gb: 0}", "node.memory_gb: should be greater than 0 (got 0)"),
        ("max_minutes: 1-00:00:00", "max_minutes: should be a whole number (got '1-00:00:00')"),
        ("gpu_model: h100:2", "is no GPU model; write its name alone, such as h100, and how many in the preset"),
        ("partition: a\npartition: b", "mine.yaml line 2 gives 'partition' a second time; keep one"),
    ],
)
def test_a_mistake_in_a_cluster_file_is_answered_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_cluster(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("cluster file mine.yaml: ") and message in line


def test_a_missing_cluster_file_is_for_the_variable_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.yaml"
    with pytest.raises(UserError) as caught:
        load_cluster(path)
    assert str(caught.value) == f"cluster file: there is no '{path}'; name one that exists in PRIOR_CLUSTER"


# What jobs ask for.


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_preset_asks_for_little(kind: str) -> None:
    wishes = asked(load_preset("tiny"), kind, Cluster())
    assert wishes.pop("mem_mb") <= 4096 and wishes.pop("runtime") <= 60 and wishes.pop("cpus_per_task") <= 2
    assert wishes.pop("gpu") == 0
    expected = {"launch": "exec prior", "slurm_extra": "--signal=USR1@600"} if kind in TRAININGS else {}
    assert wishes == expected, "and for nothing else"
    assert not any("gpu" in option for option in options(load_preset("tiny"), kind, H100))


def test_another_attempt_has_more_memory_up_to_a_node() -> None:
    mine = preset(small={"memory_gb": 30.0}, pretrain={"memory_gb": 400.0, "gpus": 8})
    for kind, amounts in {"small": [30, 60, 64], "pretrain": [400, 800, 1000]}.items():
        assert [asked(mine, kind, H100, attempt)["mem_mb"] for attempt in (1, 2, 3)] == [1024 * gb for gb in amounts]
    assert asked(mine, "small", Cluster(), 3)["mem_mb"] == 1024 * 90, "nothing is known of the nodes"


@pytest.mark.parametrize("kind", KINDS)
def test_another_attempt_has_more_time_where_no_checkpoint_is_kept(kind: str) -> None:
    times = [asked(preset(**{kind: {"minutes": 100}}), kind, H100, attempt)["runtime"] for attempt in (1, 2, 3)]
    assert times == ([100] * 3 if kind in TRAININGS else [100, 200, 240])
    assert asked(preset(**{kind: {"minutes": 1000}}), kind, H100)["runtime"] == 240
    assert asked(preset(**{kind: {"minutes": 1000}}), kind, Cluster())["runtime"] == 1000


@pytest.mark.parametrize(
    ("minutes", "warned"),
    [(9, None), (10, "--signal=USR1@120"), (40, "--signal=USR1@480"), (1000, "--signal=USR1@600")],
)
def test_a_training_is_warned_before_the_end_that_it_gets(minutes: int, warned: str | None) -> None:
    """Other jobs are not: the signal would kill them."""
    mine = preset(pretrain={"minutes": minutes}, predict={"minutes": minutes})
    assert asked(mine, "pretrain", H100).get("slurm_extra") == warned
    assert "slurm_extra" not in asked(mine, "predict", H100)


def test_a_warning_follows_the_limit_of_the_cluster() -> None:
    cluster = Cluster(max_minutes=20)
    assert asked(preset(tune={"minutes": 1000}), "tune", cluster)["slurm_extra"] == "--signal=USR1@240"


def test_jobs_go_where_their_gpus_are() -> None:
    mine = preset(pretrain={"gpus": 2}, predict={"gpus": 1})
    places = ("slurm_partition", "constraint", "gpu_model", "gpu")
    for kind in KINDS:
        wishes = asked(mine, kind, H100)
        found = [wishes.get(name) for name in places]
        gpus = {"pretrain": 2, "predict": 1}.get(kind, 0)
        assert found == (["gpu", "a100&ib", "h100", gpus] if gpus else ["cpu", "rome", None, 0])
        assert wishes["slurm_account"] == "my lab"
    wishes = asked(mine, "pretrain", Cluster(partition="all", constraint="new"))
    assert [wishes.get(name) for name in places] == ["all", "new", None, 2], "what is not said of GPUs holds for all"


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, "--ntasks=1 --cpus-per-task=3 -C rome"),
        ({"processes": 4}, "--ntasks=1 --cpus-per-task=12 -C rome"),
        ({"gpus": 1}, "--gpus=h100:1 --cpus-per-task=3 -C 'a100&ib'"),
        ({"gpus": 2}, "--gpus=h100:2 --cpus-per-task=6 -C 'a100&ib'"),
        (
            {"gpus": 8, "nodes": 2},
            "--gpus-per-node=h100:8 --nodes=2 --ntasks=2 --cpus-per-task=24 -C 'a100&ib'",
        ),
        ({"processes": 2, "nodes": 2}, "--nodes=2 --ntasks=2 --cpus-per-task=6 -C rome"),
    ],
    ids=["one process", "processes", "one GPU", "GPUs", "GPUs of nodes", "processes of nodes"],
)
def test_the_plugin_asks_sbatch_for_what_is_meant(wishes: dict[str, Any], expected: str) -> None:
    mine = preset(threads=3, pretrain={"memory_gb": 8.0, "minutes": 60, **wishes})
    found = options(mine, "pretrain", H100)
    # On one node it is no mistake to say so.
    if wishes.get("nodes", 1) == 1:
        found -= {"--nodes=1"}
    assert found == {"-t=60", "--mem=8192", "--signal=USR1@600", *expected.split()}


def test_several_gpus_of_one_node_are_on_one_node() -> None:
    """Left to itself, SLURM takes ``--gpus=2`` from wherever it finds them."""
    assert "--nodes=1" in options(preset(pretrain={"gpus": 2}), "pretrain", H100)


def test_any_model_of_gpu_may_be_had() -> None:
    cluster = Cluster(gpu_partition="gpu")
    assert "--gpus=2" in options(preset(pretrain={"gpus": 2}), "pretrain", cluster)
    assert "--gpus-per-node=2" in options(preset(pretrain={"gpus": 2, "nodes": 2}), "pretrain", cluster)


@pytest.mark.parametrize(
    ("kind", "wishes", "threads", "message"),
    [
        ("pretrain", {"gpus": 9}, 1, "asks for 9 gpus of a node, .* have 8; lower jobs.pretrain.gpus"),
        ("predict", {"memory_gb": 64.5}, 1, "asks for 64.5 memory_gb .* have 64; lower jobs.predict.memory_gb"),
        (
            "tune",
            {"gpus": 1, "memory_gb": 1001.0},
            1,
            "asks for 1001 memory_gb .* have 1000; lower jobs.tune.memory_gb",
        ),
        ("pretrain", {}, 17, "asks for 17 cpus of a node, .* have 16; use fewer threads or processes"),
        ("pretrain", {"processes": 4}, 5, "asks for 20 cpus of a node, .* have 16; use fewer threads or processes"),
        ("pretrain", {"gpus": 8}, 13, "asks for 104 cpus of a node, .* have 96; use fewer threads or processes"),
    ],
)
def test_what_no_node_can_grant_is_refused_in_one_line(
    kind: str, wishes: dict[str, Any], threads: int, message: str
) -> None:
    mine = preset(threads, **{kind: wishes})
    with pytest.raises(UserError, match=f"^preset 'mine': {kind} {message}, or mend the cluster file$"):
        check(mine, H100)
    check(mine, Cluster())


def test_what_would_fail_on_the_nodes_is_refused_before() -> None:
    with pytest.raises(UserError, match="pretrain asks for 7 processes, among which its 720 rows per step"):
        check(preset(pretrain={"processes": 7}), Cluster())
    with pytest.raises(UserError, match="predict asks for 300 minutes, but .* 240; lower jobs.predict.minutes"):
        check(preset(predict={"minutes": 300}), H100)
    check(preset(pretrain={"minutes": 300}), H100)
    with pytest.raises(ValueError, match="gpus"):
        preset(small={"gpus": 1})


def test_a_cluster_without_gpus_grants_none() -> None:
    with pytest.raises(UserError, match="pretrain asks for 1 gpus of a node, .* have 0"):
        check(preset(pretrain={"gpus": 1}), Cluster.model_validate({"node": {"cpus": 4, "memory_gb": 64.0}}))


def test_what_a_node_just_grants_is_not_refused() -> None:
    check(preset(12, pretrain={"gpus": 8, "memory_gb": 1000.0}, small={"memory_gb": 64.0}), H100)


# How trainings are launched.

AWKWARD = ["--preset", "my 'own' \"preset\".yaml", "$HOME", "*", ""]


@pytest.fixture
def launched(tmp_path: Path) -> Callable[[str], dict[str, list[str]]]:
    """Runs a launcher with awkward arguments, as a rule does; says what each program was called with.

    `srun` takes the options that begin with two dashes and runs the rest on the second of two nodes.
    """
    node = "SLURM_NODEID=1 SLURM_LAUNCH_NODE_IPADDR=10.0.0.7"
    programs = {
        "prior": "",
        "torchrun": "kill -USR1 $$; ",
        "srun": f'while [ "${{1#--}}" != "$1" ]; do shift; done; export {node}; "$@"; exit',
    }
    for name, more in programs.items():
        path = tmp_path / name
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "{path}.said"\n{more}\n')
        path.chmod(0o755)

    def run(words: str) -> dict[str, list[str]]:
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        arguments = " ".join("'" + word.replace("'", "'\\''") + "'" for word in AWKWARD)
        command = ["bash", "-c", f"set -euo pipefail; {words} pretrain {arguments}"]
        done = subprocess.run(
            command, env=os.environ | {"PATH": path, "SLURM_JOB_ID": "61234"}, capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return {name: (tmp_path / f"{name}.said").read_text().split("\n")[:-1] for name in said(tmp_path)}

    return run


def said(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.said")]


def test_one_process_is_started_as_ever(launched: Callable[[str], dict[str, list[str]]]) -> None:
    words = launcher(preset(pretrain={"gpus": 1}), "pretrain")
    assert words == launcher(preset(), "vision") == "exec prior"
    assert launched(words) == {"prior": ["pretrain", *AWKWARD]}


@pytest.mark.parametrize("wishes", [{"gpus": 2}, {"processes": 2}])
def test_the_processes_of_a_node_are_started_by_torchrun(
    wishes: dict[str, Any], launched: Callable[[str], dict[str, list[str]]]
) -> None:
    """Which SLURM's warning must not kill, since it is for the processes."""
    words = launcher(preset(pretrain=wishes), "pretrain")
    expected = ["--nproc-per-node=2", "--standalone", "-m", "--", "prior.cli", "pretrain", *AWKWARD]
    assert launched(words) == {"torchrun": expected}


def test_on_each_of_several_nodes_there_is_a_torchrun(launched: Callable[[str], dict[str, list[str]]]) -> None:
    called = launched(launcher(preset(threads=3, pretrain={"gpus": 8, "nodes": 2}), "pretrain"))
    assert sorted(called) == ["srun", "torchrun"]
    assert called["srun"][:5] == ["--nodes=2", "--ntasks=2", "--cpus-per-task=24", "--kill-on-bad-exit", "bash"]
    assert called["torchrun"] == [
        "--nproc-per-node=8", "--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.7", "--master-port=21234",
        "-m", "--", "prior.cli", "pretrain", *AWKWARD,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TRAININGS])
def test_other_jobs_are_not_launched(kind: str) -> None:
    assert "launch" not in request(preset(), kind, Cluster())
