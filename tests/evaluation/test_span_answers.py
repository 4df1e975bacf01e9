"""Evaluation: the metrics against torchmetrics', the span search against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_helpers.common import device
from qa_helpers.data import windows
from qa_helpers.evaluation import span_answers
from qa_helpers.evaluation.span_answers import answer, best_spans
from qa_helpers.model.load import load_qa_model


# ---- the span search against a plain double loop ----------------------------------------------------------------
def plain_search(starts, ends, allowed, max_tokens):
    """[(score, start, end)] of every allowed span, in float32 as the search computes."""
    return [
        (float(np.float32(starts[s]) + np.float32(ends[e])), s, e)
        for s in range(len(starts))
        for e in range(s, min(s + max_tokens, len(starts)))
        if allowed[s] and allowed[e]
    ]


LOGITS = st.floats(-30, 30, width=32) | st.integers(-2, 2).map(float)  # the whole numbers make ties


@settings(max_examples=400)
@given(st.data(), st.integers(1, 12), st.integers(1, 3), st.integers(1, 30), st.integers(1, 14))
def test_best_spans_equal_a_double_loop(data, tokens, batch, n_best, max_tokens):
    def table(values):
        return data.draw(st.lists(st.lists(values, min_size=tokens, max_size=tokens), min_size=batch, max_size=batch))

    starts, ends, allowed = table(LOGITS), table(LOGITS), table(st.booleans())
    found = best_spans(torch.tensor(starts), torch.tensor(ends), torch.tensor(allowed), n_best, max_tokens)
    for row in range(batch):
        every = plain_search(starts[row], ends[row], allowed[row], max_tokens)
        best = sorted(every, reverse=True)[:n_best]
        scores, first, last = (tensor[row].tolist() for tensor in found[:3])
        spans = [span for span in zip(scores, first, last, strict=True) if span[0] > -math.inf]
        assert [span[0] for span in spans] == [span[0] for span in best]
        assert len(set(spans)) == len(spans)
        assert set(spans) <= set(every)
        if len({span[0] for span in every}) == len(every):  # without ties there is one order
            assert spans == best
        total = float(np.logaddexp.reduce([span[0] for span in every])) if every else -math.inf
        assert found.log_total[row].item() == pytest.approx(total, rel=1e-5, abs=1e-4)


def test_best_spans_of_a_real_size_equal_a_double_loop():
    draw = torch.Generator().manual_seed(0)
    starts, ends = torch.randn(4, 384, generator=draw) * 4, torch.randn(4, 384, generator=draw) * 4
    allowed = torch.zeros(4, 384, dtype=torch.bool)
    for row, (a, b) in enumerate([(12, 383), (0, 384), (20, 21), (300, 340)]):
        allowed[row, a:b] = True
    found = best_spans(starts, ends, allowed)
    assert found.scores.shape == (4, 20)
    for row in range(4):
        best = sorted(plain_search(starts[row].tolist(), ends[row].tolist(), allowed[row].tolist(), 30), reverse=True)
        expected = best[:20] + [(-math.inf, None, None)] * (20 - len(best))
        assert found.scores[row].tolist() == [span[0] for span in expected]
        finite = [span[1:] for span in expected if span[1] is not None]
        assert list(zip(found.starts[row].tolist(), found.ends[row].tolist(), strict=True))[: len(finite)] == finite


def test_bfloat16_logits_are_searched_in_float32():
    logits = torch.tensor([[0.0, 256.0]], dtype=torch.bfloat16)
    small = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    assert best_spans(logits, small, torch.ones(1, 2, dtype=torch.bool)).scores[0, 0] == 257  # no bfloat16 number


# ---- answering --------------------------------------------------------------------------------------------------
@pytest.fixture
def in_float32(monkeypatch):
    """Without bfloat16, so that a batch and a window alone give nearly the same logits."""
    monkeypatch.setattr(device, "has_native_bf16", lambda device=None: False)


@pytest.fixture(scope="module")
def model():
    return load_qa_model(seed=3).eval()


def plain_answer(model, tokenizer, row, max_length, stride):
    """One question's best distinct spans [(score, start, end)] in characters, and the log of all spans' sum."""
    best, scores, losses = {}, [], []
    for window in windows.make_windows([row], tokenizer, max_length, stride):
        inputs = {name: torch.tensor([values]) for name, values in window.inputs.items()}
        with torch.inference_mode():
            output = model(
                **inputs, start_positions=torch.tensor([window.start]), end_positions=torch.tensor([window.end])
            )
        losses.append(output.loss.item())
        allowed = [window.first <= i < window.first + len(window.offsets) for i in range(len(window))]
        for score, s, e in plain_search(output.start_logits[0].tolist(), output.end_logits[0].tolist(), allowed, 30):
            place = window.characters(s, e)
            best[place] = max(score, best.get(place, -math.inf))
            scores.append(score)
    return sorted(((score, *place) for place, score in best.items()), reverse=True), np.logaddexp.reduce(scores), losses


def test_answers_equal_those_of_plain_loops_a_window_at_a_time(in_float32, model, tokenizer, course):
    rows = course[:600:50]
    found = answer(model, tokenizer, rows, n_best=5, max_length=64, stride=16)
    losses = []
    for row, prediction in zip(rows, found.predictions, strict=True):
        expected, log_total, row_losses = plain_answer(model, tokenizer, row, 64, 16)
        losses += row_losses
        assert prediction.id == row["id"]
        assert len(prediction.n_best) == 5
        known = {(start, row["context"][start:end]): score for score, start, end in expected}
        for span, (score, _, _) in zip(prediction.n_best, expected, strict=False):
            assert span.score == pytest.approx(score, abs=1e-3)
            assert known[span.start, span.text] == pytest.approx(score, abs=1e-3)
            assert span.probability == pytest.approx(math.exp(score - log_total), rel=1e-2)
        assert len({(span.start, span.text) for span in prediction.n_best}) == 5
    assert len(losses) > 2 * len(rows)  # most passages take several windows
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_answering_leaves_the_model_as_it_was(model, tokenizer, course):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    first = answer(model, tokenizer, course[:3])
    assert model.training
    assert first == answer(model.eval(), tokenizer, course[:3])
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_new_questions_need_no_id_and_no_answer(model, tokenizer, course):
    rows = [{key: row[key] for key in ("question", "context")} for row in course[:2]]
    found = answer(model, tokenizer, rows, n_best=3)
    assert [prediction.id for prediction in found.predictions] == ["0", "1"]
    assert math.isnan(found.loss)
    for row, prediction in zip(rows, found.predictions, strict=True):
        assert prediction.text in row["context"]
        assert 0 < prediction.confidence < 1
        assert [span.score for span in prediction.n_best] == sorted(
            (span.score for span in prediction.n_best), reverse=True
        )


def test_an_answer_has_at_most_thirty_tokens(model, tokenizer, course):
    for prediction in answer(model, tokenizer, course[:3]).predictions:
        for span in prediction.n_best:
            assert (
                1 <= len(tokenizer(span.text, add_special_tokens=False)["input_ids"]) <= span_answers.MAX_ANSWER_TOKENS
            )


def test_nothing_to_answer_from_gives_an_empty_prediction(model, tokenizer):
    [prediction] = answer(model, tokenizer, [{"question": "Who?", "context": ""}]).predictions
    assert (prediction.text, prediction.confidence) == ("", 0.0)
    assert answer(model, tokenizer, []).predictions == []
