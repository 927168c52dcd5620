"""EVS, VidCom2 and DyCoke beside plain readings: loops over Python lists, and the untouched model on what they keep."""

import math

import numpy as np
import pytest
import torch
from family_models import CASES, IMAGE, VIDEO, batch_of

FAMILIES = {"qwen2_5_vl": (3, 6), "qwen3_vl": (3, 6), "llava_onevision": (3, 4)}
"""Frames of a test video, and tokens of each."""
WORDS = ("ttvttjttt", "vtvtit", "tit")


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def lowest(scores, count):
    """Indices of the lowest scores, the earlier first where two are equal."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]


def evs(frames, share):
    """Frames as lists of vectors → for each the places that stay."""
    count, size = len(frames), len(frames[0])
    scores = [-math.inf] * size
    for now, before in zip(frames[1:], frames, strict=False):
        scores += [cosine(a, b) - 1 for a, b in zip(now, before, strict=True)]
    kept = set(lowest(scores, max(size, int(share * count * size))))
    return [[j for j in range(size) if t * size + j in kept] for t in range(count)]


def vidcom2(frames, share):
    vectors = [vector for frame in frames for vector in frame]
    columns = list(zip(*(vector.tolist() for vector in vectors), strict=True))
    spread = [sum((x - sum(c) / len(c)) ** 2 for x in c) / len(c) for c in columns]
    channels = lowest(spread, len(columns) // 2)
    frames = [[vector[channels] for vector in frame] for frame in frames]
    frames = [[vector / math.sqrt(float(vector @ vector)) for vector in frame] for frame in frames]
    whole = sum(vector for frame in frames for vector in frame) / len(vectors)

    def likeness(vector, centre):
        distance = float((vector - centre) @ (vector - centre))
        return sum(math.exp(-distance / (2 * 2**k)) for k in (-3, -2, -1, 0, 1))

    to_video = [[likeness(vector, whole) for vector in frame] for frame in frames]
    means = [sum(row) / len(row) for row in to_video]
    weights = [math.exp((min(means) - mean) / 0.01) for mean in means]
    weights = [weight / sum(weights) for weight in weights]
    kept = []
    for frame, row, weight in zip(frames, to_video, weights, strict=True):
        centre = sum(frame) / len(frame)
        scores = [a + likeness(vector, centre) for a, vector in zip(row, frame, strict=True)]
        part = min(1, share * (1 + weight - 1 / len(frames)))
        kept.append(sorted(lowest(scores, max(1, round(part * len(frame))))))
    return kept


def dycoke(frames, merge):
    kept = []
    for number, frame in enumerate(frames):
        if number % 4 == 0:
            kept.append(list(range(len(frame))))
            continue
        other = frames[number - 2] if number % 4 == 2 else frames[number - 1]
        scores = [cosine(a, b) for a, b in zip(frame, other, strict=True)]
        kept.append(sorted(lowest(scores, int((1 - merge) * len(frame)))))
    return kept


def sampled(frames, share):
    count = max(1, round(share * len(frames)))
    stays = {round(n * (len(frames) - 1) / max(count - 1, 1)) for n in range(count)}
    return [list(range(len(frame))) if t in stays else [] for t, frame in enumerate(frames)]


METHODS = {
    "evs": ({"share": 0.5}, evs, 0.5),
    "evs all": ({"share": 1.0}, evs, 1.0),
    "evs first frame": ({"share": 0.0}, evs, 0.0),
    "vidcom2": ({"share": 0.4}, vidcom2, 0.4),
    "vidcom2 few": ({"share": 0.1}, vidcom2, 0.1),
    "dycoke": ({}, dycoke, 0.7),
    "frames": ({"share": 0.7}, sampled, 0.7),
    "frames one": ({"count": 1}, sampled, 0.0),
    "dycoke gentle": ({"merge": 0.3}, dycoke, 0.3),
}


def clips(name, word):
    """Where the tokens of each image and video of a word lie, frame by frame; a newline is in none."""
    batch = batch_of(name, word)
    count, size = FAMILIES[name]
    ids = batch.ids[0].tolist()
    videos = [place for place, token in enumerate(ids) if token == VIDEO]
    per_video = count * size + (name == "llava_onevision")
    found = []
    for start in range(0, len(videos), per_video):
        found.append([videos[start + t * size : start + (t + 1) * size] for t in range(count)])
    run = []
    for place, token in enumerate([*ids, -1]):
        if token == IMAGE:
            run.append(place)
        elif run:
            found.append([run])
            run = []
    return found, [place for place, token in enumerate(ids) if token in (IMAGE, VIDEO)]


def embeddings(case, batch):
    """What enters the untouched decoder, and its positions: keywords of its `forward`."""
    seen = {}
    hook = case.decoder.register_forward_pre_hook(lambda m, args, kwargs: seen.update(kwargs), with_kwargs=True)
    case.model(**batch.inputs)
    hook.remove()
    return seen


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_what_a_plain_reading_keeps(name, method):
    settings, reading, number = METHODS[method]
    case = CASES[name]
    batch = batch_of(name, *WORDS)
    with case.prune({"method": method.split()[0], **settings}, batch) as session:
        output = case.model(**batch.inputs)
    for row, (word, trace) in enumerate(zip(WORDS, session.traces, strict=True)):
        alone = batch_of(name, word)
        entered = embeddings(case, alone)
        hidden = entered["inputs_embeds"][0].double()
        shown, visual = clips(name, word)
        kept = set(visual) - {place for clip in shown for frame in clip for place in frame}
        for clip in shown:
            stays = reading([[hidden[place] for place in frame] for frame in clip], number)
            kept |= {frame[j] for frame, places in zip(clip, stays, strict=True) for j in places}
        [(layer, positions)] = trace.cuts
        assert (layer, positions) == (-1, sorted(kept))
        in_frames = {place for clip in shown for frame in clip for place in frame}
        assert sum(trace.kept_per_frame()) == len(kept & in_frames)
        if name == "qwen3_vl":  # its decoder adds features to visual tokens; the families' tests read those
            continue
        left = [place for place in range(len(hidden)) if place not in visual or place in kept]
        positions = entered.get("position_ids")
        positions = torch.arange(len(hidden))[None] if positions is None else positions
        given = {"inputs_embeds": entered["inputs_embeds"][:, left], "position_ids": positions[..., left]}
        given["attention_mask"] = torch.ones(1, len(left), dtype=torch.long)  # else gaps would part the sequence
        last = case.decoder(**given, use_cache=False).last_hidden_state[:, -1]
        torch.testing.assert_close(case.model.lm_head(last)[0], output.logits[row, -1], atol=1e-5, rtol=1e-4)


def test_after_another_method_places_are_still_compared_with_their_own():
    case, batch = CASES["qwen2_5_vl"], batch_of("qwen2_5_vl", "tvt")
    with case.prune({"method": "evs", "share": 0.7, "before": {"method": "random", "keep": 12}}, batch) as session:
        case.model(**batch.inputs)
    hidden = embeddings(case, batch)["inputs_embeds"][0].double()
    [clip], visual = clips("qwen2_5_vl", "tvt")
    drawn = sorted(visual[n] for n in np.random.default_rng(0).permutation(len(visual))[:12])
    scores = []
    for place in drawn:
        frame, cell = divmod(place - visual[0], 6)
        before = clip[frame - 1][cell] if frame else None
        scores.append(cosine(hidden[place], hidden[before]) - 1 if before in drawn else -math.inf)
    count = max(scores.count(-math.inf), int(0.7 * 12))
    assert 0 < scores.count(-math.inf) < 12
    assert session.traces[0].cuts == [(-1, sorted(drawn[n] for n in lowest(scores, count)))]


def test_a_count_is_a_share_of_the_prompts_tokens():
    case, batch = CASES["qwen2_5_vl"], batch_of("qwen2_5_vl", "tvvt")
    for method in ("evs", "vidcom2"):
        kept = []
        for setting in ({"keep": 18}, {"share": 0.5}):
            with case.prune({"method": method, **setting}, batch) as session:
                case.model(**batch.inputs)
            kept.append(session.traces[0].cuts)
        assert kept[0] == kept[1]
        assert method != "evs" or len(kept[0][0][1]) == 18


def test_more_of_a_frame_that_stands_out_stays():
    frames = np.random.default_rng(0).normal(0, 0.01, (4, 8, 6)) + 1
    frames[2] += np.random.default_rng(1).normal(0, 1, (8, 6))
    counts = [len(places) for places in vidcom2([list(map(np.asarray, frame)) for frame in frames], 0.4)]
    assert counts[2] > max(counts[:2] + counts[3:])
