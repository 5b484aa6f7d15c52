"""Every option of a run: frozen, typed, refused when unknown; the docstring under a field is its help.

Nothing heavy is imported here: the command line and `prefect deploy` read configs without torch.
"""

from dreambooth_core.config.base import Section
from dreambooth_core.config.compute import Compute
from dreambooth_core.config.inputs import DATASET_NAME, Dataset, Model, Subject
from dreambooth_core.config.loading import load_config, placed
from dreambooth_core.config.prompts import Kind
from dreambooth_core.config.recipes import overlaid, recipe_file, recipe_names
from dreambooth_core.config.results import (
    DetectorModel,
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
    Choosing,
    Inversion,
    Loss,
    Memory,
    Method,
    Optimizer,
    Prior,
    Train,
)
from dreambooth_core.config.vision import Endpoint, Judge

__all__ = [
    "ADAPTERS",
    "DATASET_NAME",
    "INVERSIONS",
    "Adapter",
    "Checkpoints",
    "Choosing",
    "Compute",
    "Config",
    "Dataset",
    "DetectorModel",
    "Endpoint",
    "Evaluation",
    "Gate",
    "Inversion",
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
    "Tracking",
    "Train",
    "load_config",
    "overlaid",
    "placed",
    "recipe_file",
    "recipe_names",
]
