"""What the offline judge reads of an answer: activations of the embedded base model while it reads question and answer.

The residual stream after layer 17 of SmolLM2-135M-Instruct, averaged over the answer's tokens, and that of the answer's last token. The model is cut off
after that layer. Answers to one question share the reading of it. bfloat16 where the processor multiplies it, else float32; a verdict moves by less
than a point between them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel

from backend.errors import WeightsMissingError
from backend.judging.verdicts import Exchange
from backend.models import embedded
from backend.models.machine import has_bfloat16
from backend.text.chat import ChatTokenizer, Message

LAYER = 17
N_FEATURES = 2 * 576
MAX_QUESTION, MAX_ANSWER = 512, 160
"""Tokens that are read; of a longer answer its beginning and its end."""

_BATCH_TOKENS = 3000
_WORTH_SHARING = 4  # answers to one question
_LONGEST_TEXT = 20_000  # characters of a text that are tokenised


@dataclass(frozen=True, slots=True)
class Encoded:
    """An exchange as the model reads it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """With the id that ends it."""


class Reader:
    """The embedded model up to ``LAYER``."""

    def __init__(self) -> None:
        """Raises: WeightsMissingError, where the embedded model is not on this machine."""
        if not embedded.is_ready():
            raise WeightsMissingError(
                "The offline judge reads with the embedded base model, which is not on this machine.", "python -m backend models fetch base"
            )
        folder = embedded.folder()
        self.tokenizer = ChatTokenizer.load(folder)
        config = LlamaConfig.from_pretrained(folder)
        config.num_hidden_layers = LAYER + 1
        self._model = LlamaModel.from_pretrained(folder, config=config, dtype=torch.bfloat16 if has_bfloat16() else torch.float32).eval()
        self._model.norm = nn.Identity()  # the residual stream itself
        self._end = min(self.tokenizer.stop_ids)

    def encode(self, exchange: Exchange) -> Encoded:
        """Token ids of both texts; a longer answer keeps its two ends."""
        prompt = self.tokenizer.encode_chat((Message("user", exchange.question[:_LONGEST_TEXT]),)).ids
        answer = self.tokenizer.encode_text(exchange.answer[:_LONGEST_TEXT])
        if len(answer) > MAX_ANSWER:
            answer = answer[: MAX_ANSWER // 2] + answer[-MAX_ANSWER // 2 :]
        return Encoded(prompt[-MAX_QUESTION:], (*answer, self._end))

    def features(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Places of some exchanges and their features, (n, ``N_FEATURES``), batch by batch."""
        encoded = [self.encode(e) for e in exchanges]
        for places, is_shared in in_batches(encoded):
            with torch.inference_mode():
                yield places, self._read([encoded[i] for i in places], is_shared=is_shared)

    def _read(self, batch: Sequence[Encoded], *, is_shared: bool) -> np.ndarray:
        texts = [e.answer if is_shared else e.prompt + e.answer for e in batch]
        ids = torch.zeros(len(batch), max(map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        cache = None
        if is_shared:
            cache = DynamicCache(config=self._model.config)
            self._model(input_ids=torch.tensor([batch[0].prompt]), past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(batch))
        hidden = self._model(input_ids=ids, past_key_values=cache, use_cache=is_shared).last_hidden_state.float()
        return np.stack([_pool(hidden[row, len(text) - len(e.answer) : len(text)]) for row, (e, text) in enumerate(zip(batch, texts, strict=True))])


def _pool(answer: Tensor) -> np.ndarray:
    """Mean over an answer's tokens and its last one."""
    return torch.cat([answer.mean(0), answer[-1]]).numpy()


def in_batches(encoded: Sequence[Encoded]) -> list[tuple[list[int], bool]]:
    """Places of exchanges that are read together, and whether they share their question; a pass has some thousand tokens."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for place, e in enumerate(encoded):
        by_prompt.setdefault(e.prompt, []).append(place)
    groups = [(places, True) for places in by_prompt.values() if len(places) >= _WORTH_SHARING]
    groups.append(([p for places in by_prompt.values() if len(places) < _WORTH_SHARING for p in places], False))
    batches = []
    for places, is_shared in groups:

        def length(place: int, alone: bool = not is_shared) -> int:
            return len(encoded[place].answer) + (len(encoded[place].prompt) if alone else 0)

        current: list[int] = []
        for place in sorted(places, key=length):
            if current and (len(current) + 1) * length(place) > _BATCH_TOKENS:
                batches.append((current, is_shared))
                current = []
            current.append(place)
        if current:
            batches.append((current, is_shared))
    return batches
