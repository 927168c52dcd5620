"""Prefix reuse: what a prompt shares with earlier ones (system text, image, earlier turns) is read once, exactly.

Rows of a causal decoder do not depend on what follows them, until a question decides which of them stay. So the rows of
a prompt up to its last visual token are the same for every question about its image, in every layer up to the one
where that question's choice takes effect; those before the first visual token are the same in all layers. They are kept
as nodes (`nodes`), found again by their content (`store`), and left out of the tokens that run (`tokens`).
"""

from .store import CACHE_BYTES, PrefixStore, Reused
from .tokens import LiveTokens

__all__ = ["CACHE_BYTES", "LiveTokens", "PrefixStore", "Reused"]
