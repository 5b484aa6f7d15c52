"""Config keys of earlier versions: accepted, with a warning that names the new one."""

import warnings

import pytest

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Assessment, Promotion
from dreambooth_core.config.old_keys import _KEYS
from dreambooth_core.config.refusals import known_keys
from dreambooth_core.errors import OldKeyWarning

SUBJECT = {"images": "photos", "class_noun": "dog"}


def test_old_keys_are_read_under_their_new_names() -> None:
    old = {
        "subject": SUBJECT,
        "choosing": {"every": 5, "patience": 3},
        "train": {"accumulate": 2},
        "memory": {"fit": "as_set"},
        "inversion": {"tokens": 3},
    }
    with pytest.warns(OldKeyWarning) as caught:
        config = Config.model_validate(old)
    assert config.validation.every_n_steps == 5
    assert config.validation.early_stopping_patience == 3
    assert config.train.gradient_accumulation_steps == 2
    assert config.memory.fit == "none"
    assert config.textual_inversion.num_vectors == 3
    messages = {str(warning.message) for warning in caught}
    text = "train.accumulate is now train.gradient_accumulation_steps; the old name is accepted "
    assert f"{text}until version 0.2" in messages
    assert len(messages) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Config.model_validate(config.model_dump(mode="json")) == config


def test_a_key_under_both_names_is_refused() -> None:
    both = {"subject": SUBJECT, "train": {"accumulate": 2, "gradient_accumulation_steps": 2}}
    with pytest.raises(ValueError, match=r"train\.accumulate is the old name of train\.gradient"):
        Config.model_validate(both)


def test_every_new_key_of_the_table_exists() -> None:
    known = {*known_keys(Config)}
    for name, parameters in (("promotion", Promotion), ("assessment", Assessment)):
        known |= {f"{name}.{key}" for key in parameters.model_fields}
    for section, keys in _KEYS.values():
        for new in keys.values():
            assert f"{section}.{new}".removeprefix(".") in known
