"""The course's experiments: every one that has a name of its own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.scales import SCALES, Scale
from qa_helpers.experiment.spec import (
    AsItComes,
    Combination,
    EvalSet,
    Experiment,
    LanguageTraining,
    SpanTraining,
    change,
)


def named_experiments() -> dict[str, Experiment]:
    """The experiments that have a name of their own, by name."""
    chosen = [*_baselines(), *_methods(), *_language_models(), *_replays(), *_ideas()]
    return {experiment.name: experiment for experiment in chosen}


def _baselines() -> list[SpanTraining]:
    quick = SCALES["quick"]
    chosen = [quick.baseline(size) for size in quick.sizes]
    # As many optimizer steps on 100 questions as 500 questions get: do steps or questions make the jump?
    chosen.append(change(quick.baseline(100), name="quick-steps-100-seed0", epochs=15))
    # Short enough for a first look: three epochs instead of five, nothing scored on the way.
    chosen.append(change(quick.baseline(), name="start-here", epochs=3, probe_size=0))
    chosen += [SCALES[scale].baseline(seed=seed) for scale in ("class", "base") for seed in (0, 1, 2)]
    chosen += [SCALES["full"].baseline()]
    return chosen


# Few weights need large steps: the learning rates tried for each way to fine-tune, and the best (see notebook 01).
LEARNING_RATES = {
    "head": (3e-3, 1e-2, 3e-2, 1e-1),
    "last:2": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
    "lora": (1e-3, 2e-3, 5e-3),
    "ia3": (1e-2, 3e-2, 1e-1),
    "all": (1e-4, 2e-4, 5e-4),
}
METHODS = {"head": 3e-2, "last:2": 2e-3, "lora": 2e-3, "ia3": 3e-2, "all": 2e-4}


def method(scale: Scale, trainable: str, learning_rate: float | None = None, seed: int = 0) -> SpanTraining:
    """One way to fine-tune at a scale: same questions, epochs and batch for all; and what the encoder forgets."""
    rate = learning_rate or METHODS[trainable]
    return SpanTraining(
        name=f"{scale.name}-method-{trainable.replace(':', '')}-lr{rate:g}-seed{seed}",
        data=scale.data,
        train_size=scale.baseline_size,
        evaluations=_asked(scale),
        model=scale.model,
        trainable=trainable,
        retrieval=True,
        epochs=3,
        learning_rate=rate,
        seed=seed,
        probe_size=0,
    )


def _asked(scale: Scale) -> dict[str, EvalSet]:
    """The whole validation set of CourseQA; of SQuAD's, 500 random questions."""
    return {"all": EvalSet()} if scale.data == "courseqa" else {"random-500": EvalSet(limit=500, sampling="random")}


def _methods() -> list[SpanTraining]:
    at_quick = [method(SCALES["quick"], what, rate) for what, rates in LEARNING_RATES.items() for rate in rates]
    return at_quick + [method(SCALES["class"], what) for what in METHODS]


def language_model(scale: Scale, train_size: int, epochs: int, seed: int = 0) -> Experiment:
    """SmolLM2 at a scale: as it comes (no epochs), or fine-tuned with LoRA on the answers."""
    if not epochs:
        return AsItComes(
            name=f"{scale.name}-zero-shot-smollm2-seed{seed}",
            data=scale.data,
            evaluations=_asked(scale),
            model="smollm2",
            task="generate",
            seed=seed,
        )
    return LanguageTraining(
        name=f"{scale.name}-sft-{train_size}-smollm2-seed{seed}",
        data=scale.data,
        train_size=train_size,
        evaluations=_asked(scale),
        model="smollm2",
        trainable="lora",
        epochs=epochs,
        batch_size=4,
        learning_rate=1e-3,
        seed=seed,
        probe_size=0,
    )


FEW = EvalSet(limit=40, sampling="random")  # as many as a language model answers in half a minute on a CPU


def ten_steps() -> Experiment:
    """SmolLM2 after its first ten optimizer steps, asked a few of CourseQA's questions: short enough to run live."""
    return change(language_model(SCALES["quick"], 40, epochs=1), evaluations={"few": FEW})


def _language_models() -> list[Experiment]:
    quick, class_ = SCALES["quick"], SCALES["class"]
    return [
        language_model(quick, 500, epochs=0),
        ten_steps(),
        language_model(quick, 500, epochs=1),
        language_model(class_, 1_000, epochs=0),
        language_model(class_, 1_000, epochs=1),
    ]


# ---- the report ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reported:
    """A run as the homework's report tells it; None where it says nothing."""

    train_size: int
    eval_size: int | None
    epochs: int
    batch_size: int
    accuracy: float  # percent; of which metric, it does not say
    losses: dict[int, float]  # mean training loss of the 500 optimizer steps up to this one
    time: str | None  # minutes:seconds, or in words


REPORTED = {
    "baseline": Reported(1_000, None, 3, 8, 77.0, {}, None),
    "experiment 1": Reported(2_000, 200, 5, 16, 80.0, {500: 0.1865}, "13:10"),
    "experiment 2": Reported(5_000, 500, 5, 16, 82.0, {500: 1.0723, 1_000: 0.3935, 1_500: 0.1305}, "about 30 min"),
}


def replay(number: Literal[1, 2], seed: int = 0, warm: bool = False, scale: Scale = SCALES["class"]) -> SpanTraining:
    """Experiment 1 or 2 of the report at a scale, from the pre-trained weights or from the baseline's (`warm`).

    Where the report is silent: MiniLM, and a learning rate half as large again as the baseline's, for batches twice
    as large.

    Raises:
        RecordError: if the scale has no three sizes.
    """
    if len(scale.sizes) < 3:
        raise RecordError(f"the scaling experiments need three sizes; the scale '{scale.name}' has {len(scale.sizes)}")
    told, start = REPORTED[f"experiment {number}"], scale.baseline(scale.sizes[0], seed)
    few = {"first-200": EvalSet(limit=200)} if scale.data == "squad" else {}
    return change(
        start,
        name=f"{scale.name}-{'warm' if warm else 'experiment'}{number}-{scale.sizes[number]}-seed{seed}",
        train_size=scale.sizes[number],
        evaluations=start.evaluations | few,
        start_from=start.name if warm else None,
        epochs=told.epochs,
        batch_size=told.batch_size,
        learning_rate=round(1.5 * scale.learning_rate, 9),  # 0.00015, not 0.00015000000000000001
    )


def from_experiment2(seed: int = 0) -> SpanTraining:
    """Experiment 1 at class scale from where experiment 2 ended: what a kernel does whose cells ran in another order.

    Asked fewer questions than the other starts: it is there for its loss.
    """
    start, few = replay(2, seed), ("random-500", "first-500", "first-200")
    cold = replay(1, seed)
    return change(
        cold,
        name=f"class-warm1-from-experiment2-{cold.train_size}-seed{seed}",
        start_from=start.name,
        evaluations={name: cold.evaluations[name] for name in few},
    )


SEEDS = (0, 1, 2)
SMALL_SIZES = (250, 500, 1_000)  # beside those of experiments 1 and 2: each is the beginning of the next larger one


def at_size(size: int, seed: int = 0) -> SpanTraining:
    """Experiment 2 with fewer training questions, at class scale: the first `size` ones."""
    sizes = SCALES["class"].sizes
    if size in sizes[1:]:
        return replay(1 if size == sizes[1] else 2, seed)
    return change(replay(2, seed), name=f"class-size-{size}-seed{seed}", train_size=size)


# ---- ideas to raise the score: what each changes of experiment 2 -----------------------------------------------
CHANGES: dict[str, Callable[[SpanTraining], SpanTraining]] = {
    "lr-half": partial(change, learning_rate=7.5e-5),
    "lr-double": partial(change, learning_rate=3e-4),
    "epochs-3": partial(change, epochs=3),
    "epochs-10": partial(change, epochs=10),
    "batch-8": partial(change, batch_size=8),
    "batch-32": partial(change, batch_size=32),
    "cosine": partial(change, schedule="cosine", warmup=0.1),
    "random-articles": partial(change, sampling="random"),
    "two-a-passage": partial(change, per_passage=2),
    "layer-decay": partial(change, layer_decay=0.9),
    "smoothing": partial(change, label_smoothing=0.1),
    "cloze-first": lambda base: change(base, start_from=cloze(base.seed).name),
    "average-last-3": partial(change, average_last=3),
}
# Of all seeds of the same size, so that they have no seed of their own.
COMBINES: dict[str, Literal["answers", "weights"]] = {"ensemble": "answers", "average-seeds": "weights"}
IDEAS = (*CHANGES, *COMBINES)
SCREENED = EvalSet(limit=2_000, sampling="random")
# Whose runs answer together at full size: chosen when the ideas had been tried there. "" is experiment 2 without any.
TOGETHER = {"smoothing-ensemble": ("smoothing",), "best-three-ensemble": ("smoothing", "batch-8", "")}


def idea(which: str, size: int, seed: int = 0) -> Experiment:
    """Experiment 2 of the report on `size` questions with one thing changed.

    At the full 5,000 questions all sets of experiment 2 are asked; below, 2,000 random questions, which is enough to
    choose what to go on with.
    """
    base = change(at_size(size, seed), name=f"class-idea-{which}-{size}-seed{seed}")
    if size != SCALES["class"].sizes[2]:
        base = change(base, evaluations={"random-2000": SCREENED})
    if which in COMBINES:
        return _combine(base, COMBINES[which], [at_size(size, other) for other in SEEDS])
    return CHANGES[which](base)


def changes_of(which: str) -> dict[str, object]:
    """The fields that an idea changes of experiment 2, beside its name."""
    base = dict(replay(2))
    changed = dict(idea(which, SCALES["class"].sizes[2]))
    return {field: value for field, value in changed.items() if field != "name" and base.get(field) != value}


def _combine(asked: SpanTraining, mean_of: Literal["answers", "weights"], runs: Iterable[Experiment]) -> Combination:
    """Runs combined under the name of an experiment, and asked as that one is."""
    return Combination(
        name=asked.name,
        data=asked.data,
        evaluations=asked.evaluations,
        mean_of=mean_of,
        members=tuple(run.name for run in runs),
    )


def together(which: str) -> Combination:
    """All seeds of the recipes of `TOGETHER[which]` at the full 5,000 questions, which answer together."""
    size = SCALES["class"].sizes[2]
    runs = [idea(recipe, size, seed) if recipe else at_size(size, seed) for recipe in TOGETHER[which] for seed in SEEDS]
    return _combine(change(at_size(size), name=f"class-idea-{which}-{size}-seed0"), "answers", runs)


def cloze(seed: int = 0) -> SpanTraining:
    """One epoch on questions made from the passages alone, before those that people asked."""
    return change(
        replay(2, seed),
        name=f"class-cloze-seed{seed}",
        questions="cloze",
        train_size=None,
        epochs=1,
        evaluations={"random-2000": SCREENED},
    )


def _replays() -> list[SpanTraining]:
    quick = SCALES["quick"]
    cold = [replay(number, seed) for number in (1, 2) for seed in SEEDS]
    cold += [at_size(size, seed) for size in SMALL_SIZES for seed in SEEDS]
    live = [replay(1, scale=quick), replay(2, scale=quick), replay(1, warm=True, scale=quick)]
    warm = [replay(1, seed, warm=True) for seed in SEEDS] + [from_experiment2(seed) for seed in SEEDS]
    return live + cold + warm


def _ideas() -> list[Experiment]:
    sizes = (1_000, *SCALES["class"].sizes[1:])
    every = [
        idea(which, size, seed)
        for which in IDEAS
        for size in sizes
        for seed in (SEEDS if size == sizes[-1] and which not in COMBINES else SEEDS[:1])
    ]
    return [cloze(seed) for seed in SEEDS] + every + [together(which) for which in TOGETHER]
