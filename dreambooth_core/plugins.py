"""Open places: a family, a metric or a store is one file, found by its name."""

import importlib
import pkgutil
from types import ModuleType

from dreambooth_core.errors import ConfigError


def names(package: str) -> list[str]:
    """The modules of `package`, sorted; nothing inside them is imported."""
    folder = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import `package.name`; raises `ConfigError` with the names that exist."""
    known = names(package)
    if name not in known:
        place = package.rsplit(".", 1)[-1]
        raise ConfigError(f"no file {name}.py in {place}/; there is: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")
