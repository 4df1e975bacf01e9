"""What a chain of RLHF on a language model is and what a run of it leaves behind: one JSON file, the *record*.

questions   to learn on, to stop the reward model on, and held out: no two of these share an article
reward      a reward model on the model's own answers, ranked by people's agreement
methods     the model changed by each `LanguageMethod`, measured on the held-out questions, as it was *before*
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qa_helpers.common.io import project_folder
from qa_helpers.evaluation.comparisons import win_rate
from qa_helpers.evaluation.statistics import UNBOUNDED, bootstrap_mean
from qa_helpers.experiment.forms import Count, Fraction, Line, Name, Positive, Seed, StrictModel
from qa_helpers.experiment.once import read_as
from qa_helpers.rlhf.chain_record import Columns, LearnedReward, MeasuredRun


# ---- what is to be done ----------------------------------------------------------------------------------------
class LanguageMethod(StrictModel):
    """A way to change the language model; see `updates.LanguageUpdate`."""

    name: Name
    method: Literal["dpo", "grpo"]
    steps: Positive | None = None  # None: once through all pairs, or all questions
    batch: Annotated[int, Field(ge=1, le=1_024)] = 4  # pairs, or questions, a step
    beta: Annotated[float, Field(gt=0, le=1e6)] = 0.1
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4


class LanguageChain(StrictModel):
    """Everything that decides a chain's result, versions and machine apart."""

    name: Name
    data: Literal["squad", "courseqa"] = "squad"
    model: Literal["smollm2"] = "smollm2"
    longest_prompt: Positive = 2_048  # tokens; questions with a longer one are left out
    learn: Positive = 300  # questions, at most; a quarter as many more, at least 4, stop the reward model
    held_out: Positive = 150
    samples: Annotated[int, Field(ge=2, le=64)] = 4  # answers to each question, throughout
    methods: tuple[LanguageMethod, ...] = ()
    seed: Seed = 0

    @model_validator(mode="after")
    def _names_differ(self) -> "LanguageChain":
        if len({plan.name for plan in self.methods}) != len(self.methods):
            raise ValueError("two methods have one name")
        return self


# ---- what came of it -------------------------------------------------------------------------------------------
class LanguageColumns(Columns):
    """A model on the held-out questions, a value each: of the greedy answer, or the mean over samples."""

    # Of the greedy answer EM, F1, agreement and tokens (with the end token); of the samples the reward, and the KL as
    # the mean of log(policy / reference), whose mean over the questions estimates it.
    answers: list[str]  # greedy
    sampled_agreement: list[Fraction]


class LanguageReward(LearnedReward):
    """What the reward model learned; of its epochs every tenth."""

    best_epoch: Count


class LanguageResult(StrictModel):
    """What a method made of the language model."""

    steps: list[dict[Line, float]]  # trl's figures, see `updates.LOGGED`
    final: LanguageColumns
    seconds: Annotated[float, Field(ge=0)]  # of training


class LanguageChainRun(MeasuredRun):
    """A chain and what came of it; as JSON, a record."""

    chain: LanguageChain
    peak_memory_mib: Annotated[float, Field(ge=0)]
    reward: LanguageReward
    before: LanguageColumns
    methods: dict[Name, LanguageResult]

    @model_validator(mode="after")
    def _consistent(self) -> "LanguageChainRun":
        self.check_lengths(self.everything.values(), "model")
        if list(self.methods) != [plan.name for plan in self.chain.methods]:
            raise ValueError("the methods are not those of the chain")
        return self

    @property
    def everything(self) -> dict[str, LanguageColumns]:
        """The model before, and after each method."""
        return {"before": self.before} | {name: result.final for name, result in self.methods.items()}


# ---- the course's chains ---------------------------------------------------------------------------------------
# Learning rates are a guess from supervised training with LoRA, not tuned; GRPO's few steps are noisy.
def _methods(steps: int, pairs_once: int | None = None) -> tuple[LanguageMethod, ...]:
    dpo = LanguageMethod(name="dpo", method="dpo", steps=pairs_once, learning_rate=3e-4)
    return dpo, LanguageMethod(name="grpo", method="grpo", steps=steps, beta=0.05, learning_rate=5e-4)


def named_language_chains() -> dict[str, LanguageChain]:
    """The course's chains on a language model, by name."""
    chains = (
        LanguageChain(name="quick-language-seed0", data="courseqa", learn=12, held_out=6, methods=_methods(1, 1)),
        # A CPU's: half an hour on half a core.
        LanguageChain(
            name="small-language-seed0", longest_prompt=150, learn=100, held_out=64, methods=_methods(12, 20)
        ),
        # A GPU's; not yet run.
        LanguageChain(name="class-language-seed0", methods=_methods(100)),
    )
    return {chain.name: chain for chain in chains}


def load_language_chains() -> dict[str, LanguageChainRun]:
    """The course's recorded chains on a language model, by name."""
    paths = sorted((project_folder() / "records" / "rlhf-language").glob("*.json"))
    return {path.stem: read_as(LanguageChainRun, path) for path in paths}


def language_table(run: LanguageChainRun) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of a table: the model before and after each method, on the held-out questions.

    Agreement, EM, F1 and tokens are of the greedy answers; reward and KL of the samples. The KL's interval and the sign
    test on agreement take each question for itself: where most are on one article, they say little about others.
    """
    header = ["model", "EM", "F1", "agreement", "reward", "KL (nats, estimate)", "tokens", "better, same, worse", "p"]
    rows = []
    for name, columns in run.everything.items():
        percent = [f"{100 * columns.array(column).mean():.1f}" for column in ("exact_match", "f1", "agreement")]
        kl = bootstrap_mean(columns.array("kl"), bounds=UNBOUNDED)
        won = win_rate(run.before.agreement, columns.agreement)
        compared = ("–", "–") if name == "before" else (f"{won.wins}, {won.ties}, {won.losses}", f"{won.p:.2g}")
        tokens, reward = (columns.array(column).mean() for column in ("tokens", "reward"))
        shown = f"{kl.value:.2f} [{kl.low:.2f}, {kl.high:.2f}]"
        rows.append((name, *percent, f"{reward:.2f}", shown, f"{tokens:.1f}", *compared))
    return header, rows


def format_language_chain(run: LanguageChainRun) -> str:
    """Two Markdown tables: what the reward model ranks rightly, and the model before and after each method."""
    articles = f"interval over {len(set(run.titles))} articles"
    lines = [f"| ranks rightly, % of held-out pairs | accuracy, {articles} |", "| --- | --- |"]
    lines += [f"| {name} | {score} |" for name, score in run.reward.accuracy.items()]
    header, rows = language_table(run)
    lines += ["", f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
