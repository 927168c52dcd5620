"""The small model as it is trained: CLIP's tower, LLaVA's projector and Llama's layers (`decoder`).

The parameters compute what transformers' CLIPVisionModel and LlamaForCausalLM compute; `states` renames them.
"""

import torch
from torch import nn
from torch.nn import functional as F

from llava.tiny.export import Architecture
from llava.train.tiny.decoder import DENSE, DecoderLayer, Plan, RMSNorm, Rows
from llava.train.tiny.labels import LABELS
from llava.train.tiny.pointing import pointing_layers

_QUICK_GELU = 1.702


class TowerLayer(nn.Module):
    """A layer of CLIP's vision transformer."""

    def __init__(self, a: Architecture):
        super().__init__()
        d = a.vision_hidden_size
        self.heads = a.vision_heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, a.vision_mlp_size), nn.Linear(a.vision_mlp_size, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return [B, 1 + V, D]."""
        batch, tokens, d = x.shape
        q, k, v = self.qkv(self.layer_norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, d)
        x = x + self.out_proj(read)
        hidden = self.fc1(self.layer_norm2(x))
        return x + self.fc2(hidden * torch.sigmoid(_QUICK_GELU * hidden))


class Tower(nn.Module):
    """CLIP's vision transformer up to the layer that LLaVA reads, and a head for the dense labels of training."""

    def __init__(self, a: Architecture):
        super().__init__()
        d, grid = a.vision_hidden_size, a.image_size // a.patch_size
        self.architecture = a
        self.class_embedding = nn.Parameter(torch.randn(d) * 0.02)
        self.patch_embedding = nn.Linear(3 * a.patch_size**2, d, bias=False)
        self.position_embedding = nn.Parameter(torch.randn(grid**2 + 1, d) * 0.02)
        self.pre_layrnorm = nn.LayerNorm(d)
        self.layers = nn.ModuleList(TowerLayer(a) for _ in range(a.vision_layers - 1))
        self.labels = nn.Linear(d, sum(LABELS.values()))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Take uint8 [B, H, W, 3], return the patch features [B, V, D] that LLaVA projects."""
        a = self.architecture
        batch, grid, patch = len(pictures), a.image_size // a.patch_size, a.patch_size
        x = (pictures.float() / 255 - a.pixel_mean) / a.pixel_std
        x = x.view(batch, grid, patch, grid, patch, 3).permute(0, 1, 3, 5, 2, 4).reshape(batch, grid * grid, -1)
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), self.patch_embedding(x).float()], 1)
        x = self.pre_layrnorm(x + self.position_embedding)
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]


class TinyLlava(nn.Module):
    """Tower, projector and decoder; `forward` runs packed conversations (see the module's docstring)."""

    def __init__(self, a: Architecture, prefix: list[int]):
        super().__init__()
        self.architecture = a
        self.tower = Tower(a)
        self.projector = nn.Sequential(
            nn.Linear(a.vision_hidden_size, a.hidden_size), nn.GELU(), nn.Linear(a.hidden_size, a.hidden_size)
        )
        self.embed = nn.Embedding(a.vocab_size, a.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(a) for _ in range(a.layers))
        self.norm = RMSNorm(a.hidden_size)
        self.head = nn.Linear(a.hidden_size, a.vocab_size, bias=False)
        self.register_buffer("prefix", torch.tensor(prefix), persistent=False)
        size = a.hidden_size // a.heads
        frequencies = 10000.0 ** (-torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(a.context).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for name, p in self.named_parameters():
            if p.ndim == 2 and "layers" in name:
                std = 0.7 * p.shape[1] ** -0.5
                if any(part in name for part in ("o_proj", "down_proj", "fc2", "out_proj")):
                    std /= (2 * self.architecture.layers) ** 0.5
                nn.init.normal_(p, 0, std)
        nn.init.normal_(self.embed.weight, 0, 0.5)
        nn.init.normal_(self.head.weight, 0, 0.02)

    def forward(
        self,
        features: torch.Tensor,
        ids: torch.Tensor,
        ends: torch.Tensor,
        turns: torch.Tensor,
        plan: Plan = DENSE,
        chosen: torch.Tensor | None = None,
        watched: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the last hidden states of the conversations' tokens, [B, K, S, D].

        Args:
            features: [B, V, D'] of the tower.
            ids: [B, K, S] tokens of conversations as they follow the image.
            ends: [B, K, T] index of the last prompt token of every turn.
            turns: [B, K, S] the turn of every token.
            plan: what is read where.
            chosen: [B, n] ascending; only these visual tokens, at their own positions.
            watched: gets the attention to the image of the two layers that learn where to look (see `pointing`).

        """
        images, conversations, width = ids.shape
        prefix, first = len(self.prefix), len(self.prefix) + features.shape[1]
        if chosen is None:
            chosen = torch.arange(features.shape[1], device=ids.device).expand(images, -1)
        else:
            features = features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1]))
        visual = self.projector(features).float().flatten(0, 1)
        x = torch.cat([self.embed(self.prefix), visual, self.embed(ids.flatten())])
        after = torch.arange(first, first + width, device=ids.device).repeat(images * conversations)
        before = torch.arange(prefix, device=ids.device)
        positions = torch.cat([before, prefix + chosen.flatten(), after])
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        count = chosen.shape[1]
        rows = Rows(prefix, images, count, conversations, width, cos, sin, ends, turns)
        reading = [n for n in range(len(self.layers)) if n not in plan.blind]
        kept = None
        pointing = () if watched is None else pointing_layers(len(self.layers))
        for number, layer in enumerate(self.layers):
            if rows.visual and number > max(reading, default=-1):  # nothing reads the image any more
                x = torch.cat([x[:prefix], x[prefix + images * count :]])
                cos, sin = (torch.cat([t[:prefix], t[prefix + images * count :]]) for t in (cos, sin))
                rows = Rows(prefix, images, 0, conversations, width, cos, sin, ends, turns)
            last = number == len(self.layers) - 1
            x, kept = layer(x, rows, number, plan, kept, last, watched if number in pointing else None)
        return self.norm(x).view(images, conversations, width, -1)


State = dict[str, torch.Tensor]


def export_states(model: TinyLlava) -> tuple[State, State, State]:
    """Return the state dicts of CLIPVisionModel, the projector and LlamaForCausalLM, float32 on the CPU.

    CLIP gets one layer more than was trained, which adds nothing: LLaVA's select layer -2 then reads the last trained.
    """
    tower, a = model.tower, model.architecture
    vision = {
        "embeddings.class_embedding": tower.class_embedding,
        "embeddings.patch_embedding.weight": tower.patch_embedding.weight.view(-1, 3, a.patch_size, a.patch_size),
        "embeddings.position_embedding.weight": tower.position_embedding,
        "pre_layrnorm.weight": tower.pre_layrnorm.weight,
        "pre_layrnorm.bias": tower.pre_layrnorm.bias,
        "post_layernorm.weight": torch.ones_like(tower.pre_layrnorm.weight),
        "post_layernorm.bias": torch.zeros_like(tower.pre_layrnorm.bias),
    }
    for i, layer in enumerate([*tower.layers, tower.layers[-1]]):
        adds = i < len(tower.layers)
        base = f"encoder.layers.{i}."
        for p in ("weight", "bias"):
            for name, part in zip("qkv", getattr(layer.qkv, p).chunk(3), strict=True):
                vision[f"{base}self_attn.{name}_proj.{p}"] = part
            vision[f"{base}self_attn.out_proj.{p}"] = getattr(layer.out_proj, p) * adds
            vision[f"{base}mlp.fc1.{p}"] = getattr(layer.fc1, p)
            vision[f"{base}mlp.fc2.{p}"] = getattr(layer.fc2, p) * adds
            for norm in ("layer_norm1", "layer_norm2"):
                vision[f"{base}{norm}.{p}"] = getattr(getattr(layer, norm), p)
    language = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, layer in enumerate(model.layers):
        base = f"model.layers.{i}."
        for name, part in zip("qkv", layer.qkv.weight.chunk(3), strict=True):
            language[f"{base}self_attn.{name}_proj.weight"] = part
        for name, part in zip(("gate", "up"), layer.gate_up.weight.chunk(2), strict=True):
            language[f"{base}mlp.{name}_proj.weight"] = part
        language[f"{base}self_attn.o_proj.weight"] = layer.o_proj.weight
        language[f"{base}mlp.down_proj.weight"] = layer.down_proj.weight
        for norm in ("input_layernorm", "post_attention_layernorm"):
            language[f"{base}{norm}.weight"] = getattr(layer, norm).weight
    states = (vision, model.projector.state_dict(), language)
    return tuple({name: t.detach().float().cpu().contiguous() for name, t in state.items()} for state in states)
