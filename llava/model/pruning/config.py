"""`PruningConfig`: the settings of a pruning method, parsed from JSON with one clear error for each mistake."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from .policy import AttentionRule, KVRule, Policy


@dataclass(frozen=True)
class PruningConfig:
    """Base class of all methods: a method *is* a frozen dataclass of its settings (see `methods/`).

    `PruningConfig.from_json` and `from_dict` return an instance of the subclass that the key `"method"` names
    (default `"visipruner"`). A subclass implements `check_layers` and `start`; it overrides `resolved` when a setting
    can be left open for the depth of the model to decide, and `attention` and `cached` when its layers attend to, or
    remember, less than everything.

    before:
        a second method that prunes the visual tokens before the decoder reads them, None for none
    """

    before: PruningConfig | None = dataclasses.field(default=None, kw_only=True)

    method: ClassVar[str]
    positions = "original"
    """Positions of the tokens after pruning: `original`, or `compact` where a method counts them anew."""
    reads_vision = False
    """Whether the method asks for what the image encoder left behind."""
    no_reuse: ClassVar[str | None] = None
    """Why no prefix can be reused under this method, as the end of a sentence that its name begins; None: it can."""

    def __post_init__(self):
        if self.before is None:
            return
        object.__setattr__(self, "before", PruningConfig.of(self.before))
        if self.before.before is not None or not self.before.before_decoder:
            from .methods import BEFORE

            raise ValueError(
                f"'before' takes a method that prunes before the decoder ({', '.join(BEFORE)}) and names no layer; "
                f"got {json.dumps(self.before.to_dict())}"
            )

    @property
    def before_decoder(self) -> bool:
        """Whether all that this config does happens before layer 0, so that it can stand as another's `before`."""
        return False

    @property
    def stages(self) -> tuple[PruningConfig, ...]:
        """The methods that run, in order: the one before the decoder, if any, and this one."""
        return (self,) if self.before is None else (self.before, self)

    @staticmethod
    def from_json(source: str | os.PathLike) -> PruningConfig:
        """Read a config from JSON text or from a path that ends in `.json`.

        Raises:
            ValueError: bad JSON, a missing file, or settings that `from_dict` refuses.

        """
        text = os.fspath(source)
        origin = text if len(text) <= 120 else text[:117] + "…"
        if text.strip().endswith(".json"):
            try:
                with open(text, encoding="utf-8-sig") as file:
                    text = file.read()
            except OSError as error:
                raise ValueError(f"pruning config {origin!r} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError(f"pruning config {origin!r} is not a text file in UTF-8") from None
        try:
            settings = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"pruning config {origin!r} is not JSON ({' '.join(str(error).split())}); "
                'expected an object such as {"mode": ["shallow", "middle", "deep"], …} or a path to a .json file'
            ) from None
        return PruningConfig.from_dict(settings)

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> PruningConfig:
        """Build the config that a JSON object describes.

        Raises:
            ValueError: unknown method or key (the nearest known one is named), wrong type, value out of range, or
                a key missing that the chosen settings need.

        """
        from .methods import METHODS

        if not isinstance(settings, Mapping):
            raise ValueError(f"a pruning config is a JSON object, got {type(settings).__name__}: {settings!r}")
        settings = dict(settings)
        name = settings.pop("method", "visipruner")
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(f"unknown pruning method {name!r}{_nearest(name, METHODS)}; known: {', '.join(METHODS)}")
        cls = METHODS[name]
        known = [field.name for field in dataclasses.fields(cls)]
        for key in settings:
            if key not in known:
                raise ValueError(
                    f"unknown key {key!r} in the pruning config{_nearest(key, known)}; "
                    f"known keys of {name!r}: {', '.join(known)}"
                )
        return cls(**settings)

    @staticmethod
    def of(source: PruningConfig | Mapping[str, Any] | str | os.PathLike) -> PruningConfig:
        """Accept a config, a dict, JSON text or a `.json` path, as the public functions do."""
        if isinstance(source, PruningConfig):
            return source
        if isinstance(source, Mapping):
            return PruningConfig.from_dict(source)
        if isinstance(source, str | os.PathLike):
            return PruningConfig.from_json(source)
        raise ValueError(f"a pruning config is a PruningConfig, a dict or JSON text, got {type(source).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in full, `method` included: `from_dict(config.to_dict()) == config`."""
        settings = {"method": self.method}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, PruningConfig):
                settings[field.name] = value.to_dict()
            elif value is not None:
                settings[field.name] = list(value) if isinstance(value, tuple) else value
        return settings

    def resolved(self, num_layers: int) -> Self:
        """Return the config with every open setting that depends on the decoder's depth filled in.

        Itself where none is open. What runs is always a resolved config; `filled_in` tells what was open.
        """
        return self

    def filled_in(self, num_layers: int) -> dict[str, Any]:
        """Return the settings that `resolved` adds for a decoder of `num_layers` layers, by key; `{}` for none."""
        given, resolved = self.to_dict(), self.resolved(num_layers).to_dict()
        return {key: value for key, value in resolved.items() if key not in given}

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a layer boundary, resolved, does not fit a decoder of `num_layers` layers."""

    def attention(self, layer: int) -> AttentionRule:
        """How tokens attend in `layer` (0-based) while a prompt is read; dense unless overridden."""
        from .policy import AttentionRule

        return AttentionRule()

    def cached(self, layer: int) -> KVRule:
        """Which of the tokens that `layer` ran with stay in its cache for decoding; all unless overridden."""
        from .policy import KVRule

        return KVRule()

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt (state of that prompt lives there, never on the config)."""
        raise NotImplementedError


def scaled_boundary(layer: int, num_layers: int) -> int:
    """Return boundary `layer` of a decoder of 32 layers in one of `num_layers`: rounded, halves up, at least 1.

    6 of 32 (LLaVA-1.5-7B) is 5 of 28, 7 of 36, 8 of 40, 9 of 48.
    """
    return max(1, (2 * layer * num_layers + 32) // 64)


def check_number(name: str, value: Any, kind: type, low: float, high: float | None = None) -> None:
    """Raise `ValueError` unless `value` is an `int` (or, for `kind=float`, any real number) in [low, high]."""
    allowed = (int,) if kind is int else (int, float)
    expected = "an integer" if kind is int else "a number"
    expected += f" ≥ {low}" if high is None else f" from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name!r} must be {expected}, got {type(value).__name__} {value!r}")
    if not low <= value <= (float("inf") if high is None else high) or value == float("inf"):
        raise ValueError(f"{name!r} must be {expected}, got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`; the nearest choice is named."""
    if value not in choices:
        raise ValueError(
            f"{name!r} must be one of {', '.join(map(repr, choices))}, got {value!r}{_nearest(value, choices)}"
        )


def _nearest(word: Any, known) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
