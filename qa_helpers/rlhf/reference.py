"""What the frozen reference says of each question, asked once and kept.

The reference is the fine-tuned model as it was before any update: KL is measured against it, candidates come from it,
and the reward model reads its states. As it never changes, it need not be there any more when its copy is changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qa_helpers.common.device import evaluation_mode, progress_bar
from qa_helpers.evaluation.span_answers import BATCH_SIZE
from qa_helpers.rlhf.policy import Question, forward, passage_mask, span_log_probs


@dataclass(frozen=True)
class Reference:
    """What the frozen reference says of one question: of each token of its passage. On the CPU."""

    question: Question
    states: torch.Tensor  # (tokens, units) of the last layer, float16 to halve the memory
    start_logits: torch.Tensor  # (tokens,)
    end_logits: torch.Tensor  # (tokens,)


@dataclass(frozen=True)
class ReferenceBatch:
    """The same of several questions, padded to the longest passage, on one device."""

    questions: list[Question]
    states: torch.Tensor  # (batch, tokens, units), float32; 0 past a passage's end
    log_ref: torch.Tensor  # (batch, actions): the reference's policy

    def __len__(self) -> int:
        """Questions in it."""
        return len(self.questions)


def ask_reference(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], batch_size: int = BATCH_SIZE
) -> list[Reference]:
    """What a model says of questions now, kept while the model itself is changed: so no second model is needed.

    Takes 2 bytes a unit and token: of MiniLM and a passage of 130 tokens, 100 kB a question.
    """
    found: dict[int, Reference] = {}
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].window))
    with evaluation_mode(model), torch.no_grad(), progress_bar(total=len(order), desc="reference") as bar:
        for at in range(0, len(order), batch_size):
            places = order[at : at + batch_size]
            start, end, states = (
                part.cpu() for part in forward(model, tokenizer, [questions[i] for i in places], states=True)
            )
            for row, i in enumerate(places):
                n = questions[i].tokens  # clones, or a view would keep the padded batch
                found[i] = Reference(questions[i], states[row, :n].half(), start[row, :n].clone(), end[row, :n].clone())
            bar.update(len(places))
    return [found[i] for i in range(len(questions))]


def collate(references: Sequence[Reference], device: torch.device | str = "cpu") -> ReferenceBatch:
    """A batch of them."""
    questions = [one.question for one in references]
    parts = zip(*((one.states, one.start_logits, one.end_logits) for one in references), strict=True)
    states, start_logits, end_logits = (
        nn.utils.rnn.pad_sequence([one.float() for one in part], batch_first=True).to(device) for part in parts
    )
    log_ref = span_log_probs(start_logits, end_logits, passage_mask(questions).to(device))
    return ReferenceBatch(questions, states, log_ref)
