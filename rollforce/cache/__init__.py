"""What a stream remembers: the arena (cache.py), one call's window on it (memory.py), what a call sees (sight.py), and
one file per tier."""

from rollforce.cache.cache import AnyTier, Folding, Group, KVCache, Shape, Tier
from rollforce.cache.ema import EmaSink
from rollforce.cache.memory import Memory
from rollforce.cache.sight import Sight
from rollforce.cache.sink import Sink
from rollforce.cache.window import Window

__all__ = ["AnyTier", "EmaSink", "Folding", "Group", "KVCache", "Memory", "Shape", "Sight", "Sink", "Tier", "Window"]
