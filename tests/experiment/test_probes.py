"""What is scored after every epoch: some training and some validation questions, each by the model as it then is."""

import pytest

from qa_helpers.data.squad import load_qa, sample_indices
from qa_helpers.evaluation.metrics import evaluate
from qa_helpers.evaluation.span_answers import answer
from qa_helpers.experiment import run, store
from qa_helpers.experiment.spec import EvalSet, SpanTraining

EXPERIMENT = SpanTraining(name="probed", train_size=30, evaluations={"few": EvalSet(limit=25)}, epochs=2, probe_size=6)


def test_the_probes_are_of_the_training_and_of_the_validation_questions(tmp_path, monkeypatch, tokenizer, tiny_model):
    probed = []

    def train_nothing(*arguments):
        after_epoch = arguments[5]
        after_epoch(arguments[0])
        return run.History(losses=[(1, 1.0)])

    def note(_task, _loaded, rows):
        probed.append(rows)
        return {}

    monkeypatch.setattr(run, "train", train_nothing)
    monkeypatch.setattr(run, "_probe_scores", note)
    run._train(EXPERIMENT, (tiny_model(), tokenizer), run.load_rows(EXPERIMENT), tmp_path)
    chosen = {"train": sample_indices(30, 6, 0), "validation": sample_indices(25, 6, 0)}
    expected = [load_qa("courseqa", part).select(places)["id"] for part, places in chosen.items()]
    assert [list(rows["id"]) for rows in probed] == [list(ids) for ids in expected]


def test_the_last_epochs_probe_of_validation_questions_is_what_the_trained_model_scores(finished):
    folder, run = finished
    model, tokenizer = store.load_trained("finished", folder)
    asked = load_qa("courseqa", "validation").select(run.experiment.evaluations["first"].indices(206))
    union = sorted({*range(12), *run.experiment.evaluations["drawn"].indices(206)})
    rows = load_qa("courseqa", "validation").select(union)
    assert set(asked["id"]) <= set(rows["id"])
    rows = rows.select(sample_indices(len(union), run.experiment.probe_size, 0))
    answers = answer(model, tokenizer, rows)
    probe = run.epochs[-1].eval
    assert probe.loss == pytest.approx(answers.loss, abs=1e-3)
    found = evaluate(answers.predictions, rows)
    assert probe.f1 == pytest.approx(100 * sum(one.f1 for one in found) / len(found), abs=0.01)
