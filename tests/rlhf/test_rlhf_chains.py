"""A chain of RLHF: run, read back, resumed, recorded; what its parts are made of."""

import dataclasses
import json
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch

from qa_helpers.__main__ import main
from qa_helpers.data.rows import DataError
from qa_helpers.data.squad import ASSETS, load_qa
from qa_helpers.evaluation.statistics import bootstrap_mean
from qa_helpers.experiment.catalogue import named_experiments
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.once import read_as
from qa_helpers.experiment.record import Ancestor, Fingerprints
from qa_helpers.experiment.scores import Score
from qa_helpers.experiment.spec import SpanTraining, change
from qa_helpers.rlhf import chain as chains
from qa_helpers.rlhf.chain import run_chain
from qa_helpers.rlhf.chain_record import (
    Chain,
    ChainRun,
    PolicyPlan,
    RewardPlan,
    format_chain,
    load_chains,
    named_chains,
)
from qa_helpers.rlhf.reward import RewardModel, accuracy, log_prob_margins, margins
from qa_helpers.widgets.playground import available_models

REWARDS = (RewardPlan(name="own", epochs=2), RewardPlan(name="shuffled", flipped=0.5, epochs=1, stop_early=False))
POLICIES = (
    PolicyPlan(name="ppo", steps=2),
    PolicyPlan(name="dpo", method="dpo", steps=1),
    PolicyPlan(name="supervised", method="supervised", steps=1),
)
CHAIN = Chain(
    name="chain", data="courseqa", reference="finished", learn=40, held_out=24, rewards=REWARDS, policies=POLICIES
)


@pytest.fixture(scope="module")
def done(finished, tmp_path_factory):
    """A runs folder of its own, with the reference and the finished chain; and the chain's run."""
    folder = tmp_path_factory.mktemp("chains")
    shutil.copytree(finished[0] / "finished", folder / "finished")
    return folder, run_chain(CHAIN, folder)


def test_a_chain_is_not_taken_for_a_run_with_a_model(done):
    folder, _ = done
    assert [path.parent.name for path in folder.glob("*/run.json")] == ["finished"]
    assert "chain" not in available_models(folder)


def test_a_chain_records_each_reward_model_and_policy(done):
    _, run = done
    assert set(run.rewards) == {"own", "shuffled"}
    assert list(run.policies) == ["ppo", "dpo", "supervised"]
    assert run.questions == {"learn": 40, "stop": 10, "held out": 24, "left out": 0}
    assert [step for step, *_ in run.policies["ppo"].steps] == [1, 2]
    assert [step for step, _ in run.policies["ppo"].progress] == [0, 2]
    assert list(run.ancestors) == ["finished"]
    assert set(run.optima) == {"1", "0.3", "0.1", "0.03"}
    for beta, means in run.rewards["own"].optima:  # the first reward model's are kept question by question, too
        assert means["reward"] == pytest.approx(run.optima[f"{beta:g}"].array("reward").mean(), abs=1e-3)
        assert means["exact_match"] == pytest.approx(
            100 * run.optima[f"{beta:g}"].array("exact_match").mean(), abs=1e-3
        )
    assert run.rewards["shuffled"].optima != run.rewards["own"].optima


def test_the_reference_is_where_all_begin_and_the_optimum_is_never_beaten(done):
    _, run = done
    assert run.reference.array("kl") == pytest.approx(0, abs=1e-3)
    assert run.reference.array("reward") == pytest.approx(0, abs=1e-3)
    for result in run.policies.values():
        assert result.progress[0][1]["kl"] == pytest.approx(0, abs=1e-3)
    for beta, best in run.optima.items():
        for other in (run.reference, *(result.final for result in run.policies.values()), *run.best_of.values()):
            objective = [one.array("reward") - float(beta) * one.array("kl") for one in (best, other)]
            assert np.all(objective[0] >= objective[1] - 1e-3)


def test_the_reward_of_the_policys_own_model_is_the_common_one_where_it_is_the_same(done):
    _, run = done
    assert run.policies["ppo"].own_reward == run.policies["ppo"].final.reward


def test_more_samples_to_choose_from_earn_more(done):
    _, run = done
    rewards = [run.best_of[n].array("reward").mean() for n in ("4", "16", "64")]
    assert 0 < rewards[0] < rewards[1] < rewards[2]


def test_a_finished_chain_is_read_back_and_a_half_done_one_goes_on(done, monkeypatch):
    folder, run = done
    assert run_chain(CHAIN, folder) == run
    (folder / "chain" / chains.RECORD).unlink()
    (folder / "chain" / "policies" / "dpo.json").unlink()
    updated = []
    update = chains._update
    monkeypatch.setattr(chains, "_update", lambda plan, *rest: updated.append(plan.name) or update(plan, *rest))
    again = run_chain(CHAIN, folder)
    assert updated == ["dpo"]
    same = {"policies": {name: one.model_copy(update={"seconds": 0.0}) for name, one in run.policies.items()}}
    now = {"policies": {name: one.model_copy(update={"seconds": 0.0}) for name, one in again.policies.items()}}
    assert again.model_copy(update=now) == run.model_copy(update=same)


def test_another_chain_of_the_name_is_refused(done):
    folder, _ = done
    with pytest.raises(RecordError, match="holds another chain of the name 'chain'; give this one another name"):
        run_chain(change(CHAIN, seed=1), folder)


def test_a_chain_without_its_reference_says_so(tmp_path):
    with pytest.raises(RecordError, match="run the experiment 'finished' first"):
        run_chain(CHAIN, tmp_path)


def test_a_reference_that_has_seen_every_article_leaves_none_to_ask(done):
    _, run = done
    everything = change(run.ancestors["finished"].experiment, train_size=None)
    ancestor = run.ancestors["finished"].model_copy(update={"experiment": everything})
    with pytest.raises(DataError, match="was trained on all articles but one of courseqa, or all; none to ask"):
        chains._unseen(CHAIN, {"finished": ancestor})


# ---- its parts, with a tiny model as the reference -----------------------------------------------------------------
def reference(**changes):
    """The reference's ancestry, as a chain takes it."""
    experiment = SpanTraining(name="finished", train_size=16).model_copy(update=changes)
    return {"finished": Ancestor(experiment=experiment, fingerprints=Fingerprints(train="0" * 16, eval="0" * 16))}


@pytest.fixture(scope="module", params=["courseqa", "squad"])
def asked(request, tokenizer, tiny_model, tmp_path_factory):
    """A chain, and what the tiny reference says of its questions; CourseQA's files stand for SQuAD's."""
    folder = tmp_path_factory.mktemp("data") / "squad"
    folder.mkdir()
    for part, name in {"train": "train-v1.1.json", "dev": "dev-v1.1.json"}.items():
        shutil.copy(ASSETS / "courseqa" / f"{part}.json", folder / name)
    chain = CHAIN.model_copy(update={"data": request.param})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QA_DATA_DIR", str(folder.parent))
        yield chain, chains._ask(chain, tiny_model(), tokenizer, reference(data=request.param))


def titles_of(references):
    return {one.question.row["title"] for one in references}


def test_no_two_parts_share_an_article_and_none_has_one_that_the_reference_was_trained_on(asked):
    chain, found = asked
    parts = {name: titles_of(references) for name, references in found.parts.items()}
    parts["the reference's training"] = set(load_qa(chain.data, "train", 16)["title"])
    assert list(parts) == ["learn", "stop", "held out", "the reference's training"]
    assert all(parts.values())
    for one, other in combinations(parts, 2):
        assert parts[one].isdisjoint(parts[other]), f"{one}, {other}"


def test_of_squad_all_parts_are_of_the_validation_questions_which_several_people_answered(asked):
    chain, found = asked
    validation = set(load_qa(chain.data, "validation")["title"])
    of_validation = {name for name, part in found.parts.items() if titles_of(part) <= validation}
    assert of_validation == ({"learn", "stop", "held out"} if chain.data == "squad" else {"held out"})
    if chain.data == "squad":  # a quarter of its six articles is held out
        assert {name: len(titles_of(part)) for name, part in found.parts.items()} == {
            "learn": 3,
            "stop": 1,
            "held out": 2,
        }
    assert [len(part) for part in found.parts.values()] == [40, 10, 24]


def test_what_the_reference_was_trained_on_is_left_out_however_it_was_chosen():
    """Drawn from all articles, by way of another run, or made from the passages."""
    few = set(load_qa("courseqa", "train", 12, "random", 5)["title"])
    left = {row["title"] for row in chains._unseen(CHAIN, reference(train_size=12, sampling="random", sampling_seed=5))}
    assert left == set(load_qa("courseqa", "train")["title"]) - few
    start = reference(train_size=100)["finished"]
    rests_on = reference(start_from="start") | {"start": start}
    seen = set(load_qa("courseqa", "train", 100)["title"])
    assert seen.isdisjoint(row["title"] for row in chains._unseen(CHAIN, rests_on))
    with pytest.raises(DataError, match="none to ask"):
        chains._unseen(CHAIN, reference(questions="cloze"))


def test_a_reward_model_is_measured_on_the_held_out_pairs_with_intervals_over_questions(asked):
    _, found = asked
    model, result = chains._train_reward(CHAIN.rewards[0], found)
    pairs = found.pairs["own", "held out"]
    rightly = 100 * accuracy(margins(model, found.parts["held out"], pairs))
    by_probability = 100 * accuracy(log_prob_margins(found.parts["held out"], pairs))
    assert result.accuracy["reward model"].value == pytest.approx(rightly, abs=0.01)
    assert result.accuracy["own probability"].value == pytest.approx(by_probability, abs=0.01)
    right = 50 * (np.sign(margins(model, found.parts["held out"], pairs)) + 1)
    questions = [pair.question for pair in pairs]
    assert result.accuracy["reward model"] == Score.of(bootstrap_mean(right, clusters=questions))
    assert result.accuracy["reward model"] != Score.of(bootstrap_mean(right))
    learned = accuracy(margins(model, found.parts["learn"], found.pairs["own", "learn"]))
    assert result.accuracy["reward model"].value != pytest.approx(100 * learned, abs=0.01)


def test_a_very_large_beta_holds_the_policy_where_a_small_one_lets_it_go(asked, tokenizer, tiny_model):
    _, found = asked
    kl = {}
    for beta in (1e6, 0.01):  # all else is the same
        plan = PolicyPlan(name="x", method="exact", penalty="exact", steps=8, learning_rate=3e-3, beta=beta)
        learner = chains._update(plan, found, tiny_model(), RewardModel(16, seed=3))
        kl[beta] = learner.history.outcomes[-1][1].kl.mean()
    assert kl[0.01] > 10 * kl[1e6]


def test_a_chains_reward_model_is_trained_where_the_reference_is(asked, monkeypatch):
    """On a device without values (what a GPU would compute there is not seen): no tensor of it stays on the CPU."""
    devices = []

    def train(model, *_, **__):
        devices.extend({weights.device.type for weights in model.parameters()})
        raise KeyboardInterrupt

    monkeypatch.setattr(chains, "train_reward_model", train)
    _, found = asked
    elsewhere = dataclasses.replace(found, device=torch.device("meta"))
    with pytest.raises(KeyboardInterrupt):
        chains._train_reward(REWARDS[0], elsewhere)
    assert devices == ["meta"]


def test_writing_and_reading_change_nothing(done, tmp_path):
    _, run = done
    (tmp_path / "chain.json").write_text(run.model_dump_json())
    assert read_as(ChainRun, tmp_path / "chain.json") == run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw["reference"]["kl"].pop(), "do not fit the 24 held-out questions"),
        (lambda raw: raw["policies"]["ppo"]["final"]["f1"].append(0.5), "do not fit the 24 held-out questions"),
        (lambda raw: raw["titles"].pop(), "do not fit the 24 held-out questions"),
        (lambda raw: raw["rewards"].pop("own"), "the rewards are not those of the chain"),
        (lambda raw: raw["policies"].pop("ppo"), "the policies are not those of the chain"),
        (lambda raw: raw["chain"].update(seed=-1), "chain.seed: "),
        (lambda raw: raw["chain"]["policies"][0].update(reward="none"), "there is no reward model 'none'"),
        (lambda raw: raw["chain"]["policies"][1].update(name="ppo"), "two policies, have one name"),
        (lambda raw: raw.update(schema_version=2), "schema_version: "),
        (lambda raw: raw.update(more=1), "more: Extra inputs"),
    ],
)
def test_a_broken_record_gives_one_sentence(done, tmp_path, change, words):
    raw = json.loads(done[1].model_dump_json())
    change(raw)
    (tmp_path / "chain.json").write_text(json.dumps(raw))
    with pytest.raises(RecordError, match=r"chain\.json: ") as caught:
        read_as(ChainRun, tmp_path / "chain.json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chain_is_printed_as_two_tables(done):
    text = format_chain(done[1])
    assert "| shuffled | " in text
    for name in ("reference", "ppo", "supervised", "optimum, beta 0.1", "best of 16"):
        assert text.count(f"\n| {name} | ") == 1


def test_the_command_line_runs_a_chain_from_a_file_and_writes_its_record(done, tmp_path, capsys):
    folder, run = done
    (tmp_path / "mine.json").write_text(CHAIN.model_dump_json())
    record = tmp_path / "record.json"
    assert main(["chain", str(tmp_path / "mine.json"), "--folder", str(folder), "--record", str(record)]) == 0
    assert "| ppo | " in capsys.readouterr().out
    assert read_as(ChainRun, record).chain == run.chain
    assert main(["chain", "no-such-chain"]) == 2
    assert "there is no chain 'no-such-chain'; those that have names: class-rlhf-seed0" in capsys.readouterr().err


def test_the_named_chains_can_be_described_and_start_from_named_experiments():
    for name, described in named_chains().items():
        assert described.name == name
        assert Chain.model_validate(described.model_dump()) == described
        assert described.reference in named_experiments()


def test_the_courses_chains_are_read_and_are_those_that_have_names():
    for name, run in load_chains().items():
        assert run.chain == named_chains()[name]
