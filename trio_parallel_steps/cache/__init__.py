"""`Cache`: successes kept, and equal calls in flight run once."""

from ._cache import Cache as Cache
from ._stores import CacheWarning as CacheWarning
