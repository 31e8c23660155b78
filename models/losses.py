"""Losses, named after their formulas. D is a discriminator's logit, high for real.

References:
    Goodfellow et al., Generative Adversarial Nets, NeurIPS 2014, section 3: the non-saturating game.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def softplus_of_minus(logits: Tensor) -> Tensor:
    """-log sigmoid(D), one per record: the discriminator's on patients."""
    return softplus(-logits)


def softplus_of(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(D)), one per record: the discriminator's on generated records."""
    return softplus(logits)


real_loss = softplus_of_minus
fake_loss = softplus_of
