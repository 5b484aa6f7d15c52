"""Models loaded into this process: any `AutoModelForImageTextToText` of transformers, e.g. GLM-4.5V.

Without torchvision, processors are loaded without their video processor, and video frames are passed
as images.
"""

import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from dreambooth_core.config import Vision
from dreambooth_core.errors import ModelError, Unanswered
from dreambooth_core.hub import pinned
from dreambooth_core.vision.language.answers import Usage, reasoning_in, without_reasoning
from dreambooth_core.vision.language.backends import Completion
from dreambooth_core.vision.language.messages import EncodedMessage
from dreambooth_core.vision.language.spending import Account

GREEDY_TEMPERATURE = 0.01


def open(config: Vision, account: Account) -> "LocalTransformers":
    """The model is loaded by the first request."""
    return LocalTransformers(config, account)


class LocalTransformers:
    """A `Backend` in this process; one request at a time."""

    def __init__(self, config: Vision, account: Account) -> None:
        self._config, self._account = config, account
        self._loaded: tuple[Any, Any] | None = None
        self._lock = threading.Lock()

    def complete(
        self, messages: Sequence[EncodedMessage], schema: type[BaseModel] | None
    ) -> Completion:
        """See `Backend`; greedy at `GREEDY_TEMPERATURE`, else sampled with torch's random state.

        Raises `ModelError` if the model cannot be loaded.
        """
        import torch

        config = self._config
        sampling: Mapping[str, Any] = {"do_sample": False}
        if config.temperature > GREEDY_TEMPERATURE:
            sampling = {"do_sample": True, "temperature": config.temperature}
        self._account.book(Usage())
        with self._lock, torch.inference_mode():
            model, processor = self._load()
            inputs = self._inputs(messages, config.thinking)
            generated = model.generate(
                **inputs, max_new_tokens=config.max_tokens, max_time=config.timeout, **sampling
            )
            prompt = inputs["input_ids"].shape[1]
            tokens = generated[0, prompt:].tolist()
        ended = next((n for n, token in enumerate(tokens) if token in _ends(model)), None)
        text = processor.tokenizer.decode(tokens[:ended], skip_special_tokens=False)
        usage = Usage(prompt, len(tokens))
        self._account.settle(Usage(), usage)
        return Completion(
            text=without_reasoning(text).strip(),
            reasoning=reasoning_in(text),
            usage=usage,
            cut=ended is None,
        )

    def first_token(
        self, messages: Sequence[EncodedMessage], labels: Sequence[str]
    ) -> list[float] | None:
        """See `Backend`; softmax of the logits after the prompt."""
        import torch

        self._account.book(Usage())
        with self._lock, torch.inference_mode():
            model, processor = self._load()
            ids = [processor.tokenizer.encode(label, add_special_tokens=False) for label in labels]
            if any(len(one) != 1 for one in ids):
                return None
            inputs = self._inputs(messages, thinking=False)
            chances = model(**inputs).logits[0, -1].float().softmax(-1)
        self._account.settle(Usage(), Usage(inputs["input_ids"].shape[1], 1))
        return [float(chances[one[0]]) for one in ids]

    def close(self) -> None:
        """See `Backend`."""
        self._loaded = None

    def _inputs(self, messages: Sequence[EncodedMessage], thinking: bool | None) -> Any:
        """Input tensors of the chat template, on the model's device."""
        model, processor = self._load()
        switch = {} if thinking is None else {"enable_thinking": thinking}
        marks = sorted(processor.tokenizer.get_added_vocab(), key=len, reverse=True)
        try:
            inputs = processor.apply_chat_template(
                [_message(one, marks) for one in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **switch,
            )
        except (ValueError, TypeError) as error:
            raise Unanswered(
                f"{self._config.model} cannot process this request: {error}"
            ) from error
        return inputs.to(model.device, dtype=model.dtype)

    def _load(self) -> tuple[Any, Any]:
        """Model and processor, loaded once."""
        if self._loaded is None:
            source = self._config.model
            self._account.announce(f"vision: {source} runs in this process; nothing is sent")
            try:
                self._loaded = _loaded(source, self._config.revision)
            except (OSError, ValueError, KeyError) as error:
                raise ModelError(
                    f"no vision-language model at {source}: set model to a folder or Hub id with an "
                    f"image-text-to-text model, its processor and tokenizer ({str(error).splitlines()[0]})"
                ) from error
        return self._loaded


def _loaded(source: str, revision: str | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText

    commit = pinned(source, revision)
    where = {"revision": commit} if commit else {}
    gpu = torch.cuda.is_available()
    options = {"dtype": "auto", "device_map": "auto"} if gpu else {"dtype": torch.float32}
    model = AutoModelForImageTextToText.from_pretrained(
        source, use_safetensors=True, **options, **where
    )
    return model.eval(), _processor(source, where)


def _processor(source: str, where: Mapping[str, str]) -> Any:
    """The model's processor, without its video processor if torchvision is missing."""
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import (
        PROCESSOR_MAPPING_NAMES,
        processor_class_from_name,
    )
    from transformers.utils import is_torchvision_available

    kind = AutoConfig.from_pretrained(source, **where).model_type
    base = processor_class_from_name(PROCESSOR_MAPPING_NAMES.get(kind, ""))
    if is_torchvision_available() or base is None or "video_processor" not in base.get_attributes():
        return AutoProcessor.from_pretrained(source, **where)

    return image_only(base).from_pretrained(source, **where)  # type: ignore[attr-defined]


def image_only(base: type) -> type:
    """A subclass of a processor class without its video processor, which needs torchvision."""

    # transformers derives a processor's components from the parameters of __init__
    def init(
        self: Any, image_processor: Any, tokenizer: Any, chat_template: Any = None, **options: Any
    ) -> None:
        base.__init__(  # type: ignore[misc]
            self, image_processor, tokenizer, None, chat_template=chat_template, **options
        )

    return type(f"ImageOnly{base.__name__}", (base,), {"__init__": init})


def _message(message: EncodedMessage, marks: Sequence[str]) -> dict[str, Any]:
    """The message in the format of chat templates; images precede the text.

    `marks` are the tokenizer's control tokens; a space is inserted into each occurrence in a text, so
    that a caption cannot end its turn or insert an image.
    """
    from PIL import Image

    parts: list[dict[str, Any]] = []
    for picture in message.pictures:
        if picture.label:
            parts.append({"type": "text", "text": picture.label})
        parts.append({"type": "image", "image": Image.open(io.BytesIO(picture.png))})
    text = message.text
    for mark in marks:
        text = text.replace(mark, f"{mark[:1]} {mark[1:]}")
    return {"role": message.role, "content": [*parts, {"type": "text", "text": text}]}


def _ends(model: Any) -> set[int]:
    """Ids of the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return {*(ends if isinstance(ends, list) else [ends])}
