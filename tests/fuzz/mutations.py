"""Cases of valid inputs with random damage: bytes flipped, cut, dropped, repeated, inserted, reversed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fuzz import materials
from tests.fuzz.case import BAD, FAILED, REFUSED, Case, write_config

INSERTED = (b"\0", b"\xff\xfe", b": ", b"[", b"{", b"&a ", b"*a", b"\n")
EACH = 15
"""Cases per kind of file."""


def cases(seed: int) -> Iterator[Case]:
    """Exit code 0 is accepted as well, since some damage is harmless."""
    photo = ("validate", "photos", "--resolution", "32")
    show, dry = ("config", "show", "config.yaml"), ("train", "config.yaml", "--dry-run")
    kinds: tuple[tuple[str, tuple[str, ...], str, int], ...] = (
        ("a photo", photo, "photos/0.png", REFUSED),
        ("a JPEG", photo, "photos/9.jpg", REFUSED),
        ("a config", show, "config.yaml", BAD),
        ("model_index.json", dry, "base/model_index.json", FAILED),
        ("a unet's config", dry, "base/unet/config.json", FAILED),
        ("a job", ("sample", "job.yaml", "--work", "work"), "job.yaml", BAD),
    )
    for what, words, name, code in kinds:
        for number in range(EACH):
            build = _damaged(name, f"{seed} {what} {number}")
            yield Case(f"mutations/{what} {number}", words, code, build, harmless=True)


def _damaged(name: str, seed: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        photos = materials.photos(folder)
        (photos / "9.jpg").write_bytes(materials.encoded("JPEG", 9))
        if name.startswith("base"):
            materials.base(folder)
        write_config(folder)
        (folder / "job.yaml").write_text("models: dog\nprompts: [x, y]\nseeds: [1, 2]\n")
        path = folder / name
        path.write_bytes(damage(path.read_bytes(), random.Random(seed)))

    return build


def damage(data: bytes, draw: random.Random) -> bytes:
    """One to four random changes."""
    for _ in range(draw.randint(1, 4)):
        at, end = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
        piece = data[at : min(end, at + 40)]
        change = draw.choice(("flip", "cut", "drop", "repeat", "insert", "exchange"))
        if change == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        elif change == "cut":
            data = data[: max(at, 1)]
        elif change == "drop":
            data = data[:at] + data[at + len(piece) :]
        elif change == "repeat":
            data = data[:at] + piece * draw.randint(2, 50) + data[at:]
        elif change == "insert":
            data = data[:at] + draw.choice(INSERTED) + data[at:]
        else:
            data = data[:at] + piece[::-1] + data[at + len(piece) :]
    return data or b"\0"
