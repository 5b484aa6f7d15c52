"""The whole model with trained weights applied and adapters merged."""

from collections.abc import Iterator

from dreambooth_core.diffusion.exports import TrainedModel
from dreambooth_core.diffusion.families import Parts, load_family


def merged(source: TrainedModel) -> Parts:
    """Base with weights applied, float32, as in our own sampling; raises `ModelError`."""
    from dreambooth_core.diffusion import adapters

    family = load_family(source.family)
    tuned = {path.name: path for path in source.weights.iterdir() if path.is_dir()}
    return adapters.apply(family, family.load(source.base, tuned), source.weights)


def changed_components(source: TrainedModel) -> tuple[str, ...]:
    """Names of the components, including tokenizers, that differ from the base's."""
    return tuple(dict.fromkeys(_changed(source)))


def _changed(source: TrainedModel) -> Iterator[str]:
    from dreambooth_core.diffusion import adapters, safetensors_files, textual_inversion

    tokenizers = load_family(source.family).tokenizers
    for path in sorted(source.weights.iterdir()):
        if path.is_dir():
            yield path.name
        elif path.name == textual_inversion.FILE:
            for encoder, tokenizer in tokenizers.items():
                yield from (encoder, tokenizer)
        elif path.name == adapters.LORA_FILE:
            yield from sorted({key.split(".")[0] for key in safetensors_files.read(path)[0]})
        elif path.name.endswith(adapters.LOKR_ENDING):
            yield path.name.removesuffix(adapters.LOKR_ENDING)
