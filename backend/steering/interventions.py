"""Changes of the residual stream after a layer, applied to the rows of a batch that ask for them."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Intervention(Protocol):
    """A change of the residual stream after one decoder block, token by token. Rows that share the same object are changed in one go."""

    @property
    def layer(self) -> int:
        """0-based decoder block; its output is changed."""

    def apply(self, residual: Tensor, positions: Tensor, prompt_lengths: Tensor) -> Tensor:
        """The changed residual stream.

        Args:
            residual: (n_tokens, d_model), tokens of any rows.
            positions: (n_tokens,), position of each token in its row.
            prompt_lengths: (n_tokens,), number of prompt tokens of each token's row; a token at or after it is the answer's.
        """


@dataclass(frozen=True, slots=True, eq=False)
class AddVector:
    """``residual + coefficient * vector`` on all tokens."""

    layer: int
    vector: Tensor
    """(d_model,), in residual-stream units."""

    coefficient: float

    def apply(self, residual: Tensor, positions: Tensor, prompt_lengths: Tensor) -> Tensor:
        return residual + self.coefficient * self.vector.to(residual)
