"""Models combined: an ensemble of copies answers as one of them, and a mean of weights is the mean in any order."""

import copy

import pytest
import torch
from torch import nn

from qa_helpers.common.device import default_device
from qa_helpers.data.windows import make_windows
from qa_helpers.evaluation.span_answers import answer
from qa_helpers.model.combine import Ensemble, average_weights


def test_an_ensemble_of_copies_of_a_model_answers_as_it_also_with_several_windows(tiny_model, tokenizer, course):
    model = tiny_model().eval().to(default_device())
    rows = course[:10]
    assert len(make_windows(rows, tokenizer, 64, 16)) > 20
    alone, together = (
        answer(one, tokenizer, rows, max_length=64, stride=16)
        for one in (model, Ensemble([model, copy.deepcopy(model)]))
    )
    assert together == alone


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_mean_of_weights_does_not_depend_on_their_order(count):
    torch.manual_seed(count)
    members = [nn.Linear(3, 4) for _ in range(count)]
    forth, back = nn.Linear(3, 4), nn.Linear(3, 4)
    average_weights(forth, iter(members))
    average_weights(back, reversed(members))
    expected = torch.stack([member.weight for member in members]).mean(0)
    torch.testing.assert_close(forth.weight, expected)
    assert torch.equal(forth.weight, back.weight)
    assert torch.equal(forth.bias, back.bias)
    assert forth.weight.requires_grad
    average_weights(members[0], members)  # also into one of them
    assert torch.equal(members[0].weight, forth.weight)
