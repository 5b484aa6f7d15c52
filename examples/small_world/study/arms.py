"""What the study asks: questions, each a few arms that are trained on the same subjects and seeds."""

from dataclasses import dataclass
from typing import NamedTuple

from examples.small_world.study.subjects import OTHERS, SUBJECTS

FEW = SUBJECTS[:3]


@dataclass(frozen=True)
class Arm:
    """One way to train: `trial.yaml` with `options` set, or diffusers' script with `script` added."""

    name: str
    """A file name."""
    label: str
    """For tables and pictures."""
    options: tuple[str, ...] = ()
    """As for `dreambooth train --set`."""
    photos: int = 5
    script: tuple[str, ...] | None = None
    """Arguments of `train_dreambooth.py`; None for an arm of our own."""


@dataclass(frozen=True)
class Question:
    """Arms to be told apart; the first is what the others are held against."""

    name: str
    title: str
    about: str
    """What the arms have in common and in what they differ."""
    arms: tuple[Arm, ...]
    subjects: tuple[str, ...] = SUBJECTS
    seeds: tuple[int, ...] = (0, 1, 2)
    against: bool = False
    """Of two arms, ours and a peer's: kept as `results/<name>.json` too."""


class Trial(NamedTuple):
    """One training and its evaluation."""

    arm: Arm
    subject: str
    """Class noun."""
    seed: int


SAME_RATE = "--learning_rate=1e-4"
LORA = ("train.method=lora", "train.learning_rate=1e-3")

OURS = Arm("ours", "our defaults")
DIFFUSERS = Arm("diffusers", "diffusers, rate 1e-4", script=(SAME_RATE,))
DIFFUSERS_LITERAL = Arm("diffusers-literal", "diffusers, rate 5e-6", script=())
DIFFUSERS_PRIOR = Arm(
    "diffusers-prior",
    "diffusers, rate 1e-4, class images",
    script=(SAME_RATE, "--with_prior_preservation"),
)
NO_PRIOR = Arm("no-prior", "ours without prior", ("prior.enabled=false",))
NO_TEXT = Arm("no-text-encoder", "denoiser alone", ("train.text_encoder=false",))
PREDICTION = Arm("prediction", "prior prediction", (*LORA, "prior.target=prediction"))


def photos(count: int) -> Arm:
    """Ours with so many photos; five are the default."""
    if count == 5:
        return OURS
    return Arm(f"photos-{count}", f"{count} photo{'s' if count > 1 else ''}", photos=count)


def lora(rank: int) -> Arm:
    """A LoRA with a scale of 1."""
    options = (*LORA, f"adapter.rank={rank}", f"adapter.alpha={rank}")
    return Arm(f"lora-{rank}", f"LoRA, rank {rank}", options)


def steps(count: int) -> Arm:
    """Ours with so many steps; 250 are the recipe's."""
    if count == 250:
        return OURS
    return Arm(f"steps-{count}", f"{count} steps", (f"train.steps={count}",))


QUESTIONS = (
    Question(
        "against_diffusers",
        "Our defaults against diffusers' script at one learning rate",
        "Same base, photos, steps, seeds, prompts and learning rate (that of the small world's recipe, since "
        "neither side's default is meant for a model this small). All else is each side's own default: ours "
        "trains the text encoder and preserves the prior, with one instance image and one class image a "
        "step; the script trains the denoiser alone on four instance images a step, without class images.",
        (OURS, DIFFUSERS),
        against=True,
    ),
    Question(
        "prior",
        "Prior preservation",
        "With class images, without, and diffusers' script with the very same class images.",
        (OURS, NO_PRIOR, DIFFUSERS_PRIOR),
        seeds=(0,),
    ),
    Question(
        "against_diffusers_literal",
        "Our defaults against diffusers' script to the letter",
        "The script at its own learning rate of 5e-6, which is meant for Stable Diffusion: in 250 steps it "
        "hardly moves a model this small. That is no merit of ours; the comparison above is the fair one.",
        (OURS, DIFFUSERS_LITERAL),
        seeds=(0,),
        against=True,
    ),
    Question(
        "text_encoder",
        "The text encoder",
        "Trained with the denoiser, as by default, or left as it is.",
        (OURS, NO_TEXT),
        seeds=(0,),
    ),
    Question(
        "prediction",
        "Class images or prior prediction",
        "LoRA of rank 16 at a rate of 1e-3; the prior is preserved by class images, or by the answers of the "
        "base on the photos' own latents, which needs no class images.",
        (lora(16), PREDICTION),
        subjects=FEW,
        seeds=(0,),
    ),
    Question(
        "photos",
        "Number of photos",
        "The first so many of the eight, five by default; measured against the first five in every case.",
        tuple(photos(count) for count in (5, 1, 2, 3, 8)),
        subjects=FEW,
        seeds=(0,),
    ),
    Question(
        "ranks",
        "LoRA ranks against full weights",
        "Adapters at a rate of 1e-3, full weights at 1e-4.",
        (OURS, *(lora(rank) for rank in (1, 4, 16, 64))),
        subjects=FEW,
        seeds=(0,),
    ),
    Question(
        "steps",
        "Steps",
        "Too few, enough (250, our defaults here), too many.",
        tuple(steps(count) for count in (250, 60, 120, 500, 1000)),
        subjects=FEW,
        seeds=(0,),
    ),
    Question(
        "recipe",
        "Recipes tried on other subjects",
        "What might be a better default is looked for here, on subjects and a seed that the rest of the "
        "study never sees.",
        (
            OURS,
            DIFFUSERS,
            Arm("batch-2", "two photos a step", ("train.batch_size=2",)),
            Arm("cosine", "cosine schedule", ("train.lr_schedule=cosine",)),
            Arm("average", "average of 0.98", ("train.ema=0.98",)),
        ),
        subjects=OTHERS,
        seeds=(100,),
    ),
)
