"""Which files of a folder are photos, which stand beside one, and which are left aside."""

import os
from pathlib import Path

from dreambooth_core.data import masks
from dreambooth_core.data.findings import Finding, about
from dreambooth_core.errors import ConfigError

# fmt: off
SIDECARS = frozenset({
    "txt", "caption", "json", "jsonl", "csv", "md", "yaml", "yml", "xml", "xmp", "aae", "ini", "db",
    "lnk", "url", "license", "licence", "licenses", "readme",
})
RAW = frozenset({"dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "pef", "srw"})
# fmt: on


def candidates(folder: Path, findings: list[Finding]) -> tuple[list[Path], dict[str, Path]]:
    """The files that are photos or claim to be, by name, and masks by the stems of their photos.

    Says what is left aside.
    """
    root, photos = Path(os.path.realpath(folder)), []
    drawn: dict[str, Path] = {}
    try:
        entries = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    except OSError as error:
        raise ConfigError(
            f"the photo folder {folder} cannot be listed: {error.strerror}"
        ) from error
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            findings.append(
                about(
                    "hard",
                    path,
                    "link",
                    "a link that leaves the folder",
                    "links inside the folder",
                    "copy the file itself into the folder",
                )
            )
        elif masks.is_mask(path):
            drawn[masks.stem(path)] = path
        elif _is_photo(path):
            photos.append(path)
        elif not _is_sidecar(path):
            findings.append(_left_aside(path))
    stems = {path.stem for path in photos}
    findings.extend(_lonely(path) for stem, path in drawn.items() if stem not in stems)
    return photos, drawn


def _is_photo(path: Path) -> bool:
    """By extension or, whatever its name, by its first bytes."""
    from dreambooth_core.data.images import EXTENSIONS, looks_like_image

    extension = path.suffix[1:].lower()
    if path.is_dir() or extension in RAW:
        return False
    if any(extension in extensions for extensions in EXTENSIONS.values()):
        return True
    try:
        with path.open("rb") if path.is_file() else open(os.devnull, "rb") as file:
            return looks_like_image(file.read(16))
    except OSError:
        return False


def _is_sidecar(path: Path) -> bool:
    words = {path.suffix[1:].lower(), path.stem.lower()}
    return not path.is_dir() and bool(words & SIDECARS)


def _lonely(mask: Path) -> Finding:
    what, limit = "a mask without its photo", "a photo of the same stem beside it"
    return about("soft", mask, "ignored", what, limit, "rename it, or remove it")


def _left_aside(path: Path) -> Finding:
    what, remedy = "not an image", "remove it from the folder"
    if path.is_dir():
        what, remedy = "a folder inside the folder", "move its photos up if they belong to the set"
    elif path.suffix[1:].lower() in RAW:
        what, remedy = "a camera's raw file", "export it as JPEG or PNG"
    return about("soft", path, "ignored", what, "photos only", remedy)
