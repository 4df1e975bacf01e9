"""Experiments: run, read back, go on from another, run again and compare; on the smallest real ones."""

import contextlib
import multiprocessing
import os
import shutil
import time

import pytest
import torch
from little_space import no_file_longer_than

from qa_helpers.common.device import default_device
from qa_helpers.common.io import CourseError, ModelError, project_folder
from qa_helpers.data.cloze import load_cloze
from qa_helpers.data.squad import ASSETS, fingerprint, load_qa, sample_indices
from qa_helpers.data.windows import make_windows
from qa_helpers.evaluation import written_answers
from qa_helpers.evaluation.retrieval import retrieval_ranks
from qa_helpers.evaluation.span_answers import answer
from qa_helpers.evaluation.statistics import bootstrap_mean
from qa_helpers.experiment import once, store
from qa_helpers.experiment import rerun as rerun_module
from qa_helpers.experiment import run as run_module
from qa_helpers.experiment.catalogue import named_experiments
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record_files import load_records, read_record, write_record
from qa_helpers.experiment.rerun import (
    rerun,
)
from qa_helpers.experiment.spec import (
    AsItComes,
    EvalSet,
    LanguageTraining,
    SpanTraining,
    change,
    parse_experiment,
    read_experiment,
)
from qa_helpers.experiment.store import check_work, load_trained, run_experiment, runs_folder
from qa_helpers.model import load, trainable
from qa_helpers.report.documents import format_report
from qa_helpers.training import labels
from qa_helpers.training.trainer import Settings


@pytest.fixture
def no_training(monkeypatch):
    """Training is an error."""

    def fail(*_args, **_options):
        raise AssertionError("trained")

    monkeypatch.setattr(run_module, "train", fail)


def results(run):
    """All of a run that must be the same when it is run again on this machine."""
    return {name: value for name, value in run.model_dump().items() if name not in ("timing", "machine")}


# ---- one run ----------------------------------------------------------------------------------------------------
def test_a_run_says_what_was_trained_and_asked(finished):
    folder, run = finished
    assert sorted(os.listdir(folder / "finished")) == ["answers.parquet", "experiment.json", "model", "run.json"]
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
        run_experiment(change(run.experiment, seed=1), folder)
    assert str(folder / "finished") in str(caught.value)
    assert read_record(folder / "finished" / "run.json") == run


def test_a_folder_whose_description_is_broken_is_refused(tmp_path, no_training):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "experiment.json").write_text("{")
    with pytest.raises(RecordError, match=r"experiment\.json: is not valid JSON"):
        run_experiment(SpanTraining(name="broken"), tmp_path)


def test_again_trains_again_with_the_same_result_and_replaces_another_experiment(finished, tmp_path):
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "finished")
    (tmp_path / "finished" / "experiment.json").write_text(change(run.experiment, seed=7).model_dump_json())
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
        run_experiment(SpanTraining(name="notebooks"), tmp_path, again=True)
    assert [path.name for path in (tmp_path / "notebooks").iterdir()] == ["mine.ipynb"]


def test_a_result_on_other_data_is_not_read_back(finished, tmp_path, no_training):
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "finished")
    other = run.model_copy(update={"fingerprints": run.fingerprints.model_copy(update={"train": "0" * 16})})
    write_record(other, tmp_path / "finished")
    with pytest.raises(RecordError, match="the data have changed since this run"):
        run_experiment(run.experiment, tmp_path)


def test_another_seed_gives_another_result(finished, tmp_path):
    _, run = finished
    other = run_experiment(change(run.experiment, seed=1), tmp_path)
    assert other.losses != run.losses
    assert other.questions.id == run.questions.id
    assert other.fingerprints == run.fingerprints


def test_data_that_are_not_there_leave_no_result(tmp_path):
    with pytest.raises(ValueError, match="no data set 'absent'"):
        run_experiment(SpanTraining(name="x", data="absent"), tmp_path)
    assert not (tmp_path / "x" / "run.json").exists()


def test_own_data_from_a_folder(tmp_path):
    source = ASSETS / "courseqa"
    shutil.copytree(source, tmp_path / "own")
    experiment = SpanTraining(
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


def test_training_that_diverged_says_so(tokenizer, course):
    model = load.load_qa_model()
    with torch.no_grad():
        model.qa_outputs.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"training diverged.* lower the learning rate"):
        run_module._probe_scores("span", (model, tokenizer), course[:2])


# ---- one process at a time --------------------------------------------------------------------------------------
def hold_lock(home, held):
    with once.locked(home):
        held.set()
        time.sleep(600)


@pytest.fixture
def locked(finished, tmp_path):
    """A copy of the runs folder, in which another process is running "finished"; and that process."""
    shutil.copytree(finished[0] / "finished", tmp_path / "runs" / "finished")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qa_helpers.experiment.store"])
    held = context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path / "runs" / "finished", held))
    process.start()
    assert held.wait(120)
    yield tmp_path / "runs", process
    process.kill()
    process.join()


def test_what_another_process_is_running_is_neither_run_nor_replaced(finished, locked, no_training):
    (_, run), (folder, process) = finished, locked
    words = "finished: another process is running this experiment; wait for it, or stop it"
    with pytest.raises(RecordError, match=words):
        run_experiment(run.experiment, folder, again=True)
    assert run_experiment(run.experiment, folder) == run  # what is finished can be read
    (folder / "finished" / "run.json").unlink()
    with pytest.raises(RecordError, match=words):
        run_experiment(run.experiment, folder)
    assert sorted(os.listdir(folder / "finished")) == ["answers.parquet", "experiment.json", "model"]
    with pytest.raises(AssertionError, match="trained"):
        run_experiment(change(run.experiment, name="other"), folder)
    process.kill()
    process.join()
    with pytest.raises(AssertionError, match="trained"):
        run_experiment(run.experiment, folder)


def test_an_error_ends_the_lock_and_what_was_finished_meanwhile_is_read(finished, tmp_path, monkeypatch, no_training):
    _, run = finished
    for _ in range(2):
        with pytest.raises(AssertionError, match="trained"):
            run_experiment(run.experiment, tmp_path)
    claim, home = once._claim, tmp_path / run.experiment.name
    monkeypatch.setattr(once, "_claim", lambda *given: claim(*given) or write_record(run, home))
    assert run_experiment(run.experiment, tmp_path) == run


# ---- adapters, retrieval, language models, nothing trained ------------------------------------------------------
@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A runs folder with one finished run with LoRA, "lora", which no test changes; and the run."""
    folder = tmp_path_factory.mktemp("runs")
    experiment = SpanTraining(
        name="lora",
        train_size=16,
        evaluations={"first": EvalSet(limit=12)},
        trainable="lora",
        epochs=2,
        batch_size=4,
        learning_rate=5e-3,
        seed=1,
        probe_size=4,
        retrieval=True,
    )
    return folder, run_experiment(experiment, folder)


def rows_of(run):
    return [row for row in load_qa(split="validation") if row["id"] in run.questions.id]


def texts(answers):
    return [prediction.text for prediction in answers.predictions]


def test_a_run_with_lora_leaves_a_small_folder_that_names_its_model(lora):
    folder, run = lora
    assert sorted(os.listdir(folder / "lora")) == ["answers.parquet", "experiment.json", "model", "run.json"]
    assert read_record(folder / "lora" / "run.json") == run
    trained, total = run.parameters
    assert 0 < trained < 0.02 * total
    weights = folder / "lora" / "model" / "adapter_model.safetensors"
    assert weights.stat().st_size == pytest.approx(run.stored_bytes, rel=0.05)
    assert 4 * trained < run.stored_bytes < 2_000_000
    assert not list((folder / "lora").rglob("model.safetensors"))
    assert trainable.adapter_base(folder / "lora" / "model") == "minilm"
    assert len(run.epochs) == 2
    assert run.losses[-1][1] < run.losses[0][1]


def test_the_adapter_of_a_run_gives_the_recorded_answers_and_merged_the_same_logits(lora):
    folder, run = lora
    rows, home = rows_of(run), str(folder / "lora" / "model")
    attached = trainable.attach_adapter(load.load_qa_model(), home).eval().to(default_device())
    merged, tokenizer = load_trained("lora", folder)
    assert texts(answer(attached, tokenizer, rows)) == run.questions.prediction
    inputs = tokenizer(rows[0]["question"], rows[0]["context"], return_tensors="pt").to(default_device())
    with torch.inference_mode():  # without autocast: in bfloat16 the sum of two products is not the product of the sum
        one, other = attached(**inputs), merged(**inputs)
    torch.testing.assert_close(one.start_logits, other.start_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.end_logits, other.end_logits, rtol=0, atol=1e-4)


def test_retrieval_is_measured_before_and_after_for_each_question(lora, tokenizer):
    folder, run = lora
    validation, rows = load_qa(split="validation"), rows_of(run)
    passages = list(dict.fromkeys(validation["context"]))
    assert run.retrieval.passages == len(passages) > 12
    assert len(run.retrieval.before) == len(run.retrieval.after) == len(run.questions.id) == 12
    assert run.retrieval.before == retrieval_ranks(load.load_qa_model(seed=7), tokenizer, rows, passages)
    attached = trainable.attach_adapter(load.load_qa_model(), folder / "lora" / "model")
    assert run.retrieval.after == retrieval_ranks(attached, tokenizer, rows, passages)
    assert run.retrieval.recall("before", 5).value > 80  # what MiniLM was made for


def test_a_record_with_lora_is_run_again_and_is_the_same(lora, tmp_path):
    folder, run = lora
    now, comparisons = rerun(read_record(folder / "lora" / "run.json"), tmp_path)
    recall = [comparison for comparison in comparisons if comparison.figure.startswith("recall@")]
    assert [comparison.figure for comparison in recall] == [
        "recall@1 before training",
        "recall@5 before training",
        "recall@1 after training",
        "recall@5 after training",
    ]
    assert recall[2].recorded == run.retrieval.recall("after", 1).value
    assert {comparison.verdict for comparison in comparisons} == {"same"}
    assert results(now) == results(run)


def test_a_run_with_lora_that_was_interrupted_ends_with_the_same_numbers(lora, tmp_path, monkeypatch):
    _, run = lora
    probe_scores = run_module._probe_scores

    def interrupted(*arguments):
        if (tmp_path / "lora" / "checkpoints" / "checkpoint-4" / "complete").exists():  # in the second epoch
            raise KeyboardInterrupt
        return probe_scores(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_probe_scores", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(run.experiment, tmp_path)
    assert not (tmp_path / "lora" / "model").exists()
    probed = []
    monkeypatch.setattr(run_module, "_probe_scores", lambda *args: probed.append(1) or probe_scores(*args))
    resumed = run_experiment(run.experiment, tmp_path)
    assert results(resumed) == results(run)
    assert len(probed) == 2  # training and validation questions of the second epoch alone
    assert (resumed.timing.resumed, run.timing.resumed) == (True, False)  # so that nobody takes its seconds for all


# The adapter's weights are written first (safetensors), then the optimizer's state, about twice as large (torch).
@pytest.mark.parametrize("room", [0.5, 1.5])
def test_a_run_on_a_full_disk_says_so_and_ends_with_the_same_numbers_later(lora, tmp_path, monkeypatch, room):
    _, run = lora
    probe_scores = run_module._probe_scores

    with contextlib.ExitStack() as full, monkeypatch.context() as patch:

        def fill(*arguments):
            if (tmp_path / "lora" / "checkpoints" / "checkpoint-4" / "complete").exists():  # in the second epoch
                full.enter_context(no_file_longer_than(int(room * run.stored_bytes)))
            return probe_scores(*arguments)

        patch.setattr(run_module, "_probe_scores", fill)
        with pytest.raises(CourseError, match=r"lora: cannot be written: .*; make room") as caught:
            run_experiment(run.experiment, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "lora" / "model").exists()
    probed = []
    monkeypatch.setattr(run_module, "_probe_scores", lambda *args: probed.append(1) or probe_scores(*args))
    resumed = run_experiment(run.experiment, tmp_path)
    assert results(resumed) == results(run)
    assert len(probed) == 2  # the first epoch was kept


def test_a_record_that_does_not_fit_is_written_later_without_training_again(finished, tmp_path, monkeypatch):
    _, run = finished

    def on_a_full_disk(*arguments):
        with no_file_longer_than(100):
            write_record(*arguments)

    monkeypatch.setattr(store, "write_record", on_a_full_disk)
    with pytest.raises(CourseError, match=r"answers\.parquet: cannot be written: File too large"):
        run_experiment(run.experiment, tmp_path)
    assert not (tmp_path / "finished" / "run.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "_probe_scores", lambda *_: pytest.fail("trained"))
    assert results(run_experiment(run.experiment, tmp_path)) == results(run)


def test_a_run_starts_from_a_run_with_lora_and_its_model_holds_the_weights_of_both(lora, tmp_path):
    folder, run = lora
    shutil.copytree(folder / "lora", tmp_path / "lora")
    experiment = change(run.experiment, name="warm", start_from="lora", learning_rate=1e-6, epochs=1, retrieval=False)
    warm = run_experiment(experiment, tmp_path)
    assert warm.parameters == run.parameters
    start = load_trained("lora", tmp_path)[0].state_dict()
    plain = load.load_qa_model(seed=experiment.seed).to(default_device()).state_dict()
    shutil.rmtree(tmp_path / "lora")  # the new run's model does not need it
    end = load_trained("warm", tmp_path)[0].state_dict()
    assert start.keys() == end.keys() == plain.keys()
    for name, weights in end.items():
        torch.testing.assert_close(weights, start[name], atol=1e-4, rtol=0)
    changed = "bert.encoder.layer.0.attention.self.query.weight"
    assert (end[changed] - plain[changed]).abs().max() > 1e-3
    assert warm.epochs[0].train.loss < run.losses[0][1]


def test_without_epochs_the_model_is_asked_as_it_comes(lora, tmp_path, tokenizer, no_training):
    _, lora_run = lora
    asked = lora_run.experiment
    experiment = AsItComes(name="as-it-comes", evaluations=asked.evaluations, seed=asked.seed)
    run = run_experiment(experiment, tmp_path)
    model = load.load_qa_model(seed=1).to(default_device())
    assert sorted(os.listdir(tmp_path / "as-it-comes")) == ["answers.parquet", "experiment.json", "run.json"]
    assert run.parameters == (0, trainable.count_parameters(model)[1])
    assert run.stored_bytes == 0
    assert run.losses == run.epochs == []
    assert run.timing.train_seconds == run.timing.train_questions_per_second == 0
    assert texts(answer(model, tokenizer, rows_of(run))) == run.questions.prediction
    assert "| as-it-comes | nothing: minilm as it comes | first (12) |" in format_report([run])
    assert run_experiment(experiment, tmp_path) == run
    now, comparisons = rerun(read_record(tmp_path / "as-it-comes" / "run.json"), tmp_path / "out")
    assert {comparison.verdict for comparison in comparisons} == {"same"}
    assert results(now) == results(run)
    with pytest.raises(RecordError, match="there is no trained model"):
        load_trained("as-it-comes", tmp_path)


def test_another_runs_model_is_asked_without_epochs(finished, tmp_path, no_training):
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "finished")
    experiment = AsItComes(name="asked", start_from="finished", evaluations=run.experiment.evaluations)
    again = run_experiment(experiment, tmp_path)
    assert again.scores == run.scores
    assert again.questions == run.questions


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainable": "lora:8"}, "'lora:8' cannot be trained: use 'all', 'head', 'lora', 'ia3', or 'last:N'"),
        ({"model": "smollm2"}, "'smollm2' .* is no encoder"),
    ],
)
def test_a_model_that_cannot_be_trained_so_leaves_no_result(tmp_path, no_training, changes, words):
    with pytest.raises(ModelError, match=words):
        run_experiment(SpanTraining(name="x", train_size=4, **changes), tmp_path)
    assert os.listdir(tmp_path / "x") == ["experiment.json"]


@pytest.mark.slow
def test_a_language_model_is_fine_tuned_asked_and_loaded_again(tmp_path):
    experiment = LanguageTraining(
        name="written",
        train_size=4,
        evaluations={"few": EvalSet(limit=4)},
        model="smollm2",
        trainable="lora",
        epochs=1,
        batch_size=2,
        learning_rate=1e-3,
        probe_size=1,
    )
    run = run_experiment(experiment, tmp_path)
    assert read_record(tmp_path / "written" / "run.json") == run
    assert run_experiment(experiment, tmp_path) == run
    assert sorted(os.listdir(tmp_path / "written")) == ["answers.parquet", "experiment.json", "model", "run.json"]
    assert trainable.adapter_base(tmp_path / "written" / "model") == "smollm2"
    trained, total = run.parameters
    assert 0 < trained < 0.02 * total
    assert total > 130_000_000
    assert 4 * trained < run.stored_bytes < 5_000_000
    assert run.losses[-1][0] == 2  # steps
    assert 0 < run.losses[-1][1] < 10
    assert [epoch.epoch for epoch in run.epochs] == [1]
    assert run.questions.id == load_qa(split="validation")["id"][:4]
    assert any(run.questions.prediction)
    assert len(run.questions.prediction) == 4

    model, tokenizer = load_trained("written", tmp_path)
    assert hasattr(model, "peft_config")  # beside the weights, which are too coarse to merge it into
    assert tokenizer.padding_side == "left"
    assert texts(written_answers.answer(model, tokenizer, rows_of(run))) == run.questions.prediction


# ---- starting from another run ----------------------------------------------------------------------------------
def test_a_run_starts_from_another_runs_weights(finished, tmp_path):
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "finished")
    experiment = change(run.experiment, name="warm", start_from="finished", trainable="head", learning_rate=1e-6)
    warm = run_experiment(experiment, tmp_path)
    start = load_trained("finished", folder)[0].state_dict()
    end = load_trained("warm", tmp_path)[0].state_dict()
    fresh = load.load_qa_model(seed=experiment.seed).to(next(iter(start.values())).device).state_dict()
    for name, weights in end.items():
        if not name.startswith("qa_outputs"):
            assert torch.equal(weights, start[name])
    torch.testing.assert_close(end["qa_outputs.weight"], start["qa_outputs.weight"], atol=1e-5, rtol=0)
    assert not torch.allclose(end["qa_outputs.weight"], fresh["qa_outputs.weight"], atol=1e-4)
    assert warm.epochs[0].train.loss < run.losses[0][1]


def test_a_start_that_was_not_run_is_an_error(finished, tmp_path, no_training):
    _, run = finished
    with pytest.raises(RecordError, match="no such model to start from; run 'absent' first"):
        run_experiment(change(run.experiment, name="warm", start_from="absent"), tmp_path)
    with pytest.raises(RecordError, match="no trained model; run the experiment 'absent' first"):
        load_trained("absent", tmp_path)


def test_a_checkpoint_that_has_seen_squad_is_warned_of(finished, tmp_path, no_training):
    folder, run = finished
    shutil.copytree(folder / "finished" / "model", tmp_path / "minilm-squad")
    experiment = change(run.experiment, model=str(tmp_path / "minilm-squad"))
    with pytest.warns(UserWarning, match="already fine-tuned on SQuAD"), pytest.raises(AssertionError, match="trained"):
        run_experiment(experiment, tmp_path / "runs")


# ---- names and folders ------------------------------------------------------------------------------------------
def test_the_runs_folder_is_the_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("QA_RUNS_DIR", str(tmp_path))
    assert runs_folder() == tmp_path
    monkeypatch.delenv("QA_RUNS_DIR")
    assert runs_folder() == project_folder() / "runs"


# ---- how long ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 300, "probe_size": 500},  # of all of CourseQA
        {"epochs": 100, "train_size": 5_000},
        {"epochs": 3, "train_size": 100_000},
        {"epochs": 300, "train_size": 16, "probe_size": 10_000},
        {"epochs": 10, "train_size": 5_000, "model": "smollm2", "kind": "train a language model"},
    ],
)
def test_what_would_train_for_days_is_refused_before_anything_is_replaced(finished, tmp_path, no_training, changes):
    shutil.copytree(finished[0] / "finished", tmp_path / "finished")
    experiment = parse_experiment({"name": "finished"} | changes, "an experiment")
    with pytest.raises(RecordError, match=f"'finished' trains on {changes['epochs']} × .* QA_LONG_RUNS=1"):
        run_experiment(experiment, tmp_path, again=True)
    assert read_record(tmp_path / "finished" / "run.json") == finished[1]


def test_who_means_it_trains_for_days(tmp_path, monkeypatch, no_training):
    monkeypatch.setenv("QA_LONG_RUNS", "1")
    with pytest.raises(AssertionError, match="trained"):
        run_experiment(SpanTraining(name="x", epochs=300, probe_size=500), tmp_path)


def test_epochs_without_sense_are_no_experiment():
    with pytest.raises(ValueError, match="less than or equal to 300"):
        SpanTraining(name="x", epochs=301)


def test_the_courses_own_experiments_and_records_are_not_too_long(monkeypatch):
    monkeypatch.setattr(store, "load_qa", lambda *_: range(90_000))  # what "all" is of SQuAD
    for experiment in named_experiments().values():
        if experiment.data == "squad" or getattr(experiment, "train_size", None):
            check_work([experiment])
    for name, run in load_records("class-*").items():
        check_work([one.experiment for one in rerun_module._with_starts(run, [])]), name


# ---- the settings of the scaling experiments --------------------------------------------------------------------
class _Trained(Exception):  # noqa: N818
    pass


@pytest.fixture
def training(monkeypatch):
    """What `train` is called with by an experiment, by name; nothing is trained."""

    def called(**changes):
        def note(*values):
            names = ("model", "tokenizer", "features", "settings", "folder", "after_epoch", "collator", "loss")
            seen.update(zip(names, values, strict=True))
            raise _Trained

        seen = {}
        monkeypatch.setattr(run_module, "train", note)
        experiment = SpanTraining(name="x", train_size=6, evaluations={"few": EvalSet(limit=1)}, **changes)
        with pytest.raises(_Trained):
            run_module.train_and_evaluate(experiment, store.runs_folder() / "x")
        return seen

    return called


def test_the_settings_reach_the_training(training):
    plain = training()
    assert plain["settings"] == Settings()
    assert plain["collator"] is plain["loss"] is None
    changes = {"schedule": "cosine", "warmup": 0.1, "layer_decay": 0.9}
    assert training(**changes)["settings"] == Settings(**changes)
    assert training(average_last=3)["settings"] == Settings(checkpoints=3)


@pytest.mark.parametrize("changes", [{"label_smoothing": 0.1}, {"targets": "all"}])
def test_soft_labels_are_trained_on_where_asked(training, tokenizer, course, changes):
    found = training(**changes)
    windows = make_windows(course[:6], tokenizer)
    assert found["features"] == labels.training_features(windows, changes.get("targets", "first"))
    assert found["loss"] is labels.soft_loss
    assert found["collator"].smoothing == changes.get("label_smoothing", 0)


def test_the_training_questions_are_spread_over_passages_or_made_of_them(training, tokenizer):
    def texts_of(rows):
        return [window.inputs["input_ids"] for window in make_windows(rows, tokenizer)]

    def found(**changes):
        return [one["input_ids"] for one in training(**changes)["features"]]

    assert found(per_passage=1) == texts_of(load_qa(limit=6, per_passage=1))
    cloze = {"questions": "cloze", "sampling": "random", "sampling_seed": 5}
    assert found(**cloze) == texts_of(load_cloze("courseqa", 6, "random", 5))
    rows, _, _ = run_module.load_rows(SpanTraining(name="x", train_size=6, **cloze))
    other, _, _ = run_module.load_rows(SpanTraining(name="x", train_size=6, **cloze | {"sampling_seed": 6}))
    assert fingerprint(rows) == fingerprint(load_cloze("courseqa", 6, "random", 5)) != fingerprint(other)
