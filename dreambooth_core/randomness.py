"""Stateless randomness: every number is a hash of (run seed, stream, index) and no more.

So a draw is the same for any number of processes, after any restart, and in any order.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def seed_for(run_seed: int, stream: str, index: int) -> int:
    """A 63-bit seed: SHA-256 of the three, cut off.

    Streams are named by what they feed, e.g. `instance.noise`; `index` counts within the stream.
    """
    digest = hashlib.sha256(f"{run_seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(run_seed: int, stream: str, index: int) -> "torch.Generator":
    """A CPU generator seeded with `seed_for`, so that a GPU run draws the same numbers."""
    import torch

    return torch.Generator().manual_seed(seed_for(run_seed, stream, index))


def normal(run_seed: int, stream: str, index: int, shape: tuple[int, ...]) -> "Tensor":
    """Standard normal float32 numbers of `shape`, on the CPU."""
    import torch

    return torch.randn(shape, generator=generator(run_seed, stream, index))


def integer(run_seed: int, stream: str, index: int, below: int) -> int:
    """A uniform integer in [0, below); off uniform by less than below / 2**63."""
    return seed_for(run_seed, stream, index) % below


def uniform(run_seed: int, stream: str, index: int) -> float:
    """A uniform number in [0, 1), with all 53 bits that a float has there."""
    return (seed_for(run_seed, stream, index) >> 10) / 2**53


def permutation(run_seed: int, stream: str, epoch: int, count: int) -> list[int]:
    """All of [0, count), shuffled: the walk of `shuffled` through one epoch."""
    import torch

    found: list[int] = torch.randperm(count, generator=generator(run_seed, stream, epoch)).tolist()
    return found


def shuffled(run_seed: int, stream: str, position: int, count: int) -> int:
    """Item of an endless walk over `count` items: each once per epoch, each epoch shuffled anew.

    `position` is the place in the walk, from 0; the result is in [0, count).
    """
    epoch, place = divmod(position, count)
    return permutation(run_seed, stream, epoch, count)[place]
