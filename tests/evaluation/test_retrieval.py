"""Retrieval: embeddings by hand, ranks against a plain loop, and what MiniLM finds."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qa_helpers.data.rows import DataError
from qa_helpers.data.squad import load_qa
from qa_helpers.evaluation import retrieval
from qa_helpers.evaluation.retrieval import BATCH_SIZE, MAX_TOKENS, embed, ranks, retrieval_ranks
from qa_helpers.model.load import load_qa_model
from qa_helpers.model.trainable import encoder, set_trainable

TEXTS = ["Tea", "Tea is made from leaves.", "Who keeps a lighthouse?", "", "日本語 😀", "word " * 60]


@pytest.fixture(scope="module")
def model():
    return load_qa_model().eval()


@pytest.fixture
def float32(monkeypatch):
    """No bfloat16, whose rounding hides small differences and depends on the padding."""
    monkeypatch.setattr(retrieval, "autocast", lambda _device: contextlib.nullcontext())


# ---- embeddings -------------------------------------------------------------------------------------------------
def test_an_embedding_is_the_mean_of_the_tokens_hidden_states_scaled_to_length_one(float32, model, tokenizer):
    for text, found in zip(TEXTS, embed(model, tokenizer, TEXTS), strict=True):
        with torch.inference_mode():
            hidden = model.bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0)
        torch.testing.assert_close(found, mean / mean.square().sum().sqrt(), atol=1e-4, rtol=1e-4)


def test_embeddings_have_length_one_and_do_not_depend_on_order_or_batch(float32, model, tokenizer, course):
    texts = [*TEXTS, *(one["question"] for one in course[:BATCH_SIZE])]
    together = embed(model, tokenizer, texts)
    assert together.shape == (len(TEXTS) + BATCH_SIZE, 384)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(texts)))
    torch.testing.assert_close(embed(model, tokenizer, texts[::-1]).flip(0), together, atol=1e-4, rtol=0)
    for text, row in zip(texts[:8], together, strict=False):
        torch.testing.assert_close(embed(model, tokenizer, [text])[0], row, atol=1e-4, rtol=0)


def test_in_this_machines_number_format_embeddings_are_nearly_those_of_float32(model, tokenizer, monkeypatch):
    usual = embed(model, tokenizer, TEXTS)
    assert usual.dtype == torch.float32
    torch.testing.assert_close(usual.norm(dim=1), torch.ones(len(TEXTS)))
    monkeypatch.setattr(retrieval, "autocast", lambda _device: contextlib.nullcontext())
    assert (usual * embed(model, tokenizer, TEXTS)).sum(1).min() > 0.999


def test_the_rest_of_a_long_text_is_not_read(float32, model, tokenizer):
    kept = "tea " * (MAX_TOKENS - 2)
    first, same, shorter = embed(model, tokenizer, [kept, kept + "and a lighthouse " * 50, kept[:-4] + "lighthouse"])
    torch.testing.assert_close(first, same, atol=1e-4, rtol=0)
    assert not torch.allclose(first, shorter, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_embedding_is_without_dropout_and_restores_the_mode(tokenizer, training):
    model = load_qa_model().train(training)
    assert torch.equal(embed(model, tokenizer, TEXTS), embed(model, tokenizer, TEXTS))
    assert {module.training for module in model.modules()} == {training}


def test_the_mode_is_restored_after_an_error(tokenizer):
    model = load_qa_model().train()
    model.bert.encoder = None
    with pytest.raises(TypeError):
        embed(model, tokenizer, TEXTS)
    assert model.training


def test_the_encoder_is_the_model_without_its_head(model):
    assert encoder(model) is model.bert
    assert encoder(model.bert) is model.bert


def test_an_adapter_stays_in_the_encoder(float32, model, tokenizer):
    adapted = set_trainable(load_qa_model(), "lora").eval()
    inside = encoder(adapted)
    assert type(inside) is type(model.bert)
    torch.testing.assert_close(embed(adapted, tokenizer, TEXTS), embed(model, tokenizer, TEXTS), atol=1e-4, rtol=0)
    torch.manual_seed(0)
    for name, weights in inside.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    changed = embed(adapted, tokenizer, TEXTS)
    assert not torch.allclose(changed, embed(model, tokenizer, TEXTS), atol=0.05)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(changed, embed(merged, tokenizer, TEXTS), atol=1e-3, rtol=0)


# ---- ranks ------------------------------------------------------------------------------------------------------
def test_ranks_by_hand():
    passages = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 1.0]])
    questions = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert ranks(questions, passages, [0, 2, 2, 1, 0]) == [1, 2, 3, 2, 4]  # two passages are alike: a tie counts


def embeddings(size):
    """Whole numbers, so that products are exact and often tie."""
    return st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=1, max_size=size)


@given(st.data(), embeddings(5), embeddings(6))
def test_ranks_count_the_passages_that_are_at_least_as_near(data, questions, passages):
    places = st.integers(0, len(passages) - 1)
    right = data.draw(st.lists(places, min_size=len(questions), max_size=len(questions)))
    expected = []
    for question, own in zip(questions, right, strict=True):
        near = [sum(a * b for a, b in zip(question, passage, strict=True)) for passage in passages]
        expected.append(1 + sum(near[i] >= near[own] for i in range(len(passages)) if i != own))
    assert ranks(torch.tensor(questions).float(), torch.tensor(passages).float(), right) == expected


def test_minilm_finds_most_passages_of_courseqa(model, tokenizer):
    rows = list(load_qa("courseqa", "validation"))
    passages = list(dict.fromkeys(one["context"] for one in rows))
    found = retrieval_ranks(model, tokenizer, rows, passages)
    assert len(found) == len(rows)
    assert all(1 <= place <= len(passages) for place in found)
    recall = sum(place == 1 for place in found) / len(rows)
    assert len(passages) == 30  # chance finds one in 30
    assert recall > 0.6


def test_the_passages_order_does_not_matter_nor_do_others_that_are_further_away(float32, model, tokenizer, course):
    rows = course[:12]
    passages = list(dict.fromkeys(one["context"] for one in rows))
    found = retrieval_ranks(model, tokenizer, iter(rows), passages)
    assert retrieval_ranks(model, tokenizer, rows, passages[::-1]) == found
    nonsense = ["zzz", "0 0 0 0"]
    assert retrieval_ranks(model, tokenizer, rows, nonsense + passages) == found


def test_a_passage_that_is_missing_names_the_question(model, tokenizer, course):
    passages = [course[0]["context"]]
    stray = course[0] | {"id": "stray", "context": "Nothing of the kind.", "answers": None}
    sentence = "^the passage of question 'stray' is not among the passages to choose from; add it$"
    with pytest.raises(DataError, match=sentence):
        retrieval_ranks(model, tokenizer, [course[0], stray], passages)
