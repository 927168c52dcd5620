"""The same decisions without measuring: what probing costs is a method's time less that of its replayed traces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llava.model.pruning import PruningConfig, PruningTrace
from llava.model.pruning.methods import Replay
from llava.model.pruning.policy import AttentionRule, KVRule, Policy


@dataclass(frozen=True)
class Replayed(PruningConfig):
    """Each prompt of one batch by a plan of its own; good for one prefill of as many prompts, in order.

    Attention and cache rules belong to a config, not to a prompt: all plans have the same.
    """

    plans: tuple[Replay, ...] = ()
    turn: Iterator[Replay] = field(init=False, repr=False, compare=False)

    method = Replay.method

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "turn", iter(self.plans))

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a plan does not fit a decoder of `num_layers` layers."""
        for plan in self.plans:
            plan.check_layers(num_layers)

    def attention(self, layer: int) -> AttentionRule:
        """As recorded."""
        return self.plans[0].attention(layer)

    def cached(self, layer: int) -> KVRule:
        """As recorded."""
        return self.plans[0].cached(layer)

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of the next prompt."""
        return next(self.turn).start(num_layers)


def replayed(traces: Sequence[PruningTrace]) -> Replayed:
    """Return the config that repeats the traces of a batch, once."""
    return Replayed(plans=tuple(Replay(trace=trace.to_dict()) for trace in traces))


def measures(config: PruningConfig, num_layers: int) -> bool:
    """Whether a method measures anything, in its own stage or in the one before the decoder."""
    return any(type(stage.start(num_layers)).probe is not Policy.probe for stage in config.stages)
