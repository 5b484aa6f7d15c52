"""Command and environment of a training's ranks, and each rank's place in them."""

import os
import sys
from pathlib import Path

RENDEZVOUS = "rendezvous"
"""Folder beside the spec, for the rendezvous files of the ranks of one machine."""
LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"
ATTEMPT = ("-m", "dreambooth_core.training.process")


def rank() -> int:
    """This process's rank, set by torchrun; 0 without it."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of ranks, set by torchrun; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def command(spec: Path, ranks: int, attempt: str) -> list[str]:
    """The command of an attempt on one machine.

    A single rank starts without torchrun, which would add seconds and a port open to the network.
    """
    if ranks == 1:
        return [sys.executable, *ATTEMPT, str(spec)]
    return [
        *_torchrun(ranks),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", str(spec.parent / RENDEZVOUS / "launcher")),
        *("--rdzv-conf", "store_type=file", "--rdzv-id", attempt),
        *("--local-addr", "127.0.0.1", *ATTEMPT, str(spec)),
    ]


def node_command(spec: Path, ranks: int, node: int, nodes: int, first: str) -> list[str]:
    """The command of one of several machines; `first` is ADDRESS:PORT of node 0's torchrun."""
    address, _, port = first.rpartition(":")
    return [
        *_torchrun(ranks),
        *("--nnodes", str(nodes), "--node-rank", str(node)),
        *("--master-addr", address, "--master-port", port, *ATTEMPT, str(spec)),
    ]


def environment(ranks: int) -> dict[str, str]:
    """This process's environment, with cores divided among the ranks, quiet libraries and no Hub access.

    By default torchrun opens an unused store on all interfaces, and gloo and NCCL choose the
    interface of the host name; both are restricted to loopback. Set variables take precedence.
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


def node_environment(ranks: int, address: str) -> dict[str, str]:
    """`environment` of one of several machines, which communicates over the interface of `address`."""
    interface = _interface(address)
    return {
        **environment(ranks),
        # the ranks rendezvous at the store that torchrun opens on node 0
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0",
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
    }


def _torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]


def _interface(address: str) -> str:
    import psutil

    names = {each.address: name for name, group in psutil.net_if_addrs().items() for each in group}
    return LOOPBACK if address.startswith("127.") else names.get(address, "")
