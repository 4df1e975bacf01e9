"""What notebook 04 says of recorded chains, held to the records: sentence by sentence, so that the two cannot part.

Each test names the sentences that it is about, as the notebook has them, and computes anew what they state.
"""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from rlhf_toys import random_policy
from scipy import stats
from stored_tables import shown_text

from qa_helpers.common.io import project_folder
from qa_helpers.evaluation.comparisons import gains_over_blocks, win_rate
from qa_helpers.experiment.scales import SCALES
from qa_helpers.rlhf.chain_record import load_chains
from qa_helpers.rlhf.language.record import language_table, load_language_chains
from qa_helpers.rlhf.losses import ppo_loss
from qa_helpers.rlhf.measure import gain, gains_over_seeds

CELLS = json.loads((project_folder() / "notebooks" / "04_rlhf.ipynb").read_text(encoding="utf-8"))["cells"]
SOURCES = ["".join(cell["source"]) for cell in CELLS]
TEXT = "\n".join(source for cell, source in zip(CELLS, SOURCES, strict=True) if cell["cell_type"] == "markdown")
CODE = "\n".join(source for cell, source in zip(CELLS, SOURCES, strict=True) if cell["cell_type"] == "code")
OUTPUT = "\n".join(shown_text(output) for cell in CELLS for output in cell.get("outputs", []))
CHAINS = list(load_chains("class-rlhf-seed*").values())
[WEAK] = load_chains("class-rlhf-weak-*").values()
SHARED = set.intersection(*(set(run.policies) for run in CHAINS))


def says(*sentences):
    missing = [sentence for sentence in sentences if sentence not in TEXT]
    assert not missing, f"notebook 04 does not say: {missing}"


def line_of(run, reward):
    """KL, own reward, EM and F1 of the reference and of a reward model's optima."""
    start = [0.0, 0.0, *(100 * run.reference.array(column).mean() for column in ("exact_match", "f1"))]
    return np.array(
        [start, *([m[c] for c in ("kl", "reward", "exact_match", "f1")] for _, m in run.rewards[reward].optima)]
    )


def at(run, reward, kl=1.5):
    """Own reward, EM and F1 at this distance, between the points that are joined over the root of the distance."""
    root, *columns = line_of(run, reward).T
    return np.array([np.interp(kl**0.5, root**0.5, column) for column in columns])


# ---- reward models ---------------------------------------------------------------------------------------------
def test_the_length_blind_model_still_leans_towards_short_answers_but_less():
    says("*length-blind* ranks nearly as well as *own* and leans about 0.1 less towards short answers, but with every")
    less = []
    for run in CHAINS:
        own, blind = (run.rewards[name].length_correlation for name in ("own", "length-blind"))
        assert own < blind < 0
        less.append(blind - own)
    assert round(float(np.mean(less)), 1) == 0.1


def test_a_fifth_of_wrong_rankings_costs_a_point_of_a_lead_of_five_to_seven():
    says("a fifth costs *poisoned* about one point of a lead of five to seven")
    own, poisoned, rule = (
        [run.rewards[reward].accuracy[ranker].value for run in CHAINS]
        for reward, ranker in (("own", "reward model"), ("poisoned", "reward model"), ("own", "own probability"))
    )
    lead = np.subtract(own, rule)
    assert all(5 <= one < 7.5 for one in lead)
    assert np.subtract(own, poisoned) == pytest.approx(1.0, abs=0.3)


def test_reward_models_are_compared_at_the_same_distance():
    says("the table compares at the *same distance*, 1.5 nats", "has more EM with one seed, less with two")
    own, people, trained, shuffled = (
        np.array([at(run, name) for run in CHAINS]) for name in ("own", "people", "over-trained", "shuffled")
    )
    assert all(
        line_of(run, name)[-1, 0] > 1.5 for run in CHAINS for name in ("own", "people", "over-trained", "shuffled")
    )
    assert trained[:, 0] / own[:, 0] == pytest.approx(2, abs=0.4)  # "promises about twice the reward of own"
    assert sum(trained[:, 1] > own[:, 1]) == 1
    assert (people[:, 1:] < own[:, 1:]).all()  # "*people* has less EM and F1 than *own* with every seed"
    assert (shuffled[:, 1] < own[:, 1] - 10).all()  # "a collapse"
    for row in zip(("own", "people", "over-trained", "shuffled"), (own, people, trained, shuffled), strict=True):
        name, found = row
        earned, scored, overlap = found.T
        cells = (", ".join(f"{x:.{n}f}" for x in column) for column, n in ((earned, 2), (scored, 1), (overlap, 1)))
        assert f"| {name} | {' | '.join(cells)} |" in OUTPUT


def test_right_ends_lie_below_the_reference():
    says(
        "At their right ends *people*, *over-trained* and *shuffled* lie below the reference with every seed, and *own*"
    )
    below = {
        name: sum(line_of(run, name)[-1, 2] < line_of(run, name)[0, 2] for run in CHAINS)
        for name in ("people", "over-trained", "shuffled", "own")
    }
    assert below == {"people": 3, "over-trained": 3, "shuffled": 3, "own": 2}
    assert all(line_of(run, "own")[-1, 3] > line_of(run, "own")[0, 3] for run in CHAINS)
    assert all((np.diff(line_of(run, name)[:, 1]) > 0).all() for run in CHAINS for name in below)  # own reward rises


def test_the_weak_reward_model_has_large_rewards_and_is_worse_at_the_same_distance():
    says(
        "for β = 1 its optimum earns 3.3, that of *own* 0.47",
        "at the same 1.5 nats, too, its optimum has EM 28, that of",
    )
    assert [round(line_of(WEAK, name)[1, 1], 2) for name in ("weak", "own")] == [3.3, 0.47]
    assert [round(at(WEAK, name)[1]) for name in ("weak", "own")] == [28, 39]
    says("*own* 39, and the reference 36", "for β = 1 its optimum has EM 29, and less for a smaller one")
    em = line_of(WEAK, "weak")[:, 2]
    assert round(em[0]) == 36
    assert round(em[1]) == 29
    assert (np.diff(em[1:]) < 0).all()


# ---- policies --------------------------------------------------------------------------------------------------
def test_gains_over_seeds_are_those_of_a_block_design_of_all_nine_policies():
    says("over seeds, whose scatter is taken to be alike for all nine policies that the three have")
    assert len(SHARED) == 9
    for column in ("exact_match", "f1"):
        base, *rest = (
            [100 * run.everything[name].array(column).mean() for run in CHAINS]
            for name in ("reference", *sorted(SHARED))
        )
        expected = gains_over_blocks(base, dict(zip(sorted(SHARED), rest, strict=True)))
        found = gains_over_seeds(CHAINS, column)
        assert {name: found[name] for name in SHARED} == {name: pytest.approx(one) for name, one in expected.items()}


def test_ppo_gains_over_questions_articles_and_seeds_and_reinforce_not_its_em_over_seeds():
    says(
        "PPO is better than the reference, in EM and in F1, over questions and over seeds, and in F1 over articles",
        "so is the exact gradient; the control, whose reward model learned nothing, is not",
        "(REINFORCE's EM is, over questions, but not over seeds.)",
    )
    over_seeds = {column: gains_over_seeds(CHAINS, column) for column in ("exact_match", "f1")}
    for name in ("ppo", "exact"):
        assert gain(CHAINS, name, "f1", over_articles=True).low > 0
        for column, found in over_seeds.items():
            assert min(found[name].low, gain(CHAINS, name, column).low) > 0
    for column, found in over_seeds.items():
        assert max(found["ppo-shuffled"].value, gain(CHAINS, "ppo-shuffled", column).value) < 0
    assert str(over_seeds["exact_match"]["ppo"]) == "2.6 [0.3, 4.9]"
    assert str(over_seeds["f1"]["ppo"]) == "3.3 [1.1, 5.5]"
    assert gain(CHAINS, "reinforce", "exact_match").low > 0 > over_seeds["exact_match"]["reinforce"].low
    assert min(win_rate(run.reference.agreement, run.columns("ppo").agreement).p for run in CHAINS) > 0.05


def test_held_out_articles_are_twelve():
    says("over the twelve held-out articles")
    assert {len(set(run.titles)) for run in CHAINS} == {12}
    assert "held-out articles: 12\n" in OUTPUT


def test_labels_beat_rankings_and_have_the_lowest_reward():
    says(
        "Supervised fine-tuning is better still, by intervals that exclude zero, against the reference and against PPO"
    )
    says("And yet its *reward* is the lowest of all, with every seed.")
    for column in ("exact_match", "f1"):
        assert gain(CHAINS, "supervised", column, against="ppo").low > 0
        assert gains_over_seeds(CHAINS, column, against="ppo")["supervised"].low > 0
    for run in CHAINS:
        earned = {name: columns.array("reward").mean() for name, columns in run.everything.items()}
        assert min(earned, key=earned.__getitem__) == "supervised"


def test_dpo_is_left_out_of_the_verdict():
    says("All had the same learning rate and β, tuned for none.", "With these DPO went twice as far as any other")
    plans = [plan for run in CHAINS for plan in run.chain.policies if plan.name in SHARED]
    assert len({(plan.learning_rate, plan.beta) for plan in plans}) == 1
    moved = {name: np.mean([run.policies[name].final.array("kl").mean() for run in CHAINS]) for name in SHARED}
    assert moved.pop("dpo") > 2 * max(moved.values())
    verdict = TEXT[TEXT.index("PPO is better than the reference") : TEXT.index("So why RLHF?")]
    assert "dpo" not in verdict.lower()
    assert "| dpo | 0 | " not in OUTPUT  # no win rates


def test_near_the_reference_weak_reward_models_gain_nothing_that_can_be_told():
    says(
        "gains nothing that can be told from zero; with seed 2 it *loses* EM",
        "by a difference that these three seeds do not",
    )
    gains = [gain([run], "ppo-people", "exact_match") for run in CHAINS]
    assert gains[0].low < 0 < gains[0].high
    assert gains[1].low < 0 < gains[1].high
    assert gains[2].high < 0
    assert all(run.policies["ppo-people"].progress[-1][1]["reward"] > 0 for run in CHAINS)
    for column in ("exact_match", "f1"):
        for less in (
            gain(CHAINS, "ppo-over-trained", column, against="ppo"),
            gains_over_seeds(CHAINS, column, "ppo")["ppo-over-trained"],
        ):
            assert less.value < 0 < less.high


# ---- the language model ----------------------------------------------------------------------------------------
def test_of_the_language_models_reward_the_exact_interval_holds_all_simpler_rankers():
    says("The reward model's interval, although too narrow, holds what all simpler rankers reach")
    run = load_language_chains()["small-language-seed0"]
    pairs, (own, *simpler) = run.reward.pairs["held out"], [score.value for score in run.reward.accuracy.values()]
    low, high = stats.binomtest(round(own * pairs / 100), pairs).proportion_ci()
    assert 100 * low < min(simpler)
    assert max(simpler) < 100 * high
    assert f"{round(own * pairs / 100)} of {pairs} pairs, [{100 * low:.1f}, {100 * high:.1f}] %" in OUTPUT


def test_of_the_language_model_four_articles_can_show_nothing_and_questions_do_for_dpo_only():
    says(
        "two in three are on one article, and over four articles no exact test can exclude luck",
        "over questions that is hardly",
    )
    run = load_language_chains()["small-language-seed0"]
    articles = Counter(run.titles)
    assert len(articles) == 4
    assert 2 / 2 ** len(articles) > 0.05
    assert max(articles.values()) / len(run.titles) == pytest.approx(2 / 3, abs=0.03)
    header, rows = language_table(run)
    p = {row[0]: row[header.index("p")] for row in rows}
    for name, method in run.methods.items():
        more, less = (
            sum(s * (b - a) > 0 for a, b in zip(run.before.agreement, method.final.agreement, strict=True))
            for s in (1, -1)
        )
        assert float(p[name]) == pytest.approx(stats.binomtest(more, more + less).pvalue, rel=0.05)
        assert f"{more}, {len(run.ids) - more - less}, {less}" in rows[list(p).index(name)]
    assert float(p["dpo"]) < 0.05 < float(p["grpo"])
    assert not any(run.before.exact_match + run.methods["dpo"].final.exact_match)  # "EM stays at zero"


# ---- what needs no record --------------------------------------------------------------------------------------
def test_ppos_clip_takes_the_incentive_away_and_forbids_nothing():
    says("moving it on earns nothing. That takes the incentive away but forbids nothing")
    old = random_policy(1, 6, seed=0)
    scores = old.clone().requires_grad_()
    actions, advantage = torch.tensor([[0, 1]]), torch.tensor([[-1.0, 1.0]], dtype=torch.float64)

    def ratios():
        return (scores.log_softmax(1) - old).exp()[0]

    for _ in range(200):  # from the same samples, as in a pass
        loss = ppo_loss(scores.log_softmax(1).gather(1, actions), old.gather(1, actions), advantage, 0.2).mean()
        scores.grad = None
        loss.backward()
        with torch.no_grad():
            scores -= 0.5 * scores.grad
    assert scores.grad.abs().max() == 0  # nothing pulls any more
    assert ratios().max() > 1.2  # and yet a probability has moved further than the clip


def test_stand_ins_agree_more_than_people():
    says("These stand-ins hardly ever differ; InstructGPT's labellers agreed on 73 % of the pairs")
    raw = [
        float(found) for found in re.findall(r"^\| annotator \d and annotator \d \| \d+ \| ([\d.]+) \|", OUTPUT, re.M)
    ]
    assert len(raw) == 3
    assert min(raw) > 90
    assert 'check("the lowest raw agreement, %"' in CODE


def test_the_live_cells_work_at_the_scale_that_is_set(monkeypatch, tokenizer, course):
    says("(With `QA_SCALE=class`: the class baseline and SQuAD's validation questions")
    run, read = [], []
    monkeypatch.setenv("QA_SCALE", "class")
    monkeypatch.setattr("qa_helpers.experiment.store.run_experiment", run.append)
    monkeypatch.setattr("qa_helpers.experiment.store.load_trained", lambda name: (None, tokenizer))
    monkeypatch.setattr("qa_helpers.data.squad.load_qa", lambda *what: read.append(what) or course)
    monkeypatch.setattr("qa_helpers.rlhf.policy.one_window", lambda rows, tokenizer: (rows, 0))
    monkeypatch.setattr("qa_helpers.rlhf.measure.ask_reference", lambda model, tokenizer, questions: questions)
    cells = {}
    for cell, source in zip(CELLS, SOURCES, strict=True):
        if cell["id"] in ("cell-04-87946f", "cell-06-ba4476"):
            exec(source, cells)
    assert run == [SCALES["class"].baseline()]
    assert read == [("squad", "validation")]
    titles = [{row["title"] for row in part} for part in cells["asked"].values()]
    assert list(cells["asked"]) == ["learn", "stop", "held out"]
    assert sum(map(len, titles)) == len(set.union(*titles)) == len({row["title"] for row in course})


def test_rankings_claim_no_more_than_the_labels_from_which_they_are_made():
    assert "Training on likelihood has nothing more to say" not in TEXT
    says("our rankings are made from such ones and know nothing more")


def test_exercise_2_has_clusters_and_an_answer():
    solution = TEXT[TEXT.index("### Exercise 2") : TEXT.index("### Exercise 3")]
    assert "bootstrap_mean(by_model, clusters=clusters)" in solution
    assert "paired_difference(by_rule, by_model, clusters=clusters)" in solution


def test_of_the_cells_at_most_five_are_not_compared():
    ignored = [cell for cell in CELLS if "nbval-ignore-output" in cell["metadata"].get("tags", [])]
    assert len(ignored) <= 5


def test_the_mend_does_not_mend_at_quick_scale():
    says("Here it does not mend, as three seeds each show.")
    leanings = {
        name: [float(one) for one in found.split(", ")]
        for name, found in re.findall(r"^([\w -]+): correlation of reward and length ([-+.\d, ]+);", OUTPUT, re.M)
    }
    assert list(leanings) == ["as trained", "length-blind"]
    assert [len(found) for found in leanings.values()] == [3, 3]
    trained, blind = (np.mean(found) for found in leanings.values())
    assert max(trained, blind) < -0.1
    assert abs(blind - trained) < np.ptp(leanings["as trained"]) + 0.05  # no more than one seed differs from another
