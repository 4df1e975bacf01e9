"""Soft labels: where an answer starts and ends as a distribution over a window's tokens instead of one position.

Two reasons to spread a label: a model that is to be certain of one token learns to be too certain (label smoothing,
Szegedy et al. 2015, arXiv:1512.00567), and annotators who disagree may all be right. Both become one target
distribution for the start and one for the end. The loss is their Kullback-Leibler divergence from the model's: the
cross-entropy of the stock loss, less the targets' own entropy, which no model can get below. So its gradients are
the cross-entropy's, its least value is 0 as that of the stock loss, and with hard targets the two are the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.data.windows import Window

Targets = Literal["first", "all"]


def training_features(windows: Iterable[Window], targets: Targets = "first") -> list[dict[str, Any]]:
    """Windows as a model's inputs and, as `spans`, the answers to point at: (first token, last token) each.

    Args:
        windows: from `windows.make_windows`.
        targets: "first" takes the first annotator's answer; "all" every annotator's that lies whole in the window
            (as often as it was given), and [CLS] only where none does. SQuAD's training questions have one answer
            each, so that both are the same there; CourseQA's have three.
    """
    features = []
    for window in windows:
        spans = window.spans[:1] if targets == "first" else [span for span in window.spans if span != (0, 0)]
        features.append(window.inputs | {"spans": spans or [(0, 0)]})
    return features


def soft_targets(
    spans: Sequence[Sequence[tuple[int, int]]], lengths: Sequence[int], smoothing: float = 0.0
) -> torch.Tensor:
    """The target distributions of a batch of windows: (batch, 2, tokens of the longest), start before end.

    Each is the mean over the window's spans, mixed with `smoothing` parts of the uniform distribution over its own
    tokens; tokens of padding have none.

    Args:
        spans: of each window, (first token, last token) of every answer.
        lengths: tokens of each window.
        smoothing: from 0, none, to 1.
    """
    targets = torch.zeros(len(spans), 2, max(lengths))
    for target, answers, length in zip(targets, spans, lengths, strict=True):
        target[:, :length] = smoothing / length
        for answer in answers:
            target[[0, 1], list(answer)] += (1 - smoothing) / len(answers)
    return targets


def soft_loss(outputs: Any, targets: torch.Tensor, **_: Any) -> torch.Tensor:
    """Divergence of a span head's start and end from the targets (see the module's head), the mean over the batch.

    Args:
        outputs: with `start_logits` and `end_logits`, (batch, tokens).
        targets: from `soft_targets`.
        _: what the Trainer hands to a loss besides.
    """
    logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1)
    return nn.functional.kl_div(logits.float().log_softmax(2), targets, reduction="sum") / (2 * len(targets))


@dataclass(frozen=True)
class SoftLabelCollator:
    """Makes batches of this module's training features, padded to their longest window, with `labels` as targets."""

    tokenizer: PreTrainedTokenizerFast
    smoothing: float = 0.0

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A model's inputs, (batch, tokens) each, and the labels for `soft_loss`, (batch, 2, tokens)."""
        inputs = [{name: value for name, value in feature.items() if name != "spans"} for feature in features]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        lengths = [len(feature["input_ids"]) for feature in features]
        batch["labels"] = soft_targets([feature["spans"] for feature in features], lengths, self.smoothing)
        return batch
