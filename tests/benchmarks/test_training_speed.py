"""Training: `qa_helpers.training.trainer.train` against a plain `transformers.Trainer` that leaves all at its default.

Both get the same questions, windows, initial weights, epochs, batch size, learning rate and seed. The plain way is
what the well-known example scripts do: float32, every window padded to 384 tokens, batches in random order, the
attention that `from_pretrained` chooses, the Trainer's default optimizer.

Timed is the call that trains, with its set-up of the Trainer and its checkpoints (the plain way writes one at the
end, ours one an epoch). Loading the model and making the windows are excluded for both. There is no warm-up: the
first pair pays for what a process does once, and the median leaves it out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
from tables import print_table
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from qa_helpers.common.device import default_device, has_native_bf16, set_seed
from qa_helpers.common.quiet import quiet
from qa_helpers.data.squad import load_qa
from qa_helpers.data.windows import MAX_LENGTH, make_windows, training_features
from qa_helpers.evaluation.comparisons import paired_difference
from qa_helpers.evaluation.metrics import evaluate
from qa_helpers.evaluation.span_answers import answer
from qa_helpers.evaluation.statistics import bootstrap_mean
from qa_helpers.model.load import load_qa_model, load_tokenizer, resolve
from qa_helpers.training.trainer import Settings, train

pytestmark = pytest.mark.benchmark

PAIRS = 3
LEAST_SPEEDUP = 3.0
SPEED_SIZE, SPEED = 160, Settings(epochs=1, learning_rate=2e-4)  # 20 optimizer steps
QUALITY_SIZE, QUALITY = 500, Settings(epochs=3, learning_rate=2e-4)  # enough for an EM well above zero
LEAST_EM = 20.0  # percent; two models that learned nothing would be equally good, too


# ---- the two ways, and the steps from one to the other ---------------------------------------------------------
@dataclass(frozen=True)
class Way:
    """One way to load and train a model."""

    name: str
    load: Callable[[int], nn.Module]  # takes the seed of the span head
    train: Callable[[nn.Module, Any, Sequence[dict[str, Any]], Settings, Path], object]


@quiet()
def load_stock(seed: int) -> nn.Module:
    """The packaged MiniLM as `from_pretrained` gives it; its weights are float32."""
    set_seed(seed)
    model: nn.Module = AutoModelForQuestionAnswering.from_pretrained(resolve("minilm")[0], use_safetensors=True)
    return model


def train_stock(
    model: nn.Module,
    tokenizer: Any,
    features: Sequence[dict[str, Any]],
    settings: Settings,
    folder: Path,
    padding: str = "max_length",
    **options: Any,
) -> None:
    """Train with a plain Trainer; `options` are TrainingArguments that differ from their defaults."""
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            report_to="none",
            disable_tqdm=True,
            **options,
        ),
        train_dataset=features,
        data_collator=DataCollatorWithPadding(tokenizer, padding=padding, max_length=MAX_LENGTH),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


load_ours = partial(load_qa_model, "minilm")
train_grouped = partial(train_stock, padding="longest", train_sampling_strategy="group_by_length")
train_bf16 = partial(train_grouped, bf16=has_native_bf16(), use_cpu=default_device().type == "cpu")

STOCK = Way("plain Trainer", load_stock, train_stock)
OURS = Way("qa_helpers.training.trainer", load_ours, train)
STEPS = [
    STOCK,
    Way("+ dynamic padding, grouping by length", load_stock, train_grouped),
    Way("+ bf16 autocast where it is native", load_stock, train_bf16),
    OURS,
]


class Trained(NamedTuple):
    """A trained model, and what its training took in wall-clock seconds and CPU seconds of all threads."""

    model: nn.Module
    wall: float
    cpu: float


def run(way: Way, rows: Any, settings: Settings) -> Trained:
    """Train one way from the pre-trained weights, in a folder of its own."""
    tokenizer = load_tokenizer()
    features = training_features(make_windows(rows, tokenizer))
    model = way.load(settings.seed)
    with TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        way.train(model, tokenizer, features, settings, Path(folder))
        return Trained(model, time.perf_counter() - wall, time.process_time() - cpu)


# ---- benchmarks ------------------------------------------------------------------------------------------------
def test_training_is_three_times_as_fast() -> None:
    rows = load_qa("courseqa", "train", SPEED_SIZE)
    pairs = [(run(OURS, rows, SPEED), run(STOCK, rows, SPEED)) for _ in range(PAIRS)]
    questions = SPEED_SIZE * SPEED.epochs
    header = ["wall s: ours", "plain", "ratio", "CPU s: ours", "plain", "ratio", "questions/s: ours", "plain"]
    measured = [
        [
            *(ours.wall, plain.wall, plain.wall / ours.wall),
            *(ours.cpu, plain.cpu, plain.cpu / ours.cpu),
            *(questions / ours.wall, questions / plain.wall),
        ]
        for ours, plain in pairs
    ]
    middle = [median(column) for column in zip(*measured, strict=True)]
    print_table(
        f"Training on {SPEED_SIZE} questions of CourseQA, {SPEED.epochs} epoch, batch {SPEED.batch_size}: ours "
        f"({OURS.name}) and a {STOCK.name} in turn",
        ["pair", *header],
        [*([f"{number}", *line] for number, line in enumerate(measured, 1)), ["median", *middle]],
    )
    speedup = middle[2]
    assert speedup >= LEAST_SPEEDUP, f"training is {speedup:.2f} times as fast as a plain Trainer's"


def test_quality_is_the_same() -> None:
    initial = load_ours(QUALITY.seed).state_dict()
    for name, weights in load_stock(QUALITY.seed).state_dict().items():
        torch.testing.assert_close(initial[name], weights, rtol=0, atol=0)

    rows, asked = load_qa("courseqa", "train", QUALITY_SIZE), load_qa("courseqa", "validation")
    ours, plain = run(OURS, rows, QUALITY), run(STOCK, rows, QUALITY)
    scores_ours, scores_plain = (percentages(one.model, asked) for one in (ours, plain))
    differences = {name: paired_difference(scores_plain[name], scores_ours[name]) for name in scores_ours}

    def line(way: Way, one: Trained, scores: dict[str, list[float]]) -> list[str | float]:
        speed = QUALITY_SIZE * QUALITY.epochs / one.wall
        return [way.name, one.wall, one.cpu, speed, *(str(bootstrap_mean(values)) for values in scores.values())]

    print_table(
        f"Scores on {len(asked)} questions after training on {QUALITY_SIZE}, {QUALITY.epochs} epochs: the same data, "
        "seed and settings; percent with 95 % intervals",
        ["way", "wall s", "CPU s", "questions/s", *scores_ours],
        [
            line(OURS, ours, scores_ours),
            line(STOCK, plain, scores_plain),
            ["difference, paired", "", "", "", *map(str, differences.values())],
        ],
    )
    for scores in (scores_ours, scores_plain):
        assert bootstrap_mean(scores["EM"]).low > LEAST_EM, "a model learned too little for a comparison"
    for name, difference in differences.items():
        assert difference.high >= 0, f"{name} is worse than the plain Trainer's, by {difference}"


def percentages(model: nn.Module, rows: Any) -> dict[str, list[float]]:
    """EM and F1 question by question, of the weights alone: in the form of model that the course loads."""
    loaded = load_ours()
    loaded.load_state_dict(model.state_dict())
    results = evaluate(answer(loaded.to(default_device()), load_tokenizer(), rows).predictions, rows)
    return {"EM": [100.0 * result.exact_match for result in results], "F1": [100 * result.f1 for result in results]}


def test_what_contributes() -> None:
    """Each line adds to the one above it; nothing is asserted, for single short runs vary."""
    rows = load_qa("courseqa", "train", SPEED_SIZE)
    runs = [run(way, rows, SPEED) for way in STEPS]
    questions = SPEED_SIZE * SPEED.epochs
    print_table(
        f"What contributes: training on {SPEED_SIZE} questions of CourseQA, {SPEED.epochs} epoch, one run each",
        ["way", "wall s", "CPU s", "questions/s", "ratio to the line above", "to the first"],
        [
            [way.name, one.wall, one.cpu, questions / one.wall, above.wall / one.wall, runs[0].wall / one.wall]
            for way, one, above in zip(STEPS, runs, [runs[0], *runs[:-1]], strict=True)
        ],
    )
