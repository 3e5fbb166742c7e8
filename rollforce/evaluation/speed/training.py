"""One step of distillation at Wan's sizes, random weights: student, critic and a frozen teacher's stand-in.

As train/distill.py does it: float32 weights and AdamW, autocast to the asked dtype, self-rollouts that carry gradient
in one tick of each chunk, guidance by two passes of the teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rollforce.engine import flow
from rollforce.engine.rollout_group import count_exits, roll_out
from rollforce.evaluation.speed import clock
from rollforce.evaluation.speed.cases import Case, Setting
from rollforce.evaluation.speed.streaming import begin_rollout, random_model
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.training import losses
from rollforce.training.losses import guide, score_of

GUIDANCE = 3.0


class TrainingBench:
    """Three networks, two optimisers, and the two halves of a step."""

    def __init__(self, case: Case, setting: Setting, latents: int, checkpointing: bool) -> None:
        setting = replace(setting, quantize=None)
        self.case, self.setting, self.latents = case, setting, latents
        whole = replace(setting, dtype=torch.float32)
        self.student, self.critic = (self._trained(whole, checkpointing) for _ in range(2))
        self.teacher = random_model(setting, case)
        self.text = torch.randn(1, setting.text, setting.config.text_dim, device=setting.device)
        self.steps = {model: torch.optim.AdamW(model.parameters(), lr=1e-6) for model in (self.student, self.critic)}

    def _trained(self, whole: Setting, checkpointing: bool) -> VideoTransformer:
        model = random_model(whole, self.case).requires_grad_(True).train()
        model.set_attention(self.setting.attention)
        if checkpointing:
            model.checkpoint_blocks()
        return model

    def generator(self) -> float:
        """Do the student's half, a self-rollout with gradient, the DMD loss and a step, and return the loss."""
        with self._autocast():
            video = self._video(with_grad=True)
            condition = self.teacher.condition(self.text.to(self.setting.dtype))
            free = self.teacher.condition(torch.zeros_like(self.text).to(self.setting.dtype))
            teacher = guide(score_of(self.teacher, condition), score_of(self.teacher, free), GUIDANCE)
            with torch.no_grad():
                critic = score_of(self.critic, self.critic.condition(self.text))
            loss = losses.dmd(video, teacher, critic, self._sigma(), torch.randn_like(video))
        return self._learn(self.student, loss)

    def judge(self) -> float:
        """Do the critic's half, flow matching on a video of the student, and return the loss."""
        with self._autocast():
            video = self._video(with_grad=False)
            noise, sigma = torch.randn_like(video), self._sigma()
            index = torch.arange(self.latents, device=video.device)
            condition = self.critic.condition(self.text)
            predicted = self.critic(flow.noised(video, noise, sigma), sigma, index, condition)
            loss = losses.velocity(predicted.float(), video, noise)
        return self._learn(self.critic, loss)

    def _video(self, with_grad: bool) -> Tensor:
        """Return a video of the last exit, the one that takes the most calls."""
        rollout = begin_rollout(self.student, self.setting, self.case, text=self.text, length=self.latents)
        if with_grad:
            return roll_out(rollout, lambda: self.student.condition(self.text), count_exits(rollout) - 1,
                            last=21).float()  # fmt: skip
        with torch.no_grad():
            return torch.cat([commit.latents_BTCHW for commit in rollout.commits()], dim=1).float()

    def _sigma(self) -> Tensor:
        return torch.rand(1, 1, device=self.setting.device).expand(1, self.latents) * 0.96 + 0.02

    def _learn(self, model: VideoTransformer, loss: Tensor) -> float:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        self.steps[model].step()
        self.steps[model].zero_grad(set_to_none=True)
        return float(loss.detach())

    def _autocast(self) -> torch.autocast:
        dtype = self.setting.dtype
        return torch.autocast(self.setting.device.type, dtype, enabled=dtype != torch.float32)


def measure_step(case: Case, setting: Setting, latents: int, checkpointing: bool, count: int = 3) -> dict[str, Any]:
    """Return the median seconds and peak bytes of both halves of a step, or that memory did not suffice."""
    told: dict[str, Any] = {"case": case.name, "latents": latents, "checkpointing": checkpointing}
    try:
        bench = TrainingBench(case, setting, latents, checkpointing)
        for name, half in (("generator", bench.generator), ("critic", bench.judge)):
            clock.reset_peak(setting.device)
            told[f"{name}_s"] = clock.median_seconds(half, setting.device, warmup=1, count=count)
            told[f"{name}_peak_gb"] = clock.peak_bytes(setting.device) / 1e9
    except torch.cuda.OutOfMemoryError:
        told["out_of_memory"] = True
        torch.cuda.empty_cache()
    return told
