"""What a stream remembers: all of it (cache.py), slots of what is kept as it is (arena.py), what keeps something else
(region.py), what a commit does (plan.py), one call's window on it (memory.py), what a call sees (sight.py), and one
file per tier."""

from rollforce.cache.cache import Group, KVCache
from rollforce.cache.coded import Coded
from rollforce.cache.compressed import Compressed
from rollforce.cache.ema import EmaSink
from rollforce.cache.heads import AnyCache, HeadGroups
from rollforce.cache.junction import Junction
from rollforce.cache.labels import read_labels, write_labels
from rollforce.cache.linear import LinearMemory
from rollforce.cache.memory import Memory
from rollforce.cache.merged import TempCache
from rollforce.cache.plan import Contents, Folding, Held, Plan, Tier
from rollforce.cache.region import Absorbing, Learned, Shape
from rollforce.cache.routed import Routed
from rollforce.cache.segments import Segments
from rollforce.cache.sight import Sight
from rollforce.cache.sink import Sink
from rollforce.cache.spaced import Spaced
from rollforce.cache.surprising import Surprising
from rollforce.cache.window import Window

AnyTier = (  # the union is the registry: a new tier is a file and a name here
    Sink
    | EmaSink
    | Window
    | Junction
    | LinearMemory
    | Segments
    | Compressed
    | Surprising
    | Coded
    | TempCache
    | Spaced
    | Routed
)

__all__ = [
    "Absorbing", "AnyCache", "AnyTier", "Coded", "Compressed", "Contents", "EmaSink", "Folding", "Group", "HeadGroups",
    "Held", "Junction", "KVCache", "Learned", "LinearMemory", "Memory", "Plan", "Routed", "Segments", "Shape", "Sight",
    "Sink", "Surprising", "TempCache", "Tier", "Window", "read_labels", "write_labels",
]  # fmt: skip
