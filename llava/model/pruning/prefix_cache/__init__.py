"""The prefix cache: what a prompt shares with earlier ones (system text, image, turns) is computed once, exactly.

Rows of a causal decoder do not depend on later rows until a question decides which of them stay. So the rows of a
prompt up to its last visual token are the same for every question about its image, in every layer up to the one where
that question's selection takes effect; those before the first visual token are the same in all layers. They are kept
in blocks (`blocks`), found again by row fingerprints (`cache`), and left out of the tokens that run (`prefix`).
"""

from .cache import CACHE_BYTES, PrefixCache, Reused

__all__ = ["CACHE_BYTES", "PrefixCache", "Reused"]
