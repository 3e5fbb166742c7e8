"""Recipes: what cannot be trained is refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from rollforce.config import build
from rollforce.errors import ConfigError
from rollforce.training.recipes import AutoencoderRecipe, CausalRecipe, DistillRecipe, TeacherRecipe


@pytest.mark.parametrize(("recipe", "settings", "said"), [
    (DistillRecipe, {"run": {"parts": 2}, "batch": 3}, r"batch must be a multiple of run\.parts, 2, got 3"),
    (AutoencoderRecipe, {"run": {"parts": 2}, "batch": 3}, None),
    (TeacherRecipe, {"run": {"tell_every": 0}}, r"run\.tell_every must be .* at least 1, got 0"),
    (TeacherRecipe, {"run": {"show_every": 5}, "data": {"kind": "latents"}},
     r"run\.show_every 5: samples are shown of the tiny world only"),
    (DistillRecipe, {"run": {"show_every": 5}, "data": {"kind": "latents"}}, None),
    (TeacherRecipe, {"noising": {"shares": {"togehter": 1.0}}}, r"names togehter, .*use some of image, together, past"),
    (TeacherRecipe, {"noising": {"shares": {"together": 0.0}}}, r"one of them is above it"),
    (DistillRecipe, {"practice": {"kind": "lessons", "latents": []}}, None),
    (DistillRecipe, {"practice": {"kind": "lasting", "groups": 0}}, None),
    (CausalRecipe, {"pairs": 0}, None),
    (CausalRecipe, {"method": "segments", "mix": []}, r"mix has no partition"),
    (AutoencoderRecipe, {"drawn": 13}, r"drawn 13: between 1 and latents, 12"),
])
def test_what_cannot_be_trained_is_refused(recipe: type, settings: dict[str, Any], said: str | None) -> None:
    with pytest.raises(ConfigError, match=said):
        build(recipe, {"run": {"steps": 1}}, settings)
