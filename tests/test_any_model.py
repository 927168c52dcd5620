"""Every entry of the list that is pruned before the decoder only: a tiny model of it runs, and the list is true."""

import json
import re
from pathlib import Path

import pytest
import torch
from any_models import IMAGE, LISTED, tiny
from family_case import pad_left
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.eval import models
from llava.model.pruning import prune
from llava.model.pruning.families import decoder_obstacle, family_of
from llava.model.pruning.families.any_model import NO_ROWS
from llava.model.pruning.families.listing import ALL, BEFORE, REFUSED, listing

ENTRIES = {entry.model_type: entry for entry in listing()}
ROWS = ([5, 6, *[IMAGE] * 5, 7, 8], [9, *[IMAGE] * 6, 12, 13, *[IMAGE] * 2, 16], [20, 21, 22])
KEEP = {"method": "random", "keep": 3}
STEPS = 3
ROUNDING = {"nemotron_h_omni": 1e-2}  # Mamba's scan in chunks, and step by step


def prompts(rows) -> dict[str, torch.Tensor]:
    return dict(zip(("input_ids", "attention_mask"), pad_left(list(rows)), strict=True))


def generate(model, rows, beams=1):
    settings = {"do_sample": False, "num_beams": beams, "output_logits": True, "return_dict_in_generate": True}
    output = model.generate(**prompts(rows), max_new_tokens=STEPS, **settings)
    return output.sequences[:, -STEPS:].tolist(), torch.stack(output.logits)


@pytest.fixture(scope="module", params=[name for name, entry in ENTRIES.items() if entry.runs == BEFORE])
def model(request):
    model = tiny(request.param)
    drawn = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))

    def features(module, args, output):  # as if a tower had made them
        for row, ids in zip(output, args[0], strict=True):
            row[ids == IMAGE] = drawn[: int((ids == IMAGE).sum())].to(output)

    hook = family_of(model).decoder(model).get_input_embeddings().register_forward_hook(features)
    yield model
    hook.remove()


def test_a_model_of_the_list_is_pruned_before_its_decoder(model):
    """Nothing pruned is the untouched model; batch is one by one; kept rows and steps are a slow reading's."""
    family, name = family_of(model), type(model).__name__
    assert decoder_obstacle(model, family) is not None
    with pytest.raises(ValueError, match=f"{name} takes methods that prune before the decoder only .*, not 'fastv'"):
        prune(model, {"method": "fastv"}, prompts(ROWS)["input_ids"] == IMAGE)
    masks = {"visual_mask": prompts(ROWS)["input_ids"] == IMAGE} if family.needs_mask else {}
    dense, _ = generate(model, ROWS)
    seen = entering(model, ROWS)
    with prune(model, {"method": "none"}, **masks):
        assert generate(model, ROWS)[0] == dense
    with prune(model, KEEP, **masks) as session:
        tokens, logits = generate(model, ROWS)
    assert [trace.tokens_per_layer[0] for trace in session.traces] == [7, 7, 3]
    with prune(model, KEEP, **masks):
        beams, _ = generate(model, ROWS[:2], 2)
    for row, (ids, trace) in enumerate(zip(ROWS, session.traces, strict=True)):
        alone = {"visual_mask": torch.tensor([ids]) == IMAGE} if masks else {}
        with prune(model, KEEP, **alone):
            assert row == 2 or generate(model, [ids], 2)[0] == [beams[row]]
        kept = [place for place, token in enumerate(ids) if token != IMAGE or place in trace.cuts[-1][1]]
        expected = slow(model, {key: value[row : row + 1] for key, value in seen.items()}, ids, kept, tokens[row])
        assert (torch.stack(expected) - logits[:, row]).abs().max() < ROUNDING.get(model.config.model_type, 2e-4)


def entering(model, rows) -> dict[str, torch.Tensor]:
    """What the untouched decoder is given: embeddings, and what else has a row per token."""
    seen: dict[str, torch.Tensor] = {}
    decoder = family_of(model).decoder(model)
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    model(**prompts(rows))
    hook.remove()
    if seen.get("inputs_embeds") is None:
        seen["inputs_embeds"] = decoder.get_input_embeddings()(seen["input_ids"])
    shape = seen["inputs_embeds"].shape[:2]
    planes = {key: part for key, part in seen.items() if isinstance(part, torch.Tensor) and part.shape[:2] == shape}
    return {key: part for key, part in planes.items() if key not in ("attention_mask", "position_ids", "input_ids")}


def slow(model, planes, ids, kept, tokens) -> list[torch.Tensor]:
    """Logits of every step: the untouched decoder reads the rows that are left at their positions, without a cache."""
    decoder = family_of(model).decoder(model)
    planes = {key: part[:, -len(ids) :][:, kept] for key, part in planes.items()}
    positions, logits = list(kept), []
    for step in range(STEPS):
        places, there = torch.tensor([positions]), torch.ones(1, len(positions), dtype=torch.long)
        output = decoder(**planes, position_ids=places, attention_mask=there, use_cache=False)
        decoder.forward = lambda *args, output=output, **kwargs: output
        try:
            logits.append(model(input_ids=torch.tensor([[5]]), attention_mask=torch.ones(1, 1).long()).logits[0, -1])
        finally:
            del decoder.forward
        further = decoder.get_input_embeddings()(torch.tensor([[tokens[step]]]))
        planes["inputs_embeds"] = torch.cat([planes["inputs_embeds"], further], 1)
        if "per_layer_inputs" in planes:
            given = (torch.tensor([[tokens[step]]]), further)
            own = decoder.get_per_layer_inputs(*given[: 1 + (model.config.model_type != "gemma3n")])
            planes["per_layer_inputs"] = torch.cat([planes["per_layer_inputs"], own], 1)
        for key in planes.keys() - {"inputs_embeds", "per_layer_inputs"}:
            planes[key] = torch.cat([planes[key], torch.zeros_like(planes[key][:, :1])], 1)
        positions.append(len(ids) + step)
    return logits


def test_the_list_names_every_entry_and_says_why():
    assert list(ENTRIES) == list(LISTED)
    assert all(bool(entry.why) == (entry.runs != ALL or not entry.page) for entry in ENTRIES.values())
    assert sum(entry.runs == ALL for entry in ENTRIES.values()) >= 25
    assert not set(NO_ROWS) - set(LISTED)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.runs == REFUSED])
def test_a_refused_model_says_so(name):
    kind = type(LISTED[name], (torch.nn.Module,), {})  # what `prune` asks is its config
    model = kind()
    model.config = CONFIG_MAPPING[name]()
    with pytest.raises(ValueError, match=f"cannot serve {LISTED[name]}: {ENTRIES[name].why}; python -m llava"):
        prune(model, KEEP)


def test_the_page_holds_the_list():
    """docs/models.md: the command's own Markdown."""
    page = Path(__file__).parents[1].joinpath("docs/models.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([\w.-]+) \| (all methods|before the decoder|refused) \|", page, re.MULTILINE))
    assert rows == {name: entry.runs for name, entry in ENTRIES.items()}


def test_the_command_prints_table_and_json(capsys):
    assert models.main(["--runs", "refused"]) == 0
    said = capsys.readouterr().out.splitlines()
    counts = json.loads(said[-1])["counts"]
    assert sum(counts.values()) == len(LISTED) and "vision-encoder-decoder" in " ".join(said[:-1])
    assert models.main(["--markdown"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(LISTED)
