"""What a policy is worth: by hand, and as evaluation has it; chains of several seeds against sums done by hand."""

import numpy as np
import pytest
import torch
from rlhf_toys import early, made_up_chain_run, made_up_question, made_up_references

from qa_helpers.evaluation.comparisons import gains_over_blocks, paired_difference
from qa_helpers.evaluation.metrics import evaluate
from qa_helpers.evaluation.span_answers import answer
from qa_helpers.experiment.forms import RecordError
from qa_helpers.rlhf.measure import (
    MEASURED_AT_ONCE,
    Reference,
    gain,
    gains_over_seeds,
    having,
    held_out,
    outcome,
    share_of_optimum,
)
from qa_helpers.rlhf.policy import closed_form
from qa_helpers.rlhf.reward import RewardModel


# ---- a policy --------------------------------------------------------------------------------------------------
def test_the_references_outcome_is_what_evaluation_says_of_it(references, tokenizer, tiny_model):
    rows = [one.question.row for one in references]
    expected = evaluate(answer(tiny_model(), tokenizer, rows).predictions, rows)
    found = outcome(lambda batch: batch.log_ref, references, early)
    assert found.answers == [one.prediction for one in expected]
    assert found.exact_match.tolist() == [float(one.exact_match) for one in expected]
    assert found.f1.tolist() == pytest.approx([one.f1 for one in expected])
    assert found.means()["f1"] == pytest.approx(100 * np.mean([one.f1 for one in expected]))
    assert found.kl.tolist() == [0] * len(rows)


def test_each_question_keeps_its_place_though_long_passages_are_asked_first():
    references = made_up_references(3 * MEASURED_AT_ONCE)
    reward = RewardModel(references[0].states.shape[1], seed=0)

    def chosen(batch):
        return closed_form(batch.log_ref, reward(batch), 0.1)

    together, alone = outcome(chosen, references, reward), [outcome(chosen, [one], reward) for one in references]
    assert together.answers == [text for one in alone for text in one.answers]
    for name in ("reward", "kl", "exact_match", "f1", "agreement", "tokens"):
        expected = np.concatenate([getattr(one, name) for one in alone])
        assert getattr(together, name) == pytest.approx(expected, abs=1e-5), name
    assert len({one.question.tokens for one in references[:5]}) > 1, "they are in another order when asked"


def test_an_outcome_by_hand():
    question = made_up_question("q", 3)  # "a b c", answer "b"
    logits = torch.tensor([0.0, 0.0, 0.0])
    reference = Reference(question, torch.zeros(3, 2).half(), logits, logits)
    actions = [0, 1, 2, 30, 31, 60]  # a, a b, a b c, b, b c, c

    def chosen(batch):
        log_p = torch.full_like(batch.log_ref, -torch.inf)
        log_p[0, [1, 30]] = torch.tensor([0.75, 0.25]).log()
        return log_p

    reward = torch.zeros(1, 90)
    reward[0, actions] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = outcome(chosen, [reference], lambda batch: reward)
    assert found.answers == ["a b"]
    assert found.reward.tolist() == pytest.approx([0.75 * 2 + 0.25 * 4])
    assert found.kl.tolist() == pytest.approx([0.75 * np.log(0.75 * 6) + 0.25 * np.log(0.25 * 6)])
    assert found.tokens.tolist() == [2]
    assert found.exact_match.tolist() == found.f1.tolist() == found.agreement.tolist() == [1]  # "a" is an article


# ---- several seeds ---------------------------------------------------------------------------------------------
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
