"""Fitting FitPrune: the numbers of tokens reach the requested saving on the fitting prompts, and no more."""

import json

import numpy as np
import pytest
from conftest import Prompts
from loader_fixtures import questions, write_images, write_jsonl, write_model

from llava.eval.fit_fitprune import main
from llava.eval.tuning.benchmark_set import evenly
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.fitting import _Search, fit, spare
from llava.model.pruning.method import PromptState
from llava.model.pruning.probes import Attention

KINDS = ("tttt" + "v" * 40 + "ttttt", "tt" + "v" * 40 + "tttt", "ttttttt")


def fitted(llama, reduction, **settings):
    prompts = Prompts(*KINDS)
    config = fit(llama, lambda: llama(**prompts.inputs), reduction, visual_mask=prompts.visual, **settings)
    with prune(llama, config, prompts.visual) as session:
        llama(**prompts.inputs)
    return config, [trace for trace in session.traces if trace.visual_tokens]


@pytest.mark.parametrize("reduction", [0.2, 0.4, 0.6])
def test_the_numbers_save_what_was_asked_on_their_prompts(llama, reduction):
    config, traces = fitted(llama, reduction)
    assert len(config.keep) == 6 and config.visual_tokens == 40
    for trace in traces:
        assert trace.flops() <= (1 - reduction) * trace.dense_flops()
        assert trace.visual_per_layer[1:] == list(config.keep[:-1])
    assert PruningConfig.from_dict(config.to_dict()) == config


def test_more_saving_drops_more_and_earlier(llama):
    little, much = (fitted(llama, reduction)[0].keep for reduction in (0.15, 0.5))
    assert sum(much) < sum(little)


def test_what_cannot_be_fitted_is_refused(llama):
    with pytest.raises(ValueError, match="no numbers of tokens save 95%"):
        fitted(llama, 0.95, precision=0.3)
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        fitted(llama, 1)
    prompts = Prompts("tttt")
    with pytest.raises(ValueError, match="none of the calibration prompts has visual tokens"):
        fit(llama, lambda: llama(**prompts.inputs), 0.5, visual_mask=prompts.visual)


def test_a_token_that_text_or_image_still_reads_stays():
    """Of four tokens each distribution can miss two at α = 0.3; only the one that both can miss goes."""
    scores = Attention(text=np.array([0.1, 0.2, 0.4, 0.5]), visual=np.array([0.1, 0.5, 0.2, 0.4]))
    search = _Search(alpha=0.3, dense=[np.full((1, 2), 1.2)])
    prompt = PromptState(0, 1, 4, np.arange(4))
    assert search.select(0, prompt, scores).tolist() == [False, True, True, True]
    assert np.allclose(prompt.memory["mass"][0], 1.2)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_spared_tokens_are_the_lowest_that_leave_enough(share):
    scores = np.random.default_rng(0).random(30).astype(np.float32)
    least = share * scores.sum(dtype=np.float64)
    gone = spare(scores, least)
    assert scores[~gone].sum(dtype=np.float64) >= least or not gone.any()
    assert not gone.any() or gone.all() or scores[gone].max() <= scores[~gone].min()
    if not gone.all():
        assert scores[~gone].sum(dtype=np.float64) - scores[~gone].min() < least


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line's arguments for a small checkpoint, three images and ten questions."""
    root = tmp_path_factory.mktemp("fit")
    flags = {
        "--model-path": write_model(root / "llava-small"),
        "--questions": write_jsonl(root / "questions.jsonl", questions()),
        "--images": write_images(root / "images"),
        "--out": root / "out" / "fitprune.json",
        "--device": "cpu",
    }
    return lambda **changes: [
        str(word)
        for pair in (flags | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}).items()
        for word in pair
    ]


def test_the_command_writes_a_config_that_loads(command, capsys):
    arguments = command(reduction=0.3, prompts=6)
    assert main(arguments) == 0
    written = arguments[arguments.index("--out") + 1]
    config = PruningConfig.of(written)
    assert config.to_dict() == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (config.method, len(config.keep), config.visual_tokens) == ("fitprune", 3, 4)
    assert config.keep[0] < 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "fit.txt"}, "must end in .json"),
        ({"out": "pyproject.toml/fit.json"}, "pyproject.toml"),
        ({"images": "nowhere"}, "nowhere"),
        ({"questions": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model_path": "nowhere"}, "nowhere"),
        ({"dtype": "int3"}, "dtype 'int3' is not supported"),
        ({"pruning_config": "x.json"}, "--pruning-config takes only none here"),
    ],
)
def test_the_commands_mistakes_are_one_line_before_weights_are_read(command, changes, message, capsys, no_weights):
    assert main(command(reduction=0.5, **changes)) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0]


def test_questions_without_images_cannot_be_fitted(command, tmp_path, capsys, no_weights):
    file = write_jsonl(tmp_path / "text.jsonl", [{"question_id": 1, "text": "?"}])
    assert main(command(reduction=0.5, questions=file)) == 1
    assert "none of the questions has an image" in capsys.readouterr().err


def test_questions_are_spread_over_the_file():
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly(range(3), 99) == [0, 1, 2]
