"""Metrics against hand-worked values, a brute-force oracle, public figures, and the mistakes that other code makes."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmi.errors import DataError
from hcmi.evaluate import average_precision, difference_of_rates, ranks, wilson
from hcmi.evaluate.metrics import Ranks, bootstrap_interval, by_item, paired_difference, summary

TIES = np.array([[0.5, 0.5, 0.1], [0.9, 0.2, 0.2], [0.3, 0.3, 0.3]], np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def orders_of(scores):
    """Every order of the gallery that the scores of one query allow."""
    return [order for order in itertools.permutations(range(len(scores)))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))]


def oracle(sims, relevant, ks=(1, 2, 3)):
    """Mean rank and hit rates over every order of the gallery that the scores allow."""
    expected, hits = [], {k: [] for k in ks}
    for scores, right in zip(sims, relevant, strict=True):
        orders = orders_of(scores)
        places = [1 + min(order.index(answer) for answer in right) for order in orders]
        expected.append(np.mean(places))
        for k in ks:
            hits[k].append(np.mean([place <= k for place in places]))
    return np.array(expected), {k: np.array(v) for k, v in hits.items()}


def assert_matches_oracle(found: Ranks, sims, relevant) -> None:
    expected, hits = oracle(sims, relevant)
    np.testing.assert_allclose(found.expected, expected)
    for k, values in hits.items():
        np.testing.assert_allclose(found.hits_at(k), values, atol=1e-12)


def test_ranks_are_those_worked_out_by_hand_when_scores_tie():
    found = ranks(TIES, [0, 1, 2])
    assert found.greater.tolist() == [0, 1, 0]
    assert found.tied.tolist() == [1, 1, 2]
    assert found.expected.tolist() == [1.5, 2.5, 2.0]
    assert found.hits_at(1).tolist() == pytest.approx([1 / 2, 0, 1 / 3])
    figures = summary(found, rng())
    assert figures["R@1"] == pytest.approx(100 * (1 / 2 + 1 / 3) / 3, abs=1e-4)
    assert figures["R@1_tie_range"] == pytest.approx([0, 200 / 3], abs=1e-4)
    assert (figures["MdR"], figures["MnR"], figures["n"]) == (2.0, 2.0, 3)


scores = st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=5, max_size=5), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(scores, st.data())
def test_ranks_match_the_oracle_when_ties_and_several_right_answers_mix(rows, data):
    relevant = [data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)) for _ in rows]
    assert_matches_oracle(ranks(np.array(rows), relevant), rows, relevant)


def test_assert_matches_oracle_fails_when_the_rank_counts_every_tie():
    planted = Ranks(np.array([0]), np.array([0]), np.array([1]))      # the common np.where(sorted - diag == 0)
    with pytest.raises(AssertionError):
        assert_matches_oracle(planted, [[0.5, 0.5, 0.5]], [[0]])


def test_summary_gives_chance_when_all_scores_tie():
    figures = summary(ranks(np.ones((40, 200)), np.arange(40)), rng())
    assert [figures[f"R@{k}"] for k in (1, 5, 10, 50)] == pytest.approx([0.5, 2.5, 5, 25])
    assert figures["R@1_tie_range"] == [0, 100]
    assert figures["MnR"] == 100.5


def test_summary_gives_chance_when_all_scores_tie_and_five_answers_are_right():
    relevant = np.zeros((3, 20), bool)
    relevant[:, :5] = True
    figures = summary(ranks(np.zeros((3, 20)), relevant), rng())
    assert figures["R@1"] == pytest.approx(25)
    assert figures["R@50"] == 100


@pytest.mark.parametrize("change", ["gallery", "queries", "scale", "duplicates"])
def test_summary_is_unchanged_when_scores_are_permuted_or_scaled(change):
    generator = rng()
    sims = generator.normal(size=(60, 40)).round(1)
    relevant = generator.integers(0, 40, 60)
    changed, answers = sims, relevant
    if change == "gallery":
        order = generator.permutation(40)
        changed, answers = sims[:, order], np.argsort(order)[relevant]
    elif change == "queries":
        order = generator.permutation(60)
        changed, answers = sims[order], relevant[order]
    elif change == "scale":
        changed = 8 * sims - 2
    else:
        changed, answers = np.tile(sims, (2, 1)), np.tile(relevant, 2)
    before, after = (summary(ranks(s, r), rng()) for s, r in ((sims, relevant), (changed, answers)))
    for key in ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR", "R@1_tie_range"):
        assert after[key] == pytest.approx(before[key]), key


def test_ranks_take_the_best_caption_when_a_video_has_several():
    t2v_QV = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4], [0.0, 0.5]])
    captions = by_item([0, 0, 1, 1], 2)
    assert [c.tolist() for c in captions] == [[0, 1], [2, 3]]
    assert ranks(t2v_QV.T, captions).expected.tolist() == [1, 2]


def test_by_item_gives_an_empty_list_when_a_video_has_no_caption():
    assert [c.tolist() for c in by_item([2, 0], 3)] == [[1], [], [0]]


def test_ranks_agree_when_right_answers_come_as_lists_or_as_a_matrix():
    sims = rng().normal(size=(7, 11))
    lists = [[i, i + 2, i] for i in range(7)]
    matrix = np.zeros((7, 11), bool)
    for i, entry in enumerate(lists):
        matrix[i, entry] = True
    np.testing.assert_array_equal(ranks(sims, lists).expected, ranks(sims, matrix).expected)


def test_summary_gives_the_published_figures_when_given_the_msrvtt_matrix(shared_data):
    sims_QV = np.load(shared_data / "metrics" / "msrvtt_1ka_sims_text_by_video.npy")
    t2v, v2t = (summary(ranks(s, np.arange(1000)), rng()) for s in (sims_QV, sims_QV.T))
    assert [t2v[k] for k in ("R@1", "R@5", "R@10", "MdR", "MnR")] == [48.0, 73.0, 82.9, 2, 13.129]
    # Four captions of 1k-A occur more than once: video to text has true ties; published figures take each as won.
    won = ranks(sims_QV.T, np.arange(1000)).greater + 1
    assert [100 * (won <= k).mean() for k in (1, 5, 10)] == pytest.approx([46.0, 74.1, 82.8])
    assert won.mean() == pytest.approx(8.674)
    assert v2t["R@1_tie_range"] == [45.6, 46.0]
    assert v2t["R@1"] == 45.8


@pytest.mark.parametrize("precision", [np.float16, np.float32])
def test_summary_brackets_the_truth_when_half_precision_makes_ties(shared_data, precision):
    sims_QV = np.load(shared_data / "metrics" / "msrvtt_1ka_sims_text_by_video.npy").astype(precision)
    figures = summary(ranks(sims_QV, np.arange(1000)), rng())
    low, high = figures["R@1_tie_range"]
    assert low <= 48.0 <= high
    assert figures["R@1"] == pytest.approx(48.0, abs=1.0)


def precision_of(order, right):
    """Average precision of one order of the gallery."""
    shares, found = [], 0
    for place, answer in enumerate(order, start=1):
        if answer in right:
            found += 1
            shares.append(found / place)
    return sum(shares) / len(shares)


def assert_precision_matches_oracle(found, sims, relevant) -> None:
    expected = [np.mean([precision_of(order, right) for order in orders_of(scores)])
                for scores, right in zip(sims, relevant, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_average_precision_is_that_worked_out_by_hand_when_scores_tie():
    # places of the two right ones: 2 and 4, or 3 and 4
    expected = ((1 / 2 + 2 / 4) / 2 + (1 / 3 + 2 / 4) / 2) / 2
    found = average_precision(np.array([[0.9, 0.5, 0.5, 0.1], [0.1, 0.2, 0.3, 0.4]]), [[1, 3], [0, 3]])
    assert found.tolist() == pytest.approx([expected, (1 + 2 / 4) / 2])


@settings(max_examples=60, deadline=None)
@given(scores, st.data())
def test_average_precision_matches_the_oracle_when_ties_and_several_right_answers_mix(rows, data):
    relevant = [data.draw(st.sets(st.integers(0, 4), min_size=1, max_size=5)) for _ in rows]
    assert_precision_matches_oracle(average_precision(np.array(rows), [list(r) for r in relevant]), rows, relevant)


def precision_by_stable_order(scores, right):
    return precision_of(np.argsort(-scores, kind="stable").tolist(), right)


def precision_with_ties_won(scores, right):
    return np.mean([(scores[list(right)] >= scores[r]).sum() / ((scores > scores[r]).sum() + 1) for r in right])


def precision_at_mean_places(scores, right):
    places = np.sort([(scores > scores[r]).sum() + ((scores == scores[r]).sum() + 1) / 2 for r in right])
    return np.mean(np.arange(1, len(places) + 1) / places)


@pytest.mark.parametrize("wrong", [precision_by_stable_order, precision_with_ties_won, precision_at_mean_places])
def test_assert_precision_matches_oracle_fails_when_ties_are_broken_another_way(wrong):
    row, right = np.array([0.5, 0.1, 0.5, 0.5, 0.5]), {0, 1, 2}
    with pytest.raises(AssertionError):
        assert_precision_matches_oracle([wrong(row, right)], [row], [right])
    distinct = np.array([0.5, 0.9, 0.3, 0.4, 0.1])
    assert_precision_matches_oracle([wrong(distinct, right)], [distinct], [right])


def test_average_precision_is_one_over_the_rank_when_one_answer_is_right():
    sims, right = rng().normal(size=(30, 200)), rng().integers(0, 200, 30)
    np.testing.assert_allclose(average_precision(sims, right), 1 / ranks(sims, right).expected)


@pytest.mark.parametrize("change", ["gallery", "scale", "infinite"])
def test_average_precision_is_unchanged_when_scores_are_permuted_or_scaled(change):
    generator = rng()
    sims, right_QV = generator.normal(size=(40, 30)).round(1), generator.random((40, 30)) < 0.2
    right_QV[:, 0] = True
    order = generator.permutation(30)
    changed = {"gallery": sims[:, order], "scale": 8 * sims - 2, "infinite": np.where(sims < -1, -np.inf, sims)}[change]
    before = average_precision(np.maximum(sims, -1.1) if change == "infinite" else sims, right_QV)
    np.testing.assert_allclose(average_precision(changed, right_QV[:, order] if change == "gallery" else right_QV),
                               before)


def test_average_precision_takes_little_memory_when_the_gallery_is_large():
    generator = rng()
    sims_QV, right_QV = generator.random((2000, 1000), np.float32), generator.random((2000, 1000)) < 0.006
    right_QV[:, 7] = True
    tracemalloc.start()
    found = average_precision(sims_QV, right_QV)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sims_QV.nbytes / 4
    assert found.mean() == pytest.approx(average_precision(sims_QV.astype(np.float64), right_QV).mean(), abs=1e-12)


def test_average_precision_refuses_what_ranks_refuse():
    with pytest.raises(DataError, match="query 1: need numbers, got NaN for gallery item 2"):
        average_precision(np.array([[0, 1, 2], [0, 1, np.nan]]), [0, 1])
    with pytest.raises(DataError, match="query 0: need at least one right answer, got none"):
        average_precision(TIES, [[], [1], [2]])
    with pytest.raises(DataError, match="need a matrix of queries by gallery"):
        average_precision(np.zeros(3), [0])


def test_ranks_refuse_nan_and_name_the_place_when_one_score_is_nan():
    sims = np.zeros((600, 4), np.float32)
    sims[555, 2] = np.nan
    with pytest.raises(DataError, match="query 555: need numbers, got NaN for gallery item 2"):
        ranks(sims, np.zeros(600, int))


@pytest.mark.parametrize(("relevant", "message"), [
    ([0, 1], "need one entry for each of 3 queries, got 2"),
    (np.eye(3, dtype=bool).tolist(), "need row numbers of the gallery, or a boolean array, got bool in a list"),
    (np.eye(3).tolist(), "need row numbers of the gallery, or a boolean array, got float64 in a list"),
    (np.eye(3, dtype=int), "need row numbers of the gallery, or a boolean array, got 3 zeros and ones for each query"),
    ([[0], [], [1]], "query 1: need at least one right answer, got none"),
    ([0, 1, 3], "need numbers from 0 to 2, got 0 to 3"),
    ([0, -1, 2], "need numbers from 0 to 2, got -1 to 2"),
    (np.ones((2, 3), bool), r"need a boolean matrix of shape \(3, 3\), got \(2, 3\)"),
])
def test_ranks_refuse_right_answers_when_they_do_not_fit(relevant, message):
    with pytest.raises(DataError, match=message):
        ranks(TIES, relevant)


def test_ranks_refuse_scores_when_the_gallery_is_empty():
    with pytest.raises(DataError, match="need a matrix of queries by gallery"):
        ranks(np.zeros((3, 0)), [0, 0, 0])


def test_bootstrap_interval_matches_theory_when_values_are_independent():
    values = 100.0 * (np.arange(1000) < 400)
    low, high = bootstrap_interval(values, rng(), 2000)
    half_width = 1.96 * 100 * np.sqrt(0.4 * 0.6 / 1000)
    assert [low, high] == pytest.approx([40 - half_width, 40 + half_width], abs=0.4)


def test_bootstrap_interval_widens_when_queries_come_in_groups():
    values = np.repeat(100.0 * (np.arange(200) < 80), 5)      # five captions of a video always agree
    alone, grouped = (bootstrap_interval(values, rng(), 500, groups) for groups in (None, np.repeat(np.arange(200), 5)))
    assert grouped[1] - grouped[0] > 1.8 * (alone[1] - alone[0])


def test_bootstrap_interval_repeats_when_the_generator_has_the_same_seed():
    values = rng().normal(size=50)
    assert bootstrap_interval(values, rng()) == bootstrap_interval(values, rng())


def test_paired_difference_is_tighter_than_the_values_when_runs_agree():
    a = rng().random(500)
    found = paired_difference(a, a + 0.5, rng())
    assert found["difference"] == pytest.approx(0.5)
    assert found["ci95"] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(("hits", "total", "interval"), [(0, 0, [0.0, 1.0]), (0, 10, [0.0, 0.2775]),
                                                           (5, 10, [0.2366, 0.7634])])
def test_wilson_gives_the_published_interval(hits, total, interval):
    assert wilson(hits, total) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(("hits_a", "total_a", "hits_b", "total_b", "interval"), [
    (48, 80, 56, 70, [0.0524, 0.3339]), (3, 10, 9, 10, [0.1705, 0.8090]), (0, 10, 0, 20, [-0.2775, 0.1611]),
    (0, 10, 10, 10, [0.6075, 1.0])])
def test_difference_of_rates_gives_newcombes_published_interval(hits_a, total_a, hits_b, total_b, interval):
    """Newcombe 1998, table II, method 10."""
    assert difference_of_rates(hits_a, total_a, hits_b, total_b) == pytest.approx(interval, abs=2e-4)
    swapped = difference_of_rates(hits_b, total_b, hits_a, total_a)
    assert swapped == pytest.approx([-interval[1], -interval[0]], abs=2e-4)
