"""Training: it learns, repeats itself, and goes on where it was killed with the same numbers."""

import json
import math
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import DataCollatorWithPadding

from qa_helpers.common.device import default_device, set_seed
from qa_helpers.common.io import CourseError
from qa_helpers.data.windows import make_windows, training_features
from qa_helpers.evaluation.metrics import evaluate
from qa_helpers.evaluation.span_answers import answer
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.spec import EvalSet, SpanTraining
from qa_helpers.experiment.store import run_experiment
from qa_helpers.model.load import load_qa_model
from qa_helpers.model.trainable import set_trainable
from qa_helpers.training import labels, trainer
from qa_helpers.training.trainer import (
    COMPLETE,
    PROGRESS,
    Settings,
    complete_checkpoints,
    last_checkpoint,
    read_progress,
    train,
)


def trained(course, tokenizer, folder, settings, after_epoch=None, what="last:1"):
    """A model trained on 12 questions, and the history. The last layer alone trains fast."""
    model = set_trainable(load_qa_model(seed=settings.seed), what).to(default_device())
    set_seed(settings.seed)
    features = training_features(make_windows(course[:12], tokenizer))
    return model, train(model, tokenizer, features, settings, folder, after_epoch)


def weights(model):
    return {name: value.cpu() for name, value in model.state_dict().items()}


def same_weights(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


SHORT = Settings(epochs=3, batch_size=4, learning_rate=1e-3, log_every=2)


def test_the_same_seed_gives_the_same_weights_and_losses_another_seed_others(tmp_path, course, tokenizer):
    one, history = trained(course, tokenizer, tmp_path / "one", SHORT)
    same, same_history = trained(course, tokenizer, tmp_path / "same", SHORT)
    assert history == same_history
    assert same_weights(one, same)
    other = Settings(**vars(SHORT) | {"seed": 1})
    _, other_history = trained(course, tokenizer, tmp_path / "other", other)
    assert history.losses != other_history.losses


def test_recomputed_activations_give_the_same_weights(tmp_path, course, tokenizer):
    kept, calls = {}, {}
    for recompute in (False, True):
        model = set_trainable(load_qa_model(seed=0), "lora").to(default_device())
        [layer] = [module for name, module in model.named_modules() if name.endswith("layer.0.attention")]
        calls[recompute] = 0

        def count(*_, recompute=recompute):
            calls[recompute] += 1

        layer.register_forward_pre_hook(count)
        set_seed(0)
        features = training_features(make_windows(course[:8], tokenizer))
        settings = Settings(epochs=1, batch_size=4, learning_rate=1e-3, recompute=recompute)
        train(model, tokenizer, features, settings, tmp_path / str(recompute))
        kept[recompute] = weights(model)
    assert calls == {False: 2, True: 4}  # of two batches: once forward, once more on the way back
    assert all(torch.equal(value, kept[True][name]) for name, value in kept[False].items())


@pytest.mark.parametrize("most", [None, 1, 3, 4, 20])
@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(
    tmp_path, monkeypatch, course, tokenizer, tiny_model, most, soft
):
    monkeypatch.setenv("QA_PRECISION", "fp32")
    model, sizes, gradients = tiny_model().to(default_device()), [], []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    windows = make_windows(course[:11], tokenizer)
    features = labels.training_features(windows) if soft else training_features(windows)
    collator = labels.SoftLabelCollator(tokenizer) if soft else DataCollatorWithPadding(tokenizer)
    model.register_forward_pre_hook(lambda _, given, options: sizes.append(len(options["input_ids"])), with_kwargs=True)

    def keep(*_):
        gradients.append(torch.cat([weights.grad.flatten() for weights in model.parameters()]).cpu())

    hook = register_optimizer_step_pre_hook(keep)
    settings = Settings(epochs=1, batch_size=11, windows_at_once=most, log_every=1)
    history = train(model, tokenizer, features, settings, tmp_path, None, collator, labels.soft_loss if soft else None)
    hook.remove()
    most = most or 11
    assert sizes == [min(most, 11 - begin) for begin in range(0, 11, most)]
    batch = {name: values.to(default_device()) for name, values in collator(features).items()}
    targets = batch.pop("labels", None)
    model = tiny_model().to(default_device()).eval()
    output = model(**batch)
    loss = labels.soft_loss(output, targets) if soft else output.loss
    loss.backward()
    expected = torch.cat([weights.grad.flatten() for weights in model.parameters()]).cpu()
    expected *= min(1.0, 1.0 / (expected.norm() + 1e-6))  # as the Trainer clips them
    assert [value for _, value in history.losses] == pytest.approx([loss.item()], rel=1e-3)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-3, atol=1e-5)


def test_losses_are_means_since_the_last_entry_and_none_spans_two_epochs(tmp_path, course, tokenizer):
    _, every_step = trained(course, tokenizer, tmp_path / "a", Settings(**vars(SHORT) | {"log_every": 1}))
    _, history = trained(course, tokenizer, tmp_path / "b", SHORT)
    assert [step for step, _ in every_step.losses] == list(range(1, 10))  # 3 epochs of 3 batches of 4
    assert [step for step, _ in history.losses] == [2, 3, 4, 6, 8, 9]
    losses = [loss for _, loss in every_step.losses]
    expected = [losses[0:2], losses[2:3], losses[3:4], losses[4:6], losses[6:8], losses[8:9]]
    assert [loss for _, loss in history.losses] == pytest.approx([sum(part) / len(part) for part in expected], rel=1e-5)


def test_scoring_after_an_epoch_is_kept_and_does_not_change_the_training(tmp_path, course, tokenizer):
    def after_epoch(model):
        torch.rand(100)  # draws, as a scoring with dropout would
        answer(model, tokenizer, course[:4])
        return {"number": len(calls) + 1, "grad": calls.append(model.training)}

    calls = []
    plain, history = trained(course, tokenizer, tmp_path / "plain", SHORT)
    scored, scored_history = trained(course, tokenizer, tmp_path / "scored", SHORT, after_epoch)
    assert same_weights(plain, scored)
    assert scored_history.losses == history.losses
    assert history.epochs == []
    assert scored_history.epochs == [{"epoch": n, "number": n, "grad": None} for n in (1, 2, 3)]
    assert not scored.training


def test_batches_are_padded_to_their_longest_window_and_grouped_by_length(tmp_path, course, tokenizer):
    model = set_trainable(load_qa_model(), "head").to(default_device())
    windows = make_windows(course[::5], tokenizer)
    masks = []
    model.register_forward_pre_hook(
        lambda _module, _args, inputs: masks.append(inputs["attention_mask"].cpu()), with_kwargs=True
    )
    train(model, tokenizer, training_features(windows), Settings(epochs=1, batch_size=4), tmp_path)
    lengths = sorted(map(len, windows))
    assert sorted(length for mask in masks for length in mask.sum(dim=1).tolist()) == lengths
    assert all(mask.shape[1] == mask.sum(dim=1).max() for mask in masks)
    padding = sum(int((mask == 0).sum()) for mask in masks)
    draws = [random.Random(i).sample(lengths, 4) for i in range(len(masks))]
    padding_by_chance = sum(4 * max(draw) - sum(draw) for draw in draws)
    assert padding < padding_by_chance / 2


def test_a_collator_of_ones_own_makes_the_batches(tmp_path, course, tokenizer):
    def collate(features):
        batches.append([one["input_ids"] for one in features])
        return DataCollatorWithPadding(tokenizer, padding="max_length", max_length=300)(features)

    batches, shapes = [], []
    model = set_trainable(load_qa_model(), "head").to(default_device())
    model.register_forward_pre_hook(
        lambda _module, _args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    features = training_features(make_windows(course[:6], tokenizer))
    train(model, tokenizer, features, Settings(epochs=1, batch_size=4), tmp_path, collator=collate)
    assert shapes == [(4, 300), (2, 300)]
    assert sorted(ids for batch in batches for ids in batch) == sorted(one["input_ids"] for one in features)


@pytest.mark.slow
def test_eight_questions_are_learned_by_heart(tmp_path, course, tokenizer):
    rows = course[:600:75]  # of eight passages
    model = load_qa_model().to(default_device())
    features = training_features(make_windows(rows, tokenizer))
    before = answer(model, tokenizer, rows).loss
    history = train(model, tokenizer, features, Settings(epochs=14, batch_size=4, learning_rate=5e-4), tmp_path)
    found = answer(model, tokenizer, rows)
    assert [result.exact_match for result in evaluate(found.predictions, rows)] == [True] * 8
    assert history.losses[-1][0] == 14 * 2  # steps
    assert history.losses[0][1] > 4  # about log of the tokens to choose from
    assert history.losses[-1][1] < 0.5
    assert found.loss < 0.1 * before


# ---- the learning rate ------------------------------------------------------------------------------------------
def rates_of(model, tokenizer, rows, folder, settings):
    """The learning rate of every trained parameter at every optimizer step: {name: [rate, ...]}."""
    rates = {name: [] for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def note(optimizer, _args, _options):
        for group in optimizer.param_groups:
            assert group["weight_decay"] == 0
            for parameter in group["params"]:
                rates[names[id(parameter)]].append(group["lr"])

    hook = register_optimizer_step_pre_hook(note)
    try:
        train(model, tokenizer, training_features(make_windows(rows, tokenizer)), settings, folder)
    finally:
        hook.remove()
    return rates


def share(schedule, warmup, step, steps):
    """The share of the full learning rate at a step, as `Settings` defines it."""
    rising = math.ceil(steps * warmup)
    if step < rising:
        return step / rising
    done = (step - rising) / (steps - rising)
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1}[schedule]


@pytest.mark.parametrize("warmup", [0.0, 0.3])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_of_each_step(tmp_path, course, tokenizer, tiny_model, schedule, warmup):
    settings = Settings(epochs=3, batch_size=4, learning_rate=1e-3, schedule=schedule, warmup=warmup)
    rates = rates_of(tiny_model().to(default_device()), tokenizer, course[:12], tmp_path, settings)
    expected = [1e-3 * share(schedule, warmup, step, 9) for step in range(9)]
    assert all(found == pytest.approx(expected) for found in rates.values())
    assert max(expected) == pytest.approx(1e-3)


@pytest.mark.parametrize("what", ["all", "last:1", "lora"])
def test_the_learning_rate_of_each_layer(tmp_path, course, tokenizer, tiny_model, what):
    model = set_trainable(tiny_model(), what).to(default_device())
    settings = Settings(epochs=1, batch_size=4, learning_rate=1e-3, layer_decay=0.5, schedule="cosine", warmup=0.3)
    rates = rates_of(model, tokenizer, course[:12], tmp_path, settings)
    places = {"qa_outputs": 0, "layer.1.": 1, "layer.0.": 2, "embeddings.": 3}
    seen = set()
    for name, found in rates.items():
        [depth] = [depth for place, depth in places.items() if place in name]
        seen.add(depth)
        assert found == pytest.approx([1e-3 * 0.5**depth * share("cosine", 0.3, step, 3) for step in range(3)]), name
    assert seen == {"all": {0, 1, 2, 3}, "last:1": {0, 1}, "lora": {0, 1, 2}}[what]


def test_a_layer_decay_of_almost_one_trains_as_none(tmp_path, course, tokenizer, tiny_model):
    """The same optimizer, then, as the Trainer's own."""
    features, found = training_features(make_windows(course[:12], tokenizer)), []
    for decay in (1.0, 1 - 1e-12):
        model = tiny_model().to(default_device())
        set_seed(0)
        train(model, tokenizer, features, Settings(**vars(SHORT) | {"layer_decay": decay}), tmp_path / str(decay))
        found.append(weights(model))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-7)


# ---- progress ------------------------------------------------------------------------------------------
def test_a_file_says_how_far_the_training_is(tmp_path, course, tokenizer, monkeypatch):
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 0)
    seen = []
    assert read_progress(tmp_path / "run") is None
    _, history = trained(
        course, tokenizer, tmp_path / "run", SHORT, lambda _model: seen.append(read_progress(tmp_path / "run")) or {}
    )
    assert [(now.stage, now.step, now.steps, now.epoch) for now in seen] == [
        ("training", 3 * epoch, 9, epoch) for epoch in (1, 2, 3)
    ]
    losses = dict(history.losses)
    assert [now.loss for now in seen] == [losses[2], losses[4], losses[8]], "the latest when the step ended"
    end = read_progress(tmp_path / "run")
    assert (end.stage, end.step, end.epoch, end.loss) == ("trained", 9, 3, losses[9])


def test_progress_is_written_a_few_times_a_second_at_most_and_a_refusal_ends_no_training(
    tmp_path, course, tokenizer, monkeypatch
):
    written = []

    def refuse(path, content):
        written.append((path, json.loads(content)["step"]))
        raise CourseError("the disk is full")

    monkeypatch.setattr(trainer, "write_atomically", refuse)
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 3600)
    trained(course, tokenizer, tmp_path, SHORT)
    assert written == [(tmp_path / PROGRESS, 0), (tmp_path / PROGRESS, 9)], "at the beginning and at the end"


# ---- checkpoints ------------------------------------------------------------------------------------------------
def checkpoint(folder: Path, step: int, complete: bool) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "trainer_state.json").write_text("{}")
    if complete:
        (path / COMPLETE).touch()
    return path


def test_the_newest_complete_checkpoint_is_chosen_and_unfinished_ones_go(tmp_path):
    assert last_checkpoint(tmp_path / "absent") is None
    assert last_checkpoint(tmp_path) is None
    kept = [checkpoint(tmp_path, step, complete=True) for step in (9, 10, 100)]
    checkpoint(tmp_path, 99, complete=False)
    checkpoint(tmp_path, 1000, complete=False)
    assert last_checkpoint(tmp_path) == str(kept[-1])
    assert set(tmp_path.iterdir()) == set(kept)


def test_only_unfinished_checkpoints_are_none(tmp_path):
    checkpoint(tmp_path, 3, complete=False)
    assert last_checkpoint(tmp_path) is None


def test_as_many_checkpoints_are_kept_as_asked(tmp_path, course, tokenizer, tiny_model):
    features = training_features(make_windows(course[:4], tokenizer))
    settings = Settings(epochs=5, batch_size=4, checkpoints=3)
    train(tiny_model().to(default_device()), tokenizer, features, settings, tmp_path)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("what", ["last:1", "lora"])
def test_a_run_that_failed_goes_on_and_two_checkpoints_are_kept(tmp_path, course, tokenizer, what):
    def fails_in(epoch):
        def after_epoch(_model):
            numbers.append(len(numbers))
            if len(numbers) == epoch:
                raise StoppedError
            return {}

        numbers = []
        return after_epoch

    whole, history = trained(course, tokenizer, tmp_path / "whole", SHORT, lambda _model: {}, what)
    with pytest.raises(StoppedError):
        trained(course, tokenizer, tmp_path / "cut", SHORT, fails_in(3), what)
    names = {"checkpoint-3", "checkpoint-6", PROGRESS}
    assert {path.name for path in (tmp_path / "cut").iterdir()} == names
    assert (tmp_path / "cut" / "checkpoint-6" / COMPLETE).exists()
    resumed, resumed_history = trained(course, tokenizer, tmp_path / "cut", SHORT, lambda _model: {}, what)
    assert resumed_history == history
    assert same_weights(whole, resumed)
    finished, finished_history = trained(course, tokenizer, tmp_path / "cut", SHORT, lambda _model: 1 / 0, what)
    assert finished_history == history  # nothing is left to train
    assert same_weights(whole, finished)


def test_a_run_with_every_setting_that_failed_goes_on_with_the_same_numbers(tmp_path, course, tokenizer, tiny_model):
    def go(folder, epochs):
        def after_epoch(_model):
            if len(list(folder.glob("checkpoint-*"))) == epochs:
                raise StoppedError
            return {}

        model = tiny_model().to(default_device())
        set_seed(0)
        features = labels.training_features(make_windows(course[:12], tokenizer), "all")
        collator = labels.SoftLabelCollator(tokenizer, 0.1)
        history = train(model, tokenizer, features, settings, folder, after_epoch, collator, labels.soft_loss)
        return model, history

    settings = Settings(**vars(SHORT) | {"schedule": "cosine", "warmup": 0.5, "layer_decay": 0.5, "checkpoints": 3})
    whole, history = go(tmp_path / "whole", None)
    with pytest.raises(StoppedError):
        go(tmp_path / "cut", 2)  # in the third epoch
    resumed, resumed_history = go(tmp_path / "cut", None)
    assert resumed_history == history
    assert [step for step, _ in history.losses] == [2, 3, 4, 6, 8, 9]
    assert same_weights(whole, resumed)


def test_an_unfinished_checkpoint_is_not_gone_on_from(tmp_path, course, tokenizer):
    whole, history = trained(course, tokenizer, tmp_path, SHORT)
    (tmp_path / "checkpoint-9" / COMPLETE).unlink()
    (tmp_path / "checkpoint-9" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-9" / "model.safetensors").write_bytes(b"half")
    resumed, resumed_history = trained(course, tokenizer, tmp_path, SHORT)
    assert resumed_history == history
    assert same_weights(whole, resumed)


# ---- killed -----------------------------------------------------------------------------------------------------
KILLED = SpanTraining(
    name="killed",
    train_size=24,
    epochs=3,
    batch_size=8,
    learning_rate=5e-4,
    evaluations={"first": EvalSet(limit=8)},
    probe_size=4,
)


def being_written(checkpoint, file):
    """Whether a checkpoint has this file already but is not complete yet."""
    return lambda home: (home / "checkpoints" / checkpoint / file).exists() and not complete(checkpoint)(home)


def complete(checkpoint):
    return lambda home: (home / "checkpoints" / checkpoint / COMPLETE).exists()


MOMENTS = {  # when: (what must be seen in the run's folder, at most so many seconds later)
    "in the first epoch": (lambda home: (home / "experiment.json").exists(), 1.5),
    "while the first checkpoint is written": (being_written("checkpoint-3", "config.json"), 0),
    "in the second epoch": (complete("checkpoint-3"), 0.5),
    "while the second checkpoint is written": (being_written("checkpoint-6", "model.safetensors"), 0),
    "in the third epoch": (complete("checkpoint-6"), 0.5),
    "while the third checkpoint is written": (being_written("checkpoint-9", "model.safetensors"), 0),
    "while the model is written": (lambda home: (home / "model.unfinished").exists(), 0),
    "while the answers are scored": (lambda home: (home / "model").exists(), 0),
}


def start(experiment, folder):
    """A process that runs an experiment."""
    context = multiprocessing.get_context("forkserver")  # imports the libraries once, in a process of its own
    context.set_forkserver_preload(["qa_helpers.experiment.store"])
    process = context.Process(target=run_experiment, args=(experiment, folder))
    process.start()
    return process


def finish(experiment, folder):
    process = start(experiment, folder)
    process.join(300)
    assert process.exitcode == 0
    return read_record(folder / experiment.name / "run.json")


def differing(one, other):
    """The fields in which two runs differ; compared as JSON, where not a number equals itself."""
    one, other = one.model_dump(), other.model_dump()
    return {name for name, value in one.items() if json.dumps(value) != json.dumps(other[name])}


@pytest.mark.slow
def test_a_killed_run_with_every_setting_ends_with_the_numbers_of_one_never_killed(tmp_path):
    changes = {"train_size": 8, "batch_size": 4, "epochs": 2, "trainable": "last:1", "average_last": 2}
    changes |= {"schedule": "cosine", "warmup": 0.3, "layer_decay": 0.7, "label_smoothing": 0.1, "targets": "all"}
    experiment = SpanTraining.model_validate(KILLED.model_dump() | changes)
    process = start(experiment, tmp_path / "cut")
    while not complete("checkpoint-2")(tmp_path / "cut" / "killed"):
        assert process.is_alive(), "ended before it could be killed"
        time.sleep(0.0005)
    process.kill()
    process.join()
    assert process.exitcode == -9
    cut, whole = (finish(experiment, tmp_path / name) for name in ("cut", "whole"))
    assert differing(cut, whole) <= {"timing"}
    assert len(whole.epochs) == 2


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_numbers_of_one_never_killed(tmp_path):
    home = tmp_path / "cut" / "killed"
    delays = random.Random(time.time_ns())
    for moment, (reached, at_most) in MOMENTS.items():
        process = start(KILLED, home.parent)
        while not reached(home):
            assert process.is_alive(), f"ended before it could be killed {moment}"
            time.sleep(0.0005)
        time.sleep(delays.uniform(0, at_most))
        process.kill()
        process.join()
        assert process.exitcode == -9, f"ended before it could be killed {moment}"
        assert at_most or reached(home), f"was not killed {moment}"
        assert not (home / "run.json").exists()

    cut, whole = finish(KILLED, home.parent), finish(KILLED, tmp_path / "whole")
    assert len(whole.losses) == len(whole.epochs) == 3
    assert differing(whole, cut) <= {"timing"}
    assert not (home / "checkpoints").exists()
    assert {path.name for path in home.iterdir() if not path.name.endswith(".tmp")} == {
        "answers.parquet",
        "experiment.json",
        "model",
        "run.json",
    }
