"""Questions made from passages alone, to train on before those that people asked: no one has to annotate anything.

What a passage says twice can be asked: a span of words that recurs is replaced by `BLANK` in one sentence, which
becomes the question; the passage without that sentence is the context, and every further occurrence an answer::

    passage   "The Broncos won. The score was 24 to 10. Fans of the Broncos cheered."
    question  "Fans of the what cheered?"
    context   "The Broncos won. The score was 24 to 10. "      answer  "Broncos"

The spans are those of Splinter (Ram et al. 2021, arXiv:2101.00438), the sentence as a question that of Dhingra et al.
2018, arXiv:1804.00720; Lewis et al. 2019, arXiv:1906.04980, compare ways to word it. What this simplifies: sentences
end at a full stop, question or exclamation mark followed by white space ("Dr. No" is cut in two), and no parser says
what a span is.

The other step on passages alone, to go on with masked-language-model training, is left out: the published weights of
MiniLM hold no head for it, and one drawn at random would first have to learn a vocabulary of 30,522 words from these
few passages, to be thrown away afterwards.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qa_helpers.data.rows import DataError, Row, check_text
from qa_helpers.data.squad import Sampling, choose, load_qa

if TYPE_CHECKING:
    from datasets import Dataset

# A question word and not the tokenizer's mask: no real question holds a mask, so that what is learned of it would be
# of no use afterwards; and it is the same question for every model.
BLANK = "what"
MAX_WORDS = 10  # of a span, as in Splinter
MAX_BYTES = 240  # of a question: as no tokenizer makes more tokens than bytes, its passage has room in a window
_FUNCTION_WORDS = (
    "a about after all also an and any are as at be been before being between both but by can could did do does during "
    "each either for from had has have he her his how i if in into is it its many may more most no nor not of on one "
    "only or other our over s she should so some such t than that the their them then there these they this those "
    "through to two under up us was we were what when where which while who whose will with would you your"
)
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())

_WORD = re.compile(r"\w+(?:[.,'’-]\w+)*")  # "1,000", "U.S" and "well-known" are one word each
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Occurrence(NamedTuple):
    """Where a span occurs: its first character and the one after its last, and the number of its sentence."""

    start: int
    end: int
    sentence: int


def cloze_questions(passages: Iterable[str], seed: int = 0) -> list[Row]:
    """A question for each span that recurs in a passage, as rows in SQuAD's form (see the module's head).

    Which sentence is asked, and which of the answers stands first (the label of an ordinary training), is drawn by
    `seed`. A span that cannot be asked gives no row: it does not occur in one sentence once and in another again, its
    sentence is too long, or holds it a second time as a part of other words.

    Raises:
        DataError: if a passage is no text.
    """
    if isinstance(passages, str):
        raise DataError("one text was given instead of a list of passages; put it into a list")
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for number, passage in enumerate(passages):
        check_text(passage, f"passage {number}")
        sentences = _sentences(passage)
        for which, occurrences in enumerate(recurring_spans(passage).values()):
            row = _ask(passage, sentences, occurrences, random)
            if row is not None:
                rows.append({"id": f"cloze-{number}-{which}", "title": f"passage {number}", **row})
    return rows


def load_cloze(name: str, limit: int | None = None, sampling: Sampling = "first", seed: int = 0) -> "Dataset":
    """Cloze questions of a data set's training passages (of no validation passage), as `squad.load_qa` gives them.

    Args:
        name: the data set's, as `load_qa` takes it.
        limit, sampling: how many and which of them, see `squad.choose`; "first" takes all of the first passages.
        seed: of the questions and of the random draw.

    Raises:
        DataError: if the data cannot be had, or give fewer than `limit` such questions.
    """
    import datasets

    rows = cloze_questions(dict.fromkeys(load_qa(name, "train")["context"]), seed)
    if not rows:
        raise DataError(f"the training passages of '{name}' say nothing twice, so that no cloze question can be made")
    return choose(datasets.Dataset.from_list(rows), f"{name} (cloze questions)", limit, sampling, seed)


def recurring_spans(passage: str) -> dict[str, list[Occurrence]]:
    """The spans that recur in a passage, in lower case, each with its places in order.

    A span is up to `MAX_WORDS` whole words of one sentence, with what stands between them. It is maximal (no longer
    span that recurs, too, holds it there), less the stop words at its ends.
    """
    words = [[match.span() for match in _WORD.finditer(passage, *bounds)] for bounds in _sentences(passage)]

    def text(sentence: int, first: int, last: int) -> str:
        return passage[words[sentence][first][0] : words[sentence][last][1]].lower()

    recurring: set[tuple[int, int, int]] = set()  # (sentence, first word, last word)
    runs = {(sentence, i, i) for sentence, its_words in enumerate(words) for i in range(len(its_words))}
    for _ in range(MAX_WORDS + 1):  # one word more, to know what is maximal
        counts = Counter(text(*run) for run in runs)
        runs = {run for run in runs if counts[text(*run)] > 1}
        recurring |= runs
        runs = {(s, i, j + 1) for s, i, j in runs if (s, i + 1, j + 1) in runs}  # else it cannot recur

    spans: dict[str, set[Occurrence]] = {}
    for s, i, j in sorted(recurring):
        if j - i < MAX_WORDS and not recurring & {(s, i - 1, j), (s, i, j + 1)}:
            telling = [k for k in range(i, j + 1) if text(s, k, k) not in STOP_WORDS]
            if telling:
                occurrence = Occurrence(words[s][telling[0]][0], words[s][telling[-1]][1], s)
                spans.setdefault(text(s, telling[0], telling[-1]), set()).add(occurrence)
    return {span: sorted(occurrences) for span, occurrences in spans.items() if len(occurrences) > 1}


def _sentences(passage: str) -> list[tuple[int, int]]:
    """(first character, last + 1) of a passage's sentences, each with the white space behind it."""
    ends = [match.end() for match in _SENTENCE_END.finditer(passage)]
    edges = sorted({0, *ends, len(passage)})
    return list(pairwise(edges))


def _ask(
    passage: str, sentences: list[tuple[int, int]], occurrences: list[Occurrence], random: np.random.Generator
) -> Row | None:
    """Context, question and answers for a span at these places, or None where no sentence of it can be asked."""
    in_sentence = Counter(occurrence.sentence for occurrence in occurrences)
    once = [occurrence for occurrence in occurrences if in_sentence[occurrence.sentence] == 1]
    if not once or len(in_sentence) == 1:
        return None
    asked = once[random.integers(len(once))]
    begin, end = sentences[asked.sentence]
    question = (passage[begin : asked.start] + BLANK + passage[asked.end : end]).strip().rstrip(".!?") + "?"
    if len(question.encode()) > MAX_BYTES or passage[asked.start : asked.end].lower() in question.lower():
        return None
    answers = [occurrence for occurrence in occurrences if occurrence.sentence != asked.sentence]
    answers.insert(0, answers.pop(random.integers(len(answers))))
    return {
        "context": passage[:begin] + passage[end:],
        "question": question,
        "answers": {
            "text": [passage[occurrence.start : occurrence.end] for occurrence in answers],
            "answer_start": [
                occurrence.start - (end - begin) * (occurrence.sentence > asked.sentence) for occurrence in answers
            ],
        },
    }
