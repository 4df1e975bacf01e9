"""Running a chain of RLHF: people's agreement, reward models, policies, and the record of all of it.

Each policy's result is kept in the chain's folder as soon as it is there: a chain that was killed goes on with the
next. What it simplifies: the policies' weights are not kept, and a policy that was under way begins again.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qa_helpers.common.device import describe_machine, evaluation_mode
from qa_helpers.common.quiet import quiet
from qa_helpers.data.rows import Row
from qa_helpers.data.squad import DataError, fingerprint, load_qa, sample_indices
from qa_helpers.experiment.lineage import ancestors, load_run
from qa_helpers.experiment.once import kept, run_once
from qa_helpers.experiment.record import Ancestor, Machine
from qa_helpers.experiment.scores import Score
from qa_helpers.experiment.spec import Experiment
from qa_helpers.experiment.store import runs_folder
from qa_helpers.rlhf.chain_record import (
    RANKERS,
    Chain,
    ChainRun,
    PolicyPlan,
    PolicyResult,
    RewardPlan,
    RewardResult,
)
from qa_helpers.rlhf.measure import Outcome, Policy, Reference, ReferenceBatch, Reward, ask_reference, collate, outcome
from qa_helpers.rlhf.policy import best_of_n, closed_form, one_window, policy
from qa_helpers.rlhf.preferences import (
    Candidate,
    Pair,
    balance_lengths,
    flip,
    human_candidates,
    longer_by,
    make_pairs,
    policy_candidates,
    split_by_article,
)
from qa_helpers.rlhf.reward import (
    RewardEpoch,
    RewardModel,
    length_correlation,
    log_prob_margins,
    margins,
    ranked_rightly,
    ranking_calibration,
    train_reward_model,
)
from qa_helpers.rlhf.updates import History, UpdateSettings, train_dpo, train_supervised, update_policy

RECORD = "chain-run.json"  # not `run.json`, which marks a run with a model of its own
ASKED_AT_ONCE = 16  # questions whose candidates are drawn together
Rewards = dict[str, tuple[RewardModel, RewardResult]]  # by the plan's name


# ---- running one -----------------------------------------------------------------------------------------------
@dataclass
class _Asked:
    """The questions of each part, and what the reference says of them, which lies on the CPU."""

    parts: dict[str, list[Reference]]  # by "learn", "stop" and "held out"
    left_out: int
    fingerprint: str
    device: torch.device  # of the model: there everything is computed
    pairs: dict[tuple[str, str], list[Pair]] = field(default_factory=dict)  # by (rankings, part)

    @property
    def learn(self) -> list[Reference]:
        return self.parts["learn"]

    @property
    def held_out(self) -> list[Reference]:
        return self.parts["held out"]

    def measure(self, policy: Policy, reward: Reward) -> Outcome:
        return outcome(policy, self.held_out, reward, self.device)


@quiet()
def run_chain(chain: Chain, folder: Path | str | None = None) -> ChainRun:
    """Run a chain, or read its result back if it has been run in this folder.

    Args:
        chain: what to run.
        folder: the runs folder, which also holds the reference's run; `runs_folder()` if None.

    Raises:
        CourseError: if the data or the reference cannot be had, the folder holds another chain of this name, or
            another process is running it.
    """
    home = runs_folder(folder) / chain.name
    other = f"holds another chain of the name '{chain.name}'; give this one another name"
    result = partial(kept, home / RECORD, ChainRun, lambda: _run(chain, home))
    return run_once(chain, home / "chain.json", home / RECORD, result, other)


def _run(chain: Chain, home: Path) -> ChainRun:
    model, tokenizer = load_run(chain.reference, home.parent)
    rests_on = ancestors(Experiment(name="chain", start_from=chain.reference), home.parent)
    asked = _ask(chain, model, tokenizer, rests_on)
    rewards = {plan.name: _train_reward(plan, chain, asked) for plan in chain.rewards}
    policies = {}
    for plan in chain.policies:
        change = partial(_change, plan, chain, model, tokenizer, asked, rewards)
        policies[plan.name] = kept(home / "policies" / f"{plan.name}.json", PolicyResult, change)
    first = rewards[chain.rewards[0].name][0]
    return ChainRun(
        chain=chain,
        machine=Machine.model_validate(describe_machine()),
        fingerprint=asked.fingerprint,
        ancestors=rests_on,
        questions={name: len(part) for name, part in asked.parts.items()} | {"left out": asked.left_out},
        ids=[reference.question.row["id"] for reference in asked.held_out],
        titles=[reference.question.row["title"] for reference in asked.held_out],
        reference=asked.measure(lambda batch: batch.log_ref, first).columns(),
        rewards={name: result for name, (_, result) in rewards.items()},
        policies=policies,
        optima={f"{beta:g}": asked.measure(_optimum(first, beta), first).columns() for beta in chain.betas},
        best_of={f"{n}": asked.measure(_best_of(first, n), first).columns() for n in chain.best_of},
    )


def _optimum(reward: Reward, beta: float) -> Policy:
    return lambda batch: closed_form(batch.log_ref, reward(batch), beta)


def _changed(model: nn.Module, tokenizer: Any) -> Policy:
    return lambda batch: policy(model, tokenizer, batch.questions)


def _best_of(reward: Reward, n: int) -> Policy:
    # Its float64 is on the CPU, since not every accelerator has it.
    return lambda batch: best_of_n(batch.log_ref.cpu(), reward(batch).cpu(), n).to(batch.log_ref)


# ---- the questions ---------------------------------------------------------------------------------------------
def _ask(chain: Chain, model: nn.Module, tokenizer: Any, rests_on: dict[str, Ancestor]) -> _Asked:
    """The questions of each part, none of an article that the reference was trained on."""
    held_out_rows = list(load_qa(chain.data, "validation"))
    if chain.data == "squad":  # several people answered the validation questions only
        pool = held_out_rows
        rest, held_out = split_by_article([row["title"] for row in pool], 0.25)
        held_out_rows, pool = [pool[i] for i in held_out], [pool[i] for i in rest]
    else:
        pool = _unseen(chain, rests_on)
    learn, stop = split_by_article([row["title"] for row in pool], 0.2)
    parts = {
        "learn": ([pool[i] for i in learn], chain.learn),
        "stop": ([pool[i] for i in stop], max(1, chain.learn // 4)),
        "held out": (held_out_rows, chain.held_out),
    }
    asked, left_out, rows_asked = {}, 0, []
    for part, (rows, limit) in parts.items():
        chosen = sample_indices(len(rows), min(limit, len(rows)), 0)  # the same for all seeds, so that these compare
        questions, missing = one_window([rows[i] for i in sorted(chosen)], tokenizer)
        asked[part] = ask_reference(model, tokenizer, questions)
        left_out += missing
        rows_asked += [question.row for question in questions]
    device = next(model.parameters()).device
    return _Asked(asked, left_out, fingerprint(rows_asked), device, _pairs(asked, chain.seed))


def _pairs(asked: dict[str, list[Reference]], seed: int) -> dict[tuple[str, str], list[Pair]]:
    pairs = {}
    for number, (part, references) in enumerate(asked.items(), 10 * seed):
        people = human_candidates([reference.question for reference in references])
        pairs["own", part] = make_pairs(_proposals(references, number), seed=number)
        pairs["people", part] = make_pairs(people, seed=number)
    return pairs


def _unseen(chain: Chain, rests_on: dict[str, Ancestor]) -> list[Row]:
    """CourseQA's training questions of articles that the reference has not seen.

    Raises:
        DataError: if it has seen all of them.
    """
    seen = {title for run in rests_on.values() for title in _trained_on(run.experiment)}
    unseen = [row for row in load_qa(chain.data, "train") if row["title"] not in seen]
    if len({row["title"] for row in unseen}) < 2:
        raise DataError(f"'{chain.reference}' was trained on all articles but one of {chain.data}, or all; none to ask")
    return unseen


def _trained_on(experiment: Experiment) -> list[str]:
    """The articles of the questions that a run was trained on."""
    if experiment.questions == "cloze":  # of all passages
        return list(load_qa(experiment.data, "train")["title"])
    which = (experiment.train_size, experiment.sampling, experiment.sampling_seed, experiment.per_passage)
    return list(load_qa(experiment.data, "train", *which)["title"])


def _proposals(references: Sequence[Reference], seed: int) -> list[list[Candidate]]:
    generator, proposals = torch.Generator().manual_seed(seed), []
    for batch in _batches(references):
        proposals += policy_candidates(batch.questions, batch.log_ref, generator)
    return proposals


def _batches(references: Sequence[Reference], device: torch.device | str = "cpu") -> Iterator[ReferenceBatch]:
    return (collate(references[at : at + ASKED_AT_ONCE], device) for at in range(0, len(references), ASKED_AT_ONCE))


# ---- the reward models -----------------------------------------------------------------------------------------
def _train_reward(plan: RewardPlan, chain: Chain, asked: _Asked) -> tuple[RewardModel, RewardResult]:
    pairs = asked.pairs[plan.rankings, "learn"]
    if plan.questions is not None:
        pairs = [pair for pair in pairs if pair.question < plan.questions]
    if plan.balanced:
        pairs = balance_lengths(pairs, chain.seed)
    pairs, stop = (flip(part, plan.flipped, chain.seed) for part in (pairs, asked.pairs[plan.rankings, "stop"]))
    # One list of references for the pairs of both parts, whose places are counted through.
    references, count = asked.learn + asked.parts["stop"], len(asked.learn)
    shifted = [pair._replace(question=pair.question + count) for pair in stop]
    units = references[0].states.shape[1]
    model = RewardModel(units, length=plan.length, log_prob=plan.log_prob, seed=chain.seed).to(asked.device)
    history = train_reward_model(
        model,
        references,
        pairs,
        shifted if plan.stop_early else pairs,  # likeliest among those it learns: the last epoch
        plan.epochs,
        patience=3 if plan.stop_early else plan.epochs,
        seed=chain.seed,
    )
    return model, _reward_result(chain, asked, model, history, len(pairs), len(stop))


def _reward_result(
    chain: Chain, asked: _Asked, model: RewardModel, history: Sequence[RewardEpoch], learned: int, stopped_on: int
) -> RewardResult:
    held_out = asked.pairs["own", "held out"]
    with torch.no_grad():
        batches = _batches(asked.held_out, asked.device)
        correlations = np.array([length_correlation(batch.log_ref, model(batch)) for batch in batches])
    known = correlations[np.isfinite(correlations)]
    return RewardResult(
        pairs={"learn": learned, "stop": stopped_on, "held out": len(held_out)},
        epochs=[(epoch.epoch, round(epoch.loss, 4), round(epoch.accuracy, 4)) for epoch in history],
        accuracy=_rankers(model, asked, "own"),
        accuracy_on_people=_rankers(model, asked, "people"),
        calibration_error=round(ranking_calibration(margins(model, asked.held_out, held_out)).error, 4),
        length_correlation=round(float(known.mean()), 4) if len(known) else None,
        optima=[(beta, _means(asked.measure(_optimum(model, beta), model))) for beta in chain.betas],
    )


def _rankers(model: RewardModel, asked: _Asked, rankings: str) -> dict[str, Score]:
    """On held-out pairs, with intervals over questions; none where no pair differs enough."""
    pairs = asked.pairs[rankings, "held out"]
    preferred = (
        margins(model, asked.held_out, pairs),
        -longer_by(pairs).astype(float),
        log_prob_margins(asked.held_out, pairs),
    )
    return ranked_rightly(dict(zip(RANKERS, preferred, strict=True)), [pair.question for pair in pairs])


# ---- the policies ----------------------------------------------------------------------------------------------
def _change(
    plan: PolicyPlan, chain: Chain, model: nn.Module, tokenizer: Any, asked: _Asked, rewards: Rewards
) -> PolicyResult:
    """Change a copy of the model, and measure it by the reward model that it was changed by and by the first."""
    model = copy.deepcopy(model)
    reward, first = rewards[plan.reward][0], rewards[chain.rewards[0].name][0]
    begin = time.perf_counter()
    history = _update(plan, chain, model, tokenizer, asked, reward)
    seconds = time.perf_counter() - begin
    own = common = history.outcomes[-1][1]
    if reward is not first:
        with evaluation_mode(model):
            common = asked.measure(_changed(model, tokenizer), first)
    return PolicyResult(
        steps=[(step.step, round(step.loss, 4), round(step.kl, 4), round(step.reward, 4)) for step in history.steps],
        progress=[(step, _means(measured)) for step, measured in history.outcomes],
        final=common.columns(),
        own_reward=np.round(own.reward, 4).tolist(),
        seconds=round(seconds, 1),
    )


def _update(plan: PolicyPlan, chain: Chain, model: nn.Module, tokenizer: Any, asked: _Asked, reward: Reward) -> History:
    settings = UpdateSettings(
        penalty=plan.penalty, beta=plan.beta, steps=plan.steps, learning_rate=plan.learning_rate, seed=chain.seed
    )
    if plan.method == "supervised":
        return train_supervised(model, tokenizer, asked.learn, settings, reward, asked.held_out)
    if plan.method == "dpo":
        pairs = asked.pairs["own", "learn"]
        return train_dpo(model, tokenizer, asked.learn, pairs, settings, reward, asked.held_out)
    settings = replace(settings, method=plan.method)
    return update_policy(model, tokenizer, asked.learn, reward, settings, asked.held_out)


def _means(measured: Outcome) -> dict[str, float]:
    return {name: round(value, 4) for name, value in measured.means().items()}
