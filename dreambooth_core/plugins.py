"""Plugins: a family, metric, store, export, engine or check is one module, found by its file name."""

import importlib
import pkgutil
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from types import ModuleType

from dreambooth_core.errors import ConfigError


def names(package: str) -> list[str]:
    """Names of the modules of `package`, sorted; nothing is imported."""
    found = pkgutil.iter_modules(_folders(package))
    return sorted(m.name for m in found if not m.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import `package.name`; raises `ConfigError` with the names that exist."""
    known = names(package)
    if name not in known:
        folder = package.rsplit(".", 1)[-1]
        raise ConfigError(f"no file {name}.py in {folder}/; choose one of: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")


def _folders(package: str) -> Iterable[str]:
    """Folders that hold the modules of `package`; raises `ModuleNotFoundError`."""
    if package in sys.modules:
        return sys.modules[package].__path__
    parent = package.rpartition(".")[0]
    spec = PathFinder.find_spec(package, list(_folders(parent)) if parent else None)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package {package}", name=package)
    return spec.submodule_search_locations
