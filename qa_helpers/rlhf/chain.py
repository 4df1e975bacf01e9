"""Running a chain of RLHF: people's agreement, reward models, policies, and the record of all of it.

Each policy's result is kept in the chain's folder as soon as it is there: a chain that was killed goes on with the
next. What it simplifies: the policies' weights are not kept, and a policy that was under way begins again.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import describe_machine, evaluation_mode
from qa_helpers.common.quiet import quiet
from qa_helpers.data.rows import DataError, Row
from qa_helpers.data.squad import fingerprint, load_qa
from qa_helpers.experiment.lineage import ancestors, load_run
from qa_helpers.experiment.once import kept, run_once
from qa_helpers.experiment.record import Ancestor, Machine
from qa_helpers.experiment.run import training_rows
from qa_helpers.experiment.scores import Score
from qa_helpers.experiment.spec import Experiment, Training
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
from qa_helpers.rlhf.policy import best_of_n, closed_form, one_window
from qa_helpers.rlhf.preferences import (
    Candidate,
    Pair,
    balance_lengths,
    chain_parts,
    flip,
    human_candidates,
    longer_by,
    make_pairs,
    policy_candidates,
    split_by_article,
)
from qa_helpers.rlhf.reward import (
    Ranked,
    RewardModel,
    length_correlation,
    log_prob_margins,
    margins,
    ranked_rightly,
    ranking_calibration,
    train_reward_model,
)
from qa_helpers.rlhf.updates import Learner, UpdateSettings, train_dpo, train_supervised, update_policy

RECORD = "chain-run.json"  # not `run.json`, which marks a run with a model of its own
ASKED_AT_ONCE = 16  # questions whose candidates are drawn together
Rewards = dict[str, tuple[RewardModel, RewardResult]]  # by the plan's name


# ---- running one -----------------------------------------------------------------------------------------------
@dataclass
class _Asked:
    """A chain's questions, and what the reference says of them, which lies on the CPU."""

    chain: Chain
    tokenizer: PreTrainedTokenizerFast
    device: torch.device  # of the model: there everything is computed
    parts: dict[str, list[Reference]]  # by "learn", "stop" and "held out"
    pairs: dict[tuple[str, str], list[Pair]]  # by (rankings, part)
    left_out: int

    def ranked(self, rankings: str, part: str) -> Ranked:
        return self.parts[part], self.pairs[rankings, part]

    def measure(self, policy: Policy, reward: Reward) -> Outcome:
        return outcome(policy, self.parts["held out"], reward, self.device)


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
    rests_on = ancestors([chain.reference], home.parent)
    asked = _ask(chain, model, tokenizer, rests_on)
    rewards = {plan.name: _train_reward(plan, asked) for plan in chain.rewards}
    policies = {}
    for plan in chain.policies:
        change = partial(_change, plan, asked, model, rewards)
        policies[plan.name] = kept(home / "policies" / f"{plan.name}.json", PolicyResult, change)
    first = rewards[chain.rewards[0].name][0]
    rows = {part: [reference.question.row for reference in references] for part, references in asked.parts.items()}
    return ChainRun(
        chain=chain,
        machine=Machine.model_validate(describe_machine()),
        fingerprint=fingerprint(row for asked_rows in rows.values() for row in asked_rows),
        ancestors=rests_on,
        questions={part: len(asked_rows) for part, asked_rows in rows.items()} | {"left out": asked.left_out},
        ids=[row["id"] for row in rows["held out"]],
        titles=[row["title"] for row in rows["held out"]],
        reference=asked.measure(lambda batch: batch.log_ref, first).columns(),
        rewards={name: result for name, (_, result) in rewards.items()},
        policies=policies,
        optima={f"{beta:g}": asked.measure(_optimum(first, beta), first).columns() for beta in chain.betas},
        best_of={f"{n}": asked.measure(_best_of(first, n), first).columns() for n in chain.best_of},
    )


def _optimum(reward: Reward, beta: float) -> Policy:
    return lambda batch: closed_form(batch.log_ref, reward(batch), beta)


def _best_of(reward: Reward, n: int) -> Policy:
    # Its float64 is on the CPU, since not every accelerator has it.
    return lambda batch: best_of_n(batch.log_ref.cpu(), reward(batch).cpu(), n).to(batch.log_ref)


# ---- the questions ---------------------------------------------------------------------------------------------
def _ask(chain: Chain, model: nn.Module, tokenizer: PreTrainedTokenizerFast, rests_on: dict[str, Ancestor]) -> _Asked:
    """The questions of each part, none of an article that the reference was trained on."""
    held_out = list(load_qa(chain.data, "validation"))
    if chain.data == "squad":  # several people answered the validation questions only
        pool, held_out = split_by_article(held_out, 0.25)
    else:
        pool = _unseen(chain, rests_on)
    parts: dict[str, list[Reference]] = {}
    pairs: dict[tuple[str, str], list[Pair]] = {}
    left_out = 0
    limits = (chain.learn, max(1, chain.learn // 4), chain.held_out)
    for number, (part, rows) in enumerate(chain_parts(pool, held_out, limits).items(), 10 * chain.seed):
        questions, missing = one_window(rows, tokenizer)
        parts[part] = ask_reference(model, tokenizer, questions)
        left_out += missing
        pairs["own", part] = make_pairs(_proposals(parts[part], number), seed=number)
        pairs["people", part] = make_pairs(human_candidates(questions), seed=number)
    return _Asked(chain, tokenizer, next(model.parameters()).device, parts, pairs, left_out)


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
    if not isinstance(experiment, Training):
        return []
    if experiment.questions == "cloze":  # of all passages
        return list(load_qa(experiment.data, "train")["title"])
    return list(training_rows(experiment)["title"])


def _proposals(references: Sequence[Reference], seed: int) -> list[list[Candidate]]:
    generator, proposals = torch.Generator().manual_seed(seed), []
    for batch in _batches(references):
        proposals += policy_candidates(batch.questions, batch.log_ref, generator)
    return proposals


def _batches(references: Sequence[Reference], device: torch.device | str = "cpu") -> Iterator[ReferenceBatch]:
    return (collate(references[at : at + ASKED_AT_ONCE], device) for at in range(0, len(references), ASKED_AT_ONCE))


# ---- the reward models -----------------------------------------------------------------------------------------
def _train_reward(plan: RewardPlan, asked: _Asked) -> tuple[RewardModel, RewardResult]:
    (learn, pairs), (stop, stop_pairs) = (asked.ranked(plan.rankings, part) for part in ("learn", "stop"))
    if plan.questions is not None:
        pairs = [pair for pair in pairs if pair.question < plan.questions]
    if plan.balanced:
        pairs = balance_lengths(pairs, asked.chain.seed)
    pairs, stop_pairs = (flip(part, plan.flipped, asked.chain.seed) for part in (pairs, stop_pairs))
    units = learn[0].states.shape[1]
    model = RewardModel(units, length=plan.length, log_prob=plan.log_prob, seed=asked.chain.seed).to(asked.device)
    history = train_reward_model(
        model,
        (learn, pairs),
        (stop, stop_pairs) if plan.stop_early else (learn, pairs),  # likeliest among those it learns: the last epoch
        plan.epochs,
        patience=3 if plan.stop_early else plan.epochs,
        seed=asked.chain.seed,
    )
    held_out, held_out_pairs = asked.ranked("own", "held out")
    return model, RewardResult(
        pairs={"learn": len(pairs), "stop": len(stop_pairs), "held out": len(held_out_pairs)},
        epochs=[epoch.recorded() for epoch in history],
        accuracy=_rankers(model, asked, "own"),
        accuracy_on_people=_rankers(model, asked, "people"),
        calibration_error=round(ranking_calibration(margins(model, held_out, held_out_pairs)).error, 4),
        length_correlation=_leaning(model, asked),
        optima=[(beta, _means(asked.measure(_optimum(model, beta), model))) for beta in asked.chain.betas],
    )


@torch.no_grad()
def _leaning(model: RewardModel, asked: _Asked) -> float | None:
    """How far reward goes with length: the mean over batches in which both vary; None if there is none."""
    batches = _batches(asked.parts["held out"], asked.device)
    correlations = np.array([length_correlation(batch.log_ref, model(batch)) for batch in batches])
    known = correlations[np.isfinite(correlations)]
    return round(float(known.mean()), 4) if len(known) else None


def _rankers(model: RewardModel, asked: _Asked, rankings: str) -> dict[str, Score]:
    """On held-out pairs, with intervals over questions; none where no pair differs enough."""
    references, pairs = asked.ranked(rankings, "held out")
    preferred = (
        margins(model, references, pairs),
        -longer_by(pairs).astype(float),
        log_prob_margins(references, pairs),
    )
    return ranked_rightly(dict(zip(RANKERS, preferred, strict=True)), [pair.question for pair in pairs])


# ---- the policies ----------------------------------------------------------------------------------------------
def _change(plan: PolicyPlan, asked: _Asked, model: nn.Module, rewards: Rewards) -> PolicyResult:
    """Change a copy of the model, and measure it by the reward model that it was changed by and by the first."""
    model = copy.deepcopy(model)
    reward, first = rewards[plan.reward][0], rewards[asked.chain.rewards[0].name][0]
    begin = time.perf_counter()
    learner = _update(plan, asked, model, reward)
    seconds = time.perf_counter() - begin
    steps, outcomes = learner.history.steps, learner.history.outcomes
    own = common = outcomes[-1][1]
    if reward is not first:
        with evaluation_mode(model):
            common = asked.measure(learner.policy, first)
    return PolicyResult(
        steps=[(step.step, round(step.loss, 4), round(step.kl, 4), round(step.reward, 4)) for step in steps],
        progress=[(step, _means(measured)) for step, measured in outcomes],
        final=common.columns(),
        own_reward=np.round(own.reward, 4).tolist(),
        seconds=round(seconds, 1),
    )


def _update(plan: PolicyPlan, asked: _Asked, model: nn.Module, reward: Reward) -> Learner:
    settings = UpdateSettings(
        penalty=plan.penalty, beta=plan.beta, steps=plan.steps, learning_rate=plan.learning_rate, seed=asked.chain.seed
    )
    learner = Learner(model, asked.tokenizer, asked.parts["learn"], reward, settings, asked.parts["held out"])
    if plan.method == "supervised":
        train_supervised(learner)
    elif plan.method == "dpo":
        train_dpo(learner, asked.pairs["own", "learn"])
    else:
        learner.settings = replace(settings, method=plan.method)
        update_policy(learner)
    return learner


def _means(measured: Outcome) -> dict[str, float]:
    return {name: round(value, 4) for name, value in measured.means().items()}
