"""The course's experiments: the scales of its notebooks, and every experiment that has a name of its own."""

import os
from dataclasses import dataclass
from typing import Literal

from qa_helpers.records import EvalSet, Experiment, RecordError


@dataclass(frozen=True)
class Scale:
    """How much work a notebook does. See the README for the three."""

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
    chosen = [*_baselines(), *_methods(), *_language_models(), *_replays()]
    return {experiment.name: experiment for experiment in chosen}


def _baselines() -> list[Experiment]:
    quick = SCALES["quick"]
    chosen = [quick.baseline(size) for size in quick.sizes]
    # As many optimizer steps on 100 questions as 500 questions get: do steps or questions make the jump?
    chosen.append(quick.baseline(100).model_copy(update={"name": "quick-steps-100-seed0", "epochs": 15}))
    # Short enough for a first look: three epochs instead of five, nothing scored on the way.
    chosen.append(quick.baseline().model_copy(update={"name": "start-here", "epochs": 3, "probe_size": 0}))
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
    return language_model(SCALES["quick"], 40, epochs=1).model_copy(update={"evaluations": {"few": FEW}})


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


def replay(number: Literal[1, 2], seed: int = 0, warm: bool = False) -> Experiment:
    """Experiment 1 or 2 of the report at class scale, from the pre-trained weights or from the baseline's (`warm`).

    Where the report is silent: MiniLM, and a learning rate half as large again as the baseline's, for batches twice
    as large.
    """
    told, scale = REPORTED[f"experiment {number}"], SCALES["class"]
    start = scale.baseline(seed=seed)
    return start.model_copy(
        update={
            "name": f"class-{'warm' if warm else 'experiment'}{number}-{told.train_size}-seed{seed}",
            "train_size": told.train_size,
            "evaluations": start.evaluations | {"first-200": EvalSet(limit=200)},
            "start_from": start.name if warm else None,
            "epochs": told.epochs,
            "batch_size": told.batch_size,
            "learning_rate": 1.5e-4,
        }
    )


def _replays() -> list[Experiment]:
    cold = [replay(number, seed) for number in (1, 2) for seed in (0, 1, 2)]
    return cold + [replay(1, seed, warm=True) for seed in (0, 1, 2)]
