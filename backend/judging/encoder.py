"""What the offline judge reads of an answer: activations of the embedded base model, and sentence embeddings.

- *activations*: the residual stream after four layers of SmolLM2-135M-Instruct while it reads question and answer, averaged over the answer's tokens, and
  that of the answer's last token. The pass ends at the last of these layers. Answers to one question share the reading of it.
- *embeddings* of the question, of the answer, and their product (``embedding``)

bfloat16 where the processor multiplies it, else float32; a score moves by about a point between them, at most by five, as it does between batches of
another size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.errors import WeightsMissingError
from backend.generation.llama_forward import KeyValueCache, LlamaForward, Piece
from backend.judging.embedding import D_EMBEDDING, Embedder
from backend.judging.verdicts import Exchange
from backend.models import embedded
from backend.models.machine import has_bfloat16
from backend.text.chat import ChatTokenizer, Message

LAYERS = (6, 10, 14, 17)
N_OF_LAYER = 2 * 576
N_ACTIVATIONS = len(LAYERS) * N_OF_LAYER
"""Layer after layer, each the mean and then the last token."""

N_EMBEDDINGS = 3 * D_EMBEDDING
N_FEATURES = N_ACTIVATIONS + N_EMBEDDINGS

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
    """The embedded model up to the last of ``LAYERS``, and the sentence embedder."""

    def __init__(self) -> None:
        """Raises: WeightsMissingError, WeightsError, where the embedded model is not on this machine or damaged."""
        if not embedded.is_ready():
            raise WeightsMissingError(
                "The offline judge reads with the embedded base model, which is not on this machine.", "python -m backend models fetch base"
            )
        folder = embedded.folder()
        self.tokenizer = ChatTokenizer.load(folder)
        self._dtype = torch.bfloat16 if has_bfloat16() else torch.float32
        self._forward = LlamaForward.load(folder, self._dtype, n_layers=max(LAYERS) + 1)
        self._embed = Embedder(self._dtype)
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
                activations = self._activations([encoded[i] for i in places], is_shared=is_shared)
            yield places, np.hstack([activations, self._embeddings([exchanges[i] for i in places])])

    def _embeddings(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """(n, ``N_EMBEDDINGS``): question, answer, product."""
        questions = list({e.question[:_LONGEST_TEXT]: None for e in exchanges})
        rows = dict(zip(questions, self._embed(questions), strict=True))
        question = np.stack([rows[e.question[:_LONGEST_TEXT]] for e in exchanges])
        answer = self._embed([e.answer[:_LONGEST_TEXT] for e in exchanges])
        return np.hstack([question, answer, question * answer])

    def _activations(self, batch: Sequence[Encoded], *, is_shared: bool) -> np.ndarray:
        shape = self._forward.shape
        cache = KeyValueCache(shape, self._dtype)
        cache.fit([0] * len(batch), max(len(e.prompt) + len(e.answer) for e in batch))
        start = 0
        if is_shared:
            start = len(batch[0].prompt)
            self._forward.residuals([Piece(0, 0, batch[0].prompt, None, (), 0, ())], cache, n_layers=shape.n_layers)
            for slot in range(1, len(batch)):
                cache.copy(0, slot, start)
        pieces = [Piece(slot, start, (e.prompt + e.answer)[start:], None, (), 0, LAYERS) for slot, e in enumerate(batch)]
        _, captured = self._forward.residuals(pieces, cache, n_layers=shape.n_layers)
        return np.stack([_pool([kept[layer][-len(e.answer) :] for layer in LAYERS]) for kept, e in zip(captured, batch, strict=True)])


def _pool(answers: Sequence[Tensor]) -> np.ndarray:
    """Mean over an answer's tokens and its last one, of each layer."""
    return torch.cat([part for answer in answers for part in (answer.float().mean(0), answer[-1].float())]).numpy()


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
