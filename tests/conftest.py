"""Small random decoders and prompts that the engine's tests share."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)

VOCABULARY = 97


def random_llama(layers=6, hidden=48, heads=4, kv_heads=2, seed=0) -> LlamaForCausalLM:
    """A Llama whose attention is peaked enough that single tokens matter."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "proj" in name or "lm_head" in name:
            gain = 0.5 if "lm_head" in name else 1.5
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)
        elif "embed" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    return model


class Prompts:
    """A left-padded batch: `kinds` spells each prompt, t for text and v for visual."""

    def __init__(self, *kinds: str, hidden=48, seed=0):
        generator = torch.Generator().manual_seed(seed)
        width = max(map(len, kinds))
        self.kinds = kinds
        self.embeds = torch.zeros(len(kinds), width, hidden)
        self.attention_mask = torch.zeros(len(kinds), width, dtype=torch.long)
        self.visual = torch.zeros(len(kinds), width, dtype=torch.bool)
        for row, kind in enumerate(kinds):
            self.embeds[row, width - len(kind) :] = torch.randn(len(kind), hidden, generator=generator)
            self.attention_mask[row, width - len(kind) :] = 1
            self.visual[row, width - len(kind) :] = torch.tensor([letter == "v" for letter in kind])
        self.position_ids = (self.attention_mask.cumsum(-1) - 1).clamp_min(0)

    def single(self, row: int) -> Prompts:
        """The prompt of one row alone, without padding."""
        alone = Prompts.__new__(Prompts)
        alone.kinds = (self.kinds[row],)
        width = len(self.kinds[row])
        alone.embeds, alone.attention_mask = (
            self.embeds[row : row + 1, -width:],
            self.attention_mask[row : row + 1, -width:],
        )
        alone.visual, alone.position_ids = self.visual[row : row + 1, -width:], torch.arange(width)[None]
        return alone

    @property
    def inputs(self) -> dict:
        """Keyword arguments of the model's forward and `generate`."""
        return {"inputs_embeds": self.embeds, "attention_mask": self.attention_mask}


@pytest.fixture(scope="session")
def llama():
    return random_llama()


FULL = {
    "mode": ["shallow", "middle", "deep"],
    "shallow_mid_layer": 2,
    "layer_threshold": 0.9,
    "tokens_threshold": 1.0,
    "exit_threshold": 0.8,
    "exit_patience": 1,
}
MIXED = ("tttt" + "v" * 20 + "ttttt", "tt" + "v" * 9 + "t" + "v" * 12 + "tttt", "ttttttt", "v" * 15 + "ttt")


@pytest.fixture
def no_weights(monkeypatch):
    """Whatever runs in the test must not load a model."""
    from llava.model.loaded import LoadedModel

    monkeypatch.setattr(LoadedModel, "from_path", lambda *given, **more: pytest.fail("weights were read"))
