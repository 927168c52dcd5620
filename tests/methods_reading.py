"""A slow reference of the pruning methods: one prompt, full attention probabilities, lists and loops.

`read` runs a decoder layer by layer on the functions of tests/reference.py; a method is a function
`(layer, prompt, probabilities)` that is called after every layer (−1: before the first, without probabilities) and
drops or rewrites tokens of the prompt. Nothing is shared with `llava.model.pruning`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from reference import finish_layer, linear, per_query_head, project, rms_norm
from torch import Tensor


class Prompt:
    """The tokens that are left of a prompt: hidden states, places in the prompt, rotary positions, which are visual."""

    def __init__(self, model, embeds: Tensor, visual: list[bool]):
        self.model, self.x, self.visual = model, embeds, list(visual)
        self.visual[-1] = False
        self.places = list(range(len(embeds)))
        self.weights: list[float] | None = None
        self.positions = list(self.places)

    def columns(self) -> list[int]:
        return [j for j, is_visual in enumerate(self.visual) if is_visual]

    def text_after(self) -> list[int]:
        """Text tokens after the first visual one."""
        return [j for j, is_visual in enumerate(self.visual) if not is_visual and j > self.columns()[0]]

    def keep_visual(self, kept: list[int]) -> None:
        """Drop the visual tokens that are not among the columns `kept`."""
        left = [j for j, is_visual in enumerate(self.visual) if not is_visual or j in kept]
        names = ["visual", "places", "positions"]
        if self.weights is not None:
            names.append("weights")
            for j in self.columns() if kept else []:
                if j not in kept:  # counts for the kept token that resembles it most
                    nearest = max(
                        sorted(kept), key=lambda i: float(torch.cosine_similarity(self.x[i], self.x[j], dim=0))
                    )
                    self.weights[nearest] += self.weights[j]
        self.x = self.x[left]
        for name in names:
            setattr(self, name, [getattr(self, name)[j] for j in left])

    def renumber(self) -> None:
        self.positions = list(range(len(self.places)))

    def attend(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities [H, T, T], rotated keys and values of a layer on these tokens."""
        normed = rms_norm(self.model.model.layers[layer].input_layernorm, self.x, self.model.config.rms_norm_eps)
        q, k, v = project(self.model, layer, normed, self.positions)
        scores = q @ per_query_head(self.model, k).transpose(1, 2) / q.shape[-1] ** 0.5
        if self.weights is not None:
            scores = scores + torch.tensor(self.weights).log()
        later = torch.ones(len(self.places), len(self.places)).triu(1).bool()
        return scores.masked_fill(later, float("-inf")).softmax(-1), k, v


class Reading:
    """What `read` found: tokens entering each layer, cuts as a trace has them, logits, the cache to decode on."""

    def __init__(self):
        self.tokens_per_layer: list[int] = []
        self.cuts: list[tuple[int, list[int]]] = []
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.next: list[int] = []
        self.weights: list[list[float]] = []
        self.last: list[Tensor] = []
        self.columns: list[list[int]] = []
        self.logits = torch.empty(0)


@torch.no_grad()
def read(model, embeds: Tensor, visual: list[bool], *methods: Callable, rectify: bool = False) -> Reading:
    """Prefill embeds [T, D]; several methods act one after the other at each layer."""
    prompt, reading = Prompt(model, embeds, visual), Reading()
    prompt.weights = [1.0] * len(embeds) if rectify else None
    layers = len(model.model.layers)

    def act(layer: int, probabilities: Tensor | None) -> None:
        for method in methods:
            before = len(prompt.places)
            if prompt.columns() and layer + 1 < layers:
                told = method(layer, prompt, probabilities)
                if len(prompt.places) < before or told:
                    reading.cuts = [cut for cut in reading.cuts if cut[0] != layer]
                    reading.cuts.append((layer, sorted(prompt.places[j] for j in prompt.columns())))

    act(-1, None)
    for layer in range(layers):
        reading.tokens_per_layer.append(len(prompt.places))
        probabilities, k, v = prompt.attend(layer)
        reading.cache.append((k, v))
        reading.next.append(prompt.positions[-1] + 1)
        reading.last.append(probabilities[:, -1])
        reading.columns.append(prompt.columns())
        reading.weights.append(list(prompt.weights or [1.0] * len(prompt.places)))
        output = (probabilities @ per_query_head(model, v)).transpose(0, 1).reshape(len(prompt.places), -1)
        prompt.entered, prompt.x = prompt.x, finish_layer(model, layer, prompt.x, output)
        act(layer, probabilities)
    reading.logits = linear(model.lm_head, rms_norm(model.model.norm, prompt.x[-1], model.config.rms_norm_eps))
    return reading


@torch.no_grad()
def decode(model, reading: Reading, token: int) -> Tensor:
    """Feed one token to the cache that the prefill left, at each layer's next position; returns logits [vocab]."""
    eps = model.config.rms_norm_eps
    x = model.model.embed_tokens.weight[token][None]
    held = zip(reading.cache, reading.next, reading.weights, strict=True)
    for layer, ((keys, values), position, weights) in enumerate(held):
        q, k, v = project(model, layer, rms_norm(model.model.layers[layer].input_layernorm, x, eps), [position])
        keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        scores = q @ per_query_head(model, keys).transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores + torch.tensor([*weights, 1.0]).log()
        output = scores.softmax(-1) @ per_query_head(model, values)
        x = finish_layer(model, layer, x, output.transpose(0, 1).reshape(1, -1))
    return linear(model.lm_head, rms_norm(model.model.norm, x, eps)[0])


@torch.no_grad()
def decode_held_aside(
    model, reading: Reading, tokens: list[int], share: float, every: int, text: float
) -> list[Tensor]:
    """Feed tokens one by one; each layer reads its best visual keys, chosen anew after every so many; their logits."""
    eps, found, layers = model.config.rms_norm_eps, [], []
    for (keys, values), columns, last in zip(reading.cache, reading.columns, reading.last, strict=True):
        words = [j for j in range(last.shape[1]) if j not in columns]
        length = {j: float(sum(head[j].norm() for head in keys)) for j in words}
        words = sorted(words, key=lambda j: length[j])[: round(text * len(words))]
        held = sorted([*words, *columns])
        left = last[:, held]  # the last row's attention among what is left
        scores = (left / left.sum(1, keepdim=True)).mean(0).tolist()
        layers.append([keys[:, held], values[:, held], [held.index(j) for j in columns], scores])
    read = [chosen(columns, scores, share) for _, _, columns, scores in layers]
    for step, token in enumerate(tokens):
        x = model.model.embed_tokens.weight[token][None]
        for layer, ((keys, values, columns, scores), position) in enumerate(zip(layers, reading.next, strict=True)):
            q, k, v = project(
                model, layer, rms_norm(model.model.layers[layer].input_layernorm, x, eps), [position + step]
            )
            keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
            logits = q @ per_query_head(model, keys).transpose(1, 2) / q.shape[-1] ** 0.5
            whole = logits.softmax(-1).mean(0)[0].tolist()
            for j in columns:
                scores[j] = (0 if step % every == 0 else scores[j]) + whole[j]
            hidden = [j for j in columns if j not in read[layer]]
            logits[..., hidden] = float("-inf")
            output = logits.softmax(-1) @ per_query_head(model, values)
            x = finish_layer(model, layer, x, output.transpose(0, 1).reshape(1, -1))
            layers[layer][:2] = keys, values
        found.append(linear(model.lm_head, rms_norm(model.model.norm, x, eps)[0]))
        if (step + 1) % every == 0:
            read = [chosen(columns, scores, share) for _, _, columns, scores in layers]
    return found


def chosen(columns: list[int], scores: list[float], share: float) -> list[int]:
    return sorted(columns, key=lambda j: -scores[j])[: round(share * len(columns))]


def best(scores: Tensor, columns: list[int], count: int) -> list[int]:
    """The columns of the `count` highest scores."""
    return [columns[i] for i in scores.topk(min(count, len(columns))).indices.tolist()]


def fastv(k: int, r: float) -> Callable:
    def method(layer, prompt, probabilities):
        if layer == k - 1:
            columns = prompt.columns()
            scores = probabilities.mean(0)[-1, columns]
            prompt.keep_visual(best(scores, columns, round((1 - r) * len(columns))))
            return True

    return method


def vtw(k: int) -> Callable:
    def method(layer, prompt, probabilities):
        if layer == k - 1:
            prompt.keep_visual([])

    return method


def pyramiddrop(layers: list[int], ratios: list[float], compact: bool = False) -> Callable:
    full: list[int] = []

    def method(layer, prompt, probabilities):
        if layer < 0:
            full[:] = [len(prompt.columns())]
        if layer + 1 in layers:
            columns = prompt.columns()
            own = prompt.attend(layer + 1)[0].mean(0)[-1, columns]
            prompt.keep_visual(best(own, columns, int(full[0] * ratios[layers.index(layer + 1)])))
            if compact:
                prompt.renumber()
            return True

    return method


def attention_topk(at: int, count: int, rows: str) -> Callable:
    def method(layer, prompt, probabilities):
        if layer == at:
            columns = prompt.columns()
            asking = {"last": [-1], "text": prompt.text_after(), "visual": columns}[rows]
            prompt.keep_visual(best(probabilities.mean(0)[asking][:, columns].sum(0), columns, count))
            return True

    return method


def fitprune(keep: list[int]) -> Callable:
    """For prompts with as many visual tokens as the numbers are meant for."""

    def method(layer, prompt, probabilities):
        columns = prompt.columns()
        if layer >= 0 and keep[layer] < len(columns):
            mixed = probabilities.amax(0)
            cross, own = mixed[prompt.text_after()][:, columns].sum(0), mixed[columns][:, columns].sum(0)
            prompt.keep_visual(best(cross * own, columns, keep[layer]))

    return method


def divprune(count: int, compact: bool = False) -> Callable:
    def method(layer, prompt, probabilities):
        if layer >= 0:
            return
        columns = prompt.columns()
        x = prompt.x[columns]
        distance = [[1 - float(torch.cosine_similarity(a, b, dim=0)) for b in x] for a in x]
        everyone = range(len(columns))
        first = max(everyone, key=lambda i: min((distance[i][j] for j in everyone if j != i), default=0))
        chosen = [first]
        while len(chosen) < min(count, len(columns)):
            rest = [i for i in everyone if i not in chosen]
            chosen.append(max(rest, key=lambda i: min(distance[i][j] for j in chosen)))
        prompt.keep_visual([columns[i] for i in chosen])
        if compact:
            prompt.renumber()

    return method


def sparsevlm(layers, keep, per_cluster, share=0.3, compact=False, scale=None, bias=0.0) -> Callable:
    """`keep` counts for prompts of as many visual tokens as they are meant for."""
    raters: list[int] = []

    def method(layer, prompt, probabilities):
        columns = prompt.columns()
        if layer < 0:
            text = prompt.text_after()
            weight = (prompt.x[columns] @ prompt.x[text].T).softmax(1).mean(0)
            raters[:] = [prompt.places[t] for t, w in zip(text, weight, strict=True) if w > weight.mean()]
        if layer not in layers:
            return None
        rows = [prompt.places.index(place) for place in raters]
        looked = probabilities.mean(0)[rows][:, columns]
        if scale is None:
            count = keep[layers.index(layer)]
        else:
            rank = int(torch.linalg.matrix_rank(looked))
            if rank == len(columns):
                return None
            count = int(rank * scale + bias)
        count = min(count, len(columns) - 1)
        order = looked.mean(0).sort(descending=True).indices.tolist()
        kept, dropped = sorted(order[:count]), order[count:]
        members = dropped[: int(len(dropped) * share) + 1]
        centres, groups = clusters(prompt.x[[columns[m] for m in members]], len(members) // per_cluster + 1)
        merged = [prompt.x[[columns[members[i]] for i in group]].mean(0) for group in groups]
        centres = [columns[members[i]] for i in centres]
        kept = [columns[i] for i in kept]
        rows = {j: prompt.x[j] for j in kept} | dict(zip(centres, merged, strict=True))
        if compact:  # merged tokens come last, and so do their places
            slots, places = sorted(rows), list(prompt.places)
            rows = dict(zip(slots, [*(prompt.x[j] for j in kept), *merged], strict=True))
            for slot, origin in zip(slots, [*kept, *centres], strict=True):
                places[slot] = prompt.places[origin]
            prompt.places = places
        prompt.x = prompt.x.clone()
        for j, row in rows.items():
            prompt.x[j] = row
        prompt.keep_visual(list(rows))
        if compact:
            prompt.renumber()
        return True

    return method


def clusters(x: Tensor, number: int) -> tuple[list[int], list[list[int]]]:
    """Density peaks over k nearest neighbours: centres, and the members of each."""
    n = len(x)
    d = [[float((a - b).norm()) / x.shape[1] ** 0.5 for b in x] for a in x]
    density = [torch.tensor([-sum(v**2 for v in sorted(d[i])[:number]) / number]).exp().item() for i in range(n)]
    largest = max(max(row) for row in d)
    apart = [min([d[i][j] for j in range(n) if density[j] > density[i]], default=largest) for i in range(n)]
    centres = sorted(range(n), key=lambda i: -apart[i] * density[i])[:number]
    groups = [[c] for c in centres]
    for i in range(n):
        if i not in centres:
            groups[min(range(len(centres)), key=lambda c: d[i][centres[c]])].append(i)
    return centres, groups


def cdpruner(count: int) -> Callable:
    """The determinant of every set that one more token would make."""

    def method(layer, prompt, probabilities):
        if layer >= 0:
            return
        columns = prompt.columns()
        unit = torch.nn.functional.normalize(prompt.x.double(), dim=-1)
        relevance = torch.stack([-(unit[prompt.text_after()] @ unit[j]).mean() for j in columns])
        relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
        kernel = torch.stack([
            torch.stack([relevance[a] * (unit[i] @ unit[j]) * relevance[b] for b, j in enumerate(columns)])
            for a, i in enumerate(columns)
        ])  # fmt: skip
        chosen: list[int] = []
        while len(chosen) < min(count, len(columns)):
            rest = [i for i in range(len(columns)) if i not in chosen]
            chosen.append(
                max(rest, key=lambda i: float(kernel[[*chosen, i]][:, [*chosen, i]].logdet().nan_to_num(-1e9)))
            )
        prompt.keep_visual([columns[i] for i in chosen])

    return method


def dart(k: int, count: int, visual_pivots: int = 4, text_pivots: int = 4) -> Callable:
    def method(layer, prompt, probabilities):
        if layer != k - 1:
            return None
        columns, entered = prompt.columns(), prompt.entered
        normed = rms_norm(prompt.model.model.layers[layer].input_layernorm, entered, prompt.model.config.rms_norm_eps)
        keys = project(prompt.model, layer, normed, prompt.positions)[1]
        length = [float(sum(head[j].abs().sum() for head in keys)) for j in range(len(prompt.places))]
        pivots = sorted(columns, key=lambda j: -length[j])[:visual_pivots][:count]
        kept = list(pivots)
        pivots = sorted(columns, key=lambda j: -length[j])[:visual_pivots]
        pivots += sorted(prompt.text_after(), key=lambda j: -length[j])[:text_pivots]
        more, over = divmod(min(count, len(columns)) - len(kept), len(pivots))
        for number, pivot in enumerate(pivots):
            rest = [j for j in columns if j not in kept]
            rest.sort(key=lambda j: float(torch.cosine_similarity(prompt.x[pivot], prompt.x[j], dim=0)))
            kept += rest[: more + (number < over)]
        prompt.keep_visual(kept)
        return True

    return method
