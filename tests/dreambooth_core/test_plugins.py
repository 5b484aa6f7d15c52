"""Plugins are found by their files, without an import."""

import subprocess
import sys

import pytest

from dreambooth_core import plugins
from dreambooth_core.diffusion import families
from dreambooth_core.errors import ConfigError

PACKAGES = [
    "diffusion.exports",
    "diffusion.families",
    "metrics.measures",
    "runtime.engines",
    "servers.doctor",
    "storage.stores",
    "vision.detectors",
]


def test_a_config_is_read_and_described_without_importing_a_plugin_package() -> None:
    script = """
import sys
from dreambooth_core.config import Config
Config.model_validate({"name": "test", "subject": {"images": "photos", "class_noun": "dog"}})
Config.model_json_schema()
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "dreambooth_core.config" in loaded
    assert not loaded & {f"dreambooth_core.{name}" for name in PACKAGES}


def test_names_are_file_names_without_a_leading_underscore() -> None:
    assert plugins.names("dreambooth_core.storage.stores") == ["file", "s3"]
    assert {"sdxl", "flux"} <= set(plugins.names(families.__name__))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no file ftp\.py in stores/; choose one of: file, s3"):
        plugins.load("dreambooth_core.storage.stores", "ftp")


def test_an_unknown_package_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"dreambooth_core\.nothing"):
        plugins.names("dreambooth_core.nothing")
