"""A private Slurm: munged, slurmctld and a slurmd for each node in a folder, for tests of slurm/.

It says that it has more cores and memory than the machine, so that a script's own `#SBATCH` lines
are taken as they stand. Nothing of it is left when the test ends, and no other Slurm is touched.

One node is the machine itself. Several are made of namespaces: each has its host name, a loopback
address that the others find by that name, and processes of its own, which end with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.dist.whole_runs import children
from tests.integration.commands import ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")
CONFIGURATION = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
GresTypes=gpu
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
FirstJobId={first_job}
MinJobAge=3600
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""
NODE = "NodeName={name} NodeAddr={address} Port={port} CPUs={cpus} RealMemory={memory_mb} {gres}\n"
NAMESPACES = ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# The shell is a node's first process: it takes orphans, and all of the node ends when it does.
START_NODE = """\
hostname "$1" && mount --bind "$2" /etc/hosts || exit
slurmd -D -N "$1" -f "$SLURM_CONF" &
wait
"""
# Of the states of a job (squeue's manual), those that it does not leave by itself.
FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE")


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs.

    Attributes:
        folder: has its logs.
        environment: with which Slurm's commands find it.
        nodes: names of its nodes.
        daemons: those that run, by the names of their logs.
    """

    folder: Path
    environment: dict[str, str]
    nodes: tuple[str, ...]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *command: str | Path, **variables: str | Path) -> str:
        """Run a command, such as `sbatch` or a script that calls it, in the repository's root.

        Args:
            command: program and arguments.
            variables: of its environment, and so of the jobs that it submits.

        Returns:
            What it printed; fails the test, with that, where its exit status is not 0.
        """
        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=self.environment | {name: str(value) for name, value in variables.items()},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """All jobs so far, an array's tasks each for themselves, as `scontrol show job` has them.

        Returns:
            Fields such as JobId, ArrayTaskId, JobName, JobState, Restarts, ExitCode and StdOut;
            values that have blanks in them are cut at the first.
        """
        lines = self.run("scontrol", "show", "job", "--oneliner").splitlines()
        words = [[word.partition("=") for word in line.split()] for line in lines]
        jobs = [{name: value for name, _, value in fields} for fields in words]
        return [job for job in jobs if "JobState" in job]

    def processes(self, node: str) -> dict[int, list[str]]:
        """What runs on a node, one of several: programs and their arguments by process."""
        found, unseen = {}, [self.daemons[f"slurmd_{node}"].pid]
        while unseen:
            pid = unseen.pop()
            unseen += children(pid)
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return found

    def node_states(self) -> list[str]:
        """One a node, such as "idle"; none as long as the controller does not answer."""
        done = subprocess.run(
            ["sinfo", "--noheader", "--partition=all", "--Node", "--format=%T"],
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
        )
        return done.stdout.split()

    def wait(self, until: Callable[[list[dict[str, str]]], object] | None = None) -> None:
        """Wait for `until`, which is given all jobs; unless given, until all have ended."""
        while not (until or _have_ended)(self.jobs()):
            time.sleep(0.2)


def _have_ended(jobs: list[dict[str, str]]) -> bool:
    # A job after a failed one never starts; nobody would wait for it.
    stuck = [job for job in jobs if job.get("Reason") == "DependencyNeverSatisfied"]
    return all(job["JobState"] in FINISHED for job in jobs if job not in stuck)


@contextlib.contextmanager
def slurm_cluster(
    folder: Path, cpus: int = 64, memory_mb: int = 1 << 18, gpus: int = 0, nodes: int = 1
) -> Iterator[Slurm]:
    """A Slurm that runs as long as the context.

    Args:
        folder: a new one for configuration, state and logs; /tmp keeps its path short enough.
        cpus, memory_mb, gpus: what jobs can be given on a node, whatever the machine has.
        nodes: how many.

    Raises:
        pytest.skip.Exception: Slurm and munge are not installed, or may not be started.
    """
    _skip_unless_possible(nodes)
    own = socket.gethostname().partition(".")[0]
    names = (own,) if nodes == 1 else tuple(f"node{number}" for number in range(1, nodes + 1))
    for name in ("state", *(f"spool/{name}" for name in names)):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    gres = f"Gres=gpu:{gpus}" if gpus else ""
    configuration.write_text(_configure(folder, names, cpus=cpus, memory_mb=memory_mb, gres=gres))
    if gpus:  # empty files in place of devices: jobs get their share, whatever it is
        for number in range(gpus):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = _clean_environment() | {"SLURM_CONF": str(configuration), "PATH": _path()}
    slurm = Slurm(folder, environment, names)
    # --force: the folders of a test are not as munged would have those of a machine.
    with contextlib.ExitStack() as stack:
        munge = ("munged", "--foreground", "--force", *_munge_files(folder))
        daemons = [
            stack.enter_context(_daemon(slurm, munge)),
            stack.enter_context(_daemon(slurm, ("slurmctld", "-D", "-f", str(configuration)))),
            *(stack.enter_context(_run_node(slurm, name)) for name in names),
        ]
        while slurm.node_states() != ["idle"] * nodes:
            if any(daemon.poll() is not None for daemon in daemons):
                pytest.fail(f"Slurm did not start:\n{_logs(folder)}")
            time.sleep(0.1)
        try:
            yield slurm
        finally:
            _cancel_all(slurm)


@contextlib.contextmanager
def _run_node(slurm: Slurm, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node; where there are several, SIGKILL of its process ends everything on it."""
    command, stop = ("slurmd", "-D", "-f", str(slurm.folder / "slurm.conf")), signal.SIGTERM
    if len(slurm.nodes) > 1:
        hosts = str(slurm.folder / "hosts")
        command = (*NAMESPACES, "bash", "-c", START_NODE, "start", name, hosts)
        stop = signal.SIGKILL  # SIGTERM is not for `unshare`
    with _daemon(slurm, command, f"slurmd_{name}", stop) as process:
        yield process


def _skip_unless_possible(nodes: int) -> None:
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        pytest.skip(f"needs Slurm and munge (Debian: slurm-wlm, munge); missing: {missing[0]}")
    if os.geteuid() != 0:
        pytest.skip("needs to be root: slurmd starts jobs as their users")
    if nodes > 1:
        try:
            made = subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("several nodes need `unshare` (util-linux)")
        if made.returncode != 0:
            pytest.skip(f"several nodes need namespaces: {made.stderr.decode().strip()}")


def _path() -> str:
    """PATH with the folders of daemons, which a user's may lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _clean_environment() -> dict[str, str]:
    """Ours, without what a Slurm around the tests has put there."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM", "SBATCH", "SCONTROL", "SINFO"))
    }


def _configure(folder: Path, names: Sequence[str], **resources: object) -> str:
    """The text of slurm.conf; writes the file in which nodes find each other's addresses."""
    addresses = [f"127.0.0.{number}" for number in range(2, len(names) + 2)]  # 1 is localhost
    hosts = ["127.0.0.1 localhost", *map(" ".join, zip(addresses, names, strict=True))]
    (folder / "hosts").write_text("\n".join(hosts) + "\n")
    controller, *ports = _free_ports(1 + len(names))
    head = CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        controller_port=controller,
        # pretrain.sbatch takes ports by job number: other test processes have others.
        first_job=1 + 50 * (os.getpid() % 240),
    )
    return head + "".join(
        NODE.format(name=name, address=address, port=port, **resources)
        for name, address, port in zip(names, addresses, ports, strict=True)
    )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


def _munge_files(folder: Path) -> list[str]:
    return [
        f"--socket={folder}/munge.socket",
        f"--key-file={folder}/munge.key",
        f"--log-file={folder}/munged.file.log",
        f"--pid-file={folder}/munged.pid",
        f"--seed-file={folder}/munged.seed",
    ]


@contextlib.contextmanager
def _daemon(
    slurm: Slurm, command: Sequence[str], log_name: str = "", stop: int = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon in the foreground; its log, NAME.log in the folder, is named after it."""
    with (slurm.folder / f"{log_name or command[0]}.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=slurm.environment, stdout=log, stderr=subprocess.STDOUT
        )
    slurm.daemons[log_name or command[0]] = process
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _logs(folder: Path) -> str:
    """The ends of the daemons' logs."""
    return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in folder.glob("*.log"))


def _cancel_all(slurm: Slurm) -> None:
    """End what is still running: jobs outlive slurmd."""
    running = [job["JobId"] for job in slurm.jobs() if job["JobState"] not in FINISHED]
    if running:
        slurm.run("scancel", "--signal=KILL", "--full", *running)
        slurm.run("scancel", *running)
        slurm.wait()
