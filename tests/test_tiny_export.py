"""Export and the shipped checkpoint: weights survive the trip to disk, bad parts are named, and the model answers."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPVisionModel, LlamaForCausalLM

from llava import load_pretrained_model
from llava.tiny.accuracy import answer
from llava.tiny.export import Architecture, export, main, split_parts
from llava.tiny.gqa_mini import choose_questions
from llava.tiny.scenes import render
from llava.tiny.seeds import TEST
from llava.tiny.tokenizer import build_tokenizer

CHECKPOINT = Path(__file__).parents[1] / "playground" / "checkpoints" / "llava-tiny"
SMALL = Architecture(
    hidden_size=16,
    layers=2,
    heads=2,
    mlp_size=24,
    vision_hidden_size=8,
    vision_layers=3,
    vision_heads=2,
    vision_mlp_size=12,
)


def random_parts(architecture, seed=0):
    torch.manual_seed(seed)
    vision = CLIPVisionModel(architecture.vision_config()).eval()
    language = LlamaForCausalLM(architecture.language_config()).eval()
    d, v = architecture.hidden_size, architecture.vision_hidden_size
    projector = torch.nn.Sequential(torch.nn.Linear(v, d), torch.nn.GELU(), torch.nn.Linear(d, d))
    return vision, projector, language


def states(parts):
    return [part.state_dict() for part in parts]


@torch.inference_mode()
def test_a_written_folder_computes_what_the_parts_compute(tmp_path):
    vision, projector, language = random_parts(SMALL)
    export(*states((vision, projector, language)), build_tokenizer(), tmp_path, SMALL, dtype=torch.float32)
    tokenizer, model, image_processor, context = load_pretrained_model(tmp_path, None, "llava-tiny", device="cpu")
    assert context == SMALL.context and len(tokenizer) == SMALL.vocab_size
    pixels = torch.randn(1, 3, 168, 168)
    features = projector(vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])[0]
    assert features.shape == (144, SMALL.hidden_size)
    before, after = torch.tensor([[1, 6, 7]]), torch.tensor([[32, 45, 30]])
    embed = language.get_input_embeddings()
    expected = language(inputs_embeds=torch.cat([embed(before), features[None], embed(after)], 1)).logits
    ids = torch.cat([before, torch.tensor([[-200]]), after], 1)
    torch.testing.assert_close(model(ids, images=pixels).logits, expected, rtol=0, atol=1e-5)


def test_exporting_twice_writes_the_same_bytes(tmp_path):
    parts = states(random_parts(SMALL))
    for name in ("a", "b"):
        export(*parts, build_tokenizer(), tmp_path / name, SMALL)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 8
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_parts_that_do_not_fit_are_named_and_nothing_is_written(tmp_path):
    vision, projector, language = states(random_parts(SMALL))
    del vision["pre_layrnorm.weight"]
    with pytest.raises(ValueError, match="vision tower.*1 missing: pre_layrnorm.weight"):
        export(vision, projector, language, build_tokenizer(), tmp_path / "x", SMALL)
    vision, projector, language = states(random_parts(SMALL))
    with pytest.raises(
        ValueError, match=r"projector.*1 unexpected: 4.bias; 1 of another shape: 2.bias \[3\] instead of \[16\]"
    ):
        export(
            vision,
            {**projector, "2.bias": torch.zeros(3), "4.bias": torch.zeros(1)},
            language,
            build_tokenizer(),
            tmp_path,
            SMALL,
        )
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="196 pieces, the embedding 195 rows"):
        export(vision, projector, language, tokenizer, tmp_path / "x", SMALL)
    assert not list(tmp_path.iterdir())


def test_the_command_splits_parts_by_prefix(tmp_path):
    parts = dict(zip("vpl", states(random_parts(Architecture())), strict=True))
    flat = {f"{p}.{k}": v.clone() for p, state in parts.items() for k, v in state.items()}
    assert [len(state) for state in split_parts(flat)] == [len(state) for state in parts.values()]
    save_file(flat, tmp_path / "parts.safetensors")
    main([str(tmp_path / "parts.safetensors"), "--out", str(tmp_path / "out")])
    _, model, _, _ = load_pretrained_model(tmp_path / "out", None, "llava-tiny", device="cpu")
    torch.testing.assert_close(model.lm_head.weight, parts["l"]["lm_head.weight"].bfloat16().float())
    save_file({"q.weight": torch.zeros(1)}, tmp_path / "bad.safetensors")
    for bad, message in (("bad", "found q.weight"), ("absent", "No such file")):
        with pytest.raises(SystemExit, match=message):
            main([str(tmp_path / f"{bad}.safetensors"), "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_the_shipped_folder_is_complete_small_and_self_contained():
    sizes = {str(p.relative_to(CHECKPOINT)): p.stat().st_size for p in CHECKPOINT.rglob("*") if p.is_file()}
    assert sum(sizes.values()) <= 30e6
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "vision_tower/config.json"} <= set(sizes)
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["mm_vision_tower"], config["mm_vision_select_layer"]) == (
        "llava_llama",
        "vision_tower",
        -2,
    )


def test_a_picture_of_the_right_size_passes_the_processor_exactly():
    pixels, _ = render(np.random.default_rng(TEST[0]))
    processor = CLIPImageProcessorPil.from_pretrained(CHECKPOINT / "vision_tower")
    got = processor(pixels, return_tensors="pt").pixel_values[0]
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 118) / 64
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_the_shipped_model_answers_held_out_questions():
    loaded = load_pretrained_model(CHECKPOINT, None, "llava-tiny", device="cpu")
    asked, yeses, right = Counter(), Counter(), []
    for seed in TEST[1000:1012]:
        rng = np.random.default_rng(seed)
        pixels, scene = render(rng, "heldout")
        questions = list(choose_questions(scene, rng, asked, yeses))
        right += [a == q.answer for a, q in zip(answer(loaded, pixels, questions), questions, strict=True)]
    assert len(right) > 80
    assert sum(right) / len(right) >= 0.85
