"""A linear with the low-rank branches of live LoRAs beside it (Hu et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollforce.checkpoints.lora_changes import LowRank


class LoraLinear(nn.Linear):
    """A linear with branches. Weight and bias are those of the linear it stands in for, under the same names.

    The branches of all LoRAs lie side by side, so two thin products serve any number of them, and a scale is a number
    in a tensor. They are no part of the state dict."""

    down: Tensor  # [ranks, in]
    up: Tensor  # [out, ranks]
    strength: Tensor  # [ranks], float32: scale * alpha / rank

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        self.scales: dict[str, float] = {}
        self.parts: dict[str, tuple[int, float]] = {}  # of each LoRA: columns, alpha / rank
        dtype = linear.weight.dtype
        self.register_buffer("down", torch.empty(0, self.in_features, device=device, dtype=dtype), persistent=False)
        self.register_buffer("up", torch.empty(self.out_features, 0, device=device, dtype=dtype), persistent=False)
        self.register_buffer("strength", torch.empty(0, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.down) * self.strength
        return F.linear(x, self.weight, self.bias) + F.linear(inner.to(self.up.dtype), self.up)

    def put(self, name: str, branch: LowRank, scale: float) -> None:
        """Add a branch behind the others."""
        rank = branch.down.shape[0]
        self.parts[name], self.scales[name] = (rank, branch.strength), scale
        self.down = torch.cat([self.down, branch.down.to(self.down)])
        self.up = torch.cat([self.up, branch.up.to(self.up)], dim=1)
        self.strength = torch.cat([self.strength, self.strength.new_full((rank,), scale * branch.strength)])

    def rescale(self, name: str, scale: float) -> None:
        """Write another scale where the old one stood."""
        self.scales[name] = scale
        self.strength[self._columns(name)] = scale * self.parts[name][1]

    def drop(self, name: str) -> None:
        """Forget a branch; the others stay as they are."""
        stay = torch.ones(len(self.strength), dtype=torch.bool, device=self.strength.device)
        stay[self._columns(name)] = False
        self.down, self.up, self.strength = self.down[stay], self.up[:, stay], self.strength[stay]
        del self.parts[name], self.scales[name]

    def unwrap(self) -> nn.Linear:
        """Return the linear that this stands in for."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def _columns(self, name: str) -> slice:
        names = list(self.parts)
        start = sum(self.parts[other][0] for other in names[: names.index(name)])
        return slice(start, start + self.parts[name][0])
