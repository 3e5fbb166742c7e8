"""Persistent streams: every tick learns, never through the past; prompts may change on the way."""

from __future__ import annotations

import torch
from started_transformer import started_transformer

from rollforce.cache.policies import Window
from rollforce.engine.rollout_group import RolloutGroup
from rollforce.engine.settings import LayoutSettings, StreamSettings
from rollforce.models.transformer.transformer import VideoTransformer


def two_streams(student: VideoTransformer) -> RolloutGroup:
    """Rolling, two latents in flight; of a student whose weights all matter."""
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    layout = LayoutSettings(kind="rolling", chunk=1, levels=(1.0, 0.5), shift=1.0)
    return RolloutGroup(student, StreamSettings(layout, (Window(2),)), torch.randn(2, 3, 8), (5, 6), (4, 4, 4))


def test_streams_learn_from_every_tick_and_never_through_the_past() -> None:
    student = started_transformer()
    streams = two_streams(student)
    lengths = []
    for _ in range(5):
        student.zero_grad()
        video = streams.tick()
        lengths.append(video.shape[1])
        video[:, -1].square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in student.parameters())
    assert lengths == [1, 2, 3, 3, 3]  # the buffer fills, then one clean latent stands behind it
    assert not any(keys.requires_grad for keys in streams.rollout.cache.arena.keys)
    assert streams.ticks == 5
    behind = streams.tick()[:, :1]
    assert torch.autograd.grad(behind.sum(), student.proj_out.weight, allow_unused=True)[0].abs().sum() == 0


def test_streams_that_get_other_prompts_begin_anew_as_a_session_that_recaches() -> None:
    streams = two_streams(started_transformer())
    with torch.no_grad():
        for _ in range(5):
            streams.tick()
        keys = [key.clone() for key in streams.rollout.cache.arena.keys]
        streams.switch(torch.randn(2, 3, 8), ("a", "b"))
        assert streams.prompts == ("a", "b")
        assert any(not torch.equal(new, old) for new, old in zip(streams.rollout.cache.arena.keys, keys, strict=True))
        assert [streams.tick().shape[1] for _ in range(4)] == [1, 2, 3, 3]  # nothing of the old prompts is judged
