"""Tasks with a vision-language model: questions about a run, prompts written and repaired."""

from collections.abc import Sequence

from dreambooth_core.config import Config
from dreambooth_core.config.subject_card import SubjectCard
from dreambooth_core.evaluation.prompt_repair import PromptRepair, RepairLimits
from dreambooth_core.evaluation.prompt_writing import WrittenPrompts
from dreambooth_core.registry.listing import VersionDetails
from dreambooth_core.reports.run_questions import AnsweredQuestion
from dreambooth_core.storage.answer_cache import StoredAnswers
from dreambooth_core.storage.stores import open_store
from tasks.stage import progress_artifact, stage


@stage("ask")
def ask_run(details: VersionDetails, questions: Sequence[str]) -> tuple[AnsweredQuestion, ...]:
    """Answers to questions about a version's run, in one conversation; raises `Unanswered`."""
    from dreambooth_core.reports.run_questions import RunConversation
    from dreambooth_core.vision.language.model import VisionLanguageModel

    store = open_store(details.config.storage)
    with VisionLanguageModel(details.config.vision, StoredAnswers(store)) as model:
        conversation = RunConversation(model, store, details.run)
        return tuple(conversation.ask(question) for question in questions)


@stage("write prompts")
def write_prompts(config: Config, card: SubjectCard, count: int) -> WrittenPrompts:
    """Evaluation and sampling prompts for a subject card, by the model of `vision`."""
    from dreambooth_core.evaluation import prompt_writing
    from dreambooth_core.vision.language.model import VisionLanguageModel

    cache = StoredAnswers(open_store(config.storage))
    with VisionLanguageModel(config.vision, cache) as model:
        return prompt_writing.write_prompts(model, card, count)


@stage("repair prompts", gpu=True)
def repair_prompts(
    details: VersionDetails, templates: Sequence[str], limits: RepairLimits
) -> tuple[PromptRepair, ...]:
    """Draw, check and rewrite prompts with a version's weights and the model of `vision`."""
    from dreambooth_core.evaluation import prompt_repair

    store = open_store(details.config.storage)
    with progress_artifact("repair") as progress:
        return prompt_repair.repair_prompts(
            details.config, store, details.weights, templates, limits, progress=progress
        )
