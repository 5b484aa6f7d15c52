"""Trainings through the stage, with store, caches and processes, for tests of kills and stops."""

import io
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from dreambooth_core.config import Config
from dreambooth_core.storage.blobs import image_set, put_blob
from dreambooth_core.storage.records import Image, ImageSet, Weights
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.training import spec, stage
from dreambooth_core.training.class_images import class_images, ensure_class_images
from tests.leased_by_hand import held

LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp."""


@dataclass
class Run:
    """A run whose attempts resume from one another."""

    base: Path
    work: Path
    steps: int
    train: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    """Section `storage`; by default a store in the work folder."""
    compute: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        train = {"method": "full", "learning_rate": 1e-3, "lr_schedule": "cosine"}
        train |= {"steps": self.steps, **self.train}
        return Config.model_validate(
            {
                "name": "test",
                "seed": 7,
                "subject": {"images": self.work, "class_noun": "dog"},
                "model": {"base": str(self.base), "resolution": 32},
                "train": train,
                "adapter": {"rank": 4, "alpha": 4},
                "checkpoints": self.checkpoints,
                "prior": {"target": "images", "num_class_images": 4},
                "sampler": {"inference_steps": 2, "batch_size": 2},
                "storage": self.storage
                or {"uri": f"file://{self.work / 'store'}", "endpoint": None},
                "paths": {"work": self.work},
                "compute": self.compute,
            }
        )

    @property
    def folder(self) -> Path:
        (found,) = self.work.resolve().glob("runs/*")
        return found

    @property
    def saved(self) -> Path:
        return self.folder / "checkpoints"

    def attempt(self, progress: Callable[[int, int, str], None] | None = None) -> Weights:
        """Train until the end or an error."""
        store = open_store(self.config.storage)
        photos = _photos(store)
        ensure_class_images(self.config, store, photos)
        return stage.train(self.config, store, photos, progress)[0]

    def prepared(self) -> spec.TrainingSpec:
        """The spec of an attempt, without a supervising parent."""
        store, folder = open_store(self.config.storage), self.work / "runs" / "by_hand"
        lease = held(store, "runs/by_hand", folder)
        photos = _photos(store)
        ensure_class_images(self.config, store, photos)
        planned = class_images(self.config, photos)
        return stage._prepare(self.config, lease, folder.resolve(), photos, planned)

    def processes(self) -> list[int]:
        """Ids of all running processes of this run: guards, launchers, ranks."""
        return [pid for pid, arguments in _processes() if any(map(self._belongs, arguments))]

    def ranks(self) -> list[int]:
        """Ids of the training processes, in the order of their start."""
        module = b"dreambooth_core.training.process"
        own = set(self.processes())
        return sorted(
            pid for pid, arguments in _processes() if pid in own and module in arguments[:4]
        )

    def kill(self, number: signal.Signals, which: slice = slice(None)) -> None:
        """Send a signal to the ranks, not to their launcher."""
        for pid in self.ranks()[which]:
            os.kill(pid, number)

    def _belongs(self, argument: bytes) -> bool:
        return bytes(self.work.resolve()) in argument


def _processes() -> list[tuple[int, list[bytes]]]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found.append((int(name), arguments))
    return found


def _photos(store: Store) -> ImageSet:
    draws = np.random.default_rng(0)
    members = []
    for index in range(3):
        file = io.BytesIO()
        Pillow.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        blob = put_blob(store, file.getvalue())
        members.append(Image(name=f"{index}.png", blob=blob, size=(32, 32)))
    return image_set(store, "datasets/test", members)


def listening(processes: Iterable[int]) -> list[str]:
    """The addresses at which any of the processes listens."""
    open_files = set()
    for pid in processes:
        with suppress(OSError):
            open_files |= {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and f"socket:[{fields[9]}]" in open_files:
                found.append(_address(family, fields[1].split(":")[0]))
    return found


def _address(family: socket.AddressFamily, hexadecimal: str) -> str:
    """The address in /proc/net/tcp: 32-bit words in the machine's byte order."""
    words = [hexadecimal[at : at + 8] for at in range(0, len(hexadecimal), 8)]
    return socket.inet_ntop(family, b"".join(struct.pack("=I", int(word, 16)) for word in words))
