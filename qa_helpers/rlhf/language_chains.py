"""RLHF on a language model from end to end, with a record: answers, a reward model, DPO and GRPO, what they are worth.

What each method came to is kept as soon as it is there: a chain that was killed goes on with the next one. What it
simplifies: the changed models are not kept, and the answers to learn on are written again when a chain goes on.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import nn

from qa_helpers.data import DataError, fingerprint, load_qa, sample_indices
from qa_helpers.experiments import locked, runs_folder
from qa_helpers.files import project_folder, read_json, write_atomically
from qa_helpers.language_model import load_chat_tokenizer, load_language_model, prompt_tokens
from qa_helpers.machine import default_device, describe_machine, peak_memory_mib
from qa_helpers.records import (
    Count,
    Fraction,
    Line,
    Machine,
    Name,
    Positive,
    RecordError,
    Score,
    Seed,
    StrictModel,
    parse,
)
from qa_helpers.rlhf.language_answers import (
    AnswerReward,
    Asked,
    answer_pairs,
    ask,
    paired_texts,
    preference_dataset,
    ranker_margins,
    reward_function,
    train_answer_reward,
)
from qa_helpers.rlhf.language_updates import (
    LanguageUpdate,
    import_trl,
    language_outcome,
    train_language_dpo,
    train_language_grpo,
    win_rate,
    with_adapter,
    without_adapter,
)
from qa_helpers.rlhf.preferences import Pair, split_by_article
from qa_helpers.statistics import bootstrap_mean

RECORD = "language-run.json"  # not `run.json`, which marks a run with a model of its own
FOLDER = "rlhf-language"  # in `records/`


# ---- what is to be done ----------------------------------------------------------------------------------------
class LanguageMethod(StrictModel):
    """A way to change the language model; see `language_updates.LanguageUpdate`."""

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


# Learning rates are a guess from supervised training with LoRA, not tuned; GRPO's few steps are noisy.
def _methods(steps: int, pairs_once: int | None = None) -> tuple[LanguageMethod, ...]:
    dpo = LanguageMethod(name="dpo", method="dpo", steps=pairs_once, learning_rate=3e-4)
    return dpo, LanguageMethod(name="grpo", method="grpo", steps=steps, beta=0.05, learning_rate=5e-4)


def named_language_chains() -> dict[str, LanguageChain]:
    """The course's chains on a language model, by name."""
    chains = (
        LanguageChain(
            name="quick-language-seed0",
            data="courseqa",
            learn=12,
            held_out=6,
            samples=4,
            methods=_methods(1, 1),
        ),
        # A CPU's: half an hour on half a core.
        LanguageChain(
            name="small-language-seed0", longest_prompt=150, learn=100, held_out=64, methods=_methods(12, 20)
        ),
        # A GPU's; not yet run.
        LanguageChain(name="class-language-seed0", methods=_methods(100)),
    )
    return {chain.name: chain for chain in chains}


# ---- what came of it -------------------------------------------------------------------------------------------
class LanguageColumns(StrictModel):
    """A model on the held-out questions, a value each: see `language_updates.LanguageOutcome`."""

    answers: list[str]
    exact_match: list[Literal[0, 1]]
    f1: list[Fraction]
    agreement: list[Fraction]
    tokens: list[Count]
    sampled_agreement: list[Fraction]
    reward: list[float]
    kl: list[float]

    def array(self, column: str) -> np.ndarray:
        """One of them, of numbers."""
        return np.asarray(getattr(self, column), dtype=float)


class LanguageReward(StrictModel):
    """What the reward model learned."""

    pairs: dict[Literal["learn", "stop", "held out"], Count]
    epochs: list[tuple[Count, float, Fraction]]  # (epoch, loss and accuracy on the pairs that it is stopped on)
    best_epoch: Count
    accuracy: dict[Line, Score]  # on held-out pairs, in percent: of the model and of simpler rankers; chance is 50


class LanguageResult(StrictModel):
    """What a method made of the language model."""

    steps: list[dict[Line, float]]  # trl's figures, see `language_updates.LOGGED`
    final: LanguageColumns
    seconds: Annotated[float, Field(ge=0)]  # of training


class LanguageChainRun(StrictModel):
    """A chain and what came of it; as JSON, a record."""

    schema_version: Literal[1] = 1
    chain: LanguageChain
    machine: Machine
    peak_memory_mib: Annotated[float, Field(ge=0)]
    fingerprint: str  # of all questions, see `data.fingerprint`
    questions: dict[Line, Count]  # "learn", "stop", "held out", and "left out": those with a longer prompt
    ids: list[str]  # of the held-out questions
    titles: list[str]  # of their articles
    reward: LanguageReward
    before: LanguageColumns
    methods: dict[Name, LanguageResult]

    @model_validator(mode="after")
    def _same_questions(self) -> "LanguageChainRun":
        for columns in (self.before, *(result.final for result in self.methods.values())):
            lengths = {len(getattr(columns, name)) for name in LanguageColumns.model_fields}
            if lengths != {len(self.ids)} or len(self.titles) != len(self.ids):
                raise ValueError(f"a model's columns do not fit the {len(self.ids)} held-out questions")
        if list(self.methods) != [plan.name for plan in self.chain.methods]:
            raise ValueError("the methods are not those of the chain")
        return self


def read_language_chain(path: Path | str) -> LanguageChainRun:
    """Read a record.

    Raises:
        RecordError: naming the file and, where it does not fit the schema, the field.
    """
    run: LanguageChainRun = parse(LanguageChainRun, read_json(path, RecordError), str(path))
    return run


def load_language_chains(pattern: str = "*") -> dict[str, LanguageChainRun]:
    """The course's recorded chains on a language model whose names match a glob pattern, by name."""
    paths = sorted((project_folder() / "records" / FOLDER).glob(f"{pattern}.json"))
    return {path.stem: read_language_chain(path) for path in paths}


def language_table(run: LanguageChainRun) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of a table: the model before and after each method, on the held-out questions.

    Agreement, EM, F1 and tokens are of the greedy answers; reward and KL of the samples; intervals are over articles.
    """
    header = ["model", "EM", "F1", "agreement", "reward", "KL (nats, estimate)", "tokens", "win rate, %"]
    rows = []
    for name, columns in {"before": run.before, **{n: result.final for n, result in run.methods.items()}}.items():
        percent = [f"{100 * columns.array(column).mean():.1f}" for column in ("exact_match", "f1", "agreement")]
        kl = bootstrap_mean(columns.array("kl"), clusters=run.titles)
        won = win_rate(columns.agreement, run.before.agreement, run.titles)
        tokens, reward = (columns.array(column).mean() for column in ("tokens", "reward"))
        shown = f"{kl.value:.2f} [{kl.low:.2f}, {kl.high:.2f}]"
        rows.append((name, *percent, f"{reward:.2f}", shown, f"{tokens:.1f}", "–" if name == "before" else str(won)))
    return header, rows


def format_language_chain(run: LanguageChainRun) -> str:
    """Two Markdown tables: what the reward model ranks rightly, and the model before and after each method."""
    lines = ["| ranks rightly, % of held-out pairs | accuracy |", "| --- | --- |"]
    lines += [f"| {name} | {score} |" for name, score in run.reward.accuracy.items()]
    header, rows = language_table(run)
    lines += ["", f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


# ---- running it ------------------------------------------------------------------------------------------------
@dataclass
class _Parts:
    learn: list[dict[str, Any]]
    stop: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    left_out: int


def run_language_chain(chain: LanguageChain, folder: Path | str | None = None) -> LanguageChainRun:
    """Run a chain, or read its result back if it has been run in this folder.

    Args:
        chain: what to run.
        folder: the runs folder; `runs_folder()` if None.

    Raises:
        CourseError: if trl, the model or the data cannot be had, the folder holds another chain of this name, or
            another process is running it.
    """
    home = Path(folder or runs_folder()) / chain.name
    with locked(home):
        home.mkdir(parents=True, exist_ok=True)
        description = home / "language-chain.json"
        if not description.exists():
            write_atomically(description, chain.model_dump_json(indent=1) + "\n")
        elif parse(LanguageChain, read_json(description, RecordError), str(description)) != chain:
            raise RecordError(f"{home}: holds another chain of the name '{chain.name}'; give this one another name")
        if (home / RECORD).exists():
            return read_language_chain(home / RECORD)
        import_trl()  # first of all: without it, nothing below is worth its time
        model, tokenizer = load_language_model(chain.model).to(default_device()), load_chat_tokenizer(chain.model)
        run = _run(chain, model, tokenizer, home)
        write_atomically(home / RECORD, run.model_dump_json() + "\n")
        return run


def _run(chain: LanguageChain, model: nn.Module, tokenizer: Any, home: Path) -> LanguageChainRun:
    parts = _questions(chain, tokenizer)
    learn, stop = (ask(model, tokenizer, rows, chain.samples, chain.seed) for rows in (parts.learn, parts.stop))
    pairs = answer_pairs(learn, chain.seed)
    held_out = ask(model, tokenizer, parts.held_out, chain.samples, chain.seed + 1)
    reward, found = _reward((learn, pairs), (stop, answer_pairs(stop)), (held_out, answer_pairs(held_out)))
    before = _measure(chain, model, tokenizer, parts, reward)
    preferences = preference_dataset(paired_texts(learn, pairs))
    results = {}
    for plan in chain.methods:
        path = home / "methods" / f"{plan.name}.json"
        if not path.exists():
            model = with_adapter(model, chain.seed)
            result = _change(chain, plan, model, tokenizer, parts, preferences, reward)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, result.model_dump_json() + "\n")
            model = without_adapter(model)
        results[plan.name] = parse(LanguageResult, read_json(path, RecordError), str(path))
    machine = describe_machine()
    machine["versions"]["trl"] = metadata.version("trl")
    counts = {"learn": parts.learn, "stop": parts.stop, "held out": parts.held_out}
    return LanguageChainRun(
        chain=chain,
        machine=Machine.model_validate(machine),
        peak_memory_mib=round(peak_memory_mib(), 1),
        fingerprint=fingerprint(parts.learn + parts.stop + parts.held_out),
        questions={name: len(rows) for name, rows in counts.items()} | {"left out": parts.left_out},
        ids=[row["id"] for row in parts.held_out],
        titles=[row["title"] for row in parts.held_out],
        reward=found,
        before=before,
        methods=results,
    )


def _questions(chain: LanguageChain, tokenizer: Any) -> _Parts:
    """The questions of each part; no two parts share an article."""
    pool = list(load_qa(chain.data, "validation"))  # several people answered these
    lengths = [len(prompt_tokens(tokenizer, row)) for row in pool]
    kept = [row for row, length in zip(pool, lengths, strict=True) if length <= chain.longest_prompt]
    if len({row["title"] for row in kept}) < 3:
        raise DataError(f"fewer than three articles of {chain.data} have prompts of {chain.longest_prompt} tokens")
    rest, held_out = split_by_article([row["title"] for row in kept], 0.25)
    learn, stop = split_by_article([kept[i]["title"] for i in rest], 0.2)

    def draw(places: Sequence[int], limit: int) -> list[dict[str, Any]]:
        chosen = sample_indices(len(places), min(limit, len(places)), 0)  # the same for all seeds
        return [kept[places[i]] for i in sorted(chosen)]

    return _Parts(
        draw([rest[i] for i in learn], chain.learn),
        draw([rest[i] for i in stop], max(4, chain.learn // 4)),
        draw(held_out, chain.held_out),
        len(pool) - len(kept),
    )


Ranked = tuple[Sequence[Asked], Sequence[Pair]]


def _reward(learn: Ranked, stop: Ranked, held_out: Ranked) -> tuple[AnswerReward, LanguageReward]:
    reward, history = train_answer_reward(learn, stop)
    asked, pairs = held_out
    clusters = [asked[pair.question].row["title"] for pair in pairs]
    scores = {}
    if len(set(clusters)) > 1:
        for name, margin in ranker_margins(reward, asked, pairs).items():
            scores[name] = Score.of(bootstrap_mean(50 * (np.sign(margin) + 1), clusters=clusters))
    best = min(history, key=lambda one: one.loss)
    every = [one for one in history if one.epoch % 10 == 0]
    return reward, LanguageReward(
        pairs={"learn": len(learn[1]), "stop": len(stop[1]), "held out": len(pairs)},
        epochs=[(one.epoch, round(one.loss, 4), round(one.accuracy, 4)) for one in every],
        best_epoch=best.epoch,
        accuracy=scores,
    )


def _change(
    chain: LanguageChain,
    plan: LanguageMethod,
    model: nn.Module,
    tokenizer: Any,
    parts: _Parts,
    preferences: Any,
    reward: AnswerReward,
) -> LanguageResult:
    update = LanguageUpdate(plan.steps, plan.batch, chain.samples, plan.beta, plan.learning_rate, chain.seed)
    begin = time.perf_counter()
    if plan.method == "dpo":
        steps = train_language_dpo(model, tokenizer, preferences, update)
    else:
        scorer = reward_function(reward, model, tokenizer)
        steps = train_language_grpo(model, tokenizer, parts.learn, scorer, update)
    seconds = time.perf_counter() - begin
    return LanguageResult(
        steps=[{name: round(value, 4) for name, value in step.items()} for step in steps],
        final=_measure(chain, model, tokenizer, parts, reward),
        seconds=round(seconds, 1),
    )


def _measure(
    chain: LanguageChain, model: nn.Module, tokenizer: Any, parts: _Parts, reward: AnswerReward
) -> LanguageColumns:
    found = language_outcome(model, tokenizer, parts.held_out, reward, chain.samples, chain.seed + 2)
    rounded = {name: np.round(getattr(found, name), 4).tolist() for name in ("f1", "agreement", "reward", "kl")}
    return LanguageColumns(
        answers=found.answers,
        exact_match=found.exact_match.astype(int).tolist(),
        tokens=found.tokens.tolist(),
        sampled_agreement=np.round(found.sampled_agreement, 4).tolist(),
        **rounded,
    )
