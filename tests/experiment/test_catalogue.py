"""Scales and the experiments that have names: each can be run as it is described, from its name alone."""

import json

import pytest
from transformers import BertConfig, BertForQuestionAnswering

from qa_helpers.data.squad import load_qa
from qa_helpers.experiment.catalogue import (
    CHANGES,
    COMBINES,
    FEW,
    IDEAS,
    LEARNING_RATES,
    METHODS,
    REPORTED,
    SCREENED,
    SEEDS,
    SMALL_SIZES,
    TOGETHER,
    at_size,
    changes_of,
    cloze,
    from_experiment2,
    idea,
    language_model,
    method,
    named_experiments,
    replay,
    together,
)
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record_files import load_records
from qa_helpers.experiment.scales import SCALES, current_scale
from qa_helpers.experiment.spec import AsItComes, Combination, LanguageTraining, Training, parse_experiment
from qa_helpers.model import load, trainable


def test_the_scale_is_the_variables(monkeypatch):
    monkeypatch.delenv("QA_SCALE", raising=False)
    assert current_scale() is SCALES["quick"]
    monkeypatch.setenv("QA_SCALE", "")
    assert current_scale() is SCALES["quick"]
    for name, scale in SCALES.items():
        assert scale.name == name
        monkeypatch.setenv("QA_SCALE", name)
        assert current_scale() is scale
    monkeypatch.setenv("QA_SCALE", "huge")
    with pytest.raises(RecordError, match="QA_SCALE is 'huge'; set it to quick, class, base, full"):
        current_scale()


def test_named_experiments_can_be_described_and_run_from_names_only():
    named = named_experiments()
    expected = {"quick-baseline-500-seed0", "class-baseline-1000-seed0", "full-baseline-87599-seed0", "start-here"}
    expected |= {"base-baseline-1000-seed0", "base-baseline-1000-seed2"}
    expected |= {"quick-zero-shot-smollm2-seed0", "class-sft-1000-smollm2-seed0"}
    assert expected <= set(named)
    for name, experiment in named.items():
        assert experiment.name == name
        assert experiment.data in ("courseqa", "squad")
        assert set(experiment.parents) <= set(named)
        assert (
            isinstance(experiment, Combination)
            or experiment.model in load.PACKAGED
            or load.is_hub_name(experiment.model)
        )


def test_no_two_named_experiments_are_the_same_but_for_their_names():
    named = named_experiments().values()
    assert len({experiment.model_dump_json(exclude={"name"}) for experiment in named}) == len(named)


def test_named_experiments_of_the_quick_scale_ask_for_no_more_than_there_is():
    train, validation = load_qa(), load_qa(split="validation")
    quick = [experiment for experiment in named_experiments().values() if experiment.data == "courseqa"]
    assert quick
    for experiment in quick:
        assert not isinstance(experiment, Training) or experiment.train_size <= len(train)
        for evaluation in experiment.evaluations.values():
            assert evaluation.indices(len(validation)) == list(range(len(validation))) or evaluation == FEW


def test_a_baseline_of_squad_asks_the_classs_500_questions_too():
    quick, class_ = SCALES["quick"].baseline(), SCALES["class"].baseline(seed=3)
    assert set(quick.evaluations) == {"all"}
    assert set(class_.evaluations) == {"all", "first-500", "random-500"}
    assert class_.name == "class-baseline-1000-seed3"
    assert class_.seed == 3
    assert SCALES["class"].baseline(2_000).train_size == 2_000


def test_as_many_steps_on_100_questions_as_on_500():
    named = named_experiments()
    few, many = named["quick-steps-100-seed0"], named["quick-baseline-500-seed0"]
    assert few.train_size * few.epochs == many.train_size * many.epochs
    assert few.batch_size == many.batch_size


def encoder():
    """As many layers as MiniLM has, and a span head, without its weights."""
    sizes = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 6}
    return BertForQuestionAnswering(BertConfig(vocab_size=2, **sizes))


@pytest.mark.parametrize("what", METHODS)
def test_methods_differ_in_what_is_trained_and_the_learning_rate_only(what):
    one, baseline = method(SCALES["quick"], what), SCALES["quick"].baseline()
    assert (one.trainable, one.learning_rate) == (what, METHODS[what])
    assert METHODS[what] in LEARNING_RATES[what]  # the best of those tried
    assert one.retrieval
    assert one.task == "span"
    same = ("data", "train_size", "sampling", "sampling_seed", "batch_size", "model", "evaluations")
    assert one.model_dump(include=set(same)) == baseline.model_dump(include=set(same))
    assert len({method(SCALES["quick"], other).epochs for other in METHODS}) == 1
    if what not in ("lora", "ia3"):  # these need real layers, see test_tuning.py
        assert any(p.requires_grad for p in trainable.set_trainable(encoder(), what).parameters())


def test_a_method_with_another_learning_rate_has_a_name_of_its_own():
    names = {method(SCALES["quick"], "last:2", rate, seed).name for rate in (1e-5, 3e-4, 5e-4, 0.25) for seed in (0, 1)}
    assert len(names) == 8
    assert all(name.startswith("quick-method-last2-") for name in names)


@pytest.mark.parametrize("what", METHODS)
def test_all_methods_and_learning_rates_of_the_quick_scale_have_names(what):
    named = {
        experiment.learning_rate
        for name, experiment in named_experiments().items()
        if name.startswith("quick-method-") and experiment.trainable == what
    }
    assert named == set(LEARNING_RATES[what])


def test_the_methods_learning_rates_are_the_best_of_those_that_were_recorded():
    records = load_records("quick-method-*")
    for what, rates in LEARNING_RATES.items():
        scores = {rate: records[method(SCALES["quick"], what, rate).name].scores["all"].exact_match for rate in rates}
        assert METHODS[what] == max(rates, key=lambda rate: scores[rate].value)


@pytest.mark.parametrize("number", [1, 2])
def test_a_replay_is_what_the_report_says_and_otherwise_the_baseline(number):
    told, baseline = REPORTED[f"experiment {number}"], SCALES["class"].baseline(seed=1)
    cold, warm = replay(number, seed=1), replay(number, seed=1, warm=True)
    assert (cold.train_size, cold.epochs, cold.batch_size) == (told.train_size, told.epochs, told.batch_size)
    assert cold.evaluations[f"first-{told.eval_size}"].indices(10_570) == list(range(told.eval_size))
    assert cold.start_from is None
    assert warm.start_from == baseline.name
    changed = {"name", "train_size", "evaluations", "start_from", "epochs", "batch_size", "learning_rate"}
    for one in (cold, warm):
        assert one.model_dump(exclude=changed) == baseline.model_dump(exclude=changed)
    assert warm.model_dump(exclude={"name", "start_from"}) == cold.model_dump(exclude={"name", "start_from"})


def test_experiment_1_can_start_where_experiment_2_ended():
    for seed in SEEDS:
        cold, warm = replay(1, seed), from_experiment2(seed)
        assert warm.name == f"class-warm1-from-experiment2-2000-seed{seed}"
        assert warm.start_from == replay(2, seed).name == f"class-experiment2-5000-seed{seed}"
        changed = {"name", "start_from", "evaluations"}
        assert warm.model_dump(exclude=changed) == cold.model_dump(exclude=changed)
        assert list(warm.evaluations) == ["random-500", "first-500", "first-200"]
        assert all(cold.evaluations[name] == asked for name, asked in warm.evaluations.items())
        assert named_experiments()[warm.name] == warm


def test_a_language_model_is_asked_as_it_comes_or_fine_tuned_with_lora():
    for scale in (SCALES["quick"], SCALES["class"]):
        plain, tuned = (language_model(scale, 40, epochs=epochs) for epochs in (0, 1))
        assert plain.name == f"{scale.name}-zero-shot-smollm2-seed0"
        assert tuned.name == f"{scale.name}-sft-40-smollm2-seed0"
        assert isinstance(plain, AsItComes)
        assert isinstance(tuned, LanguageTraining)
        assert (tuned.epochs, tuned.trainable) == (1, "lora")
        assert plain.evaluations == tuned.evaluations == method(scale, "all").evaluations
        for one in (plain, tuned):
            assert (one.model, one.task) == ("smollm2", "generate")


# ---- sizes and ideas -------------------------------------------------------------------------------------------
def test_sizes_differ_in_their_size_only_and_are_the_replays_where_these_are():
    whole = replay(2, seed=1)
    assert at_size(5_000, 1) == whole
    assert at_size(2_000, 1) == replay(1, seed=1)
    for size in (*SMALL_SIZES, 2_000, 5_000):
        one = at_size(size, 1)
        assert one.train_size == size
        assert one.sampling == "first"  # nested: each is the beginning of the next
        assert one.model_dump(exclude={"name", "train_size"}) == whole.model_dump(exclude={"name", "train_size"})


CHANGED = {  # by idea: what it changes of experiment 2
    "lr-half": {"learning_rate": 7.5e-5},
    "lr-double": {"learning_rate": 3e-4},
    "epochs-3": {"epochs": 3},
    "epochs-10": {"epochs": 10},
    "batch-8": {"batch_size": 8},
    "batch-32": {"batch_size": 32},
    "cosine": {"schedule": "cosine", "warmup": 0.1},
    "random-articles": {"sampling": "random"},
    "two-a-passage": {"per_passage": 2},
    "layer-decay": {"layer_decay": 0.9},
    "smoothing": {"label_smoothing": 0.1},
    "cloze-first": {"start_from": "class-cloze-seed0"},
    "average-last-3": {"average_last": 3},
    "ensemble": {"kind": "combine runs", "mean_of": "answers"},
    "average-seeds": {"kind": "combine runs", "mean_of": "weights"},
}


def test_the_ideas_are_these():
    assert tuple(CHANGED) == IDEAS == (*CHANGES, *COMBINES)


@pytest.mark.parametrize("which", CHANGED)
def test_an_idea_changes_what_it_says_and_nothing_else(which):
    for size in (1_000, 5_000):
        base, one = at_size(size), idea(which, size)
        changed = {name: value for name, value in dict(one).items() if dict(base).get(name) != value}
        members = {"members": tuple(at_size(size, seed).name for seed in SEEDS)} if which in COMBINES else {}
        changed.pop("evaluations", None)
        assert changed == CHANGED[which] | members | {"name": f"class-idea-{which}-{size}-seed0"}
        assert parse_experiment(json.loads(one.model_dump_json()), "itself") == one
        assert named_experiments()[one.name] == one
        if size == 5_000:
            assert changes_of(which) == CHANGED[which] | members
            assert one.evaluations == base.evaluations
        else:
            assert one.evaluations == {"random-2000": SCREENED}


def test_ideas_that_combine_or_follow_runs_name_such_as_there_are():
    named = named_experiments()
    for name, experiment in named.items():
        for parent in experiment.parents:
            assert parent in named, name
            assert isinstance(experiment, Combination) or named[parent].seed == experiment.seed
    assert idea("cloze-first", 1_000, 1).start_from == cloze(1).name


def test_a_scale_of_one_size_has_no_scaling_experiments():
    with pytest.raises(RecordError, match="need three sizes; the scale 'full' has 1"):
        replay(1, scale=SCALES["full"])


@pytest.mark.parametrize("warm", [False, True])
def test_the_replays_at_quick_scale_follow_its_sizes(warm):
    quick = SCALES["quick"]
    one = replay(1, warm=warm, scale=quick)
    assert (one.train_size, one.epochs, one.batch_size, one.data) == (200, 5, 16, "courseqa")
    assert one.start_from == ("quick-baseline-100-seed0" if warm else None)
    assert set(one.evaluations) == {"all"}
    assert one.learning_rate == 3e-4
    assert replay(1, warm=warm).learning_rate == 1.5e-4  # exactly: a run is known by its experiment


def test_recipes_that_answer_together_are_all_their_seeds_asked_as_experiment_2_is():
    for which, recipes in TOGETHER.items():
        one = together(which)
        assert len(one.members) == len(recipes) * len(SEEDS)
        assert set(one.members) < set(named_experiments())
        assert one.evaluations == replay(2).evaluations
    assert together("best-three-ensemble").members[-3:] == tuple(replay(2, seed).name for seed in SEEDS)


@pytest.mark.parametrize("folder", ["", "cpu/", "gpu/"])
def test_a_record_of_class_scale_is_of_the_experiment_that_has_its_name(folder):
    named, records = named_experiments(), load_records(f"{folder}class-*")
    assert records
    for name, run in records.items():
        assert run.experiment == named[name]
        assert folder in ("", f"{run.machine.device}/".replace("cuda", "gpu"))
