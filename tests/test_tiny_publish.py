"""The end of a run: the exported folder answers what the trained model answers, and its card says what was measured."""

import json
from types import SimpleNamespace

import pytest
import torch
from training_fixtures import SMALL, settings, trained

import llava.train.tiny.__main__ as command
from llava import load_pretrained_model
from llava.tiny.worlds import EVALUATION
from llava.train.tiny import evaluation
from llava.train.tiny.packing import EOS, encode
from llava.train.tiny.plan import write_plan
from llava.train.tiny.publish import measure, plans, publish


@pytest.fixture(scope="module")
def trainer():
    return trained("plain", trained(images=4).state_dict(), images=4, reported=4)


@pytest.fixture(scope="module")
def folder(trainer, tmp_path_factory):
    return publish(trainer, tmp_path_factory.mktemp("run"))


def test_the_folder_has_llavas_layout_and_loads(trainer, folder):
    assert folder.name == "llava-tiny-plain"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "README.md", "vision_tower/config.json"} <= files
    tokenizer, model, _, context = load_pretrained_model(folder, None, folder.name, device="cpu")
    assert len(tokenizer) == SMALL.vocab_size and context == SMALL.context
    torch.testing.assert_close(model.lm_head.weight, trainer.model.head.weight.detach().bfloat16().float())


def test_the_card_tells_the_report(trainer, folder):
    report = json.loads((folder.parent / "plain.json").read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert set(plans(12)) < set(report) and len(report["turns"]) == 3 and report["greedy"]["scenes"] == 1
    assert card.count("\n| ") > 25 and "None" not in card and "nan" not in card
    for kind, value in report["dense"]["kinds"].items():
        shown = f"{value:.3f}".removeprefix("0")
        assert any(line.startswith(f"| {kind}") and f" {shown} |" in line for line in card.splitlines())
    assert f"seed {trainer.settings.seed}" in card and "No batch was pruned" in card


class Oracle:
    """Says the next token of the conversation it is given, `</s>` at its end, and never `wrong`."""

    embed = SimpleNamespace(weight=torch.zeros(1))

    def __init__(self, wrong=()):
        self.wrong = torch.tensor(wrong)

    def tower(self, pictures):
        return pictures

    def head(self, logits):
        return logits

    def __call__(self, features, ids, ends, turns, plan):
        following = ids.roll(-1, -1)
        following[..., -1] = 0
        following = torch.where((following == 0) & (ids != EOS), EOS, following)
        following[torch.isin(following, self.wrong)] = 0
        return torch.nn.functional.one_hot(following, 700).float()


@pytest.mark.parametrize("turns", [1, 3])
def test_an_answer_counts_when_all_of_its_tokens_are_right(turns):
    examples = evaluation.draw_examples(3, 50)
    asked = sum(len(example.questions) for example in examples)
    right = evaluation.answer_all(Oracle(), examples, turns=turns)
    assert all(a.right for a in right) and asked - 3 * turns < len(right) <= asked
    assert {a.turn for a in right} == set(range(turns))
    wrong = evaluation.answer_all(Oracle(encode("Yes") + encode("CAT")[1:2]), examples, turns=turns)
    for a in wrong:
        pieces = encode(a.question.answer)
        assert a.right is not (a.question.answer == "Yes" or encode("CAT")[1] in pieces[1:]), a.question


def test_pictures_with_too_few_questions_are_left_out_and_the_others_keep_theirs():
    examples = evaluation.draw_examples(3, 50)
    short = evaluation.Example(examples[1].pixels * 0, examples[1].questions[:2])
    seen = []

    class Watching(Oracle):
        def tower(self, pictures):
            seen.append(pictures)
            return pictures

    answered = evaluation.answer_all(Watching(), [examples[0], short, examples[2]], turns=3)
    assert torch.equal(seen[0][1], torch.from_numpy(examples[2].pixels)) and len(seen[0]) == 2
    assert all(a.right for a in answered)


def test_yes_no_questions_of_the_evaluation_are_balanced():
    answered = [q for example in evaluation.draw_examples(12) for q in example.questions]
    verdicts = [q.answer for q in answered if q.answer in ("Yes", "No")]
    assert verdicts.count("Yes") == verdicts.count("No") > 40
    assert EVALUATION.digits == "heldout"


def test_a_blind_model_scores_what_its_prior_gives(trainer):
    report = measure(trainer, scenes=4)
    assert report["image-blind"]["questions"] == report["dense"]["questions"]
    assert all(0 <= value <= 1 for value in report["image-blind"]["kinds"].values())


def test_the_command_trains_both_recipes_and_a_failing_one_is_named(tmp_path, capsys):
    write_plan(tmp_path, settings((1, 1, 1, 3, 1)))  # one of the three is pruned
    words = ["--out", str(tmp_path), "--resume", "--recipe", "both", "--workers", "0", "--device", "cpu"]
    command.main(words)
    aware, plain = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("llava-tiny", "llava-tiny-plain"))
    assert aware != plain and (tmp_path / "plain.csv").exists()
    (tmp_path / "llava-tiny" / "model.safetensors").unlink()
    (tmp_path / "plain.pt").write_bytes(b"no state")
    assert command.main(words) == 1
    assert "training failed: plain; --resume" in capsys.readouterr().err
    assert (tmp_path / "llava-tiny" / "model.safetensors").read_bytes() == aware
