"""Windows: none too long, none of the passage lost, the overlap as asked, and labels that cover the answer."""

import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qa_helpers.common.io import ModelError
from qa_helpers.data.rows import DataError
from qa_helpers.data.squad import load_qa
from qa_helpers.data.windows import MAX_LENGTH, STRIDE, make_windows, token_characters, training_features


def row(context, question="Who?", text=None, start=None):
    answers = {} if text is None else {"answers": {"text": [text], "answer_start": [start]}}
    return {"id": "q", "question": question, "context": context, **answers}


def characters(context, offsets):
    """What the tokens at these offsets stand for: without white space at their edges, with marks that follow."""
    covered = {position for start, end in offsets for position in range(start, end)}
    found = []
    for start, end in offsets:
        while start < end and context[start].isspace():
            start += 1
        while end > start and context[end - 1].isspace():
            end -= 1
        while start < end < len(context) and end not in covered and context[end] != "\ufffd":
            if unicodedata.category(context[end])[0] not in "MPS":
                break
            end += 1
        found.append((start, end))
    return found


def check_windows(rows, tokenizer, max_length, stride):
    """All that holds for windows of any rows; returns them by question."""
    by_question = [[] for _ in rows]
    for window in make_windows(rows, tokenizer, max_length, stride):
        by_question[window.question].append(window)
    for one, windows in zip(rows, by_question, strict=True):
        alone = tokenizer(one["context"], add_special_tokens=False, return_offsets_mapping=True)
        question = tokenizer(one["question"], add_special_tokens=False)["input_ids"]
        covered = []
        for window in windows:
            ids = window.inputs["input_ids"]
            passage = ids[window.first : window.first + len(window.offsets)]
            assert len(window) == len(ids) <= max_length
            assert ids == [tokenizer.cls_token_id, *question, tokenizer.sep_token_id, *passage, tokenizer.sep_token_id]
            covered.append(list(zip(passage, map(tuple, window.offsets.tolist()), strict=True)))
        joined = covered[0]
        for window, part in zip(windows[:-1], covered[1:], strict=True):
            assert len(window) == max_length  # only the last is shorter
            assert joined[len(joined) - stride :] == part[:stride]
            joined += part[stride:]
        offsets = characters(one["context"], alone["offset_mapping"])
        assert joined == list(zip(alone["input_ids"], offsets, strict=True))
    return by_question


def check_labels(one, windows, stride):
    """Every window that holds all of the answer's tokens has exactly these as labels, every other [CLS]."""
    text, begin = one["answers"]["text"][0], one["answers"]["answer_start"][0]
    end = begin + len(text)
    # Tokens are told apart by their number in the passage: several can stand for one character (as of "포").
    numbers, offsets = [], {}
    for window in windows:
        first = max(offsets, default=stride - 1) + 1 - stride
        numbers.append(range(first, first + len(window.offsets)))
        offsets |= dict(zip(numbers[-1], map(tuple, window.offsets.tolist()), strict=True))
    needed = [number for number, (a, b) in offsets.items() if a < end and b > begin]
    holding = 0
    for window, held in zip(windows, numbers, strict=True):
        if needed and needed[0] in held and needed[-1] in held:
            holding += 1
            shift = held.start - window.first
            assert list(range(window.start + shift, window.end + shift + 1)) == needed
            assert window.characters(window.start, window.end) == (offsets[needed[0]][0], offsets[needed[-1]][1])
        else:
            assert (window.start, window.end) == (0, 0)
    return holding


@pytest.mark.parametrize(("max_length", "stride"), [(MAX_LENGTH, STRIDE), (64, 16)])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_courseqas_windows(tokenizer, split, max_length, stride):
    rows = list(load_qa("courseqa", split))
    for one, windows in zip(rows, check_windows(rows, tokenizer, max_length, stride), strict=True):
        assert check_labels(one, windows, stride) >= 1
        text, begin = one["answers"]["text"][0], one["answers"]["answer_start"][0]
        for window in windows:
            if window.start:
                first, last = window.characters(window.start, window.end)
                assert first <= begin
                assert last >= begin + len(text)
                assert text in one["context"][first:last]


# Words of many scripts, joined without spaces here and there; what BERT's tokenizer drops or changes is among them.
WORDS = [
    "the",
    "Cardinals",
    "1,000",
    "naïve",
    "İstanbul",
    "日本語",
    "😀",
    "e\u0301",
    "\u200b",
    "\x00",
    "ﬁ",
    "—",
    "\u00ad",
]
PASSAGES = st.lists(
    st.tuples(st.sampled_from(WORDS) | st.text(min_size=1, max_size=4), st.sampled_from(["", " ", "\n", "\u00a0"]))
)


@settings(max_examples=300)
@given(st.data(), PASSAGES.map(lambda parts: "".join(map("".join, parts))), st.integers(0, 20), st.integers(1, 12))
def test_windows_of_any_passage_lose_nothing_and_label_the_answer(tokenizer, data, context, stride, room):
    assume(context)
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : data.draw(st.integers(start + 1, len(context)))]
    question = "Who beat the team?"
    max_length = len(tokenizer(question)["input_ids"]) + 1 + stride + max(room, stride // 2)
    one = row(context, question, text, start)
    [windows] = check_windows([one], tokenizer, max_length, stride)
    holding = check_labels(one, windows, stride)
    inside = tokenizer(text, add_special_tokens=False)["input_ids"]
    if text == context and len(windows) == 1 and inside:
        assert holding == 1


def test_several_rows_give_the_same_windows_as_each_alone(tokenizer, course):
    together = make_windows(course[:40], tokenizer, 64, 16)
    alone = [(i, window) for i in range(40) for window in make_windows(course[i : i + 1], tokenizer, 64, 16)]
    assert len(together) == len(alone) > 40
    for window, (i, other) in zip(together, alone, strict=True):
        assert window.question == i
        assert (window.inputs, window.first, window.start, window.end) == (
            (other.inputs, other.first, other.start, other.end)
        )
        assert np.array_equal(window.offsets, other.offsets)


@pytest.mark.parametrize(
    ("text", "start", "labelled"),
    [
        ("bar", 4, ["bar"]),
        (" bar", 3, ["bar"]),  # white space at an answer's edge belongs to no token
        ("bar ", 4, ["bar"]),
        ("foo bar", 0, ["foo", "bar"]),
        ("ar c", 5, ["bar", "cat"]),  # an answer cut inside of words
        (" ", 3, ["[CLS]"]),  # nothing a token could cover
    ],
)
def test_labels_of_an_answer_at_the_edges_of_words(tokenizer, text, start, labelled):
    context = "foo bar cat"
    assert context[start : start + len(text)] == text
    [window] = make_windows([row(context, "Q?", text, start)], tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(window.inputs["input_ids"])
    assert tokens[window.start : window.end + 1] == labelled


def test_an_answer_that_one_window_cuts_stands_whole_in_another(tokenizer):
    context = " ".join(["word"] * 13 + ["the answer here"] + ["word"] * 20)
    windows = make_windows([row(context, "Q?", "the answer here", 65)], tokenizer, max_length=20, stride=8)
    labels = [(window.start, window.end) for window in windows]
    assert len(windows) > 2
    assert labels.count((0, 0)) == len(windows) - 1
    [window] = [window for window in windows if window.start]
    assert context[slice(*window.characters(window.start, window.end))] == "the answer here"


def test_an_answer_whose_last_character_an_edge_divides_stands_in_no_window(tokenizer):
    one = row("the00포", "Q?", "the00포", 0)  # two tokens, the last of which are of one character
    assert tokenizer.tokenize("the00포") == ["the", "##00", "##ᄑ", "##ᅩ"]
    windows = make_windows([one], tokenizer, max_length=8, stride=0)
    assert [window.offsets.tolist() for window in windows] == [[[0, 3], [3, 5], [5, 6]], [[5, 6]]]
    assert check_labels(one, windows, stride=0) == 0


def test_the_first_annotators_answer_is_the_label(tokenizer):
    answers = {"text": ["bar", "foo"], "answer_start": [4, 0]}
    [window] = make_windows([row("foo bar") | {"answers": answers}], tokenizer)
    assert window.characters(window.start, window.end) == (4, 7)


@pytest.mark.parametrize("answers", [{}, {"answers": None}])
def test_a_new_question_needs_no_answer(tokenizer, answers):
    [window] = make_windows([{"question": "Who?", "context": "foo bar", **answers}], tokenizer)
    assert (window.start, window.end) == (0, 0)


def test_a_question_leaves_windows_a_step_of_half_their_stride(tokenizer):
    most = 64 - 16 - 3 - 8
    context = " ".join(["word"] * 100)
    windows = make_windows([row(context, "why " * most)], tokenizer, 64, 16)
    assert [len(window.offsets) for window in windows[:-1]] == [24] * 10
    with pytest.raises(DataError, match=f"'q' is {most + 1} tokens long.* leave room for {most}: shorten it"):
        make_windows([row(context, "why " * (most + 1))], tokenizer, 64, 16)


@pytest.mark.parametrize("words", range(0, 190, 27))
def test_no_question_has_a_passage_read_more_than_three_times(tokenizer, words):
    context = "The cat sat on the mat in Paris. " * 100
    windows = make_windows([row(context, "who " * words)], tokenizer)
    assert sum(len(window.offsets) for window in windows) <= 3 * len(tokenizer.tokenize(context))


@pytest.mark.parametrize("words", [190, 250, 252])
def test_a_question_that_would_make_windows_without_number_is_refused(tokenizer, words):
    with pytest.raises(DataError, match="leave room for 189: shorten it"):
        make_windows([row("The cat sat on the mat in Paris. " * 100, "who " * words)], tokenizer)


def test_a_long_question_is_named_among_others(tokenizer):
    rows = [row("foo"), row("foo", "why " * 400) | {"id": "long"}, row("bar")]
    with pytest.raises(DataError, match="question 'long' is 400 tokens long"):
        make_windows(rows, tokenizer)


# ---- what a token stands for -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("उसने अपने घर को बेचा।", "अपने"),
        ("On y boit du cafe\u0301 noir.", "cafe\u0301"),
        ("عاصمة مصر هي القَاهِرَةُ اليوم", "القَاهِرَةُ"),
        ("They met Zoe\u0308", "Zoe\u0308"),
        ("a e\u0301\u0328\u0302 b", "e\u0301\u0328\u0302"),
    ],
)
def test_a_mark_that_the_tokenizer_drops_stays_with_its_letter(tokenizer, context, answer):
    [window] = make_windows([row(context, "Q?", answer, context.index(answer))], tokenizer)
    assert context[slice(*window.characters(window.start, window.end))] == answer


@pytest.mark.parametrize(
    ("context", "offsets", "expected"),
    [
        ("ab cd", [(0, 2), (2, 5)], [(0, 2), (3, 5)]),  # the space before a word, as byte-level tokenizers have it
        ("ab \n cd", [(0, 3), (3, 4), (4, 7)], [(0, 2), (4, 4), (5, 7)]),  # white space alone stands for nothing
        ("ab\u00a0\u3000", [(0, 4)], [(0, 2)]),
        ("\u1100\u1161\u11a8 b", [(0, 1), (4, 5)], [(0, 3), (4, 5)]),  # NFC makes one letter of these three
        ("\uff76\uff9e b", [(0, 1), (3, 4)], [(0, 2), (3, 4)]),  # NFKC, of these two
        ("``b", [(0, 1), (2, 3)], [(0, 2), (2, 3)]),  # two signs that ALBERT's tokenizer makes one
        (" ''b", [(2, 3), (3, 4)], [(1, 3), (3, 4)]),
        ("b\u0301", [(0, 1), (0, 1)], [(0, 2), (0, 2)]),  # two tokens that share a letter
        ("b\u200b\ufffd c", [(0, 1), (4, 5)], [(0, 1), (4, 5)]),  # what no reader sees belongs to no answer
        (" \u0301b", [(2, 3)], [(2, 3)]),  # a mark on nothing
        ("", [], []),
        ("\ud800b", [(0, 2)], [(0, 2)]),
    ],
)
def test_what_tokens_stand_for(context, offsets, expected):
    found = token_characters(context, np.array(offsets, dtype=int).reshape(-1, 2))
    assert [tuple(pair) for pair in found.tolist()] == expected


@pytest.mark.parametrize(
    ("context", "offsets", "letter"),
    [
        ("a brewer", [(0, 0), (3, 8)], "a"),
        ("brewer", [(1, 6)], "b"),
        ("brewer", [(0, 5)], "r"),
        ("in 1871", [(0, 2), (3, 6)], "1"),
        ("ab", [], "a"),
    ],
)
def test_a_letter_in_no_token_is_an_error(context, offsets, letter):
    with pytest.raises(ModelError, match=f"^the model's tokenizer leaves out '{letter}' of .* choose another model$"):
        token_characters(context, np.array(offsets, dtype=int).reshape(-1, 2))


CONTROL = ["[CLS]", "[SEP]", "[PAD]", "[MASK]"]


@pytest.mark.parametrize("control", CONTROL)
def test_a_control_token_in_a_text_is_read_as_letters(tokenizer, control):
    [window] = make_windows([row(f"It is {control} Paris.", f"What {control} Paris?", control, 6)], tokenizer)
    ids = window.inputs["input_ids"]
    assert [ids.count(tokenizer.convert_tokens_to_ids(token)) for token in CONTROL] == [1, 2, 0, 0]
    assert window.characters(window.start, window.end) == (6, 6 + len(control))


def test_no_rows_give_no_windows_and_an_empty_passage_one_without_tokens(tokenizer):
    assert make_windows([], tokenizer) == []
    [window] = make_windows([row("")], tokenizer)
    assert window.offsets.shape == (0, 2)


def test_training_features_are_the_inputs_and_the_labels(tokenizer, course):
    windows = make_windows(course[:5], tokenizer)
    for window, inputs in zip(windows, training_features(windows), strict=True):
        assert inputs == {**window.inputs, "start_positions": window.start, "end_positions": window.end}
        assert "attention_mask" not in inputs
        assert window.start > 0


def test_windows_that_end_before_their_passage_does_are_an_error(tokenizer):
    """As tokenizers 0.23.1 and 0.23.2 make them: what overflows the second window is lost."""
    rows = [row("Short."), row(" ".join(f"w{i}" for i in range(1_000)))]
    assert len(make_windows(rows, tokenizer)) > 4

    class Losing:
        """The tokenizer, but for all windows after the third."""

        def __call__(self, *arguments, **options):
            encoded = tokenizer(*arguments, **options)
            if "overflow_to_sample_mapping" in encoded:
                encoded.data |= {name: values[:3] for name, values in encoded.data.items()}
            return encoded

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    with pytest.raises(ModelError, match=r"question 'q' end at character .* loses text, .* pip install"):
        make_windows(rows, Losing())


@pytest.mark.parametrize("end", ["", "  \n", "\u0301", " \u200b"])
def test_what_makes_no_token_at_a_passages_end_is_not_missed(tokenizer, end):
    """With passages of many lengths, so that the last window is full once."""
    for words in range(372, 384):
        make_windows([row("a " * words + "b" + end)], tokenizer)
