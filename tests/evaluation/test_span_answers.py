"""Evaluation: the metrics against torchmetrics', the span search against plain loops."""

import itertools
import math
import random
import string

import numpy as np
import pytest
import torch
from answer_texts import texts
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from qa_helpers.common import device
from qa_helpers.data import windows
from qa_helpers.data.squad import DataError, load_qa
from qa_helpers.evaluation import span_answers
from qa_helpers.evaluation.span_answers import (
    CATEGORIES,
    Prediction,
    Span,
    answer,
    best_spans,
    contained,
    error_category,
    evaluate,
    exact_match,
    f1,
    normalize_answer,
    string_equality,
)
from qa_helpers.model.load import load_qa_model


# ---- metrics against torchmetrics -------------------------------------------------------------------------------
def check_against_torchmetrics(prediction, answers):
    """EM and F1 of one prediction; where both sides are empty once normalised the two differ, see below."""
    target = {"id": "1", "answers": {"text": list(answers), "answer_start": [0] * len(answers)}}
    expected = {name: value.item() for name, value in squad({"id": "1", "prediction_text": prediction}, target).items()}
    if not normalize_answer(prediction):
        expected["f1"] = 0.0
    assert 100 * exact_match(prediction, answers) == expected["exact_match"], (prediction, answers)
    assert 100 * f1(prediction, answers) == pytest.approx(expected["f1"], abs=1e-4), (prediction, answers)


def perturbed(text, draw):
    """An answer as a model may give it: with an article, punctuation or a word more or less, in other case, cut."""
    words = text.split()
    return draw.choice(
        [
            f"the {text}",
            f"An {text}.",
            f"'{text}'",
            text.upper(),
            text.replace(" ", "  "),
            " ".join(words[1:]),
            " ".join(words[:-1]),
            " ".join(reversed(words)),
            " ".join([*words, draw.choice(words)]),
            text[draw.randrange(len(text)) :],
            text + draw.choice(string.punctuation) + text,
        ]
    )


def test_em_and_f1_equal_torchmetrics_on_courseqas_answers():
    """Every annotator against the others, and predictions that are answers of this or another question, perturbed."""
    draw = random.Random(0)
    questions = [row["answers"]["text"] for split in ("train", "validation") for row in load_qa("courseqa", split)]
    pairs = 0
    for answers in questions:
        predictions = [perturbed(draw.choice(answers), draw) for _ in range(2)]
        predictions.append(perturbed(draw.choice(draw.choice(questions)), draw))
        for prediction in predictions:
            check_against_torchmetrics(prediction, answers)
        for one, other in itertools.permutations(answers, 2):
            check_against_torchmetrics(one, [other])
        pairs += len(predictions) + 6
    assert pairs == 828 * 9


@settings(max_examples=3000, database=None)
@given(texts() | st.text(max_size=8), st.lists(texts() | st.text(max_size=8), min_size=1, max_size=3))
def test_em_and_f1_equal_torchmetrics_on_generated_strings(prediction, answers):
    check_against_torchmetrics(prediction, answers)


@pytest.mark.parametrize(("prediction", "given_answer"), [("the", "the"), ("The!", "a"), ("", "..."), ("an an", "the")])
def test_two_texts_that_normalise_to_nothing_match_exactly_with_an_f1_of_0(prediction, given_answer):
    """As evaluate-v1.1.py has it. torchmetrics gives an F1 of 1 here, as SQuAD 2.0's script does."""
    assert exact_match(prediction, [given_answer])
    assert f1(prediction, [given_answer]) == 0
    target = {"id": "1", "answers": {"text": [given_answer], "answer_start": [0]}}
    assert squad({"id": "1", "prediction_text": prediction}, target)["f1"] == 100


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Arizona Cardinals", "arizona cardinals"),
        ("  a\tcat,  an\nOWL!", "cat owl"),
        ("theatre", "theatre"),
        ("the-atre", "theatre"),  # punctuation goes first and leaves no gap
        ("A.", ""),
        ("a'the", "athe"),
        ("$1,000.50", "100050"),
        ("“the”", "“ ”"),  # only ASCII punctuation is removed
        ("ÉTÉ", "été"),
    ],
)
def test_normalising(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "equal", "em", "f1_score", "holds", "category"),
    [
        ("Arizona Cardinals", ["Arizona Cardinals"], True, True, 1, True, "exact"),
        ("arizona cardinals", ["Arizona Cardinals"], True, True, 1, True, "exact"),
        ("arizona cardinals", ["the Arizona Cardinals"], False, True, 1, True, "exact"),
        ("Cardinals", ["x", "the cardinals!"], False, True, 1, True, "exact"),
        ("cam newton", ["the Arizona Cardinals"], False, False, 0, False, "elsewhere"),
        ("beat the Arizona Cardinals", ["Arizona Cardinals"], False, False, 4 / 5, True, "too long"),
        ("Arizona", ["x", "Arizona Cardinals"], False, False, 2 / 3, False, "too short"),
        ("Arizona team", ["Arizona Cardinals"], False, False, 1 / 2, False, "overlap"),
        ("cardinal", ["cardinals"], False, False, 0, False, "elsewhere"),  # whole words only
        ("supercardinals", ["cardinals"], False, False, 0, False, "elsewhere"),
        ("a a b b", ["a b c"], False, False, 0.5, False, "overlap"),  # b b against b c: a word counts once
        ("", ["x"], False, False, 0, False, "empty"),
        ("the", ["x"], False, False, 0, False, "empty"),
        ("the", ["a"], False, True, 0, False, "exact"),
        ("x y", ["y", "x y z"], False, False, 4 / 5, True, "too long"),  # both fit; the first category counts
    ],
)
def test_every_metric_and_category(prediction, answers, equal, em, f1_score, holds, category):
    row = {"id": "1", "answers": {"text": answers}}
    [result] = evaluate([Prediction("1", [Span(prediction, 0, 1.5, 0.25)])], [row])
    assert (result.id, result.prediction, result.confidence) == ("1", prediction, 0.25)
    assert (result.string_equality, result.exact_match, result.contained) == (equal, em, holds)
    assert result.f1 == pytest.approx(f1_score)
    assert result.category == category


@settings(max_examples=500)
@given(texts(), st.lists(texts(), min_size=1, max_size=3))
def test_the_metrics_and_categories_fit_together(prediction, answers):
    category, score = error_category(prediction, answers), f1(prediction, answers)
    assert category in CATEGORIES
    assert 0 <= score <= 1
    assert (category == "exact") == exact_match(prediction, answers)
    if string_equality(prediction, answers):
        assert category == "exact"
    if normalize_answer(prediction):
        if category == "exact":
            assert score == 1
            assert contained(prediction, answers)
        assert (score > 0) == (category not in ("elsewhere", "empty"))
        assert (category == "too long") == (contained(prediction, answers) and category != "exact")
    else:
        assert category in ("exact", "empty")
    assert f1(prediction, answers[::-1]) == score
    assert f1(prediction, [*answers, prediction]) >= score


def test_predictions_of_other_questions_are_refused(course):
    rows = course[:2]
    predictions = [Prediction(row["id"], []) for row in rows]
    assert [result.category for result in evaluate(predictions, rows)] == ["empty", "empty"]
    with pytest.raises(DataError, match=r"stands at question .*; put both in the same order"):
        evaluate(predictions[::-1], rows)
    with pytest.raises(DataError, match=r"^1 predictions were given for 2 questions; give one for each, in order$"):
        evaluate(predictions[:1], rows)
    with pytest.raises(DataError, match=r"^3 predictions were given for 2 questions"):
        evaluate([*predictions, predictions[0]], rows)


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
