"""The statistics of a paired comparison, against enumeration, tables, and the scorers."""

import itertools
import random

import numpy as np
import pytest
from run_fixtures import write_run
from scipy.stats import binomtest

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.metrics.answer_files import read_jsonl
from llava.eval.metrics.intervals import Clusters, Terms, paired_bootstrap, share_interval, sign_test
from llava.eval.results.judging import judge_of
from llava.eval.runner.run import Run
from llava.tiny.benchmarks import write_benchmarks

QUESTIONS = {
    "gqa": "gqa_mini/llava_gqa_testdev_balanced.jsonl",
    "mme": "mme_mini/llava_mme.jsonl",
    "textvqa": "textvqa_mini/llava_textvqa_val_v051_ocr.jsonl",
}


def test_the_interval_is_that_of_all_possible_draws():
    random_numbers = np.random.default_rng(3)
    den = random_numbers.integers(1, 5, (5, 1)).astype(float)
    a, b = (Terms(den * random_numbers.random((5, 1)), den) for _ in range(2))
    drawn = [list(places) for places in itertools.product(range(5), repeat=5)]
    exact = [100 * (b.num[p].sum() / den[p].sum() - a.num[p].sum() / den[p].sum()) for p in drawn]
    low, high = paired_bootstrap({"x": (a, b)}, np.zeros(5, int), resamples=200_000)["x"]
    assert [low, high] == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.02 * np.ptp(exact))
    assert paired_bootstrap({"x": (a, b)}, np.zeros(5, int), 500, seed=1) == paired_bootstrap(
        {"x": (a, b)}, np.zeros(5, int), 500, seed=1
    )


def test_the_interval_of_many_independent_questions_is_the_normal_one():
    changes = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 900, p=[0.1, 0.8, 0.1])[:, None]
    a, b = Terms(np.ones((900, 1)), np.ones((900, 1))), Terms(1 + changes, np.ones((900, 1)))
    low, high = paired_bootstrap({"x": (a, b)}, np.zeros(900, int), 4000)["x"]
    half = 100 * 1.96 * changes.std() / 30
    assert [low, high] == pytest.approx([100 * changes.mean() - half, 100 * changes.mean() + half], abs=0.1 * half)


def test_questions_of_one_image_do_not_count_as_independent():
    keys = [(f"{image}", f"{n}") for image in range(12) for n in range(5)]
    single = [(f"{image}", "0") for image in range(12)]
    a = {key: float(int(key[0]) % 2) for key in keys}
    b = {key: float(int(key[0]) % 3 == 0) for key in keys}

    def interval(chosen):
        drawn = Clusters.by_image(chosen, None)
        scores = [drawn.terms([{key: (one[key], 1.0) for key in chosen}]) for one in (a, b)]
        return paired_bootstrap({"x": tuple(scores)}, drawn.strata, 300)["x"]

    assert interval(keys) == pytest.approx(interval(single))


def test_strata_keep_their_size_and_one_cluster_has_no_interval():
    terms = Terms(np.eye(3), np.eye(3)), Terms(np.diag([1.0, 0.0, 1.0]), np.eye(3))
    assert paired_bootstrap({"x": terms}, np.array([0, 1, 2]), 50)["x"] == [-100, -100]
    assert paired_bootstrap({"x": terms}, np.array([0]))["x"] is None


def test_exact_test_and_share_interval_against_tables():
    assert sign_test(0, 0) == 1
    assert sign_test(0, 5) == sign_test(5, 0) == pytest.approx(2 / 32)
    assert share_interval(8, 10) == pytest.approx((49.02, 94.33), abs=0.01)  # Wilson
    assert share_interval(10, 10)[1] == pytest.approx(100) and share_interval(0, 0) == (0, 100)
    for fixed, broken, count, total in ((3, 5, 0, 7), (120, 90, 5, 1000), (0, 1, 999, 1000)):
        wilson = binomtest(count, total).proportion_ci(0.95, method="wilson")
        assert share_interval(count, total) == pytest.approx((100 * wilson.low, 100 * wilson.high))
        assert sign_test(fixed, broken) == pytest.approx(binomtest(fixed, fixed + broken).pvalue)


def test_mme_images_are_drawn_within_their_task():
    keys = [(f"{task}/{image}.png", f"{n}") for task in ("count", "OCR") for image in range(6) for n in range(2)]
    a = dict.fromkeys(keys, 1.0)
    b = {key: float(key[0].startswith("OCR")) for key in keys}  # all images of a task alike: nothing to vary
    mme = BENCHMARKS["mme"]
    drawn = Clusters.by_image(keys, None, mme.stratum)
    terms = [mme.quoted_terms(scores) for scores in (a, b)]
    pairs = {name: tuple(drawn.terms(one[name]) for one in terms) for name in ("perception", "accuracy")}
    assert paired_bootstrap(pairs, drawn.strata, 100) == {"perception": [-200, -200], "accuracy": [-50, -50]}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder, questions=40, seed=5)
    return folder


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize("answered", [1.0, 0.7])
def test_quoted_scores_are_the_scorers(mini, tmp_path, kind, answered):
    questions = mini / QUESTIONS[kind]
    draw = random.Random(0)
    words = list("0123456789") if kind == "textvqa" else ["Yes", "no", "Red.", "maybe"]
    rows = [row for _, row in read_jsonl(questions, "questions")]
    texts = {(row["question_id"], row["text"]): draw.choice(words) for row in rows if draw.random() < answered}
    run = Run.read(write_run(tmp_path / "x.jsonl", questions, texts))
    judge = judge_of(run)
    assert judge.benchmark.kind == kind
    scores = judge.scores(run)
    drawn = Clusters.by_image(list(scores), run.images)
    figures = {name: drawn.terms(terms).value for name, terms in judge.benchmark.quoted_terms(scores).items()}
    expected = judge.benchmark.score(questions.parent, tmp_path / "x.jsonl", partial=answered < 1)
    assert set(figures) == ({"perception", "total", "accuracy"} if kind == "mme" else {"accuracy"})
    assert 0 < expected["accuracy"] < 100
    for name, value in figures.items():
        assert value == pytest.approx(expected[name]), name
