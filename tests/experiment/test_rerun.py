"""Recorded experiments run again: what is compared, what is refused before anything is trained."""

import math
import os
import shutil

import numpy as np
import pytest

from qa_helpers.data.squad import ASSETS, load_qa
from qa_helpers.evaluation.statistics import bootstrap_mean
from qa_helpers.experiment import record_files, store
from qa_helpers.experiment import rerun as rerun_module
from qa_helpers.experiment import run as run_module
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record_files import load_records, read_record, write_record
from qa_helpers.experiment.rerun import (
    RERUN_SPREAD,
    ChangedAnswers,
    Comparison,
    changed_answers,
    changed_in_words,
    compare_with_record,
    honest_pairs,
    rerun,
    rerun_tolerance,
)
from qa_helpers.experiment.scores import Score, Scores
from qa_helpers.experiment.spec import AsItComes, Combination, change
from qa_helpers.experiment.store import run_experiment


@pytest.fixture
def no_training(monkeypatch):
    """Training is an error."""

    def fail(*_args, **_options):
        raise AssertionError("trained")

    monkeypatch.setattr(run_module, "train", fail)


def results(run):
    """All of a run that must be the same when it is run again on this machine."""
    return {name: value for name, value in run.model_dump().items() if name not in ("timing", "machine")}


# ---- running again ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("recorded", "now", "verdict"),
    [
        (46.0, 46.0, "same"),
        (46.0, 46.004, "same"),
        (46.0, 46.01, "within tolerance"),
        (46.0, 49.0, "within tolerance"),
        (46.0, 43.0, "within tolerance"),
        (46.0, 49.01, "off"),
        (46.0, 42.99, "off"),
    ],
)
def test_the_verdict_on_a_figure(recorded, now, verdict):
    assert Comparison("all: exact_match", recorded, now, 3.0).verdict == verdict


def test_the_tolerance_allows_for_few_questions():
    assert rerun_tolerance(1_000_000) == pytest.approx(RERUN_SPREAD, abs=0.01)
    # Of 1,700 questions, 289 = 17**2 answers change, each for better or worse: a standard error of 17 answers, 1 point.
    assert rerun_tolerance(1_700) == pytest.approx(math.hypot(RERUN_SPREAD, 1.96))
    sizes = (100, 200, 500, 2_000, 10_570)
    assert sorted(map(rerun_tolerance, sizes), reverse=True) == list(map(rerun_tolerance, sizes))


def test_runs_on_another_machine_are_within_tolerance_but_for_luck():
    """One figure in twenty may be off; those of one run hang together, so that no count is exact."""
    elsewhere = load_records("cpu/class-*") | load_records("gpu/class-*")
    records = load_records("class-*")
    compared = [one for name, run in elsewhere.items() for one in compare_with_record(run, records[name])]
    assert len(compared) > 100
    assert sum(one.verdict == "off" for one in compared) <= len(compared) / 20


def test_every_score_is_compared(finished):
    _, run = finished
    figures = [comparison.figure for comparison in compare_with_record(run, run)]
    assert len(figures) == len(set(figures)) == 8
    assert {"first: exact_match", "drawn: f1"} <= set(figures)


@pytest.fixture
def warm(finished, tmp_path):
    """The record of a run that starts from "finished"; their records lie in `tmp_path / "handed-in"`."""
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "runs" / "finished")
    experiment = change(run.experiment, name="warm", start_from="finished", trainable="head", seed=3)
    record = run_experiment(experiment, tmp_path / "runs")
    for one in (run, record):
        write_record(one, tmp_path / "handed-in" / one.experiment.name)
    return record


def test_a_run_that_starts_from_another_is_run_again_after_it(warm, finished, tmp_path):
    (tmp_path / "out" / "finished").mkdir(parents=True)
    (tmp_path / "out" / "finished" / "experiment.json").write_text("of a former time, and replaced")
    now, comparisons = rerun(warm, tmp_path / "out", beside=tmp_path / "handed-in")
    assert {comparison.verdict for comparison in comparisons} == {"same"}
    assert results(now) == results(warm)
    assert results(read_record(tmp_path / "out" / "finished" / "run.json")) == results(finished[1])


def test_the_record_of_the_start_may_be_one_of_the_courses(finished, tmp_path, monkeypatch):
    _, run = finished
    monkeypatch.setattr(rerun_module, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(rerun_module, "run_experiment", lambda one, *_args, **_options: ran.append(one.name) or run)
    ran = []
    for name, start in (("a", None), ("b", "a"), ("c", "b")):
        changed = run.model_copy(update={"experiment": change(run.experiment, name=name, start_from=start)})
        write_record(changed, tmp_path / "records" / name)
    rerun(changed, tmp_path / "out")
    assert ran == ["a", "b", "c"]
    ran.clear()
    both = Combination(name="both", evaluations=run.experiment.evaluations, mean_of="weights", members=("b", "a"))
    fingerprints = run.fingerprints.model_copy(update={"train": None})
    rerun(run.model_copy(update={"experiment": both, "fingerprints": fingerprints}), tmp_path / "out")
    assert ran == ["a", "b", "both"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (None, "'warm' starts from 'finished', whose record finished lies neither beside its own nor in the"),
        ({"name": "other"}, r"finished: is the record of 'other', not of 'finished'"),
        ({"start_from": "finished"}, "'finished' starts from 'finished', which starts from it in turn"),
        ({"start_from": "warm"}, "'finished' starts from 'warm', which starts from it in turn"),
        ({"start_from": "absent"}, "'finished' starts from 'absent', whose record absent lies neither"),
        ({"trained": False}, "'warm' starts from 'finished', which trained nothing to start from"),
        ({"model": "/etc"}, "model '/etc' is no model's name"),
        ({"data": "/etc/passwd"}, "data '/etc/passwd' is no named data set"),
        ({"train_size": 17}, "the record 'finished'; their fingerprints differ"),
    ],
)
def test_a_start_whose_record_is_missing_or_refused_is_an_error(finished, tmp_path, no_training, changes, words):
    _, run = finished
    warm = run.model_copy(update={"experiment": change(run.experiment, name="warm", start_from="finished")})
    write_record(warm, tmp_path / "warm")
    if changes:
        if changes != {"trained": False}:
            start = run.model_copy(update={"experiment": change(run.experiment, **changes)})
        else:
            asked = AsItComes(name="finished", evaluations=run.experiment.evaluations)
            fingerprints = run.fingerprints.model_copy(update={"train": None})
            start = run.model_copy(update={"experiment": asked, "epochs": [], "fingerprints": fingerprints})
        write_record(start, tmp_path / "finished")
    with pytest.raises(RecordError, match=words):
        rerun(warm, tmp_path / "out", beside=tmp_path)
    assert not (tmp_path / "out").exists()


def files_below(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_a_record_is_run_again_only_below_the_folder_and_is_the_same(finished, tmp_path, monkeypatch):
    folder, run = finished
    write_record(run, tmp_path / "handed-in")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("QA_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "here"))
    before = files_below(folder)
    now, comparisons = rerun(read_record(tmp_path / "handed-in"), tmp_path / "out")
    assert {comparison.verdict for comparison in comparisons} == {"same"}
    assert results(now) == results(run)
    assert files_below(folder) == before
    assert sorted(os.listdir(tmp_path)) == ["handed-in", "here", "out"]
    assert sorted(os.listdir(tmp_path / "out")) == [".locks", "finished"]
    assert os.listdir(tmp_path / "here") == []


def given_answers():
    return {row["id"]: row["answers"]["text"] for row in load_qa(split="validation")}


def forged(run):
    """A run that claims to have answered everything as people did."""
    texts = [given_answers()[id][0] for id in run.questions.id]
    columns = {"prediction": texts, "f1": [1.0] * len(texts), "relation": ["equals the first answer"] * len(texts)}
    right = Score.of(bootstrap_mean([100.0] * 12, bounds=(0, 100)))
    scores = Scores(questions=12, string_equality=right, exact_match=right, f1=right, contained=right)
    questions = run.questions.model_copy(update=columns)
    return run.model_copy(update={"questions": questions, "scores": dict.fromkeys(run.scores, scores)})


def test_a_forged_score_is_off(finished, tmp_path, monkeypatch):
    _, run = finished
    write_record(forged(run), tmp_path / "forged")
    monkeypatch.setattr(rerun_module, "run_experiment", lambda *_args, **_options: run)  # trained in the test above
    now, comparisons = rerun(read_record(tmp_path / "forged"), tmp_path)
    assert {comparison.verdict for comparison in comparisons} == {"off"}
    assert {comparison.recorded for comparison in comparisons} == {100.0}
    changed = changed_answers(forged(run), now)
    assert changed.texts >= changed.right > 12


def test_answers_that_are_not_worth_what_is_recorded_are_refused_before_anything_is_trained(
    finished, tmp_path, no_training
):
    """Of CourseQA already when they are read; of data that are not in the package when these are at hand."""
    _, run = finished
    lie = forged(run).questions.model_copy(update={"prediction": run.questions.prediction})
    record = forged(run).model_copy(update={"questions": lie})
    with pytest.raises(
        RecordError, match=r"^the record 'finished': question '.+': of the prediction '.*' the relation"
    ):
        rerun(record, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_runs_are_compared_answer_by_answer(finished):
    _, run = finished
    assert changed_answers(run, run) == ChangedAnswers(len(run.questions.id), 0, 0)
    texts = [*run.questions.prediction]
    texts[3] += " and more"
    relation = ["but for case" if text == run.questions.prediction[5] else "overlap" for text in texts]
    other = run.questions.model_copy(update={"prediction": texts, "relation": relation})
    right = [one != two for one, two in zip(run.questions.exact_match, other.exact_match, strict=True)]
    found = changed_answers(run, run.model_copy(update={"questions": other}))
    assert found == ChangedAnswers(len(texts), 1, sum(right))
    assert found.percent == pytest.approx(100 / len(texts))
    assert f"answers: 1 of {len(texts)} differ" in changed_in_words(found)


def test_honest_pairs_are_the_runs_on_the_other_kind_of_machine_that_were_asked_everything():
    pairs = honest_pairs()
    assert len(pairs) == 9
    records, elsewhere = load_records("class-*"), load_records("cpu/*") | load_records("gpu/*")
    for name, pair in pairs.items():
        unread = records[name].unread ^ elsewhere[name].unread
        asked = [run.questions for run in (records[name], elsewhere[name])]
        here, there = (dict(zip(columns.id, columns.prediction, strict=True)) for columns in asked)
        kept = here.keys() - unread
        assert (pair.questions, pair.texts) == (len(kept), sum(here[id] != there[id] for id in kept))
        assert 0.1 < pair.texts / pair.questions < 0.5
    assert max(pair.right / pair.questions for pair in pairs.values()) == pytest.approx(
        rerun_module.RERUN_CHANGED, abs=0.005
    )
    least, most = (f(pair.percent for pair in pairs.values()) for f in (min, max))
    assert f"of 9 recorded pairs of CPU and GPU, {least:.1f} to {most:.1f} % differ" in changed_in_words(pairs[name])


def test_where_the_courses_records_are_not_at_hand_the_honest_pairs_are_not_spoken_of(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "project_folder", lambda: tmp_path)
    assert changed_in_words(ChangedAnswers(8, 2, 1)) == (
        "answers: 2 of 8 differ (25.0 %); of 1 only one of the two is right (EM)"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "/etc"}, "model '/etc' is no model's name"),
        ({"model": "../model"}, "model '../model' is no model's name"),
        ({"model": "here/model"}, "model 'here/model' is no model's name"),  # looks like a Hub name, is a folder
        ({"data": "here/data"}, "data 'here/data' is no named data set"),
        ({"data": "/etc/passwd"}, "data '/etc/passwd' is no named data set"),
        ({"start_from": "absent"}, "starts from 'absent', whose record absent lies neither beside its own nor"),
        ({"train_size": 17}, "their fingerprints differ"),
        ({"sampling": "random"}, "their fingerprints differ"),
        ({"evaluations": {"first": {"limit": 13}, "drawn": {}}}, "their fingerprints differ"),
    ],
)
def test_paths_and_other_data_are_refused_before_anything_is_trained(
    finished, tmp_path, monkeypatch, no_training, changes, words
):
    folder, run = finished
    shutil.copytree(folder / "finished" / "model", tmp_path / "here" / "model")
    shutil.copytree(ASSETS / "courseqa", tmp_path / "here" / "data")
    monkeypatch.chdir(tmp_path)
    record = run.model_copy(update={"experiment": change(run.experiment, **changes)})
    with pytest.raises(RecordError, match=words):
        rerun(record, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_the_columns_of_two_runs_can_be_compared(finished):
    _, run = finished
    exact, f1 = run.column("exact_match", "drawn"), run.column("f1", "drawn")
    assert exact.shape == f1.shape == (12,)
    assert np.all(f1 >= exact - 1e-9)  # no answer of CourseQA is empty once normalised


def test_a_record_is_not_run_again_for_days_with_all_that_it_starts_from(finished, tmp_path, monkeypatch, no_training):
    _, run = finished
    monkeypatch.setattr(store, "MOST_WORK", {"span": 50})  # each trains on 16 and scores 4
    for name, start in (("a", None), ("b", "a"), ("c", "b")):
        changed = run.model_copy(update={"experiment": change(run.experiment, name=name, start_from=start)})
        write_record(changed, tmp_path / name)
    with pytest.raises(RecordError, match="'c' trains on 1 × 20 questions"):
        rerun(changed, tmp_path / "out", beside=tmp_path)
    assert not (tmp_path / "out").exists()
