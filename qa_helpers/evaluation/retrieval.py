"""What an encoder could do before it was fine-tuned: find the passage that a question is about.

A text's *embedding* is the mean of its tokens' last hidden states, scaled to length one; the nearest passage is the
one with the largest inner product. MiniLM was trained for this. Source: Reimers and Gurevych 2019, arXiv:1908.10084.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import autocast, evaluation_mode, longest_first, progress_bar
from qa_helpers.data.rows import DataError, Row, check_rows, check_text, row_id
from qa_helpers.model.trainable import encoder

MAX_TOKENS = 256  # the rest of a longer text is cut off, as MiniLM's publishers do
BATCH_SIZE = 32  # texts a forward call


@torch.inference_mode()
def embed(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], progress: str = "reading"
) -> torch.Tensor:
    """Embeddings of texts, (texts, hidden size), each of length one, float32 on the CPU.

    Raises:
        DataError: if there are no texts, or one of them is no text.
    """
    if not texts:
        raise DataError("there are no texts to embed; give one or more")
    for number, text in enumerate(texts):
        check_text(text, f"text {number}")
    device = next(model.parameters()).device
    network = encoder(model)
    rows: list[torch.Tensor] = [torch.empty(0)] * len(texts)
    with evaluation_mode(model), progress_bar(total=len(texts), desc=progress, unit="text") as bar:
        for chosen in longest_first([len(text) for text in texts], BATCH_SIZE):
            batch = tokenizer(
                [texts[i] for i in chosen],
                truncation=True,
                max_length=min(MAX_TOKENS, tokenizer.model_max_length),
                padding=True,
                split_special_tokens=True,  # "[SEP]" in a text is five letters, no control token
                return_tensors="pt",
            ).to(device)
            with autocast(device):
                hidden = network(**batch).last_hidden_state.float()
            real = batch["attention_mask"][:, :, None].float()
            means = nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=1).cpu()
            for i, mean in zip(chosen, means, strict=True):
                rows[i] = mean
            bar.update(len(chosen))
    return torch.stack(rows)


def ranks(question_embeddings: torch.Tensor, passage_embeddings: torch.Tensor, right: Sequence[int]) -> list[int]:
    """The place of each question's right passage among all passages by similarity, 1 the best; ties count against it.

    Args:
        question_embeddings: (questions, hidden size).
        passage_embeddings: (passages, hidden size).
        right: for each question, the row of its passage.
    """
    similarity = question_embeddings @ passage_embeddings.T
    own = similarity[torch.arange(len(right)), torch.tensor(right)]
    places: list[int] = (similarity >= own[:, None]).sum(1).tolist()
    return places


def retrieval_ranks(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, rows: Iterable[Row], passages: Sequence[str]
) -> list[int]:
    """How each question ranks its own passage among `passages`, see `ranks`.

    Raises:
        DataError: if a question's passage is not among them, there are no questions, or a row lacks a text.
    """
    rows = check_rows(rows)
    index_of = {passage: i for i, passage in enumerate(passages)}
    missing = next((i for i, row in enumerate(rows) if row["context"] not in index_of), None)
    if missing is not None:
        id = row_id(rows[missing], missing)
        raise DataError(f"the passage of question '{id}' is not among the passages to choose from; add it")
    questions = embed(model, tokenizer, [row["question"] for row in rows], "reading questions")
    return ranks(
        questions, embed(model, tokenizer, passages, "reading passages"), [index_of[row["context"]] for row in rows]
    )
