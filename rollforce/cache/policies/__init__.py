"""Memory policies, a paper a file. Each is frozen settings and a rule for what stays; none holds a tensor."""

from rollforce.cache.policies.compressed import Compressed
from rollforce.cache.policies.ema_sink import EmaSink
from rollforce.cache.policies.junction import Junction
from rollforce.cache.policies.linear_memory import LinearMemory
from rollforce.cache.policies.quantized import Quantized
from rollforce.cache.policies.routed import Routed
from rollforce.cache.policies.segments import Segments
from rollforce.cache.policies.sink import Sink
from rollforce.cache.policies.spaced import Spaced
from rollforce.cache.policies.surprising import Surprising
from rollforce.cache.policies.temp_cache import TempCache
from rollforce.cache.policies.window import Window

AnyTier = (  # the union is the registry: a new tier is a file and a name here
    Sink | EmaSink | Window | Junction | LinearMemory | Segments
    | Compressed | Surprising | Quantized | TempCache | Spaced | Routed
)  # fmt: skip

__all__ = ["AnyTier", "Compressed", "EmaSink", "Junction", "LinearMemory", "Quantized", "Routed", "Segments", "Sink",
           "Spaced", "Surprising", "TempCache", "Window"]  # fmt: skip
