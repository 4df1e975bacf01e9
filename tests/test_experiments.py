"""Experiments: run, read back, go on from another, run again and compare; on the smallest real ones."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from qa_helpers import experiments, models
from qa_helpers.data import ASSETS, fingerprint, load_qa, sample_indices
from qa_helpers.evaluation import answer
from qa_helpers.experiments import (
    SCALES,
    Comparison,
    compare,
    current_scale,
    load_records,
    load_trained,
    named_experiments,
    rerun,
    run_experiment,
    runs_folder,
)
from qa_helpers.files import project_folder
from qa_helpers.records import EvalSet, Experiment, RecordError, read_experiment, read_record, write_record
from qa_helpers.statistics import bootstrap_mean


@pytest.fixture
def no_training(monkeypatch):
    """Training is an error."""

    def fail(*_args, **_options):
        raise AssertionError("trained")

    monkeypatch.setattr(experiments, "train", fail)


def but(experiment, **changes):
    return Experiment.model_validate(experiment.model_dump() | changes)


def results(run):
    """All of a run that must be the same when it is run again on this machine."""
    return {name: value for name, value in run.model_dump().items() if name not in ("timing", "machine")}


# ---- one run ----------------------------------------------------------------------------------------------------
def test_a_run_says_what_was_trained_and_asked(finished):
    folder, run = finished
    assert sorted(os.listdir(folder / "finished")) == ["experiment.json", "model", "run.json"]
    assert read_record(folder / "finished" / "run.json") == run
    assert read_experiment(folder / "finished" / "experiment.json") == run.experiment
    train, validation = load_qa(limit=16), load_qa(split="validation")
    asked = sorted({*range(12), *sample_indices(206, 12, 0)})
    assert run.questions.id == validation.select(asked)["id"]
    assert [run.questions.id[i] for i in run.indices["first"]] == validation["id"][:12]
    assert [run.questions.id[i] for i in run.indices["drawn"]] == [
        validation["id"][i] for i in sample_indices(206, 12, 0)
    ]
    assert run.fingerprints.train == fingerprint(train)
    assert run.fingerprints.eval == fingerprint(validation.select(asked))
    assert [epoch.epoch for epoch in run.epochs] == [1]
    assert run.losses[-1][0] == 2
    assert run.parameters[0] == run.parameters[1] > 20_000_000
    assert run.machine.threads == torch.get_num_threads()
    assert run.timing.train_seconds > 0


def test_the_scores_are_those_of_the_questions(finished):
    _, run = finished
    for name, scores in run.scores.items():
        assert scores.questions == 12
        for metric in ("string_equality", "exact_match", "f1", "contained"):
            expected = bootstrap_mean(100 * run.column(metric, name).astype(float))
            score = getattr(scores, metric)
            assert (score.value, score.low, score.high) == pytest.approx(expected, abs=0.011)


def test_a_finished_run_is_read_back_and_not_trained_again(finished, no_training):
    folder, run = finished
    assert run_experiment(run.experiment, folder) == run


def test_the_trained_model_gives_the_recorded_answers(finished):
    folder, run = finished
    model, tokenizer = load_trained("finished", folder)
    validation = load_qa(split="validation")
    rows = [row for row in validation if row["id"] in run.questions.id]
    assert [prediction.text for prediction in answer(model, tokenizer, rows).predictions] == run.questions.prediction


def test_another_experiment_of_the_name_is_refused(finished, no_training):
    folder, run = finished
    with pytest.raises(RecordError, match=r"holds another experiment of the name 'finished'.* again=True") as caught:
        run_experiment(but(run.experiment, seed=1), folder)
    assert str(folder / "finished") in str(caught.value)
    assert read_record(folder / "finished" / "run.json") == run


def test_a_folder_whose_description_is_broken_is_refused(tmp_path, no_training):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "experiment.json").write_text("{")
    with pytest.raises(RecordError, match=r"experiment\.json: is not valid JSON"):
        run_experiment(Experiment(name="broken"), tmp_path)


def test_again_trains_again_with_the_same_result_and_replaces_another_experiment(finished, tmp_path):
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "finished")
    (tmp_path / "finished" / "experiment.json").write_text(but(run.experiment, seed=7).model_dump_json())
    (tmp_path / "finished" / "run.json").unlink()
    (tmp_path / "finished" / "model" / "of the former run").touch()
    repeated = run_experiment(run.experiment, tmp_path, again=True)
    assert results(repeated) == results(run)
    assert not (tmp_path / "finished" / "model" / "of the former run").exists()
    assert read_experiment(tmp_path / "finished" / "experiment.json") == run.experiment


def test_again_replaces_no_folder_that_is_not_a_runs(tmp_path, no_training):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "mine.ipynb").write_text("mine")
    with pytest.raises(RecordError, match="is no run's folder"):
        run_experiment(Experiment(name="notebooks"), tmp_path, again=True)
    assert [path.name for path in (tmp_path / "notebooks").iterdir()] == ["mine.ipynb"]


def test_a_result_on_other_data_is_not_read_back(finished, tmp_path, no_training):
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "finished")
    other = run.model_copy(update={"fingerprints": run.fingerprints.model_copy(update={"train": "0" * 16})})
    write_record(other, tmp_path / "finished" / "run.json")
    with pytest.raises(RecordError, match="the data have changed since this run"):
        run_experiment(run.experiment, tmp_path)


def test_another_seed_gives_another_result(finished, tmp_path):
    _, run = finished
    other = run_experiment(but(run.experiment, seed=1), tmp_path)
    assert other.losses != run.losses
    assert other.questions.id == run.questions.id
    assert other.fingerprints == run.fingerprints


def test_data_that_are_not_there_leave_no_result(tmp_path):
    with pytest.raises(ValueError, match="no data set 'absent'"):
        run_experiment(Experiment(name="x", data="absent"), tmp_path)
    assert not (tmp_path / "x" / "run.json").exists()


def test_own_data_from_a_folder(tmp_path):
    source = ASSETS / "courseqa"
    shutil.copytree(source, tmp_path / "own")
    experiment = Experiment(
        name="own",
        data=str(tmp_path / "own"),
        train_size=4,
        sampling="random",
        sampling_seed=5,
        evaluations={"few": EvalSet(limit=4)},
        trainable="head",
        epochs=1,
        probe_size=0,
    )
    run = run_experiment(experiment, tmp_path / "runs")
    assert run.epochs == []
    assert run.parameters[0] == 2 * 384 + 2
    assert run.fingerprints.train == fingerprint(load_qa(limit=4, sampling="random", seed=5))


@pytest.mark.filterwarnings("ignore:invalid value")  # of the numbers that are none
def test_training_that_diverged_says_so(tokenizer, course):
    model = models.load_qa_model()
    with torch.no_grad():
        model.qa_outputs.weight.fill_(torch.nan)
    with pytest.raises(RecordError, match=r"training diverged.* lower the learning rate"):
        experiments._probe_scores(model, tokenizer, course[:2])


# ---- starting from another run ----------------------------------------------------------------------------------
def test_a_run_starts_from_another_runs_weights(finished, tmp_path):
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "finished")
    experiment = but(run.experiment, name="warm", start_from="finished", trainable="head", learning_rate=1e-6)
    warm = run_experiment(experiment, tmp_path)
    start = load_trained("finished", folder)[0].state_dict()
    end = load_trained("warm", tmp_path)[0].state_dict()
    fresh = models.load_qa_model(seed=experiment.seed).to(next(iter(start.values())).device).state_dict()
    for name, weights in end.items():
        if not name.startswith("qa_outputs"):
            assert torch.equal(weights, start[name])
    torch.testing.assert_close(end["qa_outputs.weight"], start["qa_outputs.weight"], atol=1e-5, rtol=0)
    assert not torch.allclose(end["qa_outputs.weight"], fresh["qa_outputs.weight"], atol=1e-4)
    assert warm.epochs[0].train.loss < run.losses[0][1]


def test_a_start_that_was_not_run_is_an_error(finished, tmp_path, no_training):
    _, run = finished
    with pytest.raises(RecordError, match="no such model to start from; run 'absent' first"):
        run_experiment(but(run.experiment, name="warm", start_from="absent"), tmp_path)
    with pytest.raises(RecordError, match="no trained model; run the experiment 'absent' first"):
        load_trained("absent", tmp_path)


def test_a_checkpoint_that_has_seen_squad_is_warned_of(finished, tmp_path, no_training):
    folder, run = finished
    shutil.copytree(folder / "finished" / "model", tmp_path / "minilm-squad")
    experiment = but(run.experiment, model=str(tmp_path / "minilm-squad"))
    with pytest.warns(UserWarning, match="already fine-tuned on SQuAD"), pytest.raises(AssertionError, match="trained"):
        run_experiment(experiment, tmp_path / "runs")


# ---- scales, names, folders -------------------------------------------------------------------------------------
def test_the_scale_is_the_variables(monkeypatch):
    monkeypatch.delenv("QA_SCALE", raising=False)
    assert current_scale() is SCALES["quick"]
    monkeypatch.setenv("QA_SCALE", "")
    assert current_scale() is SCALES["quick"]
    for name, scale in SCALES.items():
        monkeypatch.setenv("QA_SCALE", name)
        assert current_scale() is scale
    monkeypatch.setenv("QA_SCALE", "huge")
    with pytest.raises(RecordError, match="QA_SCALE is 'huge'; set it to quick, class, full"):
        current_scale()


def test_named_experiments_can_be_described_and_run_from_names_only():
    named = named_experiments()
    assert {"quick-baseline-500-seed0", "class-baseline-1000-seed0", "full-baseline-87599-seed0"} <= set(named)
    for name, experiment in named.items():
        assert experiment.name == name
        assert Experiment.model_validate(experiment.model_dump()) == experiment  # model_copy checks nothing
        assert experiment.data in ("courseqa", "squad")
        assert experiment.model in models.PACKAGED or models.is_hub_name(experiment.model)


def test_the_runs_folder_is_the_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("QA_RUNS_DIR", str(tmp_path))
    assert runs_folder() == tmp_path
    monkeypatch.delenv("QA_RUNS_DIR")
    assert runs_folder() == project_folder() / "runs"


def test_records_are_loaded_by_name(finished, tmp_path, monkeypatch):
    _, run = finished
    monkeypatch.setattr(experiments, "project_folder", lambda: tmp_path)
    assert load_records() == {}
    write_record(run, tmp_path / "records" / "finished.json")
    assert load_records() == {"finished": run}
    assert load_records("class-*") == {}
    (tmp_path / "records" / "broken.json").write_text("{}")
    with pytest.raises(RecordError, match=r"broken\.json: experiment"):
        load_records()


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


def test_every_score_is_compared(finished):
    _, run = finished
    figures = [comparison.figure for comparison in compare(run.scores, run.scores)]
    assert len(figures) == len(set(figures)) == 8
    assert {"first: exact_match", "drawn: f1"} <= set(figures)


def files_below(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_a_record_is_run_again_only_below_the_folder_and_is_the_same(finished, tmp_path, monkeypatch):
    folder, run = finished
    write_record(run, tmp_path / "handed-in.json")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("QA_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "here"))
    before = files_below(folder)
    now, comparisons = rerun(read_record(tmp_path / "handed-in.json"), tmp_path / "out")
    assert {comparison.verdict for comparison in comparisons} == {"same"}
    assert results(now) == results(run)
    assert files_below(folder) == before
    assert sorted(os.listdir(tmp_path)) == ["handed-in.json", "here", "out"]
    assert os.listdir(tmp_path / "out") == ["finished"]
    assert os.listdir(tmp_path / "here") == []


def test_a_forged_score_is_off(finished, tmp_path, monkeypatch):
    _, run = finished
    raw = json.loads(run.model_dump_json())
    for place in raw["indices"]["first"]:
        raw["questions"]["exact_match"][place] = 1
    for name, places in raw["indices"].items():
        value = 100 * sum(raw["questions"]["exact_match"][place] for place in places) / len(places)
        raw["scores"][name]["exact_match"] = {"value": value, "low": value, "high": value}
    (tmp_path / "forged.json").write_text(json.dumps(raw))
    monkeypatch.setattr(experiments, "run_experiment", lambda *_args, **_options: run)  # trained in the test above
    _, comparisons = rerun(read_record(tmp_path / "forged.json"), tmp_path)
    assert "first: exact_match" in [c.figure for c in comparisons if c.verdict == "off"]
    assert all(c.verdict == "same" for c in comparisons if "exact_match" not in c.figure)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "/etc"}, "model '/etc' is no model's name"),
        ({"model": "../model"}, "model '../model' is no model's name"),
        ({"model": "here/model"}, "model 'here/model' is no model's name"),  # looks like a Hub name, is a folder
        ({"data": "here/data"}, "data 'here/data' is no named data set"),
        ({"data": "/etc/passwd"}, "data '/etc/passwd' is no named data set"),
        ({"start_from": "absent"}, "starts from 'absent', which a record does not hold"),
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
    record = run.model_copy(update={"experiment": but(run.experiment, **changes)})
    with pytest.raises(RecordError, match=words):
        rerun(record, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_the_columns_of_two_runs_can_be_compared(finished):
    _, run = finished
    exact, f1 = run.column("exact_match", "drawn"), run.column("f1", "drawn")
    assert exact.shape == f1.shape == (12,)
    assert np.all(f1 >= exact - 1e-9)  # no answer of CourseQA is empty once normalised
