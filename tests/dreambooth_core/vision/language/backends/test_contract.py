"""Every file of `backends/` opens from a config and implements the protocol."""

import inspect

import pytest

from dreambooth_core import plugins
from dreambooth_core.config import Vision
from dreambooth_core.errors import ConfigError
from dreambooth_core.vision.language import backends
from dreambooth_core.vision.language.backends import Backend, open_backend
from dreambooth_core.vision.language.spending import Account

OPTIONS = {"openai_compatible": {"url": "http://127.0.0.1:9/v1"}}


@pytest.mark.parametrize("name", plugins.names(backends.__name__))
def test_a_backend_opens_without_loading_or_sending_anything(name):
    config = Vision(backend=name, model="none/such", **OPTIONS.get(name, {}))
    backend = open_backend(config, Account())
    for name_of_method in ("complete", "first_token", "close"):
        method = getattr(type(backend), name_of_method)
        assert inspect.signature(method) == inspect.signature(getattr(Backend, name_of_method))
    backend.close()


def test_a_config_without_a_backend_has_no_model():
    with pytest.raises(ConfigError, match=r"set vision\.backend"):
        open_backend(Vision(), Account())
