"""InternVL's published computation, read plainly from its original weights: no module of transformers, no conversion.

Source: modeling_intern_vit.py, modeling_internlm2.py and modeling_internvl_chat.py of the published code, as formulas.
"""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, layer_norm, silu, softmax


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


class Reading:
    """Weights `w` and the config.json `c` they came with; one image tile and one prompt at a time."""

    def __init__(self, weights: dict[str, torch.Tensor], config: dict):
        self.w, self.vision, self.text = weights, config["vision_config"], config["llm_config"]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        bias = self.w.get(f"{name}.bias")
        return x @ self.w[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if self.vision["norm_type"] == "rms_norm":
            return rms(x, self.w[f"{name}.weight"], self.vision["layer_norm_eps"])
        return layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def tower(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[3, S, S]` to the last hidden state without the class token, `[patches, D]`."""
        v, side = self.vision, self.vision["patch_size"]
        cut = pixels.unfold(1, side, side).unfold(2, side, side)  # [3, rows, columns, side, side]
        patches = cut.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
        kernel = self.w["vision_model.embeddings.patch_embedding.weight"].flatten(1)
        x = patches @ kernel.T + self.w["vision_model.embeddings.patch_embedding.bias"]
        x = torch.cat([self.w["vision_model.embeddings.class_embedding"][0], x])
        x = x + self.w["vision_model.embeddings.position_embedding"][0]
        for layer in range(v["num_hidden_layers"]):
            at = f"vision_model.encoder.layers.{layer}."
            q, k, values = self.linear(self.norm(x, f"{at}norm1"), f"{at}attn.qkv").chunk(3, dim=-1)
            if v["qk_normalization"]:
                q, k = (rms(t, self.w[f"{at}attn.{n}_norm.weight"], 1e-6) for n, t in (("q", q), ("k", k)))
            heads = []
            for part in range(v["num_attention_heads"]):
                size = v["hidden_size"] // v["num_attention_heads"]
                of = slice(part * size, (part + 1) * size)
                heads.append(softmax(q[:, of] @ k[:, of].T * size**-0.5, -1) @ values[:, of])
            x = x + self.linear(torch.cat(heads, -1), f"{at}attn.proj") * self.w[f"{at}ls1"]
            hidden = gelu(self.linear(self.norm(x, f"{at}norm2"), f"{at}mlp.fc1"))
            x = x + self.linear(hidden, f"{at}mlp.fc2") * self.w[f"{at}ls2"]
        return x[1:]

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[3, S, S]` to visual tokens `[n, D]`: each two by two patches in one token, row by row."""
        x = self.tower(pixels)
        side = int(len(x) ** 0.5)
        grid = x.reshape(side, side, -1)
        tokens = [
            torch.cat([grid[row, column], grid[row, column + 1], grid[row + 1, column], grid[row + 1, column + 1]])
            for row in range(0, side, 2)
            for column in range(0, side, 2)
        ]
        x = torch.stack(tokens)
        x = layer_norm(x, x.shape[-1:], self.w["mlp1.0.weight"], self.w["mlp1.0.bias"])
        return self.linear(gelu(self.linear(x, "mlp1.1")), "mlp1.3")

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate one head `[T, d]`; beyond the trained length the base grows (dynamic NTK)."""
        length, d = x.shape
        trained, factor = self.text["max_position_embeddings"], self.text["rope_scaling"]["factor"]
        base = self.text["rope_theta"]
        if length > trained:
            base *= (factor * length / trained - (factor - 1)) ** (d / (d - 2))
        angle = torch.arange(length)[:, None] / base ** (torch.arange(0, d, 2) / d)
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def logits(self, embeds: torch.Tensor) -> torch.Tensor:
        """InternLM2 on one prompt's embeddings `[T, D]`; logits `[T, vocabulary]`."""
        t, x = self.text, embeds
        heads, kv_heads, eps = t["num_attention_heads"], t["num_key_value_heads"], t["rms_norm_eps"]
        group, size = heads // kv_heads, t["hidden_size"] // heads
        future = torch.full((len(x), len(x)), -torch.inf).triu(1)
        for layer in range(t["num_hidden_layers"]):
            at = f"language_model.model.layers.{layer}."
            fused = self.linear(rms(x, self.w[f"{at}attention_norm.weight"], eps), f"{at}attention.wqkv").split(
                size, -1
            )
            out = []
            for head in range(heads):  # fused: q q q k v | q q q k v
                first = head // group * (group + 2)
                q, k, v = fused[first + head % group], fused[first + group], fused[first + group + 1]
                out.append(softmax(self.rotate(q) @ self.rotate(k).T * size**-0.5 + future, -1) @ v)
            x = x + self.linear(torch.cat(out, -1), f"{at}attention.wo")
            y = rms(x, self.w[f"{at}ffn_norm.weight"], eps)
            gated = silu(self.linear(y, f"{at}feed_forward.w1")) * self.linear(y, f"{at}feed_forward.w3")
            x = x + self.linear(gated, f"{at}feed_forward.w2")
        return self.linear(rms(x, self.w["language_model.model.norm.weight"], eps), "language_model.output")
