"""Training held to a loop in plain torch, which shares nothing with it but the model and the tokenizer.

The loop has an AdamW, a schedule, clipping, losses, batches and an order of its own. Dropout is on: both draw the same
numbers, since both seed once and then draw an epoch's order before its first batch.
"""

import copy
import dataclasses
import math

import pytest
import torch
from tiny_model import tiny_language_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer

from qa_helpers.data.windows import make_windows
from qa_helpers.data.windows import training_features as span_features
from qa_helpers.evaluation.written_answers import AnswerCollator
from qa_helpers.evaluation.written_answers import training_features as language_features
from qa_helpers.training import trainer
from qa_helpers.training.trainer import Settings, train

SETTINGS = Settings(epochs=2, batch_size=4, learning_rate=2e-3, seed=5, log_every=1, warmup=0.25)
IGNORED = -100
LOSSES, WEIGHTS = 1e-5, 1e-4  # what rounding may do, as a share; any fault does more than ten times as much


class ByLength:
    """An epoch's order: at random, then by length within each of four parts of whole batches, the longest row first."""

    def __init__(self, features, batch_size):
        self.lengths = [len(feature["input_ids"]) for feature in features]
        self.part = batch_size * max(1, len(features) // (4 * batch_size))

    def __iter__(self):
        drawn = torch.randperm(len(self.lengths)).tolist()
        parts = [drawn[begin : begin + self.part] for begin in range(0, len(drawn), self.part)]
        parts = [sorted(part, key=lambda row: -self.lengths[row]) for part in parts]
        longest = max(parts, key=lambda part: self.lengths[part[0]])
        parts[0][0], longest[0] = longest[0], parts[0][0]
        return iter([row for part in parts for row in part])

    def __len__(self):
        return len(self.lengths)


def padded(rows, value, left):
    width = max(map(len, rows))
    blank = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([fill + row if left else row + fill for row, fill in zip(rows, blank, strict=True)])


def span_batch(features):
    tokens, types = ([feature[name] for feature in features] for name in ("input_ids", "token_type_ids"))
    mask = [[1] * len(row) for row in tokens]
    return {
        "input_ids": padded(tokens, 0, left=False),  # 0 is BERT's token to pad with
        "token_type_ids": padded(types, 0, left=False),
        "attention_mask": padded(mask, 0, left=False),
        "start_positions": torch.tensor([int(feature["start_positions"]) for feature in features]),
        "end_positions": torch.tensor([int(feature["end_positions"]) for feature in features]),
    }


def span_loss(model, batch):
    """The mean over windows of the mean of two cross entropies, of the answer's first and of its last token."""
    first, last = batch.pop("start_positions"), batch.pop("end_positions")
    output = model(**batch)
    return (cross_entropy(output.start_logits, first) + cross_entropy(output.end_logits, last)) / 2


def language_batch(features):
    tokens, labels = ([feature[name] for feature in features] for name in ("input_ids", "labels"))
    mask = [[1] * len(row) for row in tokens]
    return {
        "input_ids": padded(tokens, 0, left=True),  # hidden by the mask, whatever it is
        "attention_mask": padded(mask, 0, left=True),
        "labels": padded(labels, IGNORED, left=True),
    }


def language_loss(model, batch):
    """The mean over all answers' tokens in the batch of the cross entropy of each from those before it."""
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, :-1]
    answer = labels[:, 1:] != IGNORED
    return cross_entropy(logits[answer], labels[:, 1:][answer])


def by_hand(model, features, settings, make_batch, loss_of):
    """Train in plain torch; each step's loss, and each weight's gradient's length at each step before clipping."""
    steps = settings.epochs * math.ceil(len(features) / settings.batch_size)
    warm = math.ceil(settings.warmup * steps)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    mean, square = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    loader = DataLoader(
        features, settings.batch_size, sampler=ByLength(features, settings.batch_size), collate_fn=make_batch
    )
    torch.manual_seed(settings.seed)
    model.train()
    losses, lengths, step = [], [], 0
    for _ in range(settings.epochs):
        for batch in loader:
            loss = loss_of(model, batch)
            model.zero_grad()
            loss.backward()
            each = torch.tensor([weight.grad.double().norm() for weight in weights])
            length = each.norm().item()
            rate = settings.learning_rate * (step / warm if step < warm else (steps - step) / (steps - warm))
            step += 1
            with torch.no_grad():
                for weight, first, second in zip(weights, mean, square, strict=True):
                    gradient = weight.grad * min(1.0, 1.0 / (length + 1e-6))
                    first += 0.1 * (gradient - first)
                    second += 0.001 * (gradient**2 - second)
                    share = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                    weight -= rate * share  # and no weight decay
            losses.append(loss.item())
            lengths.append(each)
    return losses, torch.stack(lengths)


class Span:
    """A tiny BERT with a span head, on questions of CourseQA."""

    def __init__(self, course, tokenizer, tiny_model):
        self.tokenizer, self.tiny_model, self.collator = tokenizer, tiny_model, None
        self.features = span_features(make_windows(course[:40:3], tokenizer))
        self.batch, self.loss = span_batch, span_loss

    def model(self):
        model = self.tiny_model()
        with torch.no_grad():
            model.bert.encoder.layer[-1].output.LayerNorm.weight *= 0.45  # some gradients then are clipped, some not
        return model


class Language:
    """A tiny language model, on the same questions."""

    def __init__(self, course, tokenizer):
        self.tokenizer = copy.deepcopy(tokenizer)  # the span model's, which is loaded faster than SmolLM2's
        self.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
        self.tokenizer.bos_token, self.tokenizer.eos_token = "[CLS]", "[SEP]"
        self.collator = AnswerCollator(self.tokenizer)
        self.features = language_features(course[:40:3], self.tokenizer)
        self.batch, self.loss = language_batch, language_loss

    def model(self):
        model = tiny_language_model(self.tokenizer)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 0.25 if weight.ndim > 1 else 1.0
            model.model.norm.weight *= 0.35
        return model


@pytest.fixture(params=["span", "language"], scope="module")
def task(request, course, tokenizer, tiny_model):
    return Span(course, tokenizer, tiny_model) if request.param == "span" else Language(course, tokenizer)


@pytest.fixture(autouse=True)
def plain_numbers(monkeypatch):
    """Float32 on the CPU, whatever the machine has."""
    monkeypatch.setattr(trainer, "has_native_bf16", lambda device: False)
    monkeypatch.setattr(trainer, "default_device", lambda: torch.device("cpu"))


@pytest.fixture(scope="module")
def expected(task):
    model = task.model()
    start = {name: value.clone() for name, value in model.named_parameters()}
    losses, lengths = by_hand(model, task.features, SETTINGS, task.batch, task.loss)
    assert lengths.norm(dim=1).min() < 1 < lengths.norm(dim=1).max()  # some steps are clipped, some are not
    # What adds the same to all scores of a softmax has a gradient of rounding alone, which AdamW makes as long as any.
    real = (lengths.max(dim=0).values > 1e-6).tolist()
    assert real.count(False) <= 5
    weights = {name: value for (name, value), kept in zip(model.named_parameters(), real, strict=True) if kept}
    return start, weights, losses


def worst(task, expected, folder, model):
    """By how much `train` differs: of losses, and of any tensor's change by training, each as a share."""
    start, weights, losses = expected
    history = train(model, task.tokenizer, task.features, SETTINGS, folder, collator=task.collator)
    apart = [abs(loss - other) / other for (_, loss), other in zip(history.losses, losses, strict=True)]
    trained = dict(model.named_parameters())
    moved = [
        ((trained[name] - weight).norm() / (weight - start[name]).norm()).item() for name, weight in weights.items()
    ]
    return max(apart), max(moved)


def test_training_is_that_of_a_plain_loop(task, expected, tmp_path):
    losses, weights = worst(task, expected, tmp_path, task.model())
    assert losses < LOSSES, losses
    assert weights < WEIGHTS, weights


ARGUMENTS = {
    "the first beta": {"adam_beta1": 0.85},
    "the second beta": {"adam_beta2": 0.99},
    "epsilon": {"adam_epsilon": 1e-6},
    "weight decay": {"weight_decay": 0.01},
    "no clipping": {"max_grad_norm": 0.0},
    "clipping at 0.5": {"max_grad_norm": 0.5},
    "another schedule": {"lr_scheduler_type": "cosine"},
    "a longer warm-up": {"warmup_steps": 0.5},
    "another order": {"train_sampling_strategy": "random"},
    "another seed": {"seed": SETTINGS.seed + 1},
    "bfloat16": {"bf16": True},
}


@pytest.mark.parametrize("task", ["span"], indirect=True)  # of a language model it takes longer and says the same
@pytest.mark.parametrize("fault", [*ARGUMENTS, "no dropout", "a loss half as large"])
def test_a_fault_in_training_is_seen(task, expected, tmp_path, monkeypatch, fault):
    model, arguments_of = task.model(), trainer._arguments

    def arguments(settings, folder):
        return dataclasses.replace(arguments_of(settings, folder), **ARGUMENTS.get(fault, {}))

    class HalfLoss(Trainer):
        def compute_loss(self, *args, **options):
            return super().compute_loss(*args, **options) / 2

    monkeypatch.setattr(trainer, "_arguments", arguments)
    if fault == "a loss half as large":
        monkeypatch.setattr(trainer, "Trainer", HalfLoss)
    if fault == "no dropout":
        for module in model.modules():
            for name in {"p", "attention_dropout"} & vars(module).keys():
                setattr(module, name, 0.0)
    losses, weights = worst(task, expected, tmp_path, model)
    print(f"\n{fault}: losses {losses:.1e}, weights {weights:.1e}")
    assert losses > 10 * LOSSES or weights > 10 * WEIGHTS
