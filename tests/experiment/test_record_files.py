"""A record's folder: read by either name, loaded by pattern; one of before says which commit reads it."""

import json

import pytest

from qa_helpers.common.io import project_folder
from qa_helpers.evaluation.metrics import relation
from qa_helpers.evaluation.statistics import bootstrap_mean
from qa_helpers.experiment import record_files
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record_files import check_answers, load_records, read_record, write_record
from qa_helpers.experiment.scores import METRICS, Score
from qa_helpers.experiment.store import run_experiment

OLD = {"schema_version": 1, "experiment": {"name": "old"}, "questions": {"id": []}, "indices": {}}
WORDS = r": is a record in the form of before, one JSON file; commit 93802ce is the last that reads it"


@pytest.fixture(scope="module")
def quick():
    return load_records("quick-baseline-100-*")["quick-baseline-100-seed0"]


def test_records_are_loaded_by_name(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "project_folder", lambda: tmp_path)
    assert load_records() == {}
    write_record(quick, tmp_path / "records" / "finished-lr0.1")
    write_record(quick, tmp_path / "records" / "cpu" / "other")
    assert load_records() == {"finished-lr0.1": quick}
    assert load_records("cpu/*") == {"other": quick}
    assert load_records("class-*") == {}
    (tmp_path / "records" / "broken").mkdir()
    (tmp_path / "records" / "broken" / "run.json").write_text("{}")
    with pytest.raises(RecordError, match=r"broken/run\.json: experiment"):
        load_records()


def test_loading_refuses_a_record_whose_answers_are_broken(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "project_folder", lambda: tmp_path)
    write_record(quick, tmp_path / "records" / "a")
    (tmp_path / "records" / "a" / "answers.parquet").unlink()
    with pytest.raises(RecordError, match=r"a/answers\.parquet: cannot be read: No such file or directory"):
        load_records()


def test_a_record_of_before_says_which_commit_reads_it(quick, tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()
    old = tmp_path / "records" / "old.json"
    old.write_text(json.dumps(OLD))
    with pytest.raises(RecordError, match=rf"old\.json{WORDS}"):
        read_record(old)
    monkeypatch.setattr(record_files, "project_folder", lambda: tmp_path)
    with pytest.raises(RecordError, match=rf"old\.json{WORDS}"):
        load_records("o*")


def test_a_record_whose_experiment_has_no_kind_says_which_commit_reads_it(quick, tmp_path):
    write_record(quick, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["experiment"]["kind"]
    (tmp_path / "run.json").write_text(json.dumps(record | {"schema_version": 2}))
    words = r"run\.json: is a record in the form of before, an experiment without a kind; commit ad405d1 is the last"
    with pytest.raises(RecordError, match=words):
        read_record(tmp_path)


def test_a_runs_folder_of_before_says_which_commit_reads_it(quick, tmp_path):
    home = tmp_path / quick.experiment.name
    home.mkdir()
    (home / "run.json").write_text(json.dumps(OLD))
    with pytest.raises(RecordError, match=rf"run\.json{WORDS}"):
        run_experiment(quick.experiment, tmp_path)
    before = {"name": quick.experiment.name, "task": "span", "start_from": None, "ensemble_of": [], "average_of": []}
    (home / "experiment.json").write_text(json.dumps(before))
    words = r"experiment\.json: the file: is an experiment of before, without a kind; commit 93802ce is the last that"
    with pytest.raises(RecordError, match=words):
        run_experiment(quick.experiment, tmp_path)


# ---- what answers are worth -------------------------------------------------------------------------------------
def test_answers_to_courseqa_are_scored_again_when_they_are_read(quick, tmp_path):
    """A wrong answer that is said to be right, with its F1 and the scores: only the given answers tell otherwise."""
    place = quick.questions.relation.index("elsewhere")
    forged = {name: [*getattr(quick.questions, name)] for name in ("relation", "f1")}
    forged["relation"][place], forged["f1"][place] = "equals the first answer", 1.0
    other = quick.questions.model_copy(update=forged)
    means = {
        metric: Score.of(bootstrap_mean([100.0 * value for value in getattr(other, metric)], bounds=(0, 100)))
        for metric in METRICS
    }
    scores = quick.scores["all"].model_copy(update=means)
    write_record(quick.model_copy(update={"questions": other, "scores": {"all": scores}}), tmp_path)
    id = quick.questions.id[place]
    with pytest.raises(
        RecordError, match=rf"answers\.parquet: question '{id}': of the prediction .* 'elsewhere' and 0$"
    ):
        read_record(tmp_path)


def test_every_recorded_answer_to_courseqa_is_worth_what_is_recorded():
    given = {}
    for article in json.loads((project_folder() / "qa_helpers/assets/courseqa/dev.json").read_text())["data"]:
        for paragraph in article["paragraphs"]:
            given |= {qa["id"]: [answer["text"] for answer in qa["answers"]] for qa in paragraph["qas"]}
    for run in load_records("quick-*").values():
        check_answers(run, given, "the record")
        pairs = zip(run.questions.id, run.questions.prediction, run.questions.relation, strict=True)
        assert all(relation(text, given[id]) == expected for id, text, expected in pairs)
