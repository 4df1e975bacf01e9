"""Running a chain of RLHF: people's agreement, reward models, policies, and the record of all of it.

Each policy's result is kept in the chain's folder as soon as it is there: a chain that was killed goes on with the
next. What it simplifies: the policies' weights are not kept, and a policy that was under way begins again.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qa_helpers.common.device import describe_machine, evaluation_mode, quiet
from qa_helpers.common.io import read_json, write_atomically
from qa_helpers.data.squad import DataError, fingerprint, load_qa, sample_indices
from qa_helpers.evaluation.statistics import bootstrap_mean
from qa_helpers.experiment.lineage import ancestors, load_run
from qa_helpers.experiment.record import Ancestor, Machine
from qa_helpers.experiment.scores import Score
from qa_helpers.experiment.spec import Experiment, RecordError, parse
from qa_helpers.experiment.store import locked, runs_folder
from qa_helpers.rlhf.outcomes import Outcome, Policy, Reward, outcome
from qa_helpers.rlhf.policy import best_of_n, closed_form, one_window, policy
from qa_helpers.rlhf.preferences import (
    Pair,
    balance_lengths,
    flip,
    human_candidates,
    longer_by,
    make_pairs,
    policy_candidates,
    split_by_article,
)
from qa_helpers.rlhf.record import (
    RANKERS,
    Chain,
    ChainRun,
    Columns,
    PolicyPlan,
    PolicyResult,
    RewardPlan,
    RewardResult,
    read_chain,
    write_chain,
)
from qa_helpers.rlhf.reference import Reference, ReferenceBatch, ask_reference, collate
from qa_helpers.rlhf.reward import (
    RewardModel,
    length_correlation,
    log_prob_margins,
    margins,
    ranking_calibration,
    train_reward_model,
)
from qa_helpers.rlhf.updates import History, UpdateSettings, train_dpo, train_supervised, update_policy

RECORD = "chain-run.json"  # not `run.json`, which marks a run with a model of its own
ASKED_AT_ONCE = 16  # questions whose candidates are drawn together


# ---- running it ------------------------------------------------------------------------------------------------
@dataclass
class _Asked:
    """The questions of each part, and what the reference says of them."""

    parts: dict[str, list[Reference]]  # by "learn", "stop" and "held out"
    left_out: int
    fingerprint: str
    pairs: dict[tuple[str, str], list[Pair]] = field(default_factory=dict)  # by (rankings, part)

    @property
    def learn(self) -> list[Reference]:
        return self.parts["learn"]

    @property
    def held_out(self) -> list[Reference]:
        return self.parts["held out"]


def run_chain(chain: Chain, folder: Path | str | None = None) -> ChainRun:
    """Run a chain, or read its result back if it has been run in this folder.

    Args:
        chain: what to run.
        folder: the runs folder, which also holds the reference's run; `runs_folder()` if None.

    Raises:
        CourseError: if the data or the reference cannot be had, the folder holds another chain of this name, or
            another process is running it.
    """
    quiet()
    folder = runs_folder(folder)
    home = folder / chain.name
    with locked(home):
        home.mkdir(parents=True, exist_ok=True)
        _claim(home, chain)
        if (home / RECORD).exists():
            return read_chain(home / RECORD)
        model, tokenizer = load_run(chain.reference, folder)
        rests_on = ancestors(Experiment(name="chain", start_from=chain.reference), folder)
        asked = _ask(chain, model, tokenizer, rests_on)
        rewards = {plan.name: _train_reward(plan, chain, asked) for plan in chain.rewards}
        first = rewards[chain.rewards[0].name][0]
        policies = {plan.name: _policy(plan, chain, model, tokenizer, asked, rewards, home) for plan in chain.policies}
        run = ChainRun(
            chain=chain,
            machine=Machine.model_validate(describe_machine()),
            fingerprint=asked.fingerprint,
            ancestors=rests_on,
            questions={name: len(part) for name, part in asked.parts.items()} | {"left out": asked.left_out},
            ids=[one.question.row["id"] for one in asked.held_out],
            titles=[one.question.row["title"] for one in asked.held_out],
            reference=_measure(lambda batch: batch.log_ref, asked, first),
            rewards={name: result for name, (_, result) in rewards.items()},
            policies=policies,
            optima={f"{beta:g}": _measure(_optimum(first, beta), asked, first) for beta in chain.betas},
            best_of={f"{n}": _measure(_best_of(first, n), asked, first) for n in chain.best_of},
        )
        write_chain(run, home / RECORD)
        return run


def _optimum(reward: Reward, beta: float) -> Policy:
    return lambda batch: closed_form(batch.log_ref, reward(batch), beta)


def _best_of(reward: Reward, n: int) -> Policy:
    return lambda batch: best_of_n(batch.log_ref, reward(batch), n).float()


def _claim(home: Path, chain: Chain) -> None:
    description = home / "chain.json"
    if not description.exists():
        write_atomically(description, chain.model_dump_json(indent=1) + "\n")
    elif parse(Chain, read_json(description, RecordError), str(description)) != chain:
        raise RecordError(f"{home}: holds another chain of the name '{chain.name}'; give this one another name")


# ---- its parts --------------------------------------------------------------------------------------------------
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
    kept, left_out = {}, 0
    for part, (rows, limit) in parts.items():
        chosen = sample_indices(len(rows), min(limit, len(rows)), 0)  # the same for all seeds, so that these compare
        kept[part], missing = one_window([rows[i] for i in sorted(chosen)], tokenizer)
        left_out += missing
    answers = {part: ask_reference(model, tokenizer, questions) for part, questions in kept.items()}
    asked = _Asked(answers, left_out, fingerprint([one.row for questions in kept.values() for one in questions]))
    for place, (part, questions) in enumerate(kept.items()):
        seed = chain.seed * 10 + place
        asked.pairs["own", part] = make_pairs(_proposals(answers[part], seed), seed=seed)
        asked.pairs["people", part] = make_pairs(human_candidates(questions), seed=seed)
    return asked


def _unseen(chain: Chain, rests_on: dict[str, Ancestor]) -> list[dict[str, Any]]:
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


def _proposals(references: Sequence[Reference], seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for at in range(0, len(references), ASKED_AT_ONCE):
        batch = collate(references[at : at + ASKED_AT_ONCE])
        found += policy_candidates(batch.questions, batch.log_ref, generator)
    return found


def _train_reward(plan: RewardPlan, chain: Chain, asked: _Asked) -> tuple[RewardModel, RewardResult]:
    pairs = asked.pairs[plan.rankings, "learn"]
    if plan.questions is not None:
        pairs = [pair for pair in pairs if pair.question < plan.questions]
    if plan.balanced:
        pairs = balance_lengths(pairs, chain.seed)
    pairs = flip(pairs, plan.flipped, chain.seed)
    stop = asked.pairs[plan.rankings, "stop"]
    # One list of references for the pairs of both parts, whose places are counted through.
    both = asked.learn + asked.parts["stop"]
    shifted = [
        pair._replace(question=pair.question + len(asked.learn)) for pair in flip(stop, plan.flipped, chain.seed)
    ]
    units = asked.learn[0].states.shape[1]
    model = RewardModel(units, length=plan.length, log_prob=plan.log_prob, seed=chain.seed)
    history = train_reward_model(
        model,
        both,
        pairs,
        shifted if plan.stop_early else pairs,  # likeliest among those it learns: the last epoch
        plan.epochs,
        patience=3 if plan.stop_early else plan.epochs,
        seed=chain.seed,
    )
    held_out = asked.pairs["own", "held out"]
    batches = [collate(asked.held_out[at : at + ASKED_AT_ONCE]) for at in range(0, len(asked.held_out), ASKED_AT_ONCE)]
    with torch.no_grad():
        correlations = [length_correlation(batch.log_ref, model(batch)) for batch in batches]
    found = np.array(correlations)[np.isfinite(correlations)]
    result = RewardResult(
        pairs={"learn": len(pairs), "stop": len(stop), "held out": len(held_out)},
        epochs=[(one.epoch, round(one.loss, 4), round(one.accuracy, 4)) for one in history],
        accuracy=_rankers(model, asked, "own"),
        accuracy_on_people=_rankers(model, asked, "people"),
        calibration_error=round(ranking_calibration(margins(model, asked.held_out, held_out)).error, 4),
        length_correlation=round(float(found.mean()), 4) if len(found) else None,
        optima=[(beta, _means(outcome(_optimum(model, beta), asked.held_out, model))) for beta in chain.betas],
    )
    return model, result


def _rankers(model: RewardModel, asked: _Asked, rankings: str) -> dict[str, Score]:
    """Accuracies on held-out pairs, in percent, with intervals over questions; none where no pair differs enough."""
    pairs = asked.pairs[rankings, "held out"]
    if len({pair.question for pair in pairs}) < 2:
        return {}
    found = (
        margins(model, asked.held_out, pairs),
        -longer_by(pairs).astype(float),
        log_prob_margins(asked.held_out, pairs),
    )
    questions = [pair.question for pair in pairs]
    right = [bootstrap_mean(50 * (np.sign(margin) + 1), clusters=questions) for margin in found]
    return {name: Score.of(interval) for name, interval in zip(RANKERS, right, strict=True)}


def _policy(
    plan: PolicyPlan,
    chain: Chain,
    model: nn.Module,
    tokenizer: Any,
    asked: _Asked,
    rewards: dict[str, tuple[RewardModel, RewardResult]],
    home: Path,
) -> PolicyResult:
    """Change a copy of the reference, or read back what came of it."""
    path = home / "policies" / f"{plan.name}.json"
    if path.exists():
        done: PolicyResult = parse(PolicyResult, read_json(path, RecordError), str(path))
        return done
    reward = rewards[plan.reward][0]
    changed = copy.deepcopy(model)
    begin = time.perf_counter()
    history = _update(plan, chain, changed, tokenizer, asked, reward)
    seconds = time.perf_counter() - begin
    own = history.outcomes[-1][1]
    first = chain.rewards[0].name
    common = own if plan.reward == first else outcome(_policy_of(changed, tokenizer), asked.held_out, rewards[first][0])
    result = PolicyResult(
        steps=[(one.step, round(one.loss, 4), round(one.kl, 4), round(one.reward, 4)) for one in history.steps],
        progress=[(step, _means(found)) for step, found in history.outcomes],
        final=_columns(common),
        own_reward=np.round(own.reward, 4).tolist(),
        seconds=round(seconds, 1),
    )
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, result.model_dump_json() + "\n")
    return result


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


def _policy_of(model: nn.Module, tokenizer: Any) -> Policy:
    def answer(batch: ReferenceBatch) -> torch.Tensor:
        with evaluation_mode(model):
            return policy(model, tokenizer, batch.questions)

    return answer


def _measure(policy: Policy, asked: _Asked, reward: Reward) -> Columns:
    return _columns(outcome(policy, asked.held_out, reward))


def _means(found: Outcome) -> dict[str, float]:
    return {name: round(value, 4) for name, value in found.means().items()}


def _columns(found: Outcome) -> Columns:
    return Columns(
        reward=np.round(found.reward, 4).tolist(),
        kl=np.round(found.kl, 4).tolist(),
        exact_match=found.exact_match.astype(int).tolist(),
        f1=np.round(found.f1, 4).tolist(),
        agreement=np.round(found.agreement, 4).tolist(),
        tokens=found.tokens.tolist(),
    )
