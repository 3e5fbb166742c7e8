"""The tiny world: endless captioned videos to train on, and an oracle that judges videos by their pixels."""

from rollforce.video.contact_sheet import contact_sheet
from rollforce.world.caption import WORDS, Wish, WishedThing, caption, parse, wish_of
from rollforce.world.render import render, sprite_mask
from rollforce.world.scenes import COLOURS, FPS, MOTIONS, PLACES, SHAPES, TIMES, Scene, Thing, sample_scene

__all__ = ["COLOURS", "FPS", "MOTIONS", "PLACES", "SHAPES", "TIMES", "WORDS", "Scene", "Thing", "Wish", "WishedThing",
           "caption", "contact_sheet", "parse", "render", "sample_scene", "sprite_mask", "wish_of"]  # fmt: skip
