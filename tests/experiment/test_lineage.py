"""Runs that start from runs or combine them: what they answer by hand, what they must share, what is recorded."""

import copy
import json
import shutil

import pytest
import torch
from torch.nn.functional import log_softmax

from qa_helpers.data.squad import load_qa
from qa_helpers.data.windows import make_windows
from qa_helpers.evaluation.span_answers import answer, best_spans, window_logits
from qa_helpers.experiment import lineage
from qa_helpers.experiment import run as run_module
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.rerun import rerun
from qa_helpers.experiment.spec import AsItComes, Combination, EvalSet, SpanTraining, change
from qa_helpers.experiment.store import load_trained, run_experiment
from qa_helpers.model import load
from qa_helpers.model.trainable import count_parameters
from qa_helpers.report.documents import format_report

FEW = {"evaluations": {"few": EvalSet(limit=8)}, "probe_size": 0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A runs folder with two finished runs, "a" and "b", which no test changes; and their experiments."""
    folder = tmp_path_factory.mktemp("runs")
    chosen = [
        SpanTraining(name=name, train_size=8, epochs=1, batch_size=4, learning_rate=5e-4, seed=seed, **FEW)
        for seed, name in enumerate("ab")
    ]
    for experiment in chosen:
        run_experiment(experiment, folder)
    return folder, chosen


@pytest.fixture
def runs(pair, tmp_path):
    """A copy of the two runs' folder that a test may change."""
    return shutil.copytree(pair[0], tmp_path / "runs")


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(run_module, "train", None)


def combined(mean_of, *members):
    return Combination(name="both", mean_of=mean_of, members=members, evaluations=FEW["evaluations"])


# What only a span model's training has, to be taken away.
OF_SPANS = dict.fromkeys(("layer_decay", "label_smoothing", "targets", "average_last", "retrieval"))


def rewrite(run, **changes):
    """Change a finished run's experiment, in the description and in the record; None takes a field away."""
    for path, inside in ((run / "experiment.json", False), (run / "run.json", True)):
        content = json.loads(path.read_text())
        changed = (content["experiment"] if inside else content) | changes
        changed = {name: value for name, value in changed.items() if name not in changes or value is not None}
        path.write_text(json.dumps(content | {"experiment": changed} if inside else changed))


# ---- ensembles --------------------------------------------------------------------------------------------------
def test_an_ensemble_answers_by_its_members_mean_log_probabilities(runs, tokenizer, no_training):
    run = run_experiment(combined("answers", "a", "b"), runs)
    rows = list(load_qa(split="validation", limit=8))
    windows = make_windows(rows, tokenizer)
    assert len(windows) == 8  # one a question
    members = [load_trained(name, runs)[0] for name in "ab"]
    for i, window in enumerate(windows):
        found = [next(window_logits(model, [window], tokenizer))[1:] for model in members]
        start, end = (sum(log_softmax(logits[part], 1) for logits in found) / 2 for part in (0, 1))
        allowed = torch.zeros(start.shape, dtype=torch.bool)
        allowed[:, window.first : window.first + len(window.offsets)] = True
        best = best_spans(start, end, allowed)
        first, last = window.characters(int(best.starts[0, 0]), int(best.ends[0, 0]))
        assert run.questions.prediction[i] == rows[i]["context"][first:last]
        probability = float((best.scores[0, 0] - best.log_total[0]).exp())
        assert run.questions.confidence[i] == pytest.approx(probability, abs=1e-3)
    alone = [read_record(runs / name / "run.json").questions.confidence for name in "ab"]
    assert run.questions.confidence not in alone
    assert run.parameters == (0, 2 * count_parameters(members[0])[1])
    assert sorted(path.name for path in (runs / "both").iterdir()) == ["answers.parquet", "experiment.json", "run.json"]
    assert "| both | nothing: the mean answers of a, b | few (8) |" in format_report([run])


def test_an_ensemble_is_loaded_as_a_model_and_read_back(runs, no_training):
    run = run_experiment(combined("answers", "b", "a"), runs)
    assert run_experiment(run.experiment, runs) == run
    model, tokenizer = load_trained("both", runs)
    rows = list(load_qa(split="validation", limit=8))
    assert [one.text for one in answer(model, tokenizer, rows).predictions] == run.questions.prediction
    with pytest.raises(RecordError, match=r"no such model to start from; run 'both' first \(.* nor does an ensemble"):
        run_experiment(SpanTraining(name="next", start_from="both"), runs)


# ---- averages ---------------------------------------------------------------------------------------------------
def test_an_average_has_the_mean_of_its_members_weights_and_is_a_model_like_any_other(runs, tokenizer, no_training):
    run = run_experiment(combined("weights", "a", "b"), runs)
    one, other = (load_trained(name, runs)[0].state_dict() for name in "ab")
    model, _ = load_trained("both", runs)
    found = model.state_dict()
    assert found.keys() == one.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2, rtol=1e-6, atol=1e-7)
    assert not torch.equal(one["qa_outputs.weight"], other["qa_outputs.weight"])
    rows = list(load_qa(split="validation", limit=8))
    assert [one.text for one in answer(model, tokenizer, rows).predictions] == run.questions.prediction
    assert run.parameters == (0, count_parameters(model)[1])
    start, _ = lineage.starting_point(SpanTraining(name="next", start_from="both"), runs)
    assert all(torch.equal(value, found[name]) for name, value in start.state_dict().items())


def test_the_last_epochs_of_a_run_are_averaged(tmp_path, monkeypatch):
    seen = []

    def note(_task, loaded, _rows):
        model, _ = loaded
        seen.append({name: value.clone().cpu() for name, value in model.state_dict().items()})
        return {"loss": 1.0, "exact_match": 0.0, "f1": 0.0}

    monkeypatch.setattr(run_module, "_probe_scores", note)
    experiment = SpanTraining(name="long", train_size=4, epochs=3, batch_size=4, trainable="last:1", average_last=2)
    run = run_experiment(change(experiment, evaluations=FEW["evaluations"], probe_size=1), tmp_path)
    epochs = seen[::2]  # training and validation questions are scored after each
    assert len(epochs) == 3
    model, tokenizer = load_trained("long", tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.cpu(), (epochs[1][name] + epochs[2][name]) / 2, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(model.qa_outputs.weight.cpu(), epochs[2]["qa_outputs.weight"], atol=1e-6)
    rows = list(load_qa(split="validation", limit=8))
    assert [one.text for one in answer(model, tokenizer, rows).predictions] == run.questions.prediction


# ---- what must be alike -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("mean_of", ["answers", "weights"])
def test_a_member_that_was_not_run_is_named(runs, no_training, mean_of):
    with pytest.raises(RecordError, match="holds no finished run; run 'absent' first"):
        run_experiment(combined(mean_of, "a", "absent"), runs)


@pytest.mark.parametrize("changes", [{"model": "other"}, {"kind": "train a language model", **OF_SPANS}])
def test_members_of_other_base_models_are_refused(runs, no_training, changes):
    rewrite(runs / "b", **changes)
    with pytest.raises(RecordError, match=r"^the runs 'a' and 'b' differ in their base model, so they cannot"):
        run_experiment(combined("answers", "a", "b"), runs)


def test_the_base_model_is_that_of_the_first_run_of_the_line(runs, no_training):
    first = json.loads((runs / "a" / "run.json").read_text())
    ancestor = {"experiment": first["experiment"] | {"model": "other"}, "fingerprints": first["fingerprints"]}
    content = json.loads((runs / "b" / "run.json").read_text())
    content["ancestors"] = {"first": ancestor}
    content["experiment"]["start_from"] = "first"
    (runs / "b" / "run.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match="'a' and 'b' differ in their base model"):
        run_experiment(combined("weights", "a", "b"), runs)


def test_members_of_other_tokenizers_are_refused(runs, tokenizer, no_training):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["Szegedy"])
    changed.save_pretrained(runs / "b" / "model")
    with pytest.raises(RecordError, match="'a' and 'b' differ in their tokenizer"):
        run_experiment(combined("weights", "a", "b"), runs)


# ---- what is recorded -------------------------------------------------------------------------------------------
def test_a_record_holds_the_experiments_and_the_data_of_all_that_it_rests_on(runs, pair, no_training):
    _, chosen = pair
    average = run_experiment(combined("weights", "a", "b"), runs)
    again = AsItComes(name="again", start_from="both", evaluations=FEW["evaluations"])
    run = run_experiment(again, runs)
    assert {name: one.experiment for name, one in run.ancestors.items()} == {
        "a": chosen[0],
        "b": chosen[1],
        "both": average.experiment,
    }
    assert run.ancestors["a"].fingerprints == read_record(runs / "a" / "run.json").fingerprints
    assert run.scores == average.scores
    assert read_record(runs / "again" / "run.json") == run
    with pytest.raises(RecordError, match=r"'both' starts from 'a', whose record a lies neither beside"):
        rerun(average, runs / "out")


def test_a_run_that_rests_on_a_replaced_one_is_not_read_back(runs, no_training):
    run = run_experiment(combined("answers", "a", "b"), runs)
    rewrite(runs / "b", seed=7)
    with pytest.raises(
        RecordError, match=r"the run 'b', which this one rests on, has been replaced since.* again=True"
    ):
        run_experiment(run.experiment, runs)
    shutil.rmtree(runs / "b")  # what is gone has not been replaced
    assert run_experiment(run.experiment, runs) == run


def test_a_start_that_has_seen_squad_is_still_warned_of(tmp_path, tiny_model, tokenizer):
    for part in (tiny_model(), tokenizer):
        part.save_pretrained(tmp_path / "tiny-squad")
    with pytest.warns(UserWarning, match="already fine-tuned on SQuAD"):
        model, _ = lineage.starting_point(SpanTraining(name="x", model=str(tmp_path / "tiny-squad")), tmp_path)
    assert isinstance(model.qa_outputs, load.Float32Linear)
