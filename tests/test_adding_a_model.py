"""docs/adding-a-model.md: its code, run as it stands, makes an unknown model prunable."""

import re
from pathlib import Path

import torch
import transformers as hf
from family_case import Batch
from family_models import CASES, clip, llama

from llava import prune
from llava.model.pruning.families import FAMILIES, family_of, model_class

PAGE = Path(__file__).parents[1] / "docs/adding-a-model.md"


def test_the_page_adds_a_family():
    torch.manual_seed(0)
    config = hf.VipLlavaConfig(
        vision_config=clip(), text_config=llama(), image_token_index=95, vision_feature_layers=[-2, -1]
    )
    model = hf.VipLlavaForConditionalGeneration(config).eval()
    before = list(FAMILIES)
    try:
        FAMILIES[:] = [family for family in FAMILIES if "vipllava" not in family.model_types]
        assert not family_of(model).passes_keywords
        exec(re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[1], {"__name__": "page"})
        assert family_of(model).passes_keywords and model_class("vipllava") is hf.VipLlavaForConditionalGeneration
        batch = Batch(CASES["llava"], "tttittt", "tittt")
        with torch.no_grad():
            dense = model(**batch.inputs).logits[:, -1]
            with prune(model, {"method": "none"}):
                assert (model(**batch.inputs).logits[:, -1] - dense).abs().max() < 1e-4
            with prune(model, {"method": "fastv", "k": 2}) as session:
                model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
        visual = int(batch.visual[0].sum())
        assert [trace.visual_per_layer[1:3] for trace in session.traces] == [[visual, visual // 2]] * 2
    finally:
        FAMILIES[:] = before
