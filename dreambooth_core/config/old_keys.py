"""Old names of config keys, accepted with a warning until version 0.2."""

import json
import warnings
from collections.abc import Mapping

from dreambooth_core.errors import OldKeyWarning

_KEYS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Config": ("", {"choosing": "validation", "inversion": "textual_inversion"}),
    "Validation": (
        "validation",
        {
            "every": "every_n_steps",
            "draws": "noise_draws",
            "held_out": "held_out_photos",
            "prompt_floor": "min_prompt_fidelity",
            "patience": "early_stopping_patience",
        },
    ),
    "Train": (
        "train",
        {"accumulate": "gradient_accumulation_steps", "processes": "num_processes"},
    ),
    "TextualInversion": (
        "textual_inversion",
        {"initializer": "initializer_token", "tokens": "num_vectors"},
    ),
    "Loss": (
        "loss",
        {
            "huber_border": "huber_c",
            "times": "timestep_sampling",
            "times_mean": "logit_mean",
            "times_std": "logit_std",
            "times_mode": "mode_scale",
            "times_shift": "timestep_shift",
        },
    ),
    "Prior": (
        "prior",
        {
            "weight": "loss_weight",
            "images": "num_class_images",
            "alongside": "generate_in_background",
        },
    ),
    "Checkpoints": (
        "checkpoints",
        {"every": "every_n_steps", "keep": "keep_last", "keep_every": "keep_every_n_steps"},
    ),
    "Dataset": ("dataset", {"find_masks": "auto_masks"}),
    "Judge": ("evaluation.judge", {}),
    "Evaluation": ("evaluation", {"finder": "detector", "strangers": "control_classes"}),
    "Gate": (
        "gate",
        {
            "automatic": "auto_promote",
            "measured": "min_coverage",
            "lost": "max_coverage_loss",
        },
    ),
    "Tracking": ("tracking", {"also": "loggers"}),
    "Compute": ("compute", {"wait_minutes": "startup_timeout_minutes"}),
    "Promotion": ("promotion", {"place": "registry"}),
    "Assessment": ("assessment", {"place": "registry"}),
}
"""Class of a section -> its dotted place in a config, and old key -> new key."""
_VALUES: Mapping[tuple[str, str], Mapping[str, Mapping[str, object]]] = {
    ("Memory", "fit"): {"as_set": {"fit": "none"}},
    ("Judge", "thinking"): {
        "unsaid": {"thinking": None},
        "zai": {"profile": "zai", "thinking": False, "answers": "text"},
        "chat_template": {"profile": "transformers_serve", "thinking": False},
    },
}
"""Class of a section and key -> old value -> what takes its place."""


def with_new_keys(section: str, given: Mapping[str, object]) -> Mapping[str, object]:
    """`given` with old keys and values replaced, and an `OldKeyWarning` for each.

    `section` is the name of the section's class. Raises `ValueError` where a key is given by both names.
    """
    dotted, keys = _KEYS.get(section, ("", {}))
    prefix = f"{dotted}." if dotted else ""
    new = dict(given)
    for old in keys.keys() & given.keys():
        if keys[old] in given:
            raise ValueError(f"{prefix}{old} is the old name of {prefix}{keys[old]}: remove it")
        new[keys[old]] = new.pop(old)
        _warn(f"{prefix}{old}", f"{prefix}{keys[old]}")
    for (owner, key), values in _VALUES.items():
        value = new.get(key)
        if owner == section and isinstance(value, str) and value in values:
            del new[key]
            new = {**values[value], **new}
            place = prefix or f"{section.lower()}."
            pairs = (f"{place}{name}: {_yaml(one)}" for name, one in values[value].items())
            _warn(f"{place}{key}: {value}", " and ".join(pairs))
    return new


def _yaml(value: object) -> str:
    """`none`, `false`, `null`, as YAML writes them."""
    return value if isinstance(value, str) else json.dumps(value)


def _warn(old: str, new: str) -> None:
    message = f"{old} is now {new}; the old name is accepted until version 0.2"
    warnings.warn(message, OldKeyWarning, stacklevel=3)
