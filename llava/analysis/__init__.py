"""Model analysis, as used by `visualization/`: lenses, attention over the picture, value norms, influence.

Every analysis is a function of `(model, inputs)` that returns named arrays, one result per prompt, and leaves the model
as it was; `docs/analysis.md` shows each on the small model.
"""

from importlib import import_module

_NAMES = {
    "arrays": ("NamedArray",),
    "attention": ("attention_map", "visual_share"),
    "drawing": ("plot_by_layer", "plot_over_picture", "plot_view", "plot_words"),
    "frames": ("plot_frames",),
    "heads": ("value_output",),
    "influence": ("InfluenceMap", "influence_map", "plot_influence", "plot_kept", "plot_tokens"),
    "lens": ("Words", "logit_lens"),
    "prompts": ("Answer", "Prompt", "Subject"),
    "sinks": ("ValueMap", "find_sinks", "plot_shares", "plot_values", "remove_sinks", "value_norms"),
    "views": ("Panel", "View", "view_of"),
}
_PUBLIC = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    # on demand: a command of this package need not load what it does not use
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
