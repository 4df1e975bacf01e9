"""Comparisons over articles: whole articles are drawn, as a plain resampling does it, not questions."""

import numpy as np
import pytest

from qa_helpers.evaluation.comparisons import paired_difference, win_rate

ARTICLES = 24
QUESTIONS = (3, 8, 14)  # of an article, in turn
LABELS = [f"article {i}" for i in range(ARTICLES) for _ in range(QUESTIONS[i % 3])]


def two_runs() -> tuple[np.ndarray, np.ndarray]:
    """Two runs' scores; how far the second is ahead depends on the article more than on the question."""
    draw = np.random.default_rng(0)
    ahead = np.repeat(draw.normal(0.2, 0.5, ARTICLES), [QUESTIONS[i % 3] for i in range(ARTICLES)])
    first = draw.random(len(LABELS))
    return first, first + ahead + draw.normal(0, 0.3, len(LABELS))


def resampled(values: np.ndarray) -> np.ndarray:
    """Means of 10,000 draws of as many articles, each with all of its questions."""
    groups = [values[[label == f"article {i}" for label in LABELS]] for i in range(ARTICLES)]
    sums, sizes = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
    chosen = np.random.default_rng(1).integers(0, ARTICLES, (10_000, ARTICLES))
    means: np.ndarray = sums[chosen].sum(1) / sizes[chosen].sum(1)
    return means


def test_the_interval_of_a_difference_over_articles() -> None:
    first, second = two_runs()
    means = resampled(second - first)
    over_articles, over_questions = (paired_difference(first, second, clusters=labels) for labels in (LABELS, None))
    assert over_articles.value == over_questions.value == pytest.approx(np.mean(second - first))
    assert over_articles.low == pytest.approx(np.quantile(means, 0.025), abs=0.2 * np.std(means))
    assert over_articles.high == pytest.approx(np.quantile(means, 0.975), abs=0.2 * np.std(means))
    assert over_articles.high - over_articles.low > 1.5 * (over_questions.high - over_questions.low)


def test_the_interval_of_a_win_rate_over_articles() -> None:
    first, second = two_runs()
    means = resampled(np.where(second > first, 100.0, 0.0))
    over_articles, over_questions = (win_rate(first, second, clusters=labels).rate for labels in (LABELS, None))
    assert over_articles.value == over_questions.value == pytest.approx(100 * np.mean(second > first))
    assert over_articles.low == pytest.approx(np.quantile(means, 0.025), abs=0.2 * np.std(means))
    assert over_articles.high == pytest.approx(np.quantile(means, 0.975), abs=0.2 * np.std(means))
    assert over_articles.high - over_articles.low > 1.5 * (over_questions.high - over_questions.low)
