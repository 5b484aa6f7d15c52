"""A folder's files: photos, masks, sidecars and ignored files; reading under a size limit."""

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
    """Photo files, sorted by name, and masks by their photos' stems.

    Appends findings about links out of the folder and about ignored files. Raises `ConfigError` for
    a folder that cannot be listed.
    """
    root, photos = Path(os.path.realpath(folder)), []
    mask_files: dict[str, Path] = {}
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
                    "a link out of the folder",
                    "links inside the folder",
                    "copy the file into the folder",
                )
            )
        elif masks.is_mask(path):
            mask_files[masks.stem(path)] = path
        elif _is_photo(path):
            photos.append(path)
        elif not _is_sidecar(path):
            findings.append(_ignored(path))
    stems = {path.stem for path in photos}
    what, limit = "a mask without its photo", "a photo of the same stem beside it"
    findings.extend(
        about("soft", path, "ignored", what, limit, "rename it, or remove it")
        for stem, path in mask_files.items()
        if stem not in stems
    )
    return photos, mask_files


def photo_bytes(path: Path, max_bytes: int) -> bytes:
    """The file's content; raises `ImageRefused` above `max_bytes`, before reading."""
    from dreambooth_core.data.images import ImageRefused

    try:
        if not path.is_file():
            raise OSError(0, "not a regular file")
        size = path.stat().st_size
        if size <= max_bytes:
            return path.read_bytes()
    except OSError as error:
        raise ImageRefused(
            "unreadable",
            f"cannot be read ({error.strerror})",
            "a readable file",
            "check its permissions, or remove it",
        ) from error
    raise ImageRefused(
        "too large",
        f"{size:,} bytes",
        f"at most {max_bytes:,} bytes",
        "scale it down, or raise dataset.max_bytes",
    )


def _is_photo(path: Path) -> bool:
    """By extension or by its first bytes."""
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


def _ignored(path: Path) -> Finding:
    what, remedy = "not an image", "remove it from the folder"
    if path.is_dir():
        what, remedy = "a subfolder", "move its photos up if they belong to the set"
    elif path.suffix[1:].lower() in RAW:
        what, remedy = "a camera's raw file", "export it as JPEG or PNG"
    return about("soft", path, "ignored", what, "photos only", remedy)
