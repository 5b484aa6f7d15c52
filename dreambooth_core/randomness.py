"""Stateless randomness: every draw depends on (run seed, stream name, index) alone.

Draws are the same for any number of processes, after any restart and in any order.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def seed_for(run_seed: int, stream: str, index: int) -> int:
    """A 63-bit seed: the first 63 bits of SHA-256 of the three.

    Streams are named by their use, e.g. `instance.noise`; `index` counts within the stream.
    """
    digest = hashlib.sha256(f"{run_seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(run_seed: int, stream: str, index: int) -> "torch.Generator":
    """A CPU generator seeded with `seed_for`: the same numbers on every device."""
    import torch

    return torch.Generator().manual_seed(seed_for(run_seed, stream, index))


def normal(run_seed: int, stream: str, index: int, shape: tuple[int, ...]) -> "Tensor":
    """Standard normal float32 numbers of `shape`, on the CPU."""
    import torch

    return torch.randn(shape, generator=generator(run_seed, stream, index))


def integer(run_seed: int, stream: str, index: int, below: int) -> int:
    """A uniform integer in [0, below); bias below `below` / 2**63."""
    return seed_for(run_seed, stream, index) % below


def uniform(run_seed: int, stream: str, index: int) -> float:
    """A uniform number in [0, 1), a multiple of 2**-53."""
    return (seed_for(run_seed, stream, index) >> 10) / 2**53


def permutation(run_seed: int, stream: str, epoch: int, count: int) -> list[int]:
    """A random permutation of [0, count): the order of `shuffled` in one epoch."""
    import torch

    items: list[int] = torch.randperm(count, generator=generator(run_seed, stream, epoch)).tolist()
    return items


def shuffled(run_seed: int, stream: str, position: int, count: int) -> int:
    """Item in [0, count) at `position`, from 0, of epochs that are each a new permutation."""
    epoch, index = divmod(position, count)
    return permutation(run_seed, stream, epoch, count)[index]
