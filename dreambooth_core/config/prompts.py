"""The DreamBooth paper's evaluation prompts (Ruiz et al. 2023, section 4.1), 25 per kind of subject.

The sentences are those of `dataset/prompts_and_classes.txt` in github.com/google/dreambooth, by N. Ruiz,
Y. Li, V. Jampani, Y. Pritch, M. Rubinstein and K. Aberman, under CC BY 4.0; only their placeholders
are ours: `{subject}` is the identifier token and the class noun.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Kind = Literal["scene", "accessory", "property"]
"""Kind of an evaluation prompt: a new scene, an accessory, a changed property of the subject."""
PromptSet = Literal["objects", "live"]
"""Kind of subject: objects, or live subjects (cats and dogs)."""

_ANYWHERE = (
    "a {subject} in the jungle",
    "a {subject} in the snow",
    "a {subject} on the beach",
    "a {subject} on a cobblestone street",
    "a {subject} on top of pink fabric",
    "a {subject} on top of a wooden floor",
    "a {subject} with a city in the background",
    "a {subject} with a mountain in the background",
    "a {subject} with a blue house in the background",
    "a {subject} on top of a purple rug in a forest",
)
_OBJECTS_ONLY = (
    "a {subject} with a wheat field in the background",
    "a {subject} with a tree and autumn leaves in the background",
    "a {subject} with the Eiffel Tower in the background",
    "a {subject} floating on top of water",
    "a {subject} floating in an ocean of milk",
    "a {subject} on top of green grass with sunflowers around it",
    "a {subject} on top of a mirror",
    "a {subject} on top of the sidewalk in a crowded street",
    "a {subject} on top of a dirt road",
    "a {subject} on top of a white rug",
)
_WORN = (
    "a {subject} wearing a red hat",
    "a {subject} wearing a santa hat",
    "a {subject} wearing a rainbow scarf",
    "a {subject} wearing a black top hat and a monocle",
    "a {subject} in a chef outfit",
    "a {subject} in a firefighter outfit",
    "a {subject} in a police outfit",
    "a {subject} wearing pink glasses",
    "a {subject} wearing a yellow shirt",
    "a {subject} in a purple wizard outfit",
)
_PROPERTIES = (
    "a red {subject}",
    "a purple {subject}",
    "a shiny {subject}",
    "a wet {subject}",
    "a cube shaped {subject}",
)

SETS: Mapping[PromptSet, Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {
        "objects": {
            "scene": (*_ANYWHERE, *_OBJECTS_ONLY),
            "accessory": (),
            "property": _PROPERTIES,
        },
        "live": {"scene": _ANYWHERE, "accessory": _WORN, "property": _PROPERTIES},
    }
)
"""Prompt set -> kind -> templates, in the published order."""
