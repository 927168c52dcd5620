"""The add-on for long answers: visual keys held aside and chosen again, text keys dropped, against a slow reading."""

import methods_reading as plain
import pytest
import torch
from conftest import MIXED, Prompts

from llava.model.pruning import PruningConfig, prune

TOKENS = [7, 11, 5, 9, 13]


@pytest.mark.parametrize(
    ("settings", "readers"),
    [
        ({"visual": 0.3, "every": 2}, []),
        ({"visual": 0.5, "every": 1, "text": 0.6}, []),
        ({"visual": 0.4, "every": 3}, [(plain.fastv, 2, 0.5)]),
        ({"text": 0.5}, []),
    ],
)
def test_new_tokens_read_what_each_layer_chose_last(llama, settings, readers):
    method = {"method": "fastv"} if readers else {"method": "none"}
    prompts = Prompts(*MIXED)
    with prune(llama, {**method, "decoding": settings}, prompts.visual) as session:
        cache = llama(**prompts.inputs, use_cache=True).past_key_values
        rows = torch.tensor(TOKENS)[:, None, None].expand(-1, len(MIXED), 1)
        steps = [llama(input_ids=row, past_key_values=cache).logits[:, -1] for row in rows]
    for row, trace in enumerate(session.traces):
        alone = prompts.single(row)
        readings = [make(*arguments) for make, *arguments in readers]
        expected = plain.read(llama, alone.embeds[0], alone.visual[0].tolist(), *readings)
        share, every, text = (settings.get(key, value) for key, value in (("visual", 1), ("every", 16), ("text", 1)))
        logits = plain.decode_held_aside(llama, expected, TOKENS, share, every, text)
        for step, own in enumerate(logits):
            assert (steps[step][row] - own).abs().max() < 3e-5
        for kept, entered, visual in zip(
            trace.kv_tokens_per_layer, trace.tokens_per_layer, trace.visual_per_layer, strict=True
        ):
            assert kept == visual + round(text * (entered - visual))


def test_beams_choose_for_themselves_and_all_of_the_visual_keys_is_the_default(llama):
    prompts, beams = Prompts(*MIXED), {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    config = {"method": "none", "decoding": {"visual": 0.3, "every": 2}}
    with prune(llama, config, prompts.visual):
        together = llama.generate(**prompts.inputs, **beams)
    for row in range(len(MIXED)):
        alone = prompts.single(row)
        with prune(llama, config, alone.visual):
            assert llama.generate(**alone.inputs, **beams)[0].tolist() == together[row].tolist()
    with prune(llama, {"method": "none", "decoding": {}}, prompts.visual):
        whole = llama.generate(**prompts.inputs, **beams)
    with prune(llama, {"method": "none"}, prompts.visual):
        assert torch.equal(llama.generate(**prompts.inputs, **beams), whole)


def test_settings_check_themselves_and_are_kept():
    config = PruningConfig.from_dict({"method": "fastv", "decoding": {"visual": 0.25}})
    assert config.to_dict()["decoding"] == {"visual": 0.25, "every": 16, "text": 1.0}
    assert (
        PruningConfig.from_dict(config.to_dict()) == config
        and "decoding" not in PruningConfig.from_dict({"method": "fastv"}).to_dict()
    )
    for given, message in (
        ({"visuals": 1}, "did you mean 'visual'"),
        ({"every": 0}, "'decoding.every' must be"),
        (3, "an object with"),
    ):
        with pytest.raises(ValueError, match=message):
            PruningConfig.from_dict({"method": "fastv", "decoding": given})
