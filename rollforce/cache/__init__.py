"""What a stream remembers: the arena (cache.py), what a commit does to it (plan.py), one call's window on it
(memory.py), what a call sees (sight.py), and one file per tier."""

from rollforce.cache.cache import AnyTier, Group, KVCache, Shape
from rollforce.cache.ema import EmaSink
from rollforce.cache.memory import Memory
from rollforce.cache.plan import Folding, Plan, Tier
from rollforce.cache.sight import Sight
from rollforce.cache.sink import Sink
from rollforce.cache.window import Window

__all__ = [
    "AnyTier", "EmaSink", "Folding", "Group", "KVCache", "Memory", "Plan", "Shape", "Sight", "Sink", "Tier", "Window",
]  # fmt: skip
