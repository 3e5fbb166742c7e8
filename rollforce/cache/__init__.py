"""What a stream remembers: all of it (cache.py), slots of what is kept as it is (arena.py), what keeps something else
(region.py), what a commit does (plan.py), one call's window on it (memory.py), what a call sees (sight.py), and one
file per tier."""

from rollforce.cache.commit_plan import Contents, Folding, Held, Plan, Tier
from rollforce.cache.head_groups import AnyCache, HeadGroups, read_labels, write_labels
from rollforce.cache.kv_cache import Group, KVCache, Memory
from rollforce.cache.policies.compressed import Compressed
from rollforce.cache.policies.ema_sink import EmaSink
from rollforce.cache.policies.junction import Junction
from rollforce.cache.policies.linear_memory import LinearMemory
from rollforce.cache.policies.quantized import Coded
from rollforce.cache.policies.routed import Routed
from rollforce.cache.policies.segments import Segments
from rollforce.cache.policies.sink import Sink
from rollforce.cache.policies.spaced import Spaced
from rollforce.cache.policies.surprising import Surprising
from rollforce.cache.policies.temp_cache import TempCache
from rollforce.cache.policies.window import Window
from rollforce.cache.region import Absorbing
from rollforce.cache.visibility import Sight
from rollforce.models.geometry import Shape
from rollforce.models.transformer.transformer import Learned

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
