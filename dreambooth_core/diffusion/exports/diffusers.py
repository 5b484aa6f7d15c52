"""A whole model of any family as a folder for `DiffusionPipeline.from_pretrained`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.diffusion.exports import ANY, TrainedModel
from dreambooth_core.diffusion.exports._merged import changed_components, merged

_METHODS = ("full", "lora", "dora", "lokr", "textual_inversion", "pivotal")
_READ = (".json", ".txt", ".model", ".safetensors", ".jinja")
_UNUSED = ("safety_checker", "feature_extractor")


class Diffusers:
    name = "diffusers"
    description = "a folder for DiffusionPipeline.from_pretrained"
    takes: Mapping[str, tuple[str, ...]] = {ANY: _METHODS}

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        from torch.nn import Module

        from dreambooth_core.diffusion.adapters import write_component

        folder = out / source.info.title
        changed = changed_components(source)
        _copy(source.base, folder, changed)
        parts = merged(source)
        for name in changed:
            part = parts[name]
            if isinstance(part, Module):
                part = _as_stored(part, source.base / name)
            write_component(part, folder / name)
            _rename_clip(folder / name)
        return [folder]


def _copy(base: Path, folder: Path, changed: tuple[str, ...]) -> None:
    """Copy the base's files except for the `changed` components and the safety checker."""
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    for name, entry in index.items():
        if not isinstance(entry, list):
            continue
        if name in _UNUSED or not (base / name).is_dir():
            index[name] = [None, None]
        elif name not in changed:
            shutil.copytree(base / name, folder / name, ignore=_unused_files)
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _unused_files(folder: str, names: list[str]) -> set[str]:
    """Weights in other formats or dtypes that a base's folder may contain as well."""
    variants = (".fp16.", ".bf16.", "non_ema")
    return {
        name
        for name in names
        if not Path(folder, name).is_dir()
        and (not name.endswith(_READ) or any(variant in name for variant in variants))
    }


def _as_stored(component: Any, folder: Path) -> Any:
    """The component in the base's dtype, with `vocab_size` including new tokens."""
    from dreambooth_core.diffusion.adapters import stored_dtype

    table = getattr(component, "get_input_embeddings", lambda: None)()
    if table is not None:
        component.config.get_text_config().vocab_size = table.num_embeddings
    return component.to(stored_dtype(folder))


def _rename_clip(folder: Path) -> None:
    """Prefix a CLIP's weights with `text_model.`, which all versions of transformers read."""
    from dreambooth_core.diffusion import safetensors_files

    path = folder / "model.safetensors"
    if not path.is_file():
        return
    tensors, texts = safetensors_files.read(path)
    if "embeddings.position_embedding.weight" in tensors:
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
        safetensors_files.write(path, tensors, texts)


EXPORT = Diffusers()
