"""How the ranks of an attempt are started: by which command, and in which environment."""

import os
import sys
from pathlib import Path

MEETING = "meeting"
"""Folder beside the spec where the ranks of one machine find one another."""
LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"
ATTEMPT = ("-m", "dreambooth_core.training.process")


def command(spec: Path, ranks: int, attempt: str) -> list[str]:
    """One rank is started directly; torchrun would add seconds and a port open to the network."""
    if ranks == 1:
        return [sys.executable, *ATTEMPT, str(spec)]
    return [
        *_torchrun(ranks),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", str(spec.parent / MEETING / "launcher")),
        *("--rdzv-conf", "store_type=file", "--rdzv-id", attempt),
        *("--local-addr", "127.0.0.1", *ATTEMPT, str(spec)),
    ]


def command_on(spec: Path, ranks: int, machine: int, machines: int, first: str) -> list[str]:
    """The part of one of several machines; `first` is ADDRESS:PORT of the one that the others ask."""
    address, _, port = first.rpartition(":")
    return [
        *_torchrun(ranks),
        *("--nnodes", str(machines), "--node-rank", str(machine)),
        *("--master-addr", address, "--master-port", port, *ATTEMPT, str(spec)),
    ]


def environment(ranks: int) -> dict[str, str]:
    """Ours, with the cores shared among the ranks and the libraries kept quiet and at home.

    Left alone, torchrun offers its ranks a store on all interfaces, which they do not use, and the
    ranks talk over whatever the machine's name stands for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    defaults = {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "NCCL_SOCKET_IFNAME": LOOPBACK,
        "OMP_NUM_THREADS": str(max(1, (cores or 1) // ranks)),
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {**defaults, **os.environ}


def environment_on(ranks: int, address: str) -> dict[str, str]:
    """The same for one of several machines, whose own address this is: they speak over its interface."""
    interface = _interface(address)
    return {
        **environment(ranks),
        # the ranks meet at the store that torchrun has opened on the first machine
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0",
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
    }


def _torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]


def _interface(address: str) -> str:
    import psutil

    found = {one.address: name for name, all_of in psutil.net_if_addrs().items() for one in all_of}
    return LOOPBACK if address.startswith("127.") else found.get(address, "")
