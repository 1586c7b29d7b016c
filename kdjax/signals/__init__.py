"""Teacher signals on disk: written once, read with the batch."""

from kdjax.signals.manifest import Manifest, Spec
from kdjax.signals.reader import Cache
from kdjax.signals.rows import CachedRows, ImageRows
from kdjax.signals.writer import CacheWriter

__all__ = ["Cache", "CacheWriter", "CachedRows", "ImageRows", "Manifest", "Spec"]
