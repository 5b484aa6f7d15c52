"""The base model: which folder it is, and which bytes."""

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dreambooth_core import config
from dreambooth_core.diffusion.model_folders import model_index
from dreambooth_core.digests import digest_json, digest_of_file
from dreambooth_core.errors import ConfigError, ModelError, one_line
from dreambooth_core.hub import READ

_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_base(model: config.Model) -> None:
    """Raises `ConfigError` unless the base is a folder that exists or a Hub id with its commit."""
    if os.path.isdir(model.base):  # where Path.is_dir raises for a name that is too long
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model.base) or model.base.startswith("."):
        raise ConfigError(f"there is no folder {model.base}; set model.base to one, or to a Hub id")
    if not _COMMIT.fullmatch(model.revision or ""):
        raise ConfigError(
            f"there is no folder {model.base}, and as a Hub id it needs model.revision, "
            "the 40 hex digits of a commit, so that the same config means the same weights"
        )


def base_folder(model: config.Model) -> Path:
    """The base's local folder; a Hub id is fetched once, at its pinned commit, safetensors only.

    Raises `ConfigError` as `check_base` does, and `ModelError` for what cannot be fetched.
    """
    check_base(model)
    folder = Path(model.base)
    if folder.is_dir():
        return folder.resolve()
    return _snapshot(model.base, str(model.revision))


def absolute(model: config.Model) -> config.Model:
    """The model with its folder's whole path, for processes that work in other folders."""
    folder = Path(model.base)
    if not folder.is_dir():
        return model
    return model.model_copy(update={"base": str(folder.resolve())})


def newest(model: config.Model, branch: str) -> config.Model:
    """The model at the commit where a branch or tag of its Hub repository stands now.

    A folder is what is in it, and stays. Raises `ModelError` when the Hub does not say.
    """
    if Path(model.base).is_dir():
        return model
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(model.base, revision=branch).sha
    except Exception as error:  # the client's own tree of errors is wide and changes
        raise ModelError(
            f"the Hub does not say where {branch} of {model.base} stands "
            f"({type(error).__name__}): check both names and the connection"
        ) from error
    return model.model_copy(update={"revision": commit})


def base_digest(model: config.Model) -> str:
    """SHA-256 over the names and digests of the files that are read from the base's folder."""
    folder = base_folder(model)
    files = _files(folder)
    if not files:
        raise ModelError(
            f"{folder} holds no model; set model.base to a folder in diffusers' format"
        )
    return _digest_all(folder, files)


def component_digest(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over the files of some components in a base's folder; raises `ModelError`."""
    parts = tuple(names)
    files = [path for part in parts for kind in READ for path in (folder / part).glob(kind)]
    if not files:
        raise ModelError(f"{folder} holds no {' or '.join(parts)}; the model must be complete")
    return _digest_all(folder, sorted(files))


def _digest_all(folder: Path, files: Iterable[Path]) -> str:
    return digest_json(
        {path.relative_to(folder).as_posix(): _digest(path, *_version(path)) for path in files}
    )


def _snapshot(repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        index = Path(
            snapshot_download(repository, revision=revision, allow_patterns=["model_index.json"])
        )
        wanted = [f"{part}/{kind}" for part in _parts(index) for kind in READ]
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=["model_index.json", *wanted],
                ignore_patterns=["*.fp16.*", "*.bf16.*", "*non_ema*"],
            )
        )
    except Exception as error:  # the client's own tree of errors is wide and changes
        raise ModelError(
            f"cannot fetch {repository} at {revision} from the Hub ({one_line(error, 300)}); "
            "check the name, the commit and the connection"
        ) from error


def _parts(folder: Path) -> list[str]:
    """The folders that `model_index.json` names; a safety checker is never read."""
    unused = {"pipeline", "safety_checker", "feature_extractor", "image_encoder"}
    try:
        return sorted(model_index(folder).keys() - unused)
    except ModelError:
        return []


def _files(folder: Path) -> list[Path]:
    found = [
        path for part in _parts(folder) for kind in READ for path in (folder / part).glob(kind)
    ]
    return sorted([folder / "model_index.json", *found]) if found else []


def _version(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, _size: int, _changed: int) -> str:
    return digest_of_file(path)
