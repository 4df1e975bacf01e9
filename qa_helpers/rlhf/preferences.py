"""From people's answers to preferences: candidates that a policy proposes, how far people agree with each, pairs.

Nobody ranked the answers of the course's data sets, but several people answered each question. Here a candidate counts
as better than another where these people's answers agree with it more: rankings as people would give them who stand
by their own answer. (CourseQA's annotators are stand-ins for people.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from qa_helpers.data.rows import Row, given_answers
from qa_helpers.data.squad import sample_indices
from qa_helpers.evaluation.metrics import f1
from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS
from qa_helpers.rlhf.policy import Question, sample, to_action, to_span
from qa_helpers.rlhf.ranking_store import Ranking, RankingError

BEST, SAMPLES, RANDOM = 8, 4, 2  # candidates of each kind
MARGIN = 0.2  # of agreement: a word more or less in a long answer is no preference
MOST_PAIRS = 12  # of one question: one with many candidates that differ is not to outweigh the others


def agreement(text: str, answers: Sequence[str]) -> float:
    """How far people agree with a candidate, from 0 to 1: the mean over annotators of its F1 with their answer.

    The mean, not the best as in the official metric: of two candidates that each equal somebody's answer, the one
    that more people gave is to rank higher. F1 instead of equality: two wrong candidates differ, too, and a ranking
    that knew only right and wrong would say nothing about most pairs.
    """
    return sum(f1(text, [answer]) for answer in answers) / len(answers)


@dataclass(frozen=True)
class Candidate:
    """An answer to be ranked."""

    action: int  # see `policy`
    text: str
    agreement: float  # from 0 to 1


class Pair(NamedTuple):
    """Two answers to one question, of which one is ranked higher."""

    question: int  # its place in the list of questions
    better: int  # the action
    worse: int  # the action


# ---- candidates ------------------------------------------------------------------------------------------------
def policy_candidates(
    questions: Sequence[Question], log_p: torch.Tensor, generator: torch.Generator
) -> list[list[Candidate]]:
    """For each question the policy's most probable spans, samples of it, and spans drawn evenly from all.

    What a reward model has never seen ranked it is free to misjudge, and a policy that is optimised against it finds
    that out: so the candidates are what the policy says, and some of what it does not say yet. A span that is
    proposed twice counts once.

    Args:
        questions: a batch.
        log_p: the policy's log probabilities for them, (batch, actions).
        generator: of the CPU.
    """
    log_p = log_p.detach().cpu()
    even = torch.where(log_p.isneginf(), log_p, 0.0).log_softmax(1)
    proposed = []
    for i, question in enumerate(questions):
        best = log_p[i].topk(min(BEST, int((~log_p[i].isneginf()).sum()))).indices
        drawn = (sample(p[i : i + 1], count, generator)[0] for p, count in ((log_p, SAMPLES), (even, RANDOM)))
        actions = dict.fromkeys(torch.cat([best, *drawn]).tolist())
        answers = given_answers(question.row, f"question {i}")
        texts = [(action, question.text(action)) for action in actions]
        proposed.append([Candidate(action, text, agreement(text, answers)) for action, text in texts])
    return proposed


def human_candidates(questions: Sequence[Question]) -> list[list[Candidate]]:
    """For each question its annotators' own answers, each with the *other* annotators' agreement.

    The weak variant: a reward model trained on these has seen good answers only.
    """
    proposed = []
    for number, question in enumerate(questions):
        answers = given_answers(question.row, f"question {number}")
        candidates: dict[int, Candidate] = {}
        for annotator, action in enumerate(answer_actions(question)):
            others = answers[:annotator] + answers[annotator + 1 :]
            if action is not None and others:
                text = question.text(action)
                candidates.setdefault(action, Candidate(action, text, agreement(text, others)))
        proposed.append(list(candidates.values()))
    return proposed


def answer_actions(question: Question) -> list[int | None]:
    """Each annotator's answer as an action; None where it is longer than an action can be, or not in the window."""
    first = question.window.first
    return [
        to_action(start - first, end - start + 1) if first <= start and end - start < MAX_ANSWER_TOKENS else None
        for start, end in question.window.spans
    ]


# ---- pairs -----------------------------------------------------------------------------------------------------
def make_pairs(candidates: Sequence[Sequence[Candidate]], seed: int = 0) -> list[Pair]:
    """The pairs of each question's candidates whose agreement differs by `MARGIN` or more; other pairs are ties.

    Args:
        candidates: a list a question, in the questions' order.
        seed: draws which pairs are left where a question has more than `MOST_PAIRS`.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for question, ranked in enumerate(candidates):
        here = [
            Pair(question, better.action, worse.action)
            for better in ranked
            for worse in ranked
            if better.agreement - worse.agreement >= MARGIN - 1e-9  # 0.6 - 0.4 is 0.2, but not to a computer
        ]
        pairs += [here[i] for i in sorted(rng.permutation(len(here))[:MOST_PAIRS])]
    return pairs


def by_question(pairs: Iterable[Pair]) -> dict[int, list[Pair]]:
    """The pairs of each question, by its place."""
    groups: dict[int, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.question, []).append(pair)
    return groups


def split_by_article(rows: Sequence[Row], share: float = 0.25, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The questions to train on and those held out, which share no article; each in their order.

    Args:
        rows: with their `title`.
        share: of the articles to hold out, at least one; drawn at random by `seed`.
        seed: of that draw.

    Raises:
        ValueError: if that leaves no article to train on.
    """
    articles = list(dict.fromkeys(row["title"] for row in rows))
    count = max(1, round(share * len(articles)))
    if count >= len(articles):
        raise ValueError(f"of {len(articles)} article(s), {count} cannot be held out with any left to train on")
    held = {articles[i] for i in np.random.default_rng(seed).permutation(len(articles))[:count]}
    return [row for row in rows if row["title"] not in held], [row for row in rows if row["title"] in held]


def chain_parts(rows: Sequence[Row], held_out: Sequence[Row], limits: tuple[int, int, int]) -> dict[str, list[Row]]:
    """A chain's questions to learn on, to stop the reward models on (a fifth of the articles), and held out.

    Args:
        rows: to learn and to stop on.
        held_out: of other articles.
        limits: questions of each part at most; the same ones for every seed, so that seeds compare.
    """
    parts = zip(("learn", "stop", "held out"), (*split_by_article(rows, 0.2), held_out), limits, strict=True)
    return {part: [rows[i] for i in sorted(sample_indices(len(rows), limit, 0))] for part, rows, limit in parts}


def flip(pairs: Sequence[Pair], share: float, seed: int = 0) -> list[Pair]:
    """The pairs with a share of them turned round, drawn by `seed`: noise in the labels. With 0.5 they say nothing."""
    turned = set(np.random.default_rng(seed).permutation(len(pairs))[: round(share * len(pairs))].tolist())
    return [
        Pair(q, worse, better) if i in turned else Pair(q, better, worse) for i, (q, better, worse) in enumerate(pairs)
    ]


def longer_by(pairs: Sequence[Pair]) -> np.ndarray:
    """By how many tokens each pair's better answer is longer than the other: (pairs,)."""
    return np.array([to_span(pair.better)[1] - to_span(pair.worse)[1] for pair in pairs], dtype=int)


def balance_lengths(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """Pairs in which the shorter answer is the better one as often as the longer one is: length says nothing there.

    Pairs of the commoner kind are left out at random; those of equal length stay.
    """
    sign = np.sign(longer_by(pairs))
    order = np.random.default_rng(seed).permutation(len(pairs))
    count = min(int((sign > 0).sum()), int((sign < 0).sum()))
    kept = [*order[sign[order] > 0][:count], *order[sign[order] < 0][:count], *order[sign[order] == 0]]
    return [pairs[i] for i in sorted(kept)]


# ---- what a reader ranked by hand ------------------------------------------------------------------------------
def ranking_pairs(rankings: Iterable[Ranking], questions: Sequence[Question]) -> list[Pair]:
    """The pairs that were ranked, one for each user that preferred one answer; ties and skipped ones make none.

    Args:
        rankings: those that count, from `ranking_store.read_rankings`.
        questions: among which theirs are.

    Raises:
        RankingError: if a ranking's question is not among them or has another passage, an answer has no start, or is
            no span of whole tokens that a policy may choose.
    """
    by_id: dict[str | None, int] = {question.row["id"]: number for number, question in enumerate(questions)}
    pairs = []
    for ranking in rankings:
        if ranking.choice not in ("first", "second"):
            continue
        number = by_id.get(ranking.question_id)
        if number is None or questions[number].row["context"] != ranking.context:
            raise RankingError(f"question '{ranking.question_id}' of the rankings is not among the questions given")
        first = _action(questions[number], ranking.first, ranking.first_start)
        second = _action(questions[number], ranking.second, ranking.second_start)
        pairs.append(Pair(number, first, second) if ranking.choice == "first" else Pair(number, second, first))
    return pairs


def _action(question: Question, text: str, start: int | None) -> int:
    if start is None:
        raise RankingError(f"question '{question.row['id']}': the answer '{text[:60]}' has no start, so it is no span")
    offsets = question.window.offsets
    begins, ends = offsets[:, 0].tolist(), offsets[:, 1].tolist()
    if start in begins and start + len(text) in ends:
        first, last = begins.index(start), len(ends) - 1 - ends[::-1].index(start + len(text))
        if first <= last < first + MAX_ANSWER_TOKENS:
            return to_action(first, last - first + 1)
    raise RankingError(
        f"question '{question.row['id']}': the answer '{text[:60]}' at character {start} is no span of at most "
        f"{MAX_ANSWER_TOKENS} whole tokens"
    )
