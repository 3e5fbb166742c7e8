"""What a stream remembers: the arena (cache.py), what a call sees of it (sight.py), and one file per tier."""

from rollforce.cache.cache import AnyTier, Group, KVCache, Memory, Shape, Tier
from rollforce.cache.sight import Sight
from rollforce.cache.sink import Sink
from rollforce.cache.window import Window

__all__ = ["AnyTier", "Group", "KVCache", "Memory", "Shape", "Sight", "Sink", "Tier", "Window"]
