"""A score of a record: what `bootstrap_mean` makes is accepted, whatever the values; what it cannot make is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_helpers.evaluation.statistics import PERCENT_BOUNDS, bootstrap_mean
from qa_helpers.experiment.scores import METRICS, ROUNDING, Score, check_score


@settings(max_examples=60)
@given(
    size=st.integers(1, 3_000),
    share=st.floats(0, 1),
    kind=st.sampled_from(["right or wrong", "F1", "mostly one value"]),
    seed=st.integers(0, 1_000),
)
def test_an_honest_score_is_accepted(size, share, kind, seed):
    draw = np.random.default_rng(seed)
    right = (draw.random(size) < share).astype(float)
    values = {
        "right or wrong": right,
        "F1": np.round(np.where(draw.random(size) < 0.3, draw.random(size), right), 4),
        "mostly one value": np.where(right, 0.6667, np.round(draw.random(size), 4)),
    }[kind]
    score = Score.of(bootstrap_mean(100 * values, bounds=PERCENT_BOUNDS))
    check_score(score, 100 * values, ROUNDING["f1"], "here")


@settings(max_examples=60)
@given(size=st.integers(50, 3_000), share=st.floats(0.3, 0.7), seed=st.integers(0, 1_000))
def test_an_interval_of_half_or_twice_the_width_is_refused(size, share, seed):
    values = 100.0 * (np.random.default_rng(seed).random(size) < share)
    score = bootstrap_mean(values, bounds=PERCENT_BOUNDS)
    for factor in (0.0, 0.5, 1.6):
        low, high = (score.value + factor * (end - score.value) for end in (score.low, score.high))
        changed = Score(value=score.value, low=max(0.0, low), high=min(100.0, high))
        with pytest.raises(ValueError, match=r"^here: the interval is not that of its questions, about "):
            check_score(changed, values, ROUNDING["f1"], "here")


@pytest.mark.parametrize("metric", METRICS)
def test_one_answer_more_of_squads_validation_set_is_not_the_mean(metric):
    values = 100.0 * (np.arange(10_570) % 3 == 0)
    score = Score.of(bootstrap_mean(values, bounds=PERCENT_BOUNDS))
    check_score(score, values, ROUNDING[metric], "here")
    values[1:3] = 100.0
    with pytest.raises(ValueError, match=r"^here: is not the mean of its questions"):
        check_score(score, values, ROUNDING[metric], "here")
