"""8 and 4 bits (bitsandbytes) on a CPU: only the decoder's linear layers, pruned as always, no output."""

import pytest
import torch
from family_checkpoints import write_family
from internvl_fixtures import write_original
from PIL import Image

from llava import PruningConfig, prune
from llava.cli import ModelOptions
from llava.model.inputs import Turn
from llava.model.loaded import LoadedModel
from llava.tiny.accuracy import CHECKPOINT

pytest.importorskip("bitsandbytes")


def folder_of(kind, tmp_path):
    if kind == "original":
        return CHECKPOINT
    if kind == "internvl_original":
        write_original(tmp_path / "m")
        return tmp_path / "m"
    return write_family(tmp_path / "m", kind)


# 4 bits on a CPU need widths that the small random models do not have
@pytest.mark.parametrize(
    ("kind", "bits"), [("original", 4), *((k, 8) for k in ("original", "llava", "qwen2_vl", "internvl_original"))]
)
def test_the_decoder_is_quantized_and_answers_without_a_word(tmp_path, kind, bits, capfd):
    folder = folder_of(kind, tmp_path)
    capfd.readouterr()
    options = ModelOptions(model_path=str(folder), device="cpu", load_8bit=bits == 8, load_4bit=bits == 4)
    loaded = LoadedModel.from_path(options)
    modules = dict(loaded.model.named_modules())
    quantized = {
        name for name, module in modules.items() if type(module).__name__ == f"Linear{bits}bit" + "Lt" * (bits == 8)
    }
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    assert quantized == {name for name in linear if "layers." in name and "vision" not in name}
    inputs = loaded.inputs
    row = inputs.encode([Turn("What is this?", 1)])
    features = inputs.encode_images(loaded.model, [inputs.prepare(Image.new("RGB", (40, 30), "red"))])
    batch = inputs.collate([row], [features], loaded.model)
    with prune(loaded.model, PruningConfig.from_dict({"method": "fastv", "k": 1, "r": 0.5})) as session:
        output = loaded.model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert len(inputs.new_tokens(output, batch)) == 1
    assert session.traces[0].tokens_per_layer[0] > session.traces[0].tokens_per_layer[1]
    assert capfd.readouterr() == ("", "")
