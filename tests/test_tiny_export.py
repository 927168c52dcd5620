"""Export: weights survive the trip to disk, the same parts give the same bytes, bad parts are named."""

from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionModel, LlamaForCausalLM

from llava import load_pretrained_model
from llava.tiny.export import Architecture, export
from llava.tiny.pieces import PieceTokenizer

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
    export(*states((vision, projector, language)), PieceTokenizer(SMALL.context), tmp_path, SMALL, dtype=torch.float32)
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
        export(*parts, PieceTokenizer(SMALL.context), tmp_path / name, SMALL)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 8
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_parts_that_do_not_fit_are_named_and_nothing_is_written(tmp_path):
    vision, projector, language = states(random_parts(SMALL))
    del vision["pre_layrnorm.weight"]
    with pytest.raises(ValueError, match="vision tower.*1 missing: pre_layrnorm.weight"):
        export(vision, projector, language, PieceTokenizer(SMALL.context), tmp_path / "x", SMALL)
    vision, projector, language = states(random_parts(SMALL))
    with pytest.raises(
        ValueError, match=r"projector.*1 unexpected: 4.bias; 1 of another shape: 2.bias \[3\] instead of \[16\]"
    ):
        export(
            vision,
            {**projector, "2.bias": torch.zeros(3), "4.bias": torch.zeros(1)},
            language,
            PieceTokenizer(SMALL.context),
            tmp_path,
            SMALL,
        )
    larger = replace(SMALL, vocab_size=700)
    with pytest.raises(ValueError, match="672 pieces, the embedding 700 rows"):
        export(*states(random_parts(larger)), PieceTokenizer(SMALL.context), tmp_path / "x", larger)
    assert not list(tmp_path.iterdir())
