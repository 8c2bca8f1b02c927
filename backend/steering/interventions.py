"""Changes of the residual stream after a layer, applied to the tokens of a batch that ask for them.

With x the residual stream of one token and u a direction of length 1:

    AddVector     x + c v
    Ablate        x - s (x . u) u                      s = 1 takes all of it away (directional ablation, Arditi et al. 2024)
    Cap           x - max(0, x . u - limit) u          no further along u than the limit
    ClampLatent   x + decode(a') - decode(a)           a = encode(x), a' the same with one latent set; what the autoencoder leaves unexplained stays

A coefficient or share of 0 changes nothing, to the last bit.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from backend.models.variants import ALL, Tokens

if TYPE_CHECKING:
    from backend.saes.sae import Sae


class Intervention(Protocol):
    """A change of the residual stream after one decoder block, token by token. Rows that share the same object are changed in one go."""

    @property
    def layer(self) -> int:
        """0-based decoder block; its output is changed."""

    @property
    def tokens(self) -> Tokens:
        """Which tokens of a row are changed."""

    def apply(self, residual: Tensor) -> Tensor:
        """The changed residual stream, (n_tokens, d_model), of tokens of any rows."""


@dataclass(frozen=True, slots=True, eq=False)
class AddVector:
    """``residual + coefficient * vector``."""

    layer: int
    vector: Tensor
    """(d_model,), in residual-stream units."""

    coefficient: float
    tokens: Tokens = ALL

    def apply(self, residual: Tensor) -> Tensor:
        return residual + self.coefficient * self.vector.to(residual)


@dataclass(frozen=True, slots=True, eq=False)
class Ablate:
    """``residual - share * (residual . unit) unit``."""

    layer: int
    unit: Tensor
    """(d_model,), of length 1."""

    share: float = 1.0
    tokens: Tokens = ALL

    def apply(self, residual: Tensor) -> Tensor:
        unit = self.unit.to(residual)
        return residual - self.share * (residual @ unit)[:, None] * unit


@dataclass(frozen=True, slots=True, eq=False)
class Cap:
    """``residual - max(0, residual . unit - limit) unit``."""

    layer: int
    unit: Tensor
    """(d_model,), of length 1."""

    limit: float
    """In residual-stream units."""

    tokens: Tokens = ALL

    def apply(self, residual: Tensor) -> Tensor:
        unit = self.unit.to(residual)
        return residual - (residual @ unit - self.limit).clamp(min=0)[:, None] * unit


@dataclass(frozen=True, slots=True, eq=False)
class ClampLatent:
    """Set one latent of an autoencoder; what the autoencoder does not explain of the residual stream stays as it is.

    The value is what is decoded, not what the changed residual stream encodes to again: that can be less, or 0, because the decoder row need not have length 1 along its
    own encoder row, other latents overlap it, and TopK chooses anew.
    """

    layer: int
    sae: "Sae"
    latent: int
    value: float
    """Activation."""

    tokens: Tokens = ALL

    def apply(self, residual: Tensor) -> Tensor:
        active = self.sae.encode(residual)
        change = active.new_zeros(active.shape)
        change[:, self.latent] = self.value - active[:, self.latent]
        before = self.sae.decode(active, residual)
        return residual + (self.sae.decode(active + change, residual) - before).to(residual)
