"""Secrets in configs are refused, and not repeated in the message."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core.config import Config, load_config
from dreambooth_core.config.credentials import PUBLIC, without_password
from dreambooth_core.config.flow_parameters import Cleaning, Registry, Sweep
from dreambooth_core.errors import ConfigError
from dreambooth_core.training.sweep import trials_of

SECRET = "hunter2-hunter2"
SUBJECT = {"images": "photos", "class_noun": "dog"}
JUDGE = {"url": "http://host/v1", "model": "judge"}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"tracking": {"uri": f"http://me:{SECRET}@host:5000"}}, "MLFLOW_TRACKING_PASSWORD"),
        ({"tracking": {"uri": f"http://{SECRET}@host:5000"}}, "MLFLOW_TRACKING_TOKEN"),
        ({"tracking": {"uri": f"http://me:a/{SECRET}@host:5000"}}, "tracking.uri must be"),
        ({"tracking": {"uri": f"https://host/?token={SECRET}"}}, "tracking.uri must be"),
        ({"tracking": {"uri": f"https://host/?t={SECRET}"}}, "tracking.uri must be"),
        ({"tracking": {"uri": f"https://host/#{SECRET}"}}, "tracking.uri must be"),
        ({"tracking": {"uri": f"postgresql://me:{SECRET}@host/db"}}, "MLFLOW_TRACKING_URI"),
        ({"tracking": {"uri": f"postgresql://host/db?password={SECRET}"}}, "tracking.uri must be"),
        ({"storage": {"uri": f"s3://me:{SECRET}@bucket/x"}}, "AWS_SECRET_ACCESS_KEY"),
        ({"storage": {"uri": f"s3://bucket/x?secret={SECRET}"}}, "storage.uri must be"),
        ({"storage": {"endpoint": f"http://me:{SECRET}@host"}}, "storage.endpoint must be"),
        ({"storage": {"access_key": SECRET}}, "storage.access_key is no option"),
        ({"evaluation": {"judge": {**JUDGE, "url": f"http://{SECRET}@host"}}}, "`key` names"),
        ({"evaluation": {"judge": {**JUDGE, "url": f"http://host/?k={SECRET}"}}}, "judge.url"),
        ({"evaluation": {"judge": {**JUDGE, "key": SECRET}}}, "judge.key must be the name"),
        ({"evaluation": {"judge": {**JUDGE, "api_key": SECRET}}}, "judge.api_key is no option"),
        ({"evaluation": {"judge": SECRET}}, "evaluation.judge: must be a section"),
        ({"evaluation": {"clip": f"https://me:{SECRET}@host/clip"}}, "HF_TOKEN"),
        ({"model": {"base": f"https://host/base?token={SECRET}"}}, "model.base must be"),
        ({"model": {"licence": f"see https://{SECRET}@host/x"}}, "model.licence must be"),
        ({"subject": {**SUBJECT, "images": f"https://me:{SECRET}@host/x"}}, "subject.images"),
        ({"evaluation": {"prompts": [f"http://me:{SECRET}@host"]}}, "evaluation.prompts must be"),
        ({"passwords": {"a": SECRET}}, "passwords is no option"),
        ({"train": {"hf_token": SECRET}}, "train.hf_token is no option"),
        ({"train": {"stepps": SECRET}}, "did you mean train.steps"),
        (
            {"textual_inversion": {"initializer_token": [SECRET]}},
            "textual_inversion.initializer_token: must be text",
        ),
    ],
    ids=str,
)
def test_a_secret_is_refused_and_not_repeated(
    tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "subject": SUBJECT, **sections}))
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        load_config(path)
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "sections",
    [
        {"tracking": {"uri": "sqlite:////home/me@corp/mlflow.db"}},
        {"tracking": {"uri": "http://host:5000/mlflow"}},
        {"tracking": {"uri": "postgresql://host/db?sslmode=require"}},
        {"storage": {"uri": "file:///home/me@corp/store", "endpoint": None}},
        {"storage": {"endpoint": ""}},
        {"model": {"licence": "https://example.org/@author/licence?page=2"}},
        {"subject": {"images": "dataset://robot@latest", "class_noun": "dog"}},
        {"subject": {**SUBJECT, "consent": "me@example.org"}},
        {"evaluation": {"judge": {**JUDGE, "key": "JUDGE_KEY", "max_tokens": 100}}},
    ],
    ids=str,
)
def test_addresses_without_credentials_are_accepted(sections: dict[str, Any]) -> None:
    Config.model_validate({"name": "x", "subject": SUBJECT, **sections})


def test_flow_parameters_refuse_credentials() -> None:
    with pytest.raises(ConfigError, match=r"registry\.mlflow must be .* MLFLOW_TRACKING_TOKEN"):
        Registry.model_validate({"mlflow": f"http://me:{SECRET}@host"})
    with pytest.raises(ConfigError, match=r"cleaning\.storage\.endpoint must be"):
        Cleaning.model_validate({"storage": {"endpoint": f"http://me:{SECRET}@host"}})
    grid = {"tracking.uri": [f"http://me:{SECRET}@host"]}
    with pytest.raises(ConfigError, match=r"sweep\.grid\.tracking\.uri must be") as caught:
        Sweep.model_validate({"config": {"subject": SUBJECT}, "grid": grid})
    assert SECRET not in str(caught.value)


def test_the_message_of_a_refused_trial_has_no_values() -> None:
    grid = {"evaluation.judge.model": [SECRET]}
    sweep = Sweep.model_validate({"config": {"subject": SUBJECT}, "grid": grid})
    with pytest.raises(ConfigError, match=r"sweep\.grid of evaluation\.judge\.model") as caught:
        trials_of(sweep)
    assert SECRET not in str(caught.value)


def test_the_schema_refuses_credentials_before_a_run_is_stored() -> None:
    """Prefect's server checks parameters by the JSON schema, before it writes them into its database."""
    schema, escaped = Config.model_json_schema()["$defs"], json.dumps(PUBLIC)
    fields = [("Tracking", "uri"), ("Storage", "uri"), ("Storage", "endpoint"), ("Judge", "url")]
    for section, field in fields:
        assert escaped in json.dumps(schema[section]["properties"][field]), (section, field)
    for bad in ("http://me:x@host", "http://host/?t=1", "postgresql://a:b@c/d", "s3://a@b/c"):
        assert not re.search(PUBLIC, bad), bad
    for good in ("local", "", "http://host:5000/x", "sqlite:////home/me@corp/x.db", "s3://a/b"):
        assert re.search(PUBLIC, good), good


def test_passwords_are_removed_from_texts() -> None:
    assert without_password("see http://me:s@c?r#et@host/x?y=a@b") == "see http://host/x?y=a@b"
    assert without_password("dataset://robot@latest") == "dataset://robot@latest"
