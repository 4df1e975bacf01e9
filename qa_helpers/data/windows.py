"""From questions to windows: the token sequences that the model reads.

A passage can be longer than a model's input, so each question becomes one or more *windows*::

    [CLS] question [SEP] part of the passage [SEP]

of at most `MAX_LENGTH` tokens; consecutive parts share `STRIDE` tokens, so that an answer cut by one window's edge
stands whole in another. Source: Devlin et al. 2018, "BERT", arXiv:1810.04805, and its run_squad.py. (That is BERT's
form; each tokenizer sets its own special tokens.)
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerFast

from qa_helpers.common.io import ModelError
from qa_helpers.data.rows import DataError, GivenAnswers, Row

MAX_LENGTH = 384  # tokens a window; BERT's choice for SQuAD
STRIDE = 128  # tokens that consecutive windows of one passage share (in BERT's own script: the step between them)
CHUNK = 500  # questions tokenized at once: the tokenizer's own objects take far more memory than the windows


@dataclass(frozen=True)
class Window:
    """One model input and where its tokens lie in the passage.

    `first` is the position of the first passage token; `offsets[i]` are the start and end (exclusive) characters in
    the passage of the token at position `first + i`, see `token_characters`. `spans` are the positions of an answer's
    first and last token, for each annotator in order, or (0, 0), the [CLS] token, where this window does not hold
    that answer whole.
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
        """Tokens in the window, special ones counted."""
        return len(self.inputs["input_ids"])

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """The passage characters (end exclusive) that the tokens `start` to `end` cover."""
        return int(self.offsets[start - self.first, 0]), int(self.offsets[end - self.first, 1])


def make_windows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast, max_length: int = MAX_LENGTH, stride: int = STRIDE
) -> list[Window]:
    """Cut questions and passages into windows, in the questions' order.

    Args:
        rows: questions with the columns of `qa_helpers.data.squad`; `answers` may be absent, as for a new question.
        tokenizer: a fast tokenizer.
        max_length: tokens a window at most; of a model that reads fewer, as many as it reads.
        stride: tokens that consecutive windows of a passage share; in proportion fewer where windows are shorter.

    Raises:
        DataError: if a question is so long that too little of the passage fits beside it.
        ModelError: if the tokenizer leaves letters of a passage out, so that no answer could be cut from it, as some
            versions of the tokenizers package do with all that overflows a window.
    """
    rows = list(rows)
    if tokenizer.model_max_length < max_length:
        max_length, stride = tokenizer.model_max_length, stride * tokenizer.model_max_length // max_length
    windows = []
    for at in range(0, len(rows), CHUNK):
        chunk = rows[at : at + CHUNK]
        _check_lengths(chunk, tokenizer, max_length, stride)
        windows += _cut(chunk, at, tokenizer, max_length, stride)
    return windows


def _cut(
    rows: Sequence[Row], number: int, tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int
) -> list[Window]:
    """The windows of some questions, of which the first has this number in the data set."""
    encoded = _encode(rows, tokenizer, max_length, stride)
    texts = [_text_positions(encoded.sequence_ids(i)) for i in range(len(encoded["input_ids"]))]
    _replace_control_tokens(encoded, texts, rows, tokenizer)
    names = [name for name in tokenizer.model_input_names if name in encoded]
    samples = encoded["overflow_to_sample_mapping"]
    groups = [list(group) for _, group in groupby(range(len(samples)), key=samples.__getitem__)]  # a row's windows
    passages = _passage_tokens(encoded, [[(i, texts[i][1]) for i in group] for group in groups], rows, stride)
    windows = []
    for question, (row, group, tokens) in enumerate(zip(rows, groups, passages, strict=True), number):
        begin = 0  # the number in the passage of the window's first token
        for i in group:
            first, end = texts[i][1].start, begin + len(texts[i][1])
            # An answer is whole here between the end of the token before this window and the start of the one after.
            low = tokens[begin - 1, 1] if begin else 0
            high = tokens[end, 0] if end < len(tokens) else len(row["context"])
            spans = _answer_spans(row.get("answers"), tokens[begin:end], first, low, high)
            inputs = {name: encoded[name][i] for name in names}
            windows.append(Window(question, inputs, first, tokens[begin:end], spans))
            begin = end - stride
    return windows


def _encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int) -> BatchEncoding:
    """All windows' tokens, each with the number of its row (from 0) and its tokens' characters."""
    encoded: BatchEncoding = tokenizer(
        [row["question"] for row in rows],
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        padding=False,
        return_attention_mask=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        split_special_tokens=True,  # "[SEP]" in a text is five letters, no control token
    )
    return encoded


def _passage_tokens(
    encoded: BatchEncoding, groups: Sequence[Sequence[tuple[int, range]]], rows: Sequence[Row], stride: int
) -> list[np.ndarray]:
    """The characters of all tokens of each row's passage, (tokens, 2) each; `groups` are where they lie in windows."""
    shifts = np.cumsum([0, *(len(row["context"]) + 1 for row in rows)])
    shifted = []
    for shift, group in zip(shifts, groups, strict=False):
        offsets = [encoded["offset_mapping"][i][part.start : part.stop] for i, part in group]
        passage = [*offsets[0], *(pair for later in offsets[1:] for pair in later[stride:])]
        shifted.append(np.array(passage, dtype=np.int64).reshape(-1, 2) + shift)
    # All passages as one text: numpy is slow at many small arrays.
    try:
        together = token_characters("\n".join(row["context"] for row in rows), np.concatenate(shifted))
    except ModelError:
        _check_ends(rows, [tokens - shift for tokens, shift in zip(shifted, shifts, strict=False)])
        raise
    parts = np.split(together, np.cumsum([len(part) for part in shifted])[:-1])
    return [part - shift for part, shift in zip(parts, shifts, strict=False)]


def _check_ends(rows: Sequence[Row], passages: Sequence[np.ndarray]) -> None:
    """Name the version of the tokenizers package where it loses more than a word at the end of a passage.

    Raises:
        ModelError: if it does.
    """
    for row, tokens in zip(rows, passages, strict=True):
        end = int(tokens[-1, 1]) if len(tokens) else 0
        if len(row["context"][end:].split()) > 1:
            raise ModelError(
                f"the windows of question '{row.get('id', row['question'][:40])}' end at character {end:,} of its "
                f"passage's {len(row['context']):,}: tokenizers {metadata.version('tokenizers')} loses text, as 0.23.1 "
                "and 0.23.2 do; install another version: pip install 'tokenizers>=0.22,!=0.23.1,!=0.23.2'"
            )


def _text_positions(sequence: list[int | None]) -> tuple[range, range]:
    """The positions in a window of the question's tokens and of the passage's."""
    counts = sequence.count(0), sequence.count(1)
    firsts = [sequence.index(i) if count else len(sequence) for i, count in enumerate(counts)]
    question, passage = (range(first, first + count) for first, count in zip(firsts, counts, strict=True))
    return question, passage


def _replace_control_tokens(
    encoded: BatchEncoding,
    texts: Sequence[tuple[range, range]],
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Put the unknown token where a vocabulary makes a control token of a text's letters, as SentencePiece's do.

    Raises:
        DataError: if there is no unknown token.
    """
    unknown = tokenizer.unk_token_id
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - {unknown}
    for i, (ids, parts) in enumerate(zip(encoded["input_ids"], texts, strict=True)):
        for part in parts:
            if control.isdisjoint(ids[part.start : part.stop]):
                continue
            if unknown is None:
                row = rows[encoded["overflow_to_sample_mapping"][i]]
                typed = tokenizer.convert_ids_to_tokens(next(ids[p] for p in part if ids[p] in control))
                raise DataError(
                    f"question '{row.get('id', row['question'][:40])}' or its passage holds '{typed}', which this "
                    "model reads as a control token: leave it out"
                )
            ids[part.start : part.stop] = [unknown if ids[p] in control else ids[p] for p in part]


# ---- which characters a token stands for -----------------------------------------------------------------------
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])  # there is no white space beyond


def token_characters(context: str, offsets: np.ndarray) -> np.ndarray:
    """The passage characters (end exclusive) that each token stands for, from a tokenizer's own offsets.

    Of these some hold the space before a word: it is left out, so that a token of white space alone stands for no
    character. Others lose what the tokenizer drops or composes, as an accent: it goes to the letter that it follows.

    Args:
        context: the passage.
        offsets: of all its tokens in order, (tokens, 2).

    Raises:
        ModelError: if a letter or a digit then lies in no token.
    """
    codes = np.frombuffer(context.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    space = _IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)]
    solid = np.flatnonzero(~space)
    starts, ends = offsets.T
    starts = np.minimum(np.append(solid, len(codes))[np.searchsorted(solid, starts)], ends)
    ends = np.maximum(np.append(-1, solid)[np.searchsorted(solid, ends)] + 1, starts)
    size = len(codes) + 1
    depth = np.cumsum(np.bincount(starts, minlength=size) - np.bincount(ends, minlength=size))[:-1]
    for position in np.flatnonzero((depth == 0) & ~space).tolist():  # in no token
        before = np.flatnonzero((ends == position) & (starts < position))
        kind = unicodedata.category(context[position])[0]
        if len(before) and _continues(context[starts[before[0]] : position], context[position]):
            ends[before] = position + 1
        elif kind in "PS" and context[position] != "\ufffd":  # of two signs that were made one, the first
            starts[(starts == position + 1) & (starts < ends)] = position
        elif kind in "LN":
            raise ModelError(
                f"the model's tokenizer leaves out '{context[position]}' of {context[position : position + 30]!r}, so "
                "that answers cannot be cut from a passage; choose another model"
            )
    return np.stack([starts, ends], axis=1)


def _continues(before: str, character: str) -> bool:
    """Whether a character that lies in no token belongs to the one before it: a mark, punctuation, a part of a letter.

    What no reader sees (control characters, U+FFFD) does not.
    """
    if unicodedata.category(character)[0] in "MPS":
        return character != "\ufffd"
    composed, apart = (unicodedata.normalize("NFKC", text) for text in (before + character, character))
    return len(composed) < len(unicodedata.normalize("NFKC", before)) + len(apart)


def _check_lengths(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int) -> None:
    """Refuse questions beside which windows would step through the passage by less than half their stride."""
    most = max_length - stride - tokenizer.num_special_tokens_to_add(pair=True) - max(1, stride // 2)
    texts = [row["question"] for row in rows]
    questions = tokenizer(texts, truncation=False, add_special_tokens=False, split_special_tokens=True)
    for row, ids in zip(rows, questions["input_ids"], strict=True):
        if len(ids) > most:
            raise DataError(
                f"question '{row.get('id', row['question'][:40])}' is {len(ids)} tokens long; windows of {max_length} "
                f"tokens with stride {stride} leave room for {max(0, most)}: shorten it"
            )


def _answer_spans(
    answers: GivenAnswers | None, offsets: np.ndarray, first: int, low: int, high: int
) -> list[tuple[int, int]]:
    """Positions of each answer's first and last token, (0, 0) if it is not within characters `low` to `high`."""
    if not answers:
        return [(0, 0)]
    begins = answers["answer_start"]
    characters = [(begin, begin + len(text)) for begin, text in zip(begins, answers["text"], strict=True)]
    tokens = {pair: _answer_tokens(*pair, offsets, first, low, high) for pair in set(characters)}  # many agree
    return [tokens[pair] for pair in characters]


def _answer_tokens(begin: int, end: int, offsets: np.ndarray, first: int, low: int, high: int) -> tuple[int, int]:
    if begin < low or end > high:
        return 0, 0
    # The first token that ends after the answer's first character, the last that starts before its end.
    start_token = int(np.searchsorted(offsets[:, 1], begin, side="right"))
    end_token = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first + start_token, first + end_token) if start_token <= end_token else (0, 0)


def training_features(windows: Iterable[Window]) -> list[dict[str, list[int] | int]]:
    """Windows as the inputs of a model's forward call, labels included, one dictionary of lists a window."""
    return [window.inputs | {"start_positions": window.start, "end_positions": window.end} for window in windows]
