"""Options of a run as frozen pydantic models; unknown keys are refused, a field's docstring is its help.

Imports no heavy library: the command line and `prefect deploy` read configs without torch.
"""

from dreambooth_core.config.base import Section
from dreambooth_core.config.compute import Compute
from dreambooth_core.config.inputs import DATASET_NAME, Dataset, Model, Subject
from dreambooth_core.config.loading import config_for_folder, load_config
from dreambooth_core.config.prompts import Kind
from dreambooth_core.config.recipes import overlaid, recipe_file, recipe_names
from dreambooth_core.config.results import (
    Detector,
    Evaluation,
    Gate,
    Sample,
    Sampler,
    Tracking,
)
from dreambooth_core.config.run import Config
from dreambooth_core.config.storage import Paths, Storage
from dreambooth_core.config.training import (
    ADAPTERS,
    INVERSIONS,
    Adapter,
    Checkpoints,
    Loss,
    Memory,
    Method,
    Optimizer,
    Prior,
    TextualInversion,
    Train,
    Validation,
)
from dreambooth_core.config.vision import Judge, Vision

__all__ = [
    "ADAPTERS",
    "DATASET_NAME",
    "INVERSIONS",
    "Adapter",
    "Checkpoints",
    "Compute",
    "Config",
    "Dataset",
    "Detector",
    "Evaluation",
    "Gate",
    "Judge",
    "Kind",
    "Loss",
    "Memory",
    "Method",
    "Model",
    "Optimizer",
    "Paths",
    "Prior",
    "Sample",
    "Sampler",
    "Section",
    "Storage",
    "Subject",
    "TextualInversion",
    "Tracking",
    "Train",
    "Validation",
    "Vision",
    "config_for_folder",
    "load_config",
    "overlaid",
    "recipe_file",
    "recipe_names",
]
