"""Several models as one.

Models of one base model are combined, with nothing trained, in two ways:

- an *ensemble* answers by the mean of its members' logits (Lakshminarayanan et al. 2017, arXiv:1612.01474): every
  member is asked, so that an answer costs as much as all of theirs;
- an *average* is one model whose weights are the mean of its members' (Wortsman et al. 2022, arXiv:2203.05482): it
  costs as much as one.
"""

from collections.abc import Iterable

import torch
from torch import nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput


class Ensemble(nn.Module):
    """Span models of one tokenizer as one, whose logits are the mean of theirs.

    Within a window that is the mean of their log probabilities (the geometric mean of their probabilities, where
    Lakshminarayanan et al. take the arithmetic one): a constant apart, which changes no choice. Between the windows
    of a question it compares what one model compares, its logits; so an ensemble of copies of a model answers as it.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        """Of these models, on one device."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, **inputs: torch.Tensor) -> QuestionAnsweringModelOutput:
        """The members' mean `start_logits` and `end_logits`, (batch, tokens), as one model gives them."""
        outputs = [member(**inputs) for member in self.members]
        return QuestionAnsweringModelOutput(
            start_logits=torch.stack([output.start_logits for output in outputs]).mean(0),
            end_logits=torch.stack([output.end_logits for output in outputs]).mean(0),
        )


@torch.no_grad()
def average_weights(model: nn.Module, others: Iterable[nn.Module]) -> None:
    """Set each parameter of `model` to its mean over `others`, models of the same form, of which one is held at once.

    Of runs from one start: Wortsman et al. 2022; of the last epochs of one run: Izmailov et al. 2018,
    arXiv:1803.05407. Summed in float64, so that their order does not matter.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for other in others:
        count += 1
        for name, parameter in other.named_parameters():
            sums[name] = sums.get(name, 0) + parameter.cpu().double()
    for name, parameter in model.named_parameters():
        parameter.copy_(sums[name] / count)
