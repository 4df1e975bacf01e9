"""What people ranked by hand, see `qa_helpers.rlhf.ranking_store`, as pairs of a policy's actions."""

from collections.abc import Iterable, Sequence

from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS
from qa_helpers.rlhf.policy import Question, to_action
from qa_helpers.rlhf.preferences import Pair
from qa_helpers.rlhf.ranking_store import Ranking, RankingError


def ranking_pairs(rankings: Iterable[Ranking], questions: Sequence[Question]) -> list[Pair]:
    """The pairs that were ranked, one for each user that preferred one answer; ties and skipped ones make none.

    Args:
        rankings: those that count, from `ranking_store.read_rankings`.
        questions: among which theirs are.

    Raises:
        RankingError: if a ranking's question is not among them or has another passage, an answer has no start, or is
            no span of whole tokens that a policy may choose.
    """
    places = {question.row["id"]: place for place, question in enumerate(questions)}
    pairs = []
    for ranking in rankings:
        if ranking.choice not in ("first", "second"):
            continue
        place = places.get(ranking.question_id)
        if place is None or questions[place].row["context"] != ranking.context:
            raise RankingError(f"question '{ranking.question_id}' of the rankings is not among the questions given")
        first = _action(questions[place], ranking.first, ranking.first_start)
        second = _action(questions[place], ranking.second, ranking.second_start)
        pairs.append(Pair(place, first, second) if ranking.choice == "first" else Pair(place, second, first))
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
