"""Prompt snapshots: the exact text and token ids that every family is asked with, for every benchmark.

golden/prompts/benchmarks.json has the question texts, golden/prompts/FAMILY.json what becomes of them. The text is the
family's, spelled out in `FRAMES` from what was published with the model, and so is which parts of it are one token
each. The tokenizers are ours (a few hundred pieces, trained on a few words, as real ones cannot be shipped), and so are
the numbers: the ids show how a prompt is cut, not the ids of a real checkpoint.

    python tests/test_prompt_snapshots.py --write    # records the prompts again; look at the diff
"""

import json
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import pytest
from family_checkpoints import FAMILIES, write_family
from internvl_fixtures import write_original
from llava_fixtures import make_model, write_checkpoint
from PIL import Image

from llava import load_pretrained_model
from llava.eval.benchmarks import BENCHMARKS
from llava.model.inputs import Turn, inputs_for

FOLDER = Path(__file__).parent / "golden" / "prompts"
TEXTS = {name: row["text"] for name, row in json.loads((FOLDER / "benchmarks.json").read_text()).items()}
ALONE = "scienceqa, no image"
ASKED = {name: Turn(text, images=1) for name, text in TEXTS.items()} | {ALONE: Turn(TEXTS["scienceqa"])}

# haotian-liu/LLaVA llava/conversation.py, "vicuna_v1"; Meituan-AutoML/MobileVLM mobilevlm/conversation.py, "v1"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
VICUNA = "USER: {image}{question} ASSISTANT:"
USER_TURN = "<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"
# chat_template.json of Qwen/Qwen2-VL-*-Instruct and Qwen/Qwen2.5-VL-*-Instruct
QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# OpenGVLab/InternVL internvl_chat/internvl/conversation.py, "internvl2_5"
INTERNVL_SYSTEM = (
    "<|im_start|>system\n你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。<|im_end|>\n"
)
FRAMES = {
    "llava_original": (SYSTEM + VICUNA, "<image>\n"),
    "mobilevlm_original": (SYSTEM + VICUNA, "<image>\n"),
    "llava": (SYSTEM + VICUNA, "<image>\n"),  # llava-hf/llava-1.5-*-hf, whose chat template leaves the sentence out
    "llava_next": (VICUNA, "<image>\n"),  # the chat template of llava-hf/llava-v1.6-vicuna-*-hf
    "llava_onevision": (  # the chat template of llava-hf/llava-onevision-*-hf, no system message
        "<|im_start|>user {image}\n{question}<|im_end|><|im_start|>assistant\n",
        "<image>",
    ),
    "qwen2_vl": (QWEN_SYSTEM + USER_TURN, "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen2_5_vl": (QWEN_SYSTEM + USER_TURN, "<|vision_start|><|image_pad|><|vision_end|>"),
    "internvl_original": (INTERNVL_SYSTEM + USER_TURN, "<IMG_CONTEXT>\n"),
    "internvl": (USER_TURN, "<IMG_CONTEXT>\n"),  # the chat template of OpenGVLab/InternVL*-hf, no system message
}
"""Prompt and image by family: the names of transformers' own layouts, and those of the original ones."""


def write_model(folder, family):
    """Write a small checkpoint in the family's layout."""
    if family in FAMILIES:
        return write_family(folder, family)
    if family == "internvl_original":
        return write_original(folder)
    if family == "mobilevlm_original":
        return write_checkpoint(folder, make_model(mm_projector_type="ldpnetv2"), model_type="mobilevlm")
    return write_checkpoint(folder, make_model())


def load_inputs(folder, family):
    written_to = write_model(folder / family, family)
    tokenizer, model, processor, _ = load_pretrained_model(written_to, None, family, device="cpu")
    return inputs_for(tokenizer, processor, model.config)


def image_tokens(inputs):
    """What stands for an image of 24×16 pixels in a prompt, [token, how often]; empty where only the model knows."""
    tokens = inputs.tokenizer.convert_ids_to_tokens(inputs.prepare(Image.new("RGB", (24, 16))).ids)
    return [[token, len(list(run))] for token, run in groupby(tokens)]


def snapshot(inputs):
    prompts = {name: {"prompt": inputs.prompt([turn]), "ids": inputs.encode([turn])} for name, turn in ASKED.items()}
    return {"image": image_tokens(inputs)} | prompts


def written(family):
    return json.loads((FOLDER / f"{family}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=FRAMES)
def family(request, tmp_path_factory):
    return request.param, load_inputs(tmp_path_factory.mktemp("snapshots"), request.param)


def test_every_family_and_benchmark_is_recorded():
    assert {path.stem for path in FOLDER.glob("*.json")} == {"benchmarks", *FRAMES}
    assert set(FRAMES) - {"llava_original", "mobilevlm_original", "internvl_original"} < set(FAMILIES)
    assert {name.removesuffix("_val").removesuffix("_mini") for name in BENCHMARKS} == set(TEXTS)
    assert all(list(written(family)) == ["image", *ASKED] for family in FRAMES)


@pytest.mark.parametrize("name", ASKED)
def test_the_prompt_is_the_published_one_and_the_recorded_one(family, name):
    name_of, inputs = family
    frame, image = FRAMES[name_of]
    turn, golden = ASKED[name], written(name_of)[name]
    assert inputs.prompt([turn]) == frame.format(image=image * turn.images, question=turn.question)
    assert {"prompt": inputs.prompt([turn]), "ids": inputs.encode([turn])} == golden


@pytest.mark.parametrize("name", ASKED)
def test_the_ids_say_the_prompt(family, name):
    """At most one start token, a marker an image, each special text a single token, and every other character there.

    Spaces are left to the recorded ids: sentencepiece puts one before every text between special tokens.
    """
    _, inputs = family
    tokenizer, turn = inputs.tokenizer, ASKED[name]
    prompt, ids = inputs.prompt([turn]), inputs.encode([turn])
    started = ids[0] == tokenizer.bos_token_id
    expected = (tokenizer.bos_token if started else "") + prompt
    assert ids.count(inputs.marker) == turn.images
    assert ids.count(tokenizer.bos_token_id) == started
    for text, index in tokenizer.get_added_vocab().items():
        assert ids.count(index) == expected.count(text)
    chunks = [list(run) for is_marker, run in groupby(ids, inputs.marker.__eq__) if not is_marker]
    said = inputs.reserved[0].join(map(tokenizer.decode, chunks))
    assert said.replace(" ", "") == expected.replace(" ", "")


def test_an_image_becomes_what_was_recorded(family):
    name, inputs = family
    assert image_tokens(inputs) == written(name)["image"]


def write_snapshots():
    for family in FRAMES:
        with tempfile.TemporaryDirectory() as folder:
            entries = snapshot(load_inputs(Path(folder), family))
        lines = [f' "image": {json.dumps(entries.pop("image"))}']
        for name, entry in entries.items():
            prompt, ids = (json.dumps(entry[key], ensure_ascii=False) for key in ("prompt", "ids"))
            lines.append(f' {json.dumps(name)}: {{\n  "prompt": {prompt},\n  "ids": {ids}\n }}')
        (FOLDER / f"{family}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_prompt_snapshots.py --write")
    write_snapshots()
