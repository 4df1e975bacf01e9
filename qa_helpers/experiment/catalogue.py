"""The course's experiments: the scales of its notebooks, and every experiment that has a name of its own."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from qa_helpers.experiment.spec import EvalSet, Experiment, RecordError, change


@dataclass(frozen=True)
class Scale:
    """How much work a notebook does. See docs/set-up.md for the three."""

    name: str
    data: str
    baseline_size: int  # training questions of the class baseline's replay
    sizes: tuple[int, ...]  # and of the scaling experiments
    epochs: int
    learning_rate: float
    model: str = "minilm"

    def baseline(self, train_size: int | None = None, seed: int = 0) -> Experiment:
        """The class baseline at this scale (batch 8), with another training size if one is given."""
        size = train_size or self.baseline_size
        evaluations = {"all": EvalSet()}
        if self.data == "squad":  # CourseQA's validation set is small enough to be asked as a whole only
            evaluations["first-500"] = EvalSet(limit=500)
            evaluations["random-500"] = EvalSet(limit=500, sampling="random")
        return Experiment(
            name=f"{self.name}-baseline-{size}-seed{seed}",
            data=self.data,
            train_size=size,
            evaluations=evaluations,
            model=self.model,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            seed=seed,
        )


SCALES = {
    # CourseQA's few questions make few optimizer steps, hence the higher learning rate.
    "quick": Scale("quick", "courseqa", 500, (100, 200, 500), epochs=3, learning_rate=2e-4),
    "class": Scale("class", "squad", 1_000, (1_000, 2_000, 5_000), epochs=3, learning_rate=1e-4),
    "full": Scale("full", "squad", 87_599, (87_599,), epochs=2, learning_rate=3e-5, model="bert-base-uncased"),
}


def current_scale() -> Scale:
    """The scale that `$QA_SCALE` names, `quick` if it is not set.

    Raises:
        RecordError: if there is no such scale.
    """
    name = os.environ.get("QA_SCALE") or "quick"
    if name not in SCALES:
        raise RecordError(f"QA_SCALE is '{name}'; set it to {', '.join(SCALES)}, or leave it unset for quick")
    return SCALES[name]


def named_experiments() -> dict[str, Experiment]:
    """The experiments that have a name of their own, by name."""
    chosen = [*_baselines(), *_methods(), *_language_models(), *_replays(), *_ideas()]
    return {experiment.name: experiment for experiment in chosen}


def _baselines() -> list[Experiment]:
    quick = SCALES["quick"]
    chosen = [quick.baseline(size) for size in quick.sizes]
    # As many optimizer steps on 100 questions as 500 questions get: do steps or questions make the jump?
    chosen.append(change(quick.baseline(100), name="quick-steps-100-seed0", epochs=15))
    # Short enough for a first look: three epochs instead of five, nothing scored on the way.
    chosen.append(change(quick.baseline(), name="start-here", epochs=3, probe_size=0))
    chosen += [SCALES["class"].baseline(seed=seed) for seed in (0, 1, 2)]
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


def method(scale: Scale, trainable: str, learning_rate: float | None = None, seed: int = 0) -> Experiment:
    """One way to fine-tune at a scale: same questions, epochs and batch for all; and what the encoder forgets."""
    rate = learning_rate or METHODS[trainable]
    return Experiment(
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


def _methods() -> list[Experiment]:
    at_quick = [method(SCALES["quick"], what, rate) for what, rates in LEARNING_RATES.items() for rate in rates]
    return at_quick + [method(SCALES["class"], what) for what in METHODS]


def language_model(scale: Scale, train_size: int, epochs: int, seed: int = 0) -> Experiment:
    """SmolLM2 at a scale: as it comes (no epochs), or fine-tuned with LoRA on the answers."""
    kind = f"sft-{train_size}" if epochs else "zero-shot"
    return Experiment(
        name=f"{scale.name}-{kind}-smollm2-seed{seed}",
        data=scale.data,
        train_size=train_size,
        evaluations=_asked(scale),
        model="smollm2",
        task="generate",
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


def replay(number: Literal[1, 2], seed: int = 0, warm: bool = False, scale: Scale = SCALES["class"]) -> Experiment:
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


def from_experiment2(seed: int = 0) -> Experiment:
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


def at_size(size: int, seed: int = 0) -> Experiment:
    """Experiment 2 with fewer training questions, at class scale: the first `size` ones."""
    sizes = SCALES["class"].sizes
    if size in sizes[1:]:
        return replay(1 if size == sizes[1] else 2, seed)
    return change(replay(2, seed), name=f"class-size-{size}-seed{seed}", train_size=size)


# ---- ideas to raise the score: what each changes of experiment 2 -----------------------------------------------
IDEAS: dict[str, dict[str, Any]] = {
    "lr-half": {"learning_rate": 7.5e-5},
    "lr-double": {"learning_rate": 3e-4},
    "epochs-3": {"epochs": 3},
    "epochs-10": {"epochs": 10},
    "batch-8": {"batch_size": 8},
    "batch-32": {"batch_size": 32},
    "cosine": {"schedule": "cosine", "warmup": 0.1},
    "random-articles": {"sampling": "random"},
    "two-a-passage": {"per_passage": 2},
    "layer-decay": {"layer_decay": 0.9},
    "smoothing": {"label_smoothing": 0.1},
    "cloze-first": {"start_from": "class-cloze-seed{seed}"},
    "average-last-3": {"average_last": 3},
    "ensemble": {"ensemble_of": "class-size"},
    "average-seeds": {"average_of": "class-size"},
}
COMBINES = ("ensemble", "average-seeds")  # of all seeds of the same size, so that they have no seed of their own
SCREENED = EvalSet(limit=2_000, sampling="random")
# Whose runs answer together at full size: chosen when the ideas had been tried there. "" is experiment 2 without any.
TOGETHER = {"smoothing-ensemble": ("smoothing",), "best-three-ensemble": ("smoothing", "batch-8", "")}


def idea(which: str, size: int, seed: int = 0) -> Experiment:
    """Experiment 2 of the report on `size` questions with one thing changed.

    At the full 5,000 questions all sets of experiment 2 are asked; below, 2,000 random questions, which is enough to
    choose what to go on with.
    """
    base, changes = at_size(size, seed), dict(IDEAS[which])
    if which in COMBINES:
        members = tuple(at_size(size, other).name for other in SEEDS)
        changes = dict.fromkeys(changes, members) | {"epochs": 0}
    if "start_from" in changes:
        changes["start_from"] = changes["start_from"].format(seed=seed)
    whole = size == SCALES["class"].sizes[2]
    return change(
        base,
        name=f"class-idea-{which}-{size}-seed{seed}",
        evaluations=base.evaluations if whole else {"random-2000": SCREENED},
        **changes,
    )


def together(which: str) -> Experiment:
    """All seeds of the recipes of `TOGETHER[which]` at the full 5,000 questions, which answer together."""
    size = SCALES["class"].sizes[2]
    runs = [idea(one, size, seed) if one else at_size(size, seed) for one in TOGETHER[which] for seed in SEEDS]
    names = tuple(run.name for run in runs)
    return change(at_size(size), name=f"class-idea-{which}-{size}-seed0", epochs=0, ensemble_of=names)


def cloze(seed: int = 0) -> Experiment:
    """One epoch on questions made from the passages alone, before those that people asked."""
    return change(
        replay(2, seed),
        name=f"class-cloze-seed{seed}",
        questions="cloze",
        train_size=None,
        epochs=1,
        evaluations={"random-2000": SCREENED},
    )


def _replays() -> list[Experiment]:
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
