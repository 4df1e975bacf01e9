"""From questions to windows: the token sequences that the model reads.

A passage can be longer than a model's input, so each question becomes one or more *windows*::

    [CLS] question [SEP] part of the passage [SEP]

of at most `MAX_LENGTH` tokens; consecutive parts share `STRIDE` tokens, so that an answer cut by one window's edge
stands whole in another. Source: Devlin et al. 2018, "BERT", arXiv:1810.04805, and its run_squad.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from qa_helpers.data import DataError
from qa_helpers.files import CourseError

MAX_LENGTH = 384  # tokens a window; BERT's choice for SQuAD
STRIDE = 128  # tokens that consecutive windows of one passage share (in BERT's own script: the step between them)
CHUNK = 500  # questions tokenized at once: the tokenizer's own objects take far more memory than the windows


@dataclass(frozen=True)
class Window:
    """One model input and where its tokens lie in the passage.

    `first` is the position of the first passage token; `offsets[i]` are the start and end (exclusive) characters in
    the passage of the token at position `first + i`. `spans` are the positions of an answer's first and last token,
    for each annotator in order, or (0, 0), the [CLS] token, where this window does not hold that answer whole.
    """

    question: int  # index of the question in the data set
    inputs: dict[str, list[int]]  # what the tokenizer gives the model: input_ids and, for most, token_type_ids
    first: int
    offsets: np.ndarray  # (passage tokens, 2)
    spans: list[tuple[int, int]]

    @property
    def start(self) -> int:
        """The position of the first token of the first annotator's answer."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """The position of its last token."""
        return self.spans[0][1]

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
        CourseError: if the tokenizer loses the end of a passage.
    """
    rows = list(rows)
    windows = []
    for at in range(0, len(rows), CHUNK):
        chunk = rows[at : at + CHUNK]
        _check_lengths(chunk, tokenizer, max_length, stride)
        windows += cut(chunk, at, tokenizer, max_length, stride)
    for question, end in unread_ends(rows, windows, tokenizer).items():
        raise CourseError(
            f"the windows of question '{rows[question].get('id', question)}' end at character {end:,} of its passage's "
            f"{len(rows[question]['context']):,}: tokenizers {metadata.version('tokenizers')} loses text, as 0.23.1 "
            "and 0.23.2 do; install another version: pip install 'tokenizers>=0.22,!=0.23.1,!=0.23.2'"
        )
    return windows


def unread_ends(rows: Sequence[dict[str, Any]], windows: Iterable[Window], tokenizer: Any) -> dict[int, int]:
    """The questions whose windows end before the passage's last token, and the character at which they end."""
    ends = dict.fromkeys(range(len(rows)), 0)
    for window in windows:
        if len(window.offsets):
            ends[window.question] = max(ends[window.question], int(window.offsets[-1, 1]))
    rests = {question: rows[question]["context"][end:] for question, end in ends.items()}
    # Of what follows the last token, white space and lone accents make none.
    return {question: ends[question] for question, rest in rests.items() if rest.strip() and tokenizer.tokenize(rest)}


def cut(
    rows: Sequence[dict[str, Any]], number: int, tokenizer: Any, max_length: int = MAX_LENGTH, stride: int = STRIDE
) -> list[Window]:
    """The windows of some questions, of which the first has this number in the data set; nothing is checked."""
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
    places = encoded["overflow_to_sample_mapping"]
    passages = [_passage(encoded, i) for i in range(len(places))]
    windows = []
    for i, place in enumerate(places):
        first, offsets = passages[i]
        # An answer is whole here between the end of the token before this window and the start of the one after it.
        low, high = 0, len(rows[place]["context"])
        if i and places[i - 1] == place:
            low = passages[i - 1][1][-stride - 1, 1]
        if i + 1 < len(places) and places[i + 1] == place:
            high = passages[i + 1][1][stride, 0]
        spans = _answer_spans(rows[place].get("answers"), offsets, first, low, high)
        windows.append(Window(number + place, {n: encoded[n][i] for n in names}, first, offsets, spans))
    return windows


def _passage(encoded: Any, i: int) -> tuple[int, np.ndarray]:
    """The position of the first passage token in window `i`, and the passage tokens' offsets."""
    sequence = encoded.sequence_ids(i)
    count = sequence.count(1)
    first = sequence.index(1) if count else len(sequence)
    return first, np.array(encoded["offset_mapping"][i][first : first + count]).reshape(-1, 2)


def _check_lengths(rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int, stride: int) -> None:
    most = max_length - stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
    questions = tokenizer([row["question"] for row in rows], truncation=False, add_special_tokens=False)
    for row, ids in zip(rows, questions["input_ids"], strict=True):
        if len(ids) > most:
            raise DataError(
                f"question '{row.get('id', row['question'][:40])}' is {len(ids)} tokens long; windows of {max_length} "
                f"tokens with stride {stride} leave room for {most}: shorten it"
            )


def _answer_spans(
    answers: dict[str, list[Any]] | None, offsets: np.ndarray, first: int, low: int, high: int
) -> list[tuple[int, int]]:
    """Positions of each answer's first and last token, (0, 0) if it is not within characters `low` to `high`."""
    if not answers:
        return [(0, 0)]
    begins = answers["answer_start"]
    places = [(begin, begin + len(text)) for begin, text in zip(begins, answers["text"], strict=True)]
    found = {place: _answer_tokens(*place, offsets, first, low, high) for place in set(places)}  # many agree
    return [found[place] for place in places]


def _answer_tokens(begin: int, end: int, offsets: np.ndarray, first: int, low: int, high: int) -> tuple[int, int]:
    if begin < low or end > high:
        return 0, 0
    # The first token that ends after the answer's first character, the last that starts before its end.
    start_token = int(np.searchsorted(offsets[:, 1], begin, side="right"))
    end_token = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first + start_token, first + end_token) if start_token <= end_token else (0, 0)


def training_features(windows: Iterable[Window]) -> list[dict[str, Any]]:
    """Windows as the inputs of a model's forward call, labels included, one dictionary of lists a window."""
    return [window.inputs | {"start_positions": window.start, "end_positions": window.end} for window in windows]
