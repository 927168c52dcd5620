"""VTW, visual tokens withdrawal (arXiv 2405.05803): every visual token leaves at one layer.

Idea: by the middle of the decoder the text has read the image, and the visual tokens can go: layers 0 .. k−1 run with
all of them, layers k .. with none. The paper searches k: the first, from 5 on, at which the output distribution stays
close to the dense one (mean KL(pruned ‖ dense) of the next token at most 0.003 for the 7B, 0.0005 for the 13B), as
`python -m llava.eval.budget --method vtw --kl 0.003` does.

The original code (lzhxmu/VTW) drops them at the entry of layer `k`, counted from 0, and reads prefix and image length
from the prompt; only its search (`--findk`) has 35 and 611 as constants. Its README passes 15 for the 7B, its command
line takes 16, or 20 for larger models, as here. Of several images it drops as many tokens as the last has, from the
first image's place on; here all leave. With k = 0 it fails at the second new token, a k beyond the last layer runs
dense (here refused), and batches and padding fail. Positions stay in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from ..method import EXIT, Layer, Method, PromptState, Selection, scaled_boundary


@dataclass(frozen=True)
class VTW(Method, name="vtw"):
    """Drop all visual tokens before layer `k`.

    k:
        first layer without visual tokens; 0 is the language model alone. None: half of the model's layers, as the
        paper found for LLaVA-1.5 (16 of 32, 20 of 40)
    """

    k: Layer | None = None

    def resolved(self, num_layers: int) -> Self:
        """Fill in `k`: half of the layers."""
        return self if self.k is not None else replace(self, k=scaled_boundary(16, num_layers))

    def select(self, layer: int, prompt: PromptState, measured: None) -> Selection | None:
        return EXIT if layer + 1 == self.k else None

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """The one there is; its layer is what meets a budget."""
        return [cls()]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, k=round(share * (num_layers - 1)))
