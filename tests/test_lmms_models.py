"""The classes that lmms-eval loads, on stand-ins for lmms-eval; scripts/test_lmms_eval.sh runs them in the real one."""

import importlib
import json
import pickle
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from scene_fixtures import PATH, QUESTION
from scene_fixtures import SCENE as SHOWN

MODEL = Path(__file__).parents[1] / "playground/checkpoints/llava-tiny"
PRUNING = (MODEL / "pruning.json").read_text()
SCENE = Image.open(PATH)
SIGN = f"{QUESTION}\nAnswer the question using a single word or phrase."
RIGHT, WRONG = f" {SHOWN.sign}", " FOX"
DOCUMENTS = {"t": {"test": [{"q": SIGN, "a": RIGHT}, {"q": SIGN, "a": WRONG}]}}


@dataclass
class GenerationResult:
    text: str
    token_counts: object = None


class Base:
    """What the plug-in uses of lmms-eval's model class."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)

    def clean(self):
        self.cleaned = True


class Instance:
    def __init__(self, *arguments):
        self.args = arguments


@pytest.fixture(scope="module")
def models():
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.instance", "lmms_eval.api.model", "loguru")
    names += ("lmms_eval.models", "lmms_eval.models.registry_v2")
    stand_ins = {name: types.ModuleType(name) for name in names}
    stand_ins["lmms_eval.api.instance"].Instance = Instance
    stand_ins["lmms_eval.api.instance"].GenerationResult = GenerationResult
    stand_ins["lmms_eval.api.model"].lmms = Base
    stand_ins["lmms_eval.models.registry_v2"].ModelManifest = lambda **fields: fields
    stand_ins["loguru"].logger = types.SimpleNamespace(info=lambda *words: None)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        loaded = importlib.import_module("llava.eval.lmms_eval.models")
        loaded.manifest = importlib.import_module("llava.eval.lmms_eval.manifest").manifest
        yield loaded
    for name in ("models", "manifest"):
        del sys.modules[f"llava.eval.lmms_eval.{name}"]


@pytest.fixture(scope="module", params=["none", PRUNING], ids=["dense", "pruned"])
def arguments(request):
    return {"pretrained": str(MODEL), "pruning": request.param, "device": "cpu", "batch_size": "2"}


def made(kind, arguments):
    model = kind(**arguments)
    model.task_dict = DOCUMENTS
    return model


def messages(row):
    return [{"role": "user", "content": [{"type": "image", "url": SCENE}, {"type": "text", "text": row["q"]}]}]


def test_chat_and_simple_requests_are_answered_alike_and_choices_get_losses(models, arguments):
    settings = {"max_new_tokens": 8, "temperature": 0, "until": ["\n\n"]}
    chat = made(models.VisiPrunerChat, arguments)
    answers = chat.generate_until([Instance("", messages, settings, number, "t", "test") for number in range(2)])
    simple = made(models.VisiPrunerSimple, arguments)
    visuals = lambda row: [SCENE]  # noqa: E731
    requests = [Instance(SIGN, settings, visuals, number, "t", "test") for number in range(2)]
    assert simple.generate_until(requests) == answers == [SHOWN.sign] * 2
    assert not chat.is_simple and simple.is_simple and (chat.rank, chat.world_size) == (0, 1)
    choices = [Instance(SIGN, choice, visuals, 0, "t", "test") for choice in (RIGHT, WRONG)]
    (right, is_greedy), (wrong, is_not) = simple.loglikelihood(choices)
    assert 0 < right < 0.7 < wrong and is_greedy and not is_not
    targets = [Instance(SIGN, lambda row: row["a"], visuals, number, "t", "test") for number in range(2)]
    assert [value for value, _ in simple.loglikelihood(targets)] == pytest.approx([-right, -wrong])
    assert chat.loglikelihood(choices) == simple.loglikelihood(choices)
    assert (simple.answerer.costs.questions > 0) == (arguments["pruning"] != "none")
    assert simple.answerer.reused.found >= 3
    alone = made(models.VisiPrunerSimple, arguments | {"prefix_cache": "off"})
    assert alone.generate_until(requests) == answers and alone.answerer.reused.prompts == 0
    simple.clean()
    assert simple.answerer is None and simple.cleaned


def test_a_likelihood_is_a_pair_for_callers_and_a_result_whose_text_it_is_for_the_harness(models):
    scored = models.Scored(-1.5, True)
    value, greedy = scored
    assert scored == (-1.5, True) == pickle.loads(pickle.dumps(scored)) and (value, greedy) == (-1.5, True)
    assert isinstance(scored, GenerationResult) and scored.text == (-1.5, True) and scored.token_counts is None
    assert not (scored.text and scored.text.strip())  # the response cache keeps none
    assert json.loads(json.dumps(scored)) == [-1.5, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning": str(MODEL / "pruning.json")}, "pruning.json is a path"),
        ({"pruning": '{"mode":["deep"]}'}, "mid_deep_layer"),
        ({"pruning": '{"mode":["deep"],"mid_deep_layer":60}'}, "mid_deep_layer"),
        ({"pretrained": "no/such/model"}, "no such folder"),
        ({"batch_size": "auto"}, "batch_size must be a number"),
        ({"max_pixels": "0"}, "max_pixels must be a number from 1"),
        ({"max_pixels": "9999"}, "max.pixels"),
        ({"reuse_prefix": "yes"}, "reuse_prefix must be true or false, got 'yes'"),
        ({"prefix_cache_bytes": "2GB"}, "prefix_cache_bytes must be a number from 0, got '2GB'"),
        ({"prefix_cache": "on"}, "prefix_cache must be auto, off or a number of bytes, got 'on'"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(models, arguments, monkeypatch, changes, message):
    monkeypatch.setattr(models.LoadedModel, "from_path", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        models.VisiPrunerChat(**arguments | changes)


def test_unknown_arguments_and_multi_round_tasks_are_refused(models, arguments):
    with pytest.raises(TypeError, match="prunning"):
        models.VisiPrunerChat(**arguments, prunning="none")
    with pytest.raises(NotImplementedError, match="no multi-round tasks"):
        models.VisiPruner.generate_until_multi_round(None, [])


def test_the_manifest_names_both_classes(models):
    assert models.manifest["model_id"] == "visipruner"
    for kind in ("chat", "simple"):
        module, _, name = models.manifest[f"{kind}_class_path"].rpartition(".")
        cls = getattr(models, name)
        assert module == models.__name__ and cls.is_simple == (kind == "simple")
