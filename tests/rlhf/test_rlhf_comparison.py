"""Chains of several seeds compared: against sums done by hand."""

import numpy as np
import pytest
from rlhf_toys import made_up_chain_run

from qa_helpers.evaluation.statistics import gains_over_blocks, paired_difference, win_rate
from qa_helpers.experiment.spec import RecordError
from qa_helpers.rlhf.comparison import gain, gains_over_seeds, having, held_out, share_of_optimum, wins


@pytest.fixture
def runs():
    return [made_up_chain_run(seed) for seed in (0, 1)]


def test_a_gain_is_paired_by_question_and_averaged_over_the_seeds(runs):
    before, after = (
        np.mean([100 * np.array(columns) for columns in both], axis=0)
        for both in zip(*((run.reference.f1, run.policies["ppo"].final.f1) for run in runs), strict=True)
    )
    assert gain(runs, "ppo", "f1") == pytest.approx(paired_difference(before, after))
    clustered = paired_difference(before, after, clusters=runs[0].titles)
    assert gain(runs, "ppo", "f1", over_articles=True) == pytest.approx(clustered)
    assert gain(runs, "ppo", "f1").value == pytest.approx(-gain(runs, "reference", "f1", against="ppo").value)


def test_rewards_are_not_in_percent(runs):
    expected = np.mean([run.policies["ppo"].final.reward for run in runs]) - np.mean([r.reference.reward for r in runs])
    assert gain(runs, "ppo", "reward").value == pytest.approx(expected)


def test_gains_over_seeds_take_the_seeds_as_blocks(runs):
    before, after = ([100 * np.mean(run.everything[name].f1) for run in runs] for name in ("reference", "ppo"))
    found = gains_over_seeds(runs, "f1")
    assert found == {"ppo": pytest.approx(gains_over_blocks(before, {"ppo": after})["ppo"])}
    assert gains_over_seeds(runs, "f1", against="ppo")["reference"].value == pytest.approx(-found["ppo"].value)
    with pytest.raises(RecordError, match="takes two chains or more"):
        gains_over_seeds(runs[:1], "f1")


def test_wins_are_by_peoples_agreement(runs):
    run = runs[0]
    before, after = run.reference.agreement, run.policies["ppo"].final.agreement
    assert wins(run, "ppo").wins == sum(b > a for a, b in zip(before, after, strict=True))
    assert wins(run, "reference").rate.value == 50
    over_articles = wins(run, "ppo", over_articles=True)
    assert over_articles == win_rate(before, after, clusters=run.titles)
    assert over_articles.rate != wins(run, "ppo").rate


def test_the_optimum_has_all_of_what_can_be_gained_and_the_reference_none(runs):
    assert share_of_optimum(runs[0], "optimum, beta 0.1", 0.1) == 1
    assert share_of_optimum(runs[0], "reference", 0.1) == 0


def test_those_are_compared_that_have_all_of_the_policies(runs):
    other = made_up_chain_run(2)
    more = other.model_copy(update={"policies": other.policies | {"dpo": other.policies["ppo"]}})
    assert having([*runs, more], "ppo", "reference") == [*runs, more]
    assert having([*runs, more], "ppo", "dpo") == [more]
    with pytest.raises(RecordError, match="no chain has all of ppo, dpo"):
        having(runs, "ppo", "dpo")


def test_what_cannot_be_compared_says_why(runs):
    other = made_up_chain_run(2, name="elsewhere").model_copy(update={"ids": [f"other{i}" for i in range(12)]})
    with pytest.raises(RecordError, match="'elsewhere' were measured on other questions"):
        held_out([runs[0], other])
    with pytest.raises(RecordError, match="no record of a chain"):
        held_out([])
    with pytest.raises(RecordError, match=r"has no 'dpo'; it has reference, ppo, optimum, beta 0.1"):
        gain(runs, "dpo", "f1")
