"""A real SLURM on one machine: munge, a controller, two nodes with stand-in GPUs, three partitions, perhaps accounting.

Nothing of the system's own configuration is used or changed, and everything that was started is stopped by its process
id. Neither systemd nor cgroups are needed. Written for SLURM 22.05 and newer.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "squeue", "scontrol")
PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server", "mariadb-client")

# Nodes claim more processors, memory and GPUs than the machine has. A device file stands for a GPU and is never opened.
# Preemption and requeueing are as on clusters; what was killed is given two seconds instead of thirty.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool.%n
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,defer_batch
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
MinJobAge=3600
KillWait=2
ReturnToService=1
SlurmctldTimeout=300
SlurmdTimeout=300
MessageTimeout=10
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{accounting}
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=16 RealMemory=64000 Gres=gpu:h100:4
PartitionName=cpu Nodes=n[1-2] Default=YES DefaultTime=60 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=gpu Nodes=n[1-2] DefaultTime=60 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=spare Nodes=n[1-2] DefaultTime=60 MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
"""
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={base}/munge.socket"""
DBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
LogFile={base}/slurmdbd.log
PidFile={base}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""
GRES = "NodeName=n[1-2] Name=gpu Type=h100 File=/dev/tty[0-3]\n"


def install() -> None:
    """Install SLURM and munge from the distribution's packages; needs to be root."""
    install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(install, env=quiet, capture_output=True).returncode:
        subprocess.run(["apt-get", "update"], env=quiet, check=True, capture_output=True)
        subprocess.run(install, env=quiet, check=True, capture_output=True)


class Cluster:
    """What tests ask of a cluster; `env` is the environment in which SLURM's commands find it."""

    def __init__(self, base: Path, port: int = 16800, accounting: bool = False) -> None:
        self.base = base
        self.accounting = accounting
        host = socket.gethostname().split(".")[0]
        self.places = {"base": base, "host": host, "port": port, "first": port + 1, "last": port + 2}
        self.places |= {"dbd": port + 3, "sql": port + 4}
        path = f"{base / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, "SLURM_CONF": str(base / "slurm.conf"), "PATH": path}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str) -> str:
        """What a command of SLURM's prints."""
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True).stdout

    def start(self) -> None:
        # What munge's socket lies in has to be open to all.
        self.base.chmod(0o755)
        for folder in ("state", "spool.n1", "spool.n2", "bin"):
            (self.base / folder).mkdir()
        told = (ACCOUNTING if self.accounting else NO_ACCOUNTING).format(**self.places)
        (self.base / "slurm.conf").write_text(CONF.format(accounting=told, **self.places))
        (self.base / "gres.conf").write_text(GRES)
        key = self.base / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        # The plugin's job step starts its `srun` without SLURM_CONF.
        srun = self.base / "bin/srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.env["SLURM_CONF"]} exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        socket_ = self.base / "munge.socket"
        self.spawn(
            "munged", "munged", "--foreground", f"--key-file={key}", f"--socket={socket_}",
            f"--pid-file={self.base}/munged.pid", f"--log-file={self.base}/munged.log",
            f"--seed-file={self.base}/munge.seed",
        )  # fmt: skip
        self.wait("munge", socket_.exists)
        if self.accounting:
            self.start_accounting()
        self.spawn("slurmctld", "slurmctld", "-D")
        for node in ("n1", "n2"):
            self.spawn(node, "slurmd", "-D", "-N", node)
        self.wait("both nodes", lambda: self.idle() == {"n1", "n2"})

    def start_accounting(self) -> None:
        data, sql = self.base / "mysql", ["mariadb", "--no-defaults", "-S", f"{self.base}/mysql.socket", "-u", "root"]
        self.run(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
            "--auth-root-authentication-method=normal",
        )  # fmt: skip
        self.spawn(
            "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", "--bind-address=127.0.0.1",
            f"--socket={self.base}/mysql.socket", f"--pid-file={self.base}/mysql.pid", f"--port={self.places['sql']}",
        )  # fmt: skip
        self.wait("MariaDB", lambda: not subprocess.run([*sql, "-e", "select 1"], capture_output=True).returncode)
        grants = "create user slurm@localhost identified by 'slurm'; grant all on slurm.* to slurm@localhost"
        self.run(*sql, "-e", f"create database slurm; {grants}")
        conf = self.base / "slurmdbd.conf"
        conf.write_text(DBD_CONF.format(**self.places))
        conf.chmod(0o600)
        self.spawn("slurmdbd", "slurmdbd", "-D")
        show = ["sacctmgr", "-n", "show", "cluster"]
        self.wait("slurmdbd", lambda: not subprocess.run(show, env=self.env, capture_output=True).returncode)

    def forget(self) -> None:
        """A new controller that knows nothing of any job."""
        self.end("slurmctld")
        shutil.rmtree(self.base / "state")
        (self.base / "state").mkdir()
        self.spawn("slurmctld", "slurmctld", "-D")
        self.wait("the controller", self.answers)

    def spawn(self, name: str, *command: str) -> None:
        with (self.base / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def idle(self) -> set[str]:
        done = subprocess.run(["sinfo", "-hN", "-o", "%N %T"], env=self.env, capture_output=True, text=True)
        return {line.split()[0] for line in done.stdout.splitlines() if line.split()[1] == "idle"}

    def wait(self, what: str, true: Callable[[], object], seconds: float = 60) -> None:
        """Until something is true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"waited {seconds} s for {what}\n{self.said()}"
            time.sleep(0.2)

    def said(self) -> str:
        """The last lines of the daemons' logs."""
        return "\n".join(
            f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.base.glob("*.[lo][ou][gt]"))
        )

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Within the block there is no controller; what nodes want to tell it waits."""
        self.end("slurmctld")
        try:
            yield
        finally:
            self.spawn("slurmctld", "slurmctld", "-D")
            self.wait("the controller", self.answers)

    def answers(self) -> bool:
        return subprocess.run(["squeue", "-h"], env=self.env, capture_output=True).returncode == 0

    def end(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def stop(self) -> None:
        try:
            if "slurmctld" in self.daemons:
                subprocess.run(["scancel", "--user=root"], env=self.env, capture_output=True)
                self.wait("the last jobs", lambda: not self.run("squeue", "-h"))
        finally:
            for name in reversed(list(self.daemons)):
                self.end(name)


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if os.geteuid() != 0:
        return "SLURM's daemons want to be root"
    return f"SLURM is not installed ({', '.join(absent)} not found)" if absent else ""
