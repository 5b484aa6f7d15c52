"""The base model: its local folder, its Hub revision and the digests of its files."""

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
    """Raises `ConfigError` unless the base is an existing folder or a Hub id with a commit."""
    if os.path.isdir(model.base):  # Path.is_dir raises for a name that is too long
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model.base) or model.base.startswith("."):
        raise ConfigError(f"no folder {model.base}: set model.base to a model folder or a Hub id")
    if not _COMMIT.fullmatch(model.revision or ""):
        raise ConfigError(
            f"no folder {model.base}: as a Hub id it needs model.revision, the 40 hex digits of a "
            "commit, so that equal configs give equal weights"
        )


def base_folder(model: config.Model) -> Path:
    """The base's local folder; a Hub id is downloaded once, at its pinned commit, safetensors only.

    Raises `ConfigError` as `check_base` does, and `ModelError` when the download fails.
    """
    check_base(model)
    folder = Path(model.base)
    if folder.is_dir():
        return folder.resolve()
    return _snapshot(model.base, str(model.revision))


def absolute(model: config.Model) -> config.Model:
    """The model with an absolute folder, for processes with another working directory."""
    folder = Path(model.base)
    if not folder.is_dir():
        return model
    return model.model_copy(update={"base": str(folder.resolve())})


def newest(model: config.Model, branch: str) -> config.Model:
    """The model at the current commit of a branch or tag of its Hub repository.

    A local folder is returned unchanged. Raises `ModelError` when the Hub request fails.
    """
    if Path(model.base).is_dir():
        return model
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(model.base, revision=branch).sha
    except Exception as error:  # huggingface_hub's exception classes vary by version
        raise ModelError(
            f"cannot read the commit of {branch} of {model.base} from the Hub "
            f"({type(error).__name__}): check both names and the connection"
        ) from error
    return model.model_copy(update={"revision": commit})


def pipeline_class(model: config.Model) -> str:
    """The pipeline class in the base's `model_index.json`, of a Hub id at its commit.

    Downloads that file only. Raises `ConfigError` as `check_base` does, and `ModelError`.
    """
    check_base(model)
    folder = Path(model.base)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            file = hf_hub_download(model.base, "model_index.json", revision=model.revision)
        except Exception as error:  # huggingface_hub's exception classes vary by version
            raise ModelError(
                f"cannot read model_index.json of {model.base} from the Hub "
                f"({type(error).__name__}): check the name and the connection, or name a --recipe"
            ) from error
        folder = Path(file).parent
    return model_index(folder)["pipeline"]


def base_digest(model: config.Model) -> str:
    """SHA-256 over the names and digests of the base's model files; raises `ModelError`."""
    folder = base_folder(model)
    files = _files(folder, _components(folder))
    if not files:
        raise ModelError(
            f"{folder} has no model files; set model.base to a folder in diffusers' format"
        )
    return _digest_all(folder, [folder / "model_index.json", *files])


def component_digest(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over the files of the named components of a base; raises `ModelError`."""
    components = tuple(names)
    files = _files(folder, components)
    if not files:
        raise ModelError(f"{folder} has no {' or '.join(components)}; the model must be complete")
    return _digest_all(folder, files)


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
        wanted = [f"{name}/{kind}" for name in _components(index) for kind in READ]
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=["model_index.json", *wanted],
                ignore_patterns=["*.fp16.*", "*.bf16.*", "*non_ema*"],
            )
        )
    except Exception as error:  # huggingface_hub's exception classes vary by version
        raise ModelError(
            f"cannot fetch {repository} at {revision} from the Hub ({one_line(error)}); "
            "check the name, the commit and the connection"
        ) from error


def _components(folder: Path) -> list[str]:
    """Components in `model_index.json`, without the safety checker and image encoders."""
    unused = {"pipeline", "safety_checker", "feature_extractor", "image_encoder"}
    try:
        return sorted(model_index(folder).keys() - unused)
    except ModelError:
        return []


def _files(folder: Path, components: Iterable[str]) -> list[Path]:
    return sorted(
        path for name in components for kind in READ for path in (folder / name).glob(kind)
    )


def _version(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, _size: int, _changed: int) -> str:
    return digest_of_file(path)
