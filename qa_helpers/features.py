"""From questions to windows: the token sequences that the model reads.

A passage can be longer than a model's input, so each question becomes one or more *windows*::

    [CLS] question [SEP] part of the passage [SEP]

of at most `MAX_LENGTH` tokens; consecutive parts share `STRIDE` tokens, so that an answer cut by one window's edge
stands whole in another. Source: Devlin et al. 2018, "BERT", arXiv:1810.04805, and its run_squad.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qa_helpers.data import DataError

MAX_LENGTH = 384  # tokens a window; BERT's choice for SQuAD
STRIDE = 128  # tokens that consecutive windows of one passage share; likewise


@dataclass(frozen=True)
class Window:
    """One model input and where its tokens lie in the passage.

    `first` is the position of the first passage token; `offsets[i]` are the start and end (exclusive) characters in
    the passage of the token at position `first + i`. `start` and `end` are the positions of the answer's first and
    last token (the first annotator's answer), or 0, the [CLS] token, where this window does not hold it whole.
    """

    question: int  # index of the question in the data set
    inputs: dict[str, list[int]]  # what the tokenizer gives the model: input_ids and, for most, token_type_ids
    first: int
    offsets: np.ndarray  # (passage tokens, 2)
    start: int
    end: int

    def __len__(self) -> int:
        """Tokens in the window."""
        return len(self.inputs["input_ids"])

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """The passage characters (end exclusive) that the tokens `start` to `end` cover."""
        return int(self.offsets[start - self.first, 0]), int(self.offsets[end - self.first, 1])


def make_windows(
    rows: Iterable[dict[str, Any]], tokenizer: Any, max_length: int = MAX_LENGTH, stride: int = STRIDE
) -> list[Window]:
    """Cut questions and passages into windows, in the questions' order.

    Args:
        rows: questions with the columns of `qa_helpers.data`; `answers` may be absent, as for a new question.
        tokenizer: a fast tokenizer.
        max_length: tokens a window at most.
        stride: tokens that consecutive windows of a passage share.

    Raises:
        DataError: if a question is so long that no passage fits beside it.
    """
    rows = list(rows)
    if not rows:
        return []
    _check_lengths(rows, tokenizer, max_length, stride)
    encoded = tokenizer(
        [row["question"] for row in rows],
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        padding=False,
        return_attention_mask=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    windows = []
    for i, question in enumerate(encoded["overflow_to_sample_mapping"]):
        sequence = encoded.sequence_ids(i)
        passage = [position for position, part in enumerate(sequence) if part == 1]
        first = passage[0] if passage else len(sequence)
        offsets = np.array(encoded["offset_mapping"][i][first : first + len(passage)]).reshape(-1, 2)
        start, end = _answer_tokens(rows[question].get("answers"), offsets, first)
        windows.append(Window(question, {n: encoded[n][i] for n in names}, first, offsets, start, end))
    return windows


def _check_lengths(rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int, stride: int) -> None:
    most = max_length - stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
    for row, ids in zip(rows, tokenizer([r["question"] for r in rows], truncation=False)["input_ids"], strict=True):
        if len(ids) > most:
            raise DataError(
                f"question '{row.get('id', row['question'][:40])}' is {len(ids)} tokens long; windows of {max_length} "
                f"tokens with stride {stride} leave room for {most}: shorten it"
            )


def _answer_tokens(answers: dict[str, list[Any]] | None, offsets: np.ndarray, first: int) -> tuple[int, int]:
    """Positions of the first answer's first and last token, (0, 0) if it does not lie whole in the window."""
    if not answers or not len(offsets):
        return 0, 0
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    if begin < offsets[0, 0] or end > offsets[-1, 1]:
        return 0, 0
    # The last token that starts at or before the answer's first character, the first that reaches its last one.
    start_token = int(np.searchsorted(offsets[:, 0], begin, side="right")) - 1
    end_token = int(np.searchsorted(offsets[:, 1], end, side="left"))
    return first + start_token, first + max(start_token, end_token)


def training_features(windows: Iterable[Window]) -> list[dict[str, Any]]:
    """Windows as the inputs of a model's forward call, labels included, one dictionary of lists a window."""
    return [window.inputs | {"start_positions": window.start, "end_positions": window.end} for window in windows]
