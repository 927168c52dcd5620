"""The method API: a method is a frozen dataclass of settings that says what to measure and which visual tokens stay.

    @dataclass(frozen=True)
    class FastV(Method, name="fastv"):
        k: Annotated[Layer, AtLeast(1)] = 2
        r: Share = 0.5

        def probe(self, layer, prompt):
            return AttentionProbe("last") if layer + 1 == self.k else None

        def select(self, layer, prompt, measured):
            return None if measured is None else strongest(measured.last, round((1 - self.r) * prompt.visual_tokens))

A method says *what* (which tokens a row may read, what to measure, which tokens stay); the engine knows *how*. A method
is plain Python: its inputs and decisions are numpy arrays over one prompt's visual tokens, and the engine synchronises
with the device at most once per probed layer. Layers count from 0; layer −1 is the moment before layer 0, when the
visual tokens are what the projector made of the image.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from .decoding import Decoding
from .fields import AtLeast, Count, Layer, Share, checked, expected, is_layer, nearest, types_of
from .sources import load_class, read_settings

if TYPE_CHECKING:
    import torch

    from .probes import Probe

__all__ = [
    "AtLeast", "AttentionRule", "Count", "EXIT", "KVRule", "Layer", "METHODS", "Method", "PromptState", "Selection",
    "Share", "scaled_boundary", "strongest",
]  # fmt: skip

METHODS: dict[str, type[Method]] = {}
"""Every method that has a name, by it; a subclass of `Method` enters when it is defined."""


TextRows = Literal["dense", "merge", "half", "zero", "remove"]
VisualRows = Literal["dense", "zero", "remove"]


@dataclass(frozen=True)
class AttentionRule:
    """How text rows and visual rows read the visual columns of one layer.

    text:
        `dense` all of them · `merge` their attention mass moves onto one visual token (`sink`) · `half` the first
        half of them weighs 0 after the softmax · `zero` all weigh 0 after the softmax · `remove` left out before
        the softmax
    visual:
        `dense` · `zero` visual columns, the row's own included, weigh 0 after the softmax · `remove` the row reads
        only the text before it (itself where there is none)
    sink:
        index into the prompt's visual tokens, for `merge`; a row that comes before that token merges into the last
        visual token it sees
    before:
        text rows before a prompt's first visual token: `dense` as `text` says · `zero` their attention output is 0
    """

    text: TextRows = "dense"
    visual: VisualRows = "dense"
    sink: int = 0
    before: Literal["dense", "zero"] = "dense"

    @property
    def dense(self) -> bool:
        """True where the layer attends like the untouched model."""
        return self.text == "dense" and self.visual == "dense" and self.before == "dense"


@dataclass(frozen=True)
class KVRule:
    """Which keys and values of one layer are kept for decoding: text always, and of the visual ones `visual`."""

    visual: Literal["all", "none", "sink"] = "all"
    sink: int = 0


@dataclass(frozen=True, eq=False)
class Selection:
    """Which of a prompt's visual tokens enter the next layer, and what they carry.

    keep:
        bool [V]
    rewrite:
        the hidden states [V, D] of all visual tokens → those of the kept ones [keep.sum(), D], in their order; None
        leaves them as they are. How tokens are merged: a kept place carries what `rewrite` makes of several.
    origin:
        int [keep.sum()], index of the token whose position each kept place has from now on; None: its own. For a
        `rewrite` that moves tokens between places.
    """

    keep: np.ndarray
    rewrite: Callable[[torch.Tensor], torch.Tensor] | None = None
    origin: np.ndarray | None = None


EXIT = Selection(np.zeros(0, bool))
"""`select` returns it where no visual token stays: the vision exit, which is no filter layer."""


@dataclass(eq=False)
class PromptState:
    """The engine's knowledge of one prompt during prefill, and the method's memory.

    number:
        index of the prompt's trace in `session.traces`
    num_layers:
        of the decoder
    visual_tokens:
        visual tokens that this method was given: those of the prompt, or what `before` left of them
    positions:
        int [V], places in the prompt of the visual tokens that are left now
    answers:
        number of answers that the prompt's labels mark, in training; None without labels
    grid:
        int [L, 4], where every token of the prompt lies: image or video, frame, row, column (see `media`, `frames`,
        `cells`), −1 for text and for what is not known; None unless the prompt holds a video of several
        frames or the method `reads_frames`
    filter_layer:
        the layer after which the method chose among the visual tokens for the first time, None before that
    memory:
        the method's own: state from layer to layer, and findings that `session.policies` shows afterwards
    """

    number: int
    num_layers: int
    visual_tokens: int
    positions: np.ndarray
    answers: int | None = None
    grid: np.ndarray | None = None
    filter_layer: int | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> np.ndarray:
        """Which image or video of the prompt, from 0, each visual token that is left belongs to: int [V]."""
        return self.grid[self.positions, 0]

    @property
    def frames(self) -> np.ndarray:
        """Frame of its video, from 0, that each visual token that is left shows: int [V].

        0 for an image; −1 for a token of no frame (LLaVA-OneVision's newline after a video).
        """
        return self.grid[self.positions, 1]

    @property
    def cells(self) -> np.ndarray:
        """Row and column in its frame of each visual token that is left: int [V, 2]; −1 where they are not known."""
        return self.grid[self.positions, 2:]


@dataclass(frozen=True)
class Method:
    """Base class of all pruning methods, and of all pruning configs: `PruningConfig` is another name for it.

    A subclass is a frozen dataclass; `name` in its class line is the config's `"method"`. Fields check themselves by
    their types (see `fields`). Every method from `check` on may be overridden; the defaults measure nothing, keep every
    token and attend densely.

    before:
        a second method that prunes the visual tokens before the decoder reads them, None for none
    rectify:
        whether a kept token counts, in every attention to it, for as many tokens as it stands for: itself, and the
        dropped ones whose hidden states resemble it most (cosine); None: it does not
    decoding:
        what new tokens read of the prompt's cache (see `Decoding`); None: all that each layer kept
    """

    before: Method | None = field(default=None, kw_only=True)
    rectify: bool | None = field(default=None, kw_only=True)
    decoding: Decoding | None = field(default=None, kw_only=True)

    method: ClassVar[str]
    """Its name, or for a class without one the reference `module:Class` that loads it."""
    before_decoder = False
    """Whether all that this config does happens before layer 0, so that it can stand as another's `before`."""
    reads_vision: ClassVar[tuple[Any, ...]] = ()
    """What its probe reads of the image encoder: `EncoderReading`s."""
    encoder_needs: ClassVar[tuple[str, ...]] = ()
    """Fields of `Encoder` that must be there for it: `class_token`, `patchwise`, `shrink`."""
    reads_frames = False
    """Whether it asks which frame a visual token is of (`PromptState.frames`), so that the engine finds that out."""
    no_reuse: ClassVar[str | None] = None
    """Why no prefix can be reused under this method, as the end of a sentence that its name begins; None: it can."""
    positions = "original"
    """Positions of the tokens after pruning: `original`, or `compact` where a method counts them again from 0."""
    enter = 0
    """First layer that runs visual tokens: they enter it as they came; the layers before it run the text alone."""
    frozen = False
    """Whether visual tokens never run: the layers that `reads` names make keys and values of them, as they came."""

    def __init_subclass__(cls, name: str | None = None, **settings):
        super().__init_subclass__(**settings)
        cls.method = name or f"{cls.__module__}:{cls.__qualname__}"
        if name is None:
            return
        if _built_in(METHODS.get(name)) and not _built_in(cls):
            raise ValueError(f"there is a method {name!r} in this package: give {cls.__qualname__} another name")
        METHODS[name] = cls

    def __post_init__(self):
        for name, kind in types_of(type(self)).items():
            if name not in ("before", "decoding"):
                object.__setattr__(self, name, checked(name, getattr(self, name), kind))
        object.__setattr__(self, "rectify", self.rectify or None)
        if self.decoding is not None:
            object.__setattr__(self, "decoding", Decoding.of(self.decoding))
        if self.before is not None:
            object.__setattr__(self, "before", Method.of(self.before))
            if self.before.before is not None or not self.before.before_decoder:
                able = ", ".join(name for name, cls in METHODS.items() if cls.before_decoder is not False)
                raise ValueError(
                    f"'before' takes a method that prunes before the decoder ({able}) and names no layer; "
                    f"got {json.dumps(self.before.to_dict())}"
                )
        self.check()

    def check(self) -> None:
        """Raise `ValueError` for settings that do not go together; each by itself is checked already."""

    def resolved(self, num_layers: int) -> Self:
        """Return the config with every open setting that depends on the decoder's depth filled in.

        Returns the config itself if nothing is open. The engine always runs a resolved config; `filled_in` lists the
        open settings.
        """
        return self

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a setting of type `Layer`, resolved, is no layer of a decoder of `num_layers`."""
        for key, value in self.resolved(num_layers).layer_settings().items():
            for layer in value if isinstance(value, tuple) else (value,):
                if layer >= num_layers:
                    raise ValueError(
                        f"{key!r} is {layer}, but the model has {num_layers} layers (0 to {num_layers - 1})"
                    )

    def attention(self, layer: int) -> AttentionRule:
        """How tokens attend in `layer` while a prompt is read."""
        return AttentionRule()

    def cached(self, layer: int) -> KVRule:
        """Which tokens of `layer` stay in its KV cache for decoding."""
        return KVRule()

    def reads(self, layer: int) -> bool:
        """Whether text rows of `layer` read the visual tokens of a `frozen` method."""
        return True

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        """Return what to measure of this prompt after `layer`, None for nothing; asked before the layer runs."""
        return None

    def select(self, layer: int, prompt: PromptState, measured: Any) -> np.ndarray | Selection | None:
        """Return which visual tokens enter the layer after `layer`: bool [V], a `Selection`, `EXIT`, or None for all.

        measured:
            what the probe of `layer` measured (fp32 arrays on the host), None where there was none
        """
        return None

    def unread(self, layer: int, prompt: PromptState) -> np.ndarray | None:
        """Return which visual tokens text rows of `layer`, and decoding there, do not read: bool [V], None for none.

        Asked before the layer runs, where the rule for its text rows is `dense`; visual rows read them.
        """
        return None

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """Return configs that differ in their layers, for a search to choose from; `with_budget` sets their tokens."""
        return []

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        """Return this config, its layers as they are, keeping more visual tokens the higher `share` in [0, 1] is.

        0: as few as the method can keep, 1: as many; a search sets `share` so that the FLOPs meet a budget.

        Raises:
            ValueError: a method that has no such setting.

        """
        raise ValueError(f"method {self.method!r} has no setting that trades visual tokens for FLOPs")

    def countable(self, visual_tokens: int) -> Method:
        """Return a config that keeps as many of `visual_tokens` and measures nothing that only a real model has."""
        return self

    def layer_settings(self) -> dict[str, int | tuple[int, ...]]:
        """Return the settings of type `Layer`, by name; those that are None are left out."""
        kinds = types_of(type(self)).items()
        return {key: getattr(self, key) for key, kind in kinds if is_layer(kind) and getattr(self, key) is not None}

    @property
    def stages(self) -> tuple[Method, ...]:
        """The methods that run, in order: the one before the decoder, if any, and this one."""
        return (self,) if self.before is None else (self.before, self)

    def filled_in(self, num_layers: int) -> dict[str, Any]:
        """Return the settings that `resolved` adds for a decoder of `num_layers` layers, by key; `{}` for none."""
        given, resolved = self.to_dict(), self.resolved(num_layers).to_dict()
        return {key: value for key, value in resolved.items() if key not in given}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in full, `method` included: `from_dict(config.to_dict()) == config`."""
        settings = {"method": self.method}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Method | Decoding):
                settings[one.name] = value.to_dict()
            elif value is not None:
                settings[one.name] = list(value) if isinstance(value, tuple) else value
        return settings

    @staticmethod
    def from_json(source: str | os.PathLike) -> Method:
        """Read a config from JSON text or from the path of a JSON file; raises `ValueError` (see `from_dict`)."""
        return Method.from_dict(read_settings(source))

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Method:
        """Build the config that a JSON object describes.

        `"method"` is a name in `METHODS` (default `"visipruner"`), or a class of the user's own:
        `"path/to/file.py:Class"` (the file is executed) or `"package.module:Class"`.

        Raises:
            ValueError: unknown method or key (the nearest known one is named), wrong type, value out of range, or
                a key missing that the chosen settings need.

        """
        if not isinstance(settings, Mapping):
            raise ValueError(f"a pruning config is a JSON object, got {type(settings).__name__}: {settings!r}")
        settings = dict(settings)
        name = settings.pop("method", "visipruner")
        cls = _method_class(name)
        known = {one.name: one for one in dataclasses.fields(cls)}
        for key in settings:
            if key not in known:
                raise ValueError(
                    f"unknown key {key!r} in the pruning config{nearest(key, known)}; "
                    f"known keys of {name!r}: {', '.join(known)}"
                )
        needed = [key for key, one in known.items() if one.default is one.default_factory is dataclasses.MISSING]
        if missing := [key for key in needed if key not in settings]:
            kinds = types_of(cls)
            wanted = " and ".join(f"{key!r} ({expected(kinds[key])})" for key in missing)
            raise ValueError(f"method {name!r} needs {wanted} in the pruning config")
        return cls(**settings)

    @staticmethod
    def of(source: Method | Mapping[str, Any] | str | os.PathLike) -> Method:
        """Accept a config, a dict, JSON text or the path of a JSON file, as the public functions do."""
        if isinstance(source, Method):
            return source
        if isinstance(source, Mapping):
            return Method.from_dict(source)
        if isinstance(source, str | os.PathLike):
            return Method.from_json(source)
        if isinstance(source, type) and issubclass(source, Method):
            raise ValueError(f"{source.__name__} is a class: give its settings, {source.__name__}(…)")
        got = type(source).__name__
        raise ValueError(f"a pruning config is a method with settings, a dict, JSON text or a .json path, got {got}")


def _built_in(cls: type | None) -> bool:
    return cls is not None and cls.__module__.startswith(f"{__package__}.")


def _method_class(name: Any) -> type[Method]:
    """Return the method class that a config's `"method"` names, loaded where it is a reference."""
    if isinstance(name, str) and ":" in name and name not in METHODS:
        cls = load_class(name)
        if not issubclass(cls, Method):
            raise ValueError(f"method {name!r}: {cls.__qualname__} is not a subclass of llava.model.pruning.Method")
        own = [key for key, kind in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
        if own and "__dataclass_fields__" not in vars(cls):
            raise ValueError(f"method {name!r}: put @dataclass(frozen=True) above class {cls.__qualname__}")
        if not _built_in(cls):
            cls.method = name  # so that `to_dict`, and with it every run file, says how to load it again
        return cls
    if not isinstance(name, str) or name not in METHODS:
        known = f"known: {', '.join(METHODS)}, or file.py:Class"
        raise ValueError(f"unknown pruning method {name!r}{nearest(name, METHODS)}; {known}")
    return METHODS[name]


def strongest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return bool [V]: the `count` highest scores, the earlier token first where two are equal."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen


def scaled_boundary(layer: int, num_layers: int) -> int:
    """Return boundary `layer` of a decoder of 32 layers in one of `num_layers`: rounded, halves up, at least 1.

    6 of 32 (LLaVA-1.5-7B) is 5 of 28, 7 of 36, 8 of 40, 9 of 48.
    """
    return max(1, (2 * layer * num_layers + 32) // 64)
