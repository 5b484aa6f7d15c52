"""Recipes: settings per family and method, one file `<family>-<method>.yaml` each; or a file of the user."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dreambooth_core.errors import ConfigError

FOLDER = Path(__file__).parent


def recipe_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def recipe_file(name: str) -> Path:
    """The file of a recipe, or the YAML file that is named; raises `ConfigError` for an unknown name."""
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    if name in recipe_names():
        return FOLDER / f"{name}.yaml"
    near = get_close_matches(name, recipe_names(), n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no recipe is called {name}: {meant}`dreambooth recipes` lists them")


def overlaid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`under` updated by `over`; nested mappings are merged key by key."""
    merged = {
        name: overlaid(under[name], value)
        for name, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(name), dict)
    }
    return {**under, **over, **merged}
