"""A chain of RLHF as an experiment: what is to be done, what came of it as a record, and the course's chains.

reference   a finished run of `qa_helpers.experiment.store`, whose model is copied and changed
questions   to learn on, to stop the reward models on, and held out: no two of these share an article
rewards     a reward model for each `RewardPlan`
policies    a changed model for each `PolicyPlan`, measured on the held-out questions
"""

from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from qa_helpers.common.io import project_folder
from qa_helpers.experiment.catalogue import SEEDS
from qa_helpers.experiment.forms import Count, Fraction, Line, Name, Positive, RecordError, Seed, StrictModel
from qa_helpers.experiment.once import read_as
from qa_helpers.experiment.record import Ancestor, Machine
from qa_helpers.experiment.scales import SCALES
from qa_helpers.experiment.scores import Score
from qa_helpers.experiment.spec import change

# What a reward model must beat to have learned what people want stands beside it.
RANKERS = ("reward model", "shorter answer", "own probability")


# ---- what is to be done ----------------------------------------------------------------------------------------
class RewardPlan(StrictModel):
    """A reward model: whose rankings it learns, and what it sees of an answer."""

    name: Name
    rankings: Literal["own", "people"] = "own"  # of what the policy itself proposes, or of people's answers only
    questions: Positive | None = None  # to learn on; None: all there are
    flipped: Fraction = 0.0  # share of the rankings that is turned round; with 0.5 they say nothing
    balanced: bool = False  # as many pairs in which the longer answer is better as the shorter one
    length: bool = True  # whether it sees the answer's length
    log_prob: bool = True  # whether it sees the reference's log probability
    epochs: Annotated[int, Field(ge=1, le=1_000)] = 20
    stop_early: bool = True  # at the best epoch on rankings that it does not learn; else the last epoch is kept


class PolicyPlan(StrictModel):
    """A way to change the policy, and the reward model by which."""

    name: Name
    method: Literal["reinforce", "ppo", "grpo", "exact", "dpo", "supervised"] = "ppo"
    reward: Name = "own"  # of DPO and supervised training: whose rankings, or only whom they are measured with
    penalty: Literal["reward", "exact", "sampled"] = "reward"
    beta: Annotated[float, Field(gt=0, le=1e6)] = 0.1
    steps: Annotated[int, Field(ge=1, le=100_000)] = 40
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 3e-5


class Chain(StrictModel):
    """Everything that decides a chain's result, versions and machine apart."""

    name: Name
    data: Literal["squad", "courseqa"] = "squad"
    reference: Name
    learn: Positive = 2_500  # questions, at most
    held_out: Positive = 600
    rewards: Annotated[tuple[RewardPlan, ...], Field(min_length=1)] = (RewardPlan(name="own"),)
    policies: tuple[PolicyPlan, ...] = ()
    betas: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03)  # of the reward models' optima
    best_of: tuple[Positive, ...] = (4, 16, 64)  # samples, of which that reward model takes the best
    seed: Seed = 0

    @model_validator(mode="after")
    def _names_fit(self) -> "Chain":
        names = [plan.name for plan in self.rewards]
        if len(set(names)) != len(names) or len({plan.name for plan in self.policies}) != len(self.policies):
            raise ValueError("two reward models, or two policies, have one name")
        unknown = [plan.reward for plan in self.policies if plan.reward not in names]
        if unknown:
            raise ValueError(f"there is no reward model '{unknown[0]}'")
        return self


# ---- what came of it -------------------------------------------------------------------------------------------
class Columns(StrictModel):
    """A policy on the held-out questions, a value each: see `measure.Outcome`."""

    reward: list[float]  # by the chain's first reward model, whichever the policy was changed by
    kl: list[float]  # nats
    exact_match: list[Literal[0, 1]]
    f1: list[Fraction]
    agreement: list[Fraction]
    tokens: list[Count]

    def array(self, column: str) -> np.ndarray:
        """A column's values as floats."""
        return np.asarray(getattr(self, column), dtype=float)

    def objective(self, beta: float) -> np.ndarray:
        """Reward less beta * KL, a value a question."""
        value: np.ndarray = self.array("reward") - beta * self.array("kl")
        return value


class LearnedReward(StrictModel):
    """What the reward model of any chain learned."""

    pairs: dict[Literal["learn", "stop", "held out"], Count]
    epochs: list[tuple[Count, float, Fraction]]  # (epoch, loss and accuracy on the pairs that it is stopped on)
    accuracy: dict[Line, Score]  # on held-out rankings of the policy's own answers: of the model and of simpler rankers


class RewardResult(LearnedReward):
    """What a reward model learned, and what it would lead to."""

    accuracy_on_people: dict[Line, Score]  # on held-out rankings of people's answers among themselves
    calibration_error: Fraction
    length_correlation: float | None  # with the reward, over the reference's own answers; None where one is constant
    optima: list[tuple[float, dict[Line, float]]]  # (beta, means over the held-out questions) of its optimum, by itself


class PolicyResult(StrictModel):
    """What an update made of the policy."""

    steps: list[tuple[Count, float, float, float]]  # (step, loss, KL, reward), before each update, on its questions
    progress: list[tuple[Count, dict[Line, float]]]  # (steps done, means over the held-out questions)
    final: Columns
    own_reward: list[float]  # of the held-out questions, by the reward model that it was changed by
    seconds: Annotated[float, Field(ge=0)]


class MeasuredRun(StrictModel):
    """What the record of any chain holds."""

    schema_version: Literal[1] = 1
    machine: Machine
    fingerprint: str  # of all questions, see `squad.fingerprint`
    questions: dict[Line, Count]  # "learn", "stop", "held out", and "left out": passages too long to be asked
    ids: list[str]  # of the held-out questions
    titles: list[str]  # of their articles

    def check_lengths(self, measured: Iterable[Columns], of_what: str) -> None:
        """See that each column has a value for each of the held-out questions.

        Raises:
            ValueError: if one has not.
        """
        for columns in measured:
            lengths = {len(values) for _, values in columns} | {len(self.titles)}
            if lengths != {len(self.ids)}:
                raise ValueError(f"a {of_what}'s columns do not fit the {len(self.ids)} held-out questions")


class ChainRun(MeasuredRun):
    """A chain and what came of it; as JSON, a record."""

    chain: Chain
    ancestors: dict[Name, Ancestor]  # the reference, and what it rests on
    reference: Columns
    rewards: dict[Name, RewardResult]
    policies: dict[Name, PolicyResult]
    optima: dict[str, Columns]  # by beta
    best_of: dict[str, Columns]  # by the number of samples

    @model_validator(mode="after")
    def _consistent(self) -> "ChainRun":
        self.check_lengths(self.everything.values(), "policy")
        if set(self.rewards) != {plan.name for plan in self.chain.rewards}:
            raise ValueError("the rewards are not those of the chain")
        if set(self.policies) != {plan.name for plan in self.chain.policies}:
            raise ValueError("the policies are not those of the chain")
        return self

    @property
    def everything(self) -> dict[str, Columns]:
        """Whatever was measured on the held-out questions: the reference, the policies, the optima, best-of-n."""
        policies = {name: result.final for name, result in self.policies.items()}
        optima = {f"optimum, beta {beta}": columns for beta, columns in self.optima.items()}
        best_of = {f"best of {n}": columns for n, columns in self.best_of.items()}
        return {"reference": self.reference} | policies | optima | best_of

    def columns(self, name: str) -> Columns:
        """What was measured under a name of `everything`.

        Raises:
            RecordError: if there is none of that name.
        """
        everything = self.everything
        if name not in everything:
            raise RecordError(f"the chain '{self.chain.name}' has no '{name}'; it has {', '.join(everything)}")
        return everything[name]


# ---- the course's chains ---------------------------------------------------------------------------------------
REWARDS = (
    RewardPlan(name="own"),
    RewardPlan(name="length-blind", length=False, balanced=True),
    RewardPlan(name="people", rankings="people"),  # has seen good answers only
    RewardPlan(name="over-trained", questions=1_000, epochs=10, stop_early=False),
    RewardPlan(name="poisoned", flipped=0.2),
    RewardPlan(name="shuffled", flipped=0.5),  # the control: rankings that say nothing
)
POLICIES = (
    PolicyPlan(name="ppo"),
    PolicyPlan(name="ppo-beta-0.3", beta=0.3),
    PolicyPlan(name="ppo-beta-1", beta=1.0),
    PolicyPlan(name="grpo", method="grpo"),
    PolicyPlan(name="grpo-as-published", method="grpo", penalty="sampled"),
    PolicyPlan(name="reinforce", method="reinforce"),
    PolicyPlan(name="exact", method="exact", penalty="exact"),
    PolicyPlan(name="dpo", method="dpo"),
    PolicyPlan(name="supervised", method="supervised"),
    PolicyPlan(name="ppo-length-blind", reward="length-blind"),
    PolicyPlan(name="ppo-people", reward="people"),
    PolicyPlan(name="ppo-over-trained", reward="over-trained"),
    PolicyPlan(name="ppo-shuffled", reward="shuffled"),
)
# Of the first seed only, to save half an hour of a CPU core for each other one.
ONCE = ("ppo-beta-0.3", "ppo-beta-1", "grpo-as-published", "ppo-length-blind")
# What a reward model must not be: taught by people's answers among themselves, and until it knows these by heart.
WEAK = RewardPlan(name="weak", rankings="people", stop_early=False)


def class_chain(seed: int) -> Chain:
    """Everything that notebook 04 compares, on SQuAD, from the class baseline of that seed."""
    return Chain(
        name=f"class-rlhf-seed{seed}",
        reference=SCALES["class"].baseline(seed=seed).name,
        rewards=REWARDS,
        policies=tuple(plan for plan in POLICIES if not seed or plan.name not in ONCE),
        seed=seed,
    )


def weak_chain(seed: int) -> Chain:
    """PPO as in `class_chain`, but for a reward model that deserves no trust; and with ten times the price of KL."""
    policies = (PolicyPlan(name="ppo-weak", reward="weak"), PolicyPlan(name="ppo-weak-beta-1", reward="weak", beta=1.0))
    name = f"class-rlhf-weak-seed{seed}"
    return change(class_chain(seed), name=name, rewards=(REWARDS[0], WEAK), policies=policies)


def named_chains() -> dict[str, Chain]:
    """The chains that have a name of their own, by name."""
    return {chain.name: chain for make in (class_chain, weak_chain) for chain in map(make, SEEDS)}


# ---- records ---------------------------------------------------------------------------------------------------
def load_chains(pattern: str = "*") -> dict[str, ChainRun]:
    """The course's recorded chains whose names match a glob pattern, by name."""
    paths = sorted((project_folder() / "records" / "rlhf").glob(f"{pattern}.json"))
    return {path.stem: read_as(ChainRun, path) for path in paths}


def format_chain(run: ChainRun) -> str:
    """Two Markdown tables: what the reward models rank rightly, and what became of the policies."""
    lines = ["| reward model | ranks rightly, % | the shorter answer does | the reference's probability does |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, reward in run.rewards.items():
        rankers = [str(reward.accuracy.get(ranker, "–")) for ranker in RANKERS]
        lines.append(f"| {name} | {' | '.join(rankers)} |")
    lines += ["", "| policy | reward | KL (nats) | EM | F1 | tokens |", "| --- | --- | --- | --- | --- | --- |"]
    for name, columns in run.everything.items():
        means = {column: columns.array(column).mean() for column in Columns.model_fields}
        scores = f"{100 * means['exact_match']:.1f} | {100 * means['f1']:.1f} | {means['tokens']:.1f}"
        lines.append(f"| {name} | {means['reward']:.3f} | {means['kl']:.3f} | {scores} |")
    return "\n".join(lines)
