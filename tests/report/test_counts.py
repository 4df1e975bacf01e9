"""Counts that forgive no article: by hand, recomputed on CourseQA in another way, and as they come with the course."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qa_helpers.__main__ import main
from qa_helpers.common.io import project_folder
from qa_helpers.data.rows import DataError
from qa_helpers.data.squad import load_qa
from qa_helpers.evaluation.metrics import load_card
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record_files import load_records, read_record
from qa_helpers.report.counts import (
    ANNOTATORS,
    SETS,
    WAYS,
    Counted,
    Reply,
    count,
    count_people,
    count_records,
    find_reply,
    load_counts,
    write_counts,
)

PASSAGE = "They beat the Cardinals, not other Cardinals."
LATER = len("They beat the Cardinals, not other ")


def row_of(*texts, context=PASSAGE):
    return {"context": context, "answers": {"text": list(texts), "answer_start": [context.find(t) for t in texts]}}


def right(counts, what, reference):
    """The least and the most right answers."""
    return counts[what][reference][1:3]


# ---- by hand ----------------------------------------------------------------------------------------------------
def test_an_article_is_missed_where_the_reference_has_one_and_only_there():
    row = row_of("Cardinals", "the Cardinals", "Cardinals")
    counts = count([Reply("cardinals", (PASSAGE.find("Cardinals"),))], [row])
    assert {name: one[:3] for name, one in counts["text"].items()} == {
        "first": (1, 1, 1),
        "second": (1, 0, 0),
        "third": (1, 1, 1),
        "longest": (1, 0, 0),
        "any": (1, 1, 1),
    }
    assert [counts["text"][name].lacking for name in WAYS["text"]] == [0, 1, 0, 1, 0]
    second = counts["text"]["second"]
    assert second.lacking == second.questions - second.most == 1
    assert right(counts, "start", "second") == (0, 0)
    assert right(counts, "end", "second") == (1, 1)
    assert right(counts, "mean", "second") == (0.5, 0.5)
    assert counts["start"]["second"].lacking == 1
    assert counts["end"]["second"].lacking == 0, "it is right there"


def test_an_article_too_many_is_told_from_one_that_is_missing():
    counts = count([find_reply("the Cardinals", PASSAGE)], [row_of("Cardinals", "beat the Cardinals")])
    assert (counts["text"]["first"].lacking, counts["text"]["first"].adding) == (0, 1)
    assert (counts["text"]["second"].lacking, counts["text"]["second"].adding) == (0, 0)


def test_a_text_that_stands_twice_has_a_position_within_bounds():
    reply = find_reply("Cardinals", PASSAGE)
    assert reply.starts == (PASSAGE.find("Cardinals"), LATER)
    counts = count([reply], [row_of("Cardinals", "the Cardinals")])
    assert right(counts, "text", "first") == (1, 1)
    assert right(counts, "start", "first") == right(counts, "end", "first") == right(counts, "mean", "any") == (0, 1)
    assert counts["start"]["first"].percent == (0, 100)
    assert counts["mean"]["first"].percent == (0, 100)
    assert right(counts, "mean", "second") == (0, 0.5)
    assert find_reply("aa", "aaa").starts == (0, 1)


def test_what_does_not_stand_in_the_passage_is_nowhere():
    for text in ("", "nothing like it"):
        counts = count([find_reply(text, PASSAGE)], [row_of("Cardinals", "the Cardinals")])
        assert all(right(counts, what, name) == (0, 0) for what in WAYS for name in counts[what])


def test_a_question_without_a_third_answer_is_not_counted_against_it():
    counts = count([find_reply("They", PASSAGE)] * 2, [row_of("They"), row_of("beat", "They", "They")])
    assert [counts["text"][name].questions for name in WAYS["text"]] == [2, 1, 1, 2, 2]
    assert [counts["text"][name].most for name in WAYS["text"]] == [1, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="longer"):
        count([], [row_of("They")])


def test_people_are_held_against_each_other_and_not_against_themselves():
    rows = [row_of("Cardinals", "the Cardinals", "Cardinals"), row_of("They", "They"), row_of("beat")]
    people = count_people(rows)
    assert {name: counts["text"].keys() for name, counts in people.items()} == {
        name: set(WAYS["text"]) - {name} for name in ANNOTATORS
    }
    first, second, third = people.values()
    assert first["text"]["second"] == second["text"]["first"]._replace(lacking=1, adding=0) == (2, 1, 1, 1, 0)
    assert third["text"]["second"] == (1, 0, 0, 1, 0)
    assert right(first, "text", "any") == (2, 2)
    assert right(second, "text", "any") == (1, 1)
    assert right(third, "start", "first") == (1, 1)


@given(st.data())
def test_where_an_answer_stands_is_within_the_bounds(data):
    context = data.draw(st.text("ab ", min_size=2, max_size=30))
    spans = st.tuples(st.integers(0, len(context) - 1), st.integers(1, 4))
    start, length = data.draw(spans)
    answers = [(context[at : at + size], at) for at, size in data.draw(st.lists(spans, min_size=1, max_size=3))]
    texts, starts = zip(*answers, strict=True)
    row = {"context": context, "answers": {"text": list(texts), "answer_start": list(starts)}}
    text = context[start : start + length]
    exactly = count([Reply(text, (start,))], [row])
    bounds = count([find_reply(text, context)], [row])
    for what in WAYS:
        for name, one in exactly[what].items():
            assert bounds[what][name].least <= one.least == one.most <= bounds[what][name].most


# ---- on CourseQA, in another way --------------------------------------------------------------------------------
def naive(texts, rows, pick):
    """Percent of equal strings, of the answers that `pick` chooses from the given ones."""
    hits = [
        t.casefold() in {a.casefold() for a in pick(r["answers"]["text"])} for t, r in zip(texts, rows, strict=True)
    ]
    return 100 * sum(hits) / len(hits)


def naive_position(texts, rows, end, possible):
    """Percent of answers whose one edge can be (or, with `all`, must be) where any given answer has its own."""
    hits = []
    for text, row in zip(texts, rows, strict=True):
        given_edges = {
            start + (len(answer) if end else 0)
            for answer, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        }
        places = [i for i in range(len(row["context"])) if row["context"][i:].startswith(text)]
        hits.append(possible(place + (len(text) if end else 0) in given_edges for place in places))
    return 100 * sum(hits) / len(hits)


def test_courseqas_counts_are_those_that_plain_loops_give():
    name = "quick-baseline-500-seed0"
    records = load_records(name)
    counted = count_records(records, "courseqa").runs[name]["all"]
    by_id = {row["id"]: row for row in load_qa("courseqa", "validation")}
    texts = list(records[name].column("prediction", "all"))
    rows = [by_id[id] for id in records[name].questions.id]
    picks = {
        "first": lambda answers: answers[:1],
        "second": lambda answers: answers[1:2],
        "third": lambda answers: answers[2:3],
        "longest": lambda answers: sorted(answers, key=len, reverse=True)[:1],
        "any": lambda answers: answers,
    }
    for reference, pick in picks.items():
        assert counted["text"][reference].percent == pytest.approx([naive(texts, rows, pick)] * 2)
    for what, end in {"start": False, "end": True}.items():
        bounds = [naive_position(texts, rows, end, possible) for possible in (all, any)]
        assert counted[what]["any"].percent == pytest.approx(bounds)
    assert counted["text"]["first"].most < counted["text"]["any"].most < counted["start"]["any"].most


def test_what_was_asked_of_other_questions_is_refused():
    with pytest.raises(DataError, match="'class-zero-shot-smollm2-seed0' was not asked"):
        count_records(load_records("class-zero-shot-*"), "courseqa")


def test_a_language_model_has_no_positions():
    counted = count_records(load_records("quick-sft-500-*"), "courseqa")
    assert list(counted.runs["quick-sft-500-smollm2-seed0"]["all"]) == ["text"]


def test_the_command_writes_what_is_read(tmp_path, capsys):
    record = project_folder() / "records/quick-baseline-100-seed0"
    assert main(["counts", str(record), "--data", "courseqa", "--folder", str(tmp_path)]) == 0
    assert "1 runs counted" in capsys.readouterr().out
    assert load_counts("courseqa", tmp_path) == count_records({record.name: read_record(record)}, "courseqa")


@pytest.mark.parametrize(("content", "words"), [(None, "cannot be read"), ("[]", "the file"), ("{}", "fingerprint")])
def test_counts_that_are_none_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "my-counts.json").write_text(content)
    with pytest.raises(RecordError, match=words):
        load_counts("my", tmp_path)


def test_written_counts_are_read_as_they_were(tmp_path):
    counted = Counted(fingerprint="x", people={}, runs={"a": {"all": {"text": {"first": (2, 1, 1.5, 0, 1)}}}})
    write_counts(counted, "my", tmp_path)
    assert load_counts("my", tmp_path) == counted


# ---- those that come with the course ----------------------------------------------------------------------------
def test_every_record_is_counted_and_agrees_with_its_scores():
    counted, records = load_counts(), load_records("class-*")
    asked = {name: run for name, run in records.items() if set(SETS) & set(run.scores)}
    assert counted.fingerprint == load_card().fingerprint
    assert set(counted.runs) == set(asked), "make them again: python -m qa_helpers counts records/class-*/"
    for name, run in asked.items():
        assert list(counted.runs[name]) == [key for key in SETS if key in run.scores]
        for key, counts in counted.runs[name].items():
            strings, scores = {what: one.percent[1] for what, one in counts["text"].items()}, run.scores[key]
            assert strings["first"] == pytest.approx(scores.string_equality.value, abs=0.01)
            assert strings["first"] <= strings["any"] <= scores.exact_match.value + 0.01
            assert ("start" in counts) == (run.experiment.task == "span")
            for positions in (counts[what] for what in WAYS if what in counts and what != "text"):
                assert all(one.percent[0] <= one.percent[1] for one in positions.values())


def test_the_counts_are_those_that_were_found_before():
    """Computed once by other code, when it was found out that the report forgives no article."""
    runs, people = load_counts().runs, load_counts().people

    def texts(name, key):
        return [round(runs[name][key]["text"][which].percent[1], 1) for which in ("first", "any")]

    assert texts("class-experiment2-5000-seed0", "first-500") == [52.8, 61.2]
    assert texts("class-experiment2-5000-seed0", "first-200") == [57.5, 67.5]
    assert texts("class-idea-ensemble-5000-seed0", "first-500") == [55.6, 64.8]
    assert texts("class-idea-ensemble-5000-seed0", "first-200") == [61.5, 72.5]
    first, third = (people["first-500"][who]["text"]["second"] for who in ("first", "third"))
    assert round(first.percent[0], 1) == 69.0
    assert round(third.percent[0], 1) == 51.4
    assert third.questions == 494
    assert round(people["all"]["first"]["text"]["second"].percent[0], 1) == 62.0


@pytest.mark.skipif("QA_DATA_DIR" not in os.environ, reason="QA_DATA_DIR names no folder with SQuAD")
def test_squads_counts_are_made_from_squad():
    chosen = load_records("class-baseline-1000-seed0") | load_records("class-sft-1000-*")
    made, counted = count_records(chosen, "squad"), load_counts()
    assert made.runs == {name: counted.runs[name] for name in chosen}
    assert made.people == {name: counted.people[name] for name in made.people}
    assert made.fingerprint == counted.fingerprint
