"""The discriminator: stays at its site and meets patients only through DP-SGD."""

from __future__ import annotations

from torch import Tensor, nn


class Discriminator(nn.Module):
    """A perceptron with two hidden layers over one-hot records; no layer mixes records (no BatchNorm).

    Args:
        width: D, the one-hot width.
        hidden_width: units of each hidden layer.
    """

    def __init__(self, width: int, hidden_width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden_width),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_width, hidden_width),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_width, 1),
        )

    def forward(self, records: Tensor) -> Tensor:
        """Logits, high for real: (B, D) to (B,)."""
        return self.layers(records).squeeze(-1)  # type: ignore[no-any-return]
