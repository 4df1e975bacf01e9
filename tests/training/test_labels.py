"""Soft labels: distributions over a window's own tokens, a loss as PyTorch has it, and the stock loss where hard."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from qa_helpers.data.windows import make_windows
from qa_helpers.data.windows import training_features as hard_features
from qa_helpers.training.labels import SoftLabelCollator, soft_loss, soft_targets, training_features
from qa_helpers.training.trainer import Settings, train


@st.composite
def batches(draw):
    """(spans of each window, length of each window)"""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    position = [st.integers(0, length - 1) for length in lengths]
    spans = [draw(st.lists(st.tuples(one, one), min_size=1, max_size=3)) for one in position]
    return spans, lengths


def logits_like(targets, seed):
    generator = torch.Generator().manual_seed(seed)
    start, end = (4 * torch.randn(len(targets), targets.shape[2], generator=generator) for _ in range(2))
    return QuestionAnsweringModelOutput(start_logits=start.requires_grad_(), end_logits=end.requires_grad_())


def entropy(targets):
    """Of each window's start and end together, (batch,)."""
    return torch.special.entr(targets).sum((1, 2))


@given(batches(), st.floats(0, 0.99))
def test_targets_are_distributions_over_the_windows_own_tokens(batch, smoothing):
    spans, lengths = batch
    targets = soft_targets(spans, lengths, smoothing)
    assert targets.shape == (len(spans), 2, max(lengths))
    torch.testing.assert_close(targets.sum(2), torch.ones(len(spans), 2))
    for target, answers, length in zip(targets, spans, lengths, strict=True):
        assert not target[:, length:].any()
        assert (target[:, :length] >= smoothing / length - 1e-6).all()
        for which in (0, 1):
            for token in range(length):
                share = sum(answer[which] == token for answer in answers) / len(answers)
                expected = (1 - smoothing) * share + smoothing / length
                assert float(target[which, token]) == pytest.approx(expected, abs=1e-6)


@given(batches(), st.integers(0, 1000))
def test_hard_targets_give_the_stock_loss(batch, seed):
    spans, lengths = batch
    targets = soft_targets([answers[:1] for answers in spans], lengths)
    assert set(targets.unique().tolist()) <= {0.0, 1.0}
    outputs = logits_like(targets, seed)
    starts, ends = torch.tensor([answers[0] for answers in spans]).unbind(1)
    stock = (cross_entropy(outputs.start_logits, starts) + cross_entropy(outputs.end_logits, ends)) / 2
    torch.testing.assert_close(soft_loss(outputs, targets), stock)


@given(st.integers(2, 9), st.integers(1, 4), st.floats(0.01, 0.9), st.integers(0, 1000))
def test_smoothing_is_pytorchs_label_smoothing_less_the_labels_entropy(length, size, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(length, (size, 2), generator=generator)
    targets = soft_targets([[tuple(label)] for label in labels.tolist()], [length] * size, smoothing)
    outputs = logits_like(targets, seed)
    start = cross_entropy(outputs.start_logits, labels[:, 0], label_smoothing=smoothing)
    end = cross_entropy(outputs.end_logits, labels[:, 1], label_smoothing=smoothing)
    plain = (start + end) / 2
    loss = soft_loss(outputs, targets, num_items_in_batch=None)
    torch.testing.assert_close(loss, plain - entropy(targets).mean() / 2, atol=1e-5, rtol=1e-5)
    parts = (outputs.start_logits, outputs.end_logits)
    for one, other in zip(torch.autograd.grad(loss, parts), torch.autograd.grad(plain, parts), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@given(batches(), st.floats(0, 0.9), st.integers(0, 1000))
def test_the_loss_is_zero_for_the_targets_themselves_and_more_for_all_else(batch, smoothing, seed):
    targets = soft_targets(*batch, smoothing)
    start, end = targets.clamp(min=1e-30).log().unbind(1)
    assert float(soft_loss(QuestionAnsweringModelOutput(start_logits=start, end_logits=end), targets)) < 1e-5
    assert float(soft_loss(logits_like(targets, seed), targets).detach()) > -1e-6


# ---- windows ----------------------------------------------------------------------------------------------------
def test_the_labels_are_the_first_annotators_or_the_mean_over_all_in_the_window(tokenizer):
    answers = {"text": ["New York", "York", "York", "far"], "answer_start": [0, 4, 4, 24]}
    row = {"id": "q", "question": "Where?", "context": "New York is not so very far", "answers": answers}
    [window] = make_windows([row], tokenizer)
    p = window.first
    assert window.spans == [(p, p + 1), (p + 1, p + 1), (p + 1, p + 1), (p + 6, p + 6)]
    assert training_features([window])[0]["spans"] == [(p, p + 1)]
    [features] = training_features([window], "all")
    assert features == window.inputs | {"spans": window.spans}
    [target] = soft_targets([features["spans"]], [len(window)])
    assert target[0].nonzero().tolist() == [[p], [p + 1], [p + 6]]
    assert target[0, [p, p + 1, p + 6]].tolist() == [0.25, 0.5, 0.25]
    assert target[1, [p + 1, p + 6]].tolist() == [0.75, 0.25]


def test_an_answer_outside_of_the_window_has_no_part_and_where_all_are_cls_is_the_label(tokenizer):
    context = " ".join(f"w{i}" for i in range(60))
    answers = {"text": ["w0", "w59", "w0"], "answer_start": [0, context.index("w59"), 0]}
    windows = make_windows(
        [{"id": "q", "question": "Which?", "context": context, "answers": answers}], tokenizer, max_length=40, stride=8
    )
    assert len(windows) > 2
    spans = [one["spans"] for one in training_features(windows, "all")]
    first, last = windows[0], windows[-1]
    assert spans[0] == [(first.start, first.end)] * 2
    assert spans[-1] == [last.spans[1]] != [(0, 0)]
    assert all(one == [(0, 0)] for one in spans[1:-1])
    assert [one["spans"] for one in training_features(windows)] == [[(window.start, window.end)] for window in windows]


def test_where_a_question_has_one_answer_the_targets_are_the_same(tokenizer, course):
    rows = [row | {"answers": {name: part[:1] for name, part in row["answers"].items()}} for row in course[:30]]
    windows = make_windows(rows, tokenizer)
    assert training_features(windows, "all") == training_features(windows, "first")
    assert training_features(make_windows(course[:30], tokenizer), "all") != training_features(windows, "all")


def test_batches_are_padded_to_their_longest_window(tokenizer, course):
    windows = sorted(make_windows(course[:3], tokenizer), key=len)
    batch = SoftLabelCollator(tokenizer, 0.1)(training_features(windows, "all"))
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == [len(window) for window in windows]
    assert batch["labels"].shape == (3, 2, lengths[-1])
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert torch.equal(batch["labels"] > 0, (batch["attention_mask"] == 1)[:, None].expand(-1, 2, -1))


def test_training_on_hard_labels_is_the_stock_training(tmp_path, tokenizer, course, tiny_model):
    windows = make_windows(course[:12], tokenizer)
    found = []
    for soft in (False, True):
        model = tiny_model()
        torch.manual_seed(0)
        features = training_features(windows) if soft else hard_features(windows)
        how = (SoftLabelCollator(tokenizer), soft_loss) if soft else ()
        settings = Settings(epochs=2, batch_size=4, learning_rate=1e-3, log_every=1)
        found.append(train(model, tokenizer, features, settings, tmp_path / str(soft), None, *how).losses)
    assert [step for step, _ in found[0]] == [step for step, _ in found[1]]
    assert [loss for _, loss in found[0]] == pytest.approx([loss for _, loss in found[1]], rel=1e-3)
    assert found[0][-1][1] < found[0][0][1]
