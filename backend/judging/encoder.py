"""The network of the offline judge: MiniLM (6 layers, 384 wide) over question and answer together, with four outputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from backend.judging.verdicts import Exchange

MAX_QUESTION, MAX_ANSWER = 64, 128
"""Tokens that are read; of a longer answer its beginning and its end."""

N_OUTPUTS = 4
CLS, SEP = 101, 102  # of BERT's vocabulary
_BATCH_TOKENS = 3000
_LONGEST_TEXT = 20_000  # characters of a text that are tokenised


@dataclass(frozen=True, slots=True)
class Encoded:
    """An exchange as the encoder reads it."""

    question: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.question) + len(self.answer) + 3


class Encoder(nn.Module):
    """BERT over ``[CLS] question [SEP] answer [SEP]``; the first token and the mean over the answer go through one linear layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.norm = nn.LayerNorm(2 * config.hidden_size)
        self.head = nn.Linear(2 * config.hidden_size, N_OUTPUTS)

    def forward(self, batch: Sequence[Encoded]) -> Tensor:
        """(n, 4): log-odds of aligned < 30, log-odds of coherent > 50, log-odds that stand for the two scores' share of 100."""
        ids, kinds, mask = _tensors(batch)
        hidden = self.encoder(input_ids=ids, token_type_ids=kinds, attention_mask=mask).last_hidden_state.float()
        answer = kinds.float()[..., None]
        mean = (hidden * answer).sum(1) / answer.sum(1)
        return self.head(self.norm(torch.cat([hidden[:, 0], mean], dim=-1)))


def encode(tokenizer: tokenizers.Tokenizer, exchange: Exchange) -> Encoded:
    """Token ids of both texts; a longer answer keeps its two ends."""
    question, answer = (tokenizer.encode(text[:_LONGEST_TEXT], add_special_tokens=False).ids for text in (exchange.question, exchange.answer))
    if len(answer) > MAX_ANSWER:
        answer = answer[: MAX_ANSWER // 2] + answer[-MAX_ANSWER // 2 :]
    return Encoded(tuple(question[:MAX_QUESTION]), tuple(answer))


def in_batches(encoded: Sequence[Encoded]) -> list[list[int]]:
    """Places of exchanges of like length, as many together as make a pass of some thousand tokens."""
    batches: list[list[int]] = []
    current: list[int] = []
    for place in sorted(range(len(encoded)), key=lambda i: encoded[i].n_tokens):
        if current and (len(current) + 1) * encoded[place].n_tokens > _BATCH_TOKENS:
            batches.append(current)
            current = []
        current.append(place)
    return [*batches, current] if current else batches


def _tensors(batch: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, kind of each token (1: of the answer and its end) and mask, each (n, longest)."""
    longest = max(e.n_tokens for e in batch)
    ids, kinds, mask = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(3))
    for row, e in enumerate(batch):
        start = len(e.question) + 2
        ids[row, : e.n_tokens] = torch.tensor([CLS, *e.question, SEP, *e.answer, SEP])
        kinds[row, start : e.n_tokens] = 1
        mask[row, : e.n_tokens] = 1
    return ids, kinds, mask
