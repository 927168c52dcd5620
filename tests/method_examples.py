"""A small valid config of every pruning method, for a decoder of six layers: what tests/test_matrix.py runs.

A new method adds one entry. Where random models of six layers need other thresholds than real ones to prune at all,
the example has them.
"""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, dict[str, Any]] = {
    "visipruner": {
        "mode": ["shallow", "middle", "deep"],
        "shallow_mid_layer": 2,
        "layer_threshold": 0.975,
        "tokens_threshold": 0.9,
        "exit_threshold": 0.9,
        "exit_patience": 1,
    },
    "random": {"method": "random", "layer": 2, "keep": 5, "exit_layer": 5},
    "fastv": {"method": "fastv"},
    "pyramiddrop": {"method": "pyramiddrop"},
    "sparsevlm": {"method": "sparsevlm", "layers": [1, 3], "keep": [10, 4], "visual_tokens": 24, "cluster": 2},
    "fitprune": {"method": "fitprune", "keep": [24, 20, 20, 12, 6, 0], "visual_tokens": 24},
    "visionzip": {"method": "visionzip", "dominant": 5, "contextual": 3},
    "vtw": {"method": "vtw", "k": 4},
    "attention_topk": {"method": "attention_topk", "layer": 2, "keep": 4, "rank": "text"},
    "divprune": {"method": "divprune", "share": 0.4},
    "cdpruner": {"method": "cdpruner", "share": 0.4},
    "dart": {"method": "dart", "share": 0.4},
    "vispruner": {"method": "vispruner", "share": 0.4},
    "holov": {"method": "holov", "share": 0.4, "crops": 4},
    "scope": {"method": "scope", "share": 0.4},
    "prumerge": {"method": "prumerge", "share": 0.4, "neighbours": 4},
    "hiprune": {"method": "hiprune", "share": 0.4, "alpha": 0.9},
    "evs": {"method": "evs", "share": 0.6},
    "vidcom2": {"method": "vidcom2", "share": 0.4},
    "dycoke": {"method": "dycoke", "merge": 0.6},
    "frames": {"method": "frames", "share": 0.4},
    "downsample": {"method": "downsample", "share": 0.3},
    "none": {"method": "none", "before": {"method": "random", "keep": 6}},
    "replay": {"method": "replay", "filter_layer": 2, "keep": 3, "exit_layer": 5, "shallow_layers": 2},
    "mask": {
        "method": "mask",
        "layers": [1, 2, 5],
        "visual": "remove",
        "merge_layers": [2],
        "before": {"method": "random", "keep": 6},
    },
    "schedule": {"method": "schedule", "enter": 1, "keep": {"3": 5, "4": 2}, "exit": 5},
    "disturb": {"method": "disturb", "layer": 2, "count": 4, "how": "remove"},
}
