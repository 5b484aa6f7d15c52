"""`dreambooth init`, and the config that `dreambooth run FOLDER` starts from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dreambooth_core.cli.options import Recipe
from dreambooth_core.errors import ConfigError

app = typer.Typer()

ClassNoun = Annotated[
    str | None, typer.Option("--class", metavar="NOUN", help="Word for the subject's class: dog.")
]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the model; default: the folder's.")
]
Base = Annotated[
    str | None,
    typer.Option(metavar="BASE", help="A model folder, or a Hub id with or without @COMMIT."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps; default: the recipe's.")]


@app.command()
def init(
    photos: Annotated[Path, typer.Argument(metavar="FOLDER", help="Photos of the subject.")],
    class_noun: ClassNoun = None,
    name: Name = None,
    base: Base = None,
    recipe: Recipe = None,
    steps: Steps = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: NAME.yaml in this folder.")
    ] = None,
) -> None:
    """Write a config with comments for a folder of photos."""
    written = write_config(photos, class_noun, name, base, recipe, steps, out)
    print(f"{written}: edit it, then dreambooth run {written}")


def write_config(
    photos: Path,
    class_noun: str | None,
    name: str | None,
    base: str | None,
    recipe: str | None,
    steps: int | None,
    out: Path | None = None,
) -> Path:
    """Write the config file, or leave one with the same text; raises `ConfigError` for another one.

    A Hub id without a commit is pinned to the current one of its main branch.
    """
    from dreambooth_core.config.base import as_name
    from dreambooth_core.config.starting import BASES, starting_config

    if not photos.is_dir():
        raise ConfigError(f"{photos} is no folder: name the folder with the photos")
    if class_noun is None:
        raise ConfigError(f"{photos} has photos of what? Add --class NOUN, such as --class dog")
    if base is None:
        raise ConfigError(f"no base model is named: add --base, such as {', '.join(BASES)}")
    name = name or as_name(photos.resolve().name)
    model = _model(base)
    recipe = recipe or _recipe(model)
    own: dict[str, Any] = {
        "name": name,
        "subject": {"images": str(photos), "class_noun": class_noun},
        "model": model,
    }
    if steps is not None:
        own["train"] = {"steps": steps}
    text = starting_config(recipe, own, f"dreambooth init {photos} --class {class_noun}")
    target = out or Path(f"{name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if target.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{target} exists and differs: use it by dreambooth run {target}, or choose another "
                "--name"
            ) from None
    return target


def _model(base: str) -> dict[str, Any]:
    """`model.base` and, for a Hub id, its commit."""
    from dreambooth_core.config import Model
    from dreambooth_core.diffusion import base_model

    if Path(base).is_dir():
        return {"base": base}
    repository, _, commit = base.partition("@")
    revision = commit or base_model.newest(Model(base=repository), "main").revision
    return {"base": repository, "revision": revision}


def _recipe(model: dict[str, Any]) -> str:
    """The LoRA recipe of the base's family; raises `ConfigError` for a base of no family."""
    from dreambooth_core import plugins
    from dreambooth_core.config import Model
    from dreambooth_core.diffusion import base_model, families

    if Path(model["base"]) == Path("examples/small_world/base"):
        return "small_world-lora"
    found = base_model.pipeline_class(Model(**model))
    for name in plugins.names(families.__name__):
        if families.load_family(name).pipeline_class == found:
            return f"{name}-lora"
    raise ConfigError(
        f"{model['base']} holds a {found[:80]}, which no model family trains: `dreambooth families` "
        "lists them"
    )
