"""Refusal of secrets in configs: passwords in addresses, and unknown keys with names of secrets."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dreambooth_core.errors import ConfigError

MLFLOW = (
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; "
    "a database's whole address in MLFLOW_TRACKING_URI"
)
VARIABLES: Mapping[str, str] = {
    "tracking": MLFLOW,
    "mlflow": MLFLOW,
    "storage": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "judge": "the environment variable that `key` names",
    "vision": "the environment variable that `key` names",
}
"""Section or field -> the environment variables for its credentials."""

ADDRESSES = frozenset({"uri", "url", "endpoint", "mlflow"})
"""Fields whose whole value is an address."""
PUBLIC = (
    r"^(?!([hH][tT][tT][pP][sS]?|[sS]3)://[^?#]*[?#])"  # no query, no fragment
    r"(?!\w[\w+.\-]*://[^/][^@]*@)"  # no user, no password
)
"""Pattern of addresses without credentials, for the JSON schema, which Prefect's server checks before it
stores a run."""

_SECRET = re.compile(r"key|token|secret|passw|credential|auth|bearer|cookie|private", re.I)
_USER = re.compile(r"(?<=://)(?!(?<=dataset://)[\w-]+@)[^/\s]+@")
"""User and password in an address; NAME in dataset://NAME@latest is not one."""
_USER_OF_AN_ADDRESS = re.compile(r"^\w[\w+.-]*://[^/][^@]*@")
_QUERY = re.compile(r"^(https?|s3)://[^?#]*[?#]", re.I)
_SECRET_QUERY = re.compile(
    r"://\S*[?&;#][^=&\s]*(key|token|secret|passw|credential|auth|signature)[^=&\s]*=", re.I
)


def may_be_secret(name: str) -> bool:
    """Whether a field of this name may hold a secret."""
    return _SECRET.search(name) is not None


def without_password(text: str) -> str:
    """`scheme://user:secret@host` -> `scheme://host`; removes too much rather than too little."""
    return _USER.sub("", text)


def check_public(name: str, document: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse credentials in a section's raw values.

    `name`: the section's key, empty for a whole config; `known`: its fields. Raises `ConfigError` instead of
    `ValueError`, because pydantic's error contains the values, which Prefect logs.
    """
    for key, value in document.items():
        secret = may_be_secret(str(key)) and isinstance(value, str | Mapping)
        if secret and key not in known:
            raise ConfigError(
                f"{_dotted(name, str(key)[:60])} is no option, and a config holds no secrets: remove it, "
                f"credentials belong in {_variables_for((name,))}"
            )
    for path, text in _texts(document):
        if _has_credentials(path[-1], text):
            raise ConfigError(
                f"{_dotted(name, *path)} must be an address without user, password, token or query in it: "
                f"credentials belong in {_variables_for((name, *path))}"
            )


def _has_credentials(field: str, text: str) -> bool:
    if "://" not in text:
        return False
    if _USER.search(text) or _SECRET_QUERY.search(text):
        return True
    return field in ADDRESSES and bool(_USER_OF_AN_ADDRESS.match(text) or _QUERY.match(text))


def _texts(document: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """All strings in nested mappings and lists, each with its path of keys."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, Mapping):
            pending += [((*path, str(key)[:60]), one) for key, one in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(path, one) for one in value]


def _variables_for(path: tuple[str, ...]) -> str:
    usual = "environment variables, such as HF_TOKEN for the Hub"
    return next((VARIABLES[part] for part in path if part in VARIABLES), usual)


def _dotted(*parts: str) -> str:
    return ".".join(filter(None, parts))
