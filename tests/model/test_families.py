"""Every family of encoders: it learns a few answers by heart through a run, or is refused by one sentence."""

import json
import math

import pytest
import torch
from families import BERT, MUST_LEARN, OTHERS, ROWS, TEXTS, asked, save_family, squad_file, tokenizer_of
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as vocabularies
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedTokenizerFast

from qa_helpers.common import device
from qa_helpers.common.io import ModelError
from qa_helpers.data.windows import make_windows
from qa_helpers.evaluation.retrieval import embed
from qa_helpers.evaluation.span_answers import answer
from qa_helpers.experiment.spec import SpanTraining
from qa_helpers.experiment.store import load_trained, run_experiment
from qa_helpers.model.load import Float32Linear, load_qa_model, load_tokenizer
from qa_helpers.model.trainable import depths, encoder, save_model, set_trainable, span_head


@pytest.fixture
def in_float32(monkeypatch):
    """Asked without bfloat16, so that a window alone and in a batch gives nearly the same logits."""
    monkeypatch.setattr(device, "has_native_bf16", lambda device=None: False)


def by_heart(model, folder, **settings):
    """Train a model folder on the eight answers and ask them: the run, the model and its tokenizer."""
    for name in ("train", "dev"):
        (folder / f"{name}.json").write_text(squad_file(ROWS))
    options = {"epochs": 50, "batch_size": 8, "learning_rate": 4e-3, "probe_size": 0} | settings
    run = run_experiment(SpanTraining(name="learned", data=str(folder), model=model, **options), folder / "runs")
    return run, *load_trained("learned", folder / "runs")


def check_learned(run, model, tokenizer):
    scores = run.scores["all"]
    assert [scores.exact_match.value, scores.f1.value, scores.string_equality.value] == [100, 100, 100]
    together = answer(model, tokenizer, ROWS).predictions
    assert [prediction.text for prediction in together] == [row["answers"]["text"][0] for row in ROWS]
    for row, prediction in zip(ROWS, together, strict=True):
        [alone] = answer(model, tokenizer, [row]).predictions
        assert alone.text == prediction.text
        assert alone.n_best[0].score == pytest.approx(prediction.n_best[0].score, abs=1e-3)


def check_labels(tokenizer):
    for window in make_windows(ROWS, tokenizer):
        row = ROWS[window.question]
        label = row["context"][slice(*window.characters(window.start, window.end))]
        assert label == row["answers"]["text"][0]
        assert len(window) < 384


# ---- the table -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", MUST_LEARN)
def test_a_family_learns_its_answers_by_heart(tmp_path, family, in_float32):
    source = save_family(family, tmp_path / "base")
    run, model, tokenizer = by_heart(source, tmp_path)
    check_labels(tokenizer)
    check_learned(run, model, tokenizer)
    # And what was trained is opened by plain transformers, with the same logits.
    plain, info = AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "runs" / "learned" / "model", output_loading_info=True
    )
    assert not any(info.values())
    batch = tokenizer.pad([window.inputs for window in make_windows(ROWS, tokenizer)], return_tensors="pt")
    with torch.inference_mode():
        ours, theirs = model.cpu()(**batch), plain.eval()(**batch)
    assert torch.equal(ours.start_logits, theirs.start_logits)
    assert torch.equal(ours.end_logits, theirs.end_logits)


@pytest.mark.parametrize("family", OTHERS)
def test_any_other_family_learns_or_is_refused(tmp_path, family, in_float32):
    source = save_family(family, tmp_path / "base")
    try:
        load_qa_model(source)
    except ModelError as problem:
        refused = str(problem)
    else:
        refused = ""
    if refused:
        assert source in refused
        assert "\n" not in refused
        assert family not in ("BigBird", "XLNet", "GPT2", "Qwen2", "Longformer")
        with pytest.raises(ModelError):
            by_heart(source, tmp_path)
    else:
        assert family not in ("FNet", "Funnel", "T5", "Splinter")
        run, model, tokenizer = by_heart(source, tmp_path)
        check_labels(tokenizer)
        check_learned(run, model, tokenizer)


# ---- heads -----------------------------------------------------------------------------------------------------
def test_a_head_of_another_name_is_drawn_by_the_seed_or_loaded(tmp_path):
    source = save_family("ModernBert", tmp_path / "base", head="ForMaskedLM")
    one, same, other = (load_qa_model(source, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(weights, same[name]) for name, weights in one.items())
    assert [name for name, weights in one.items() if not torch.equal(weights, other[name])] == ["classifier.weight"]
    save_family("ModernBert", tmp_path / "tuned", head="ForQuestionAnswering")
    stored = load_qa_model(str(tmp_path / "tuned"), 1).state_dict()
    assert all(
        torch.equal(weights, load_qa_model(str(tmp_path / "tuned"), 2).state_dict()[n]) for n, weights in stored.items()
    )


@pytest.mark.parametrize("what", ["head", "last:1", "lora", "all"])
def test_what_is_trained_of_a_head_of_another_name(tmp_path, what):
    model = load_qa_model(save_family("ModernBert", tmp_path / "base"))
    assert list(span_head(model)) == ["head", "classifier"]
    assert isinstance(model.classifier, Float32Linear)
    model = set_trainable(model, what)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    head = {name for name in trained if name.removeprefix("base_model.model.").startswith(("head.", "classifier."))}
    assert {name.split(".")[-1] for name in head} >= {"weight"}
    assert {depths(model)[name] for name in head} == {0}
    assert 0 not in {depths(model)[name] for name in trained - head}
    assert bool(trained - head) is (what != "head")
    if what == "lora":
        assert all("lora_" in name for name in trained - head)
        assert not [name for name in head if "lora_" in name]
    assert encoder(model) is not model


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "ModernBert"])
def test_three_labels_in_the_base_become_a_start_and_an_end(tmp_path, family):
    source = save_family(family, tmp_path / "base", head="ForSequenceClassification", num_labels=3)
    assert json.loads((tmp_path / "base" / "config.json").read_text())["id2label"].keys() == {"0", "1", "2"}
    run, model, tokenizer = by_heart(source, tmp_path, epochs=1)
    assert model.config.num_labels == 2
    assert math.isfinite(run.losses[-1][1])
    assert answer(model, tokenizer, ROWS[:1]).predictions[0].text


def test_an_adapter_without_a_trained_head_is_refused(tmp_path):
    import peft

    source = save_family("Bert", tmp_path / "base")
    for folder, saved in (("headless", None), ("whole", ["qa_outputs"])):
        config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=saved)
        model = peft.get_peft_model(load_qa_model(source), config)
        save_model(model, tmp_path / folder, source)
        tokenizer_of(BERT).save_pretrained(tmp_path / folder)
    with pytest.raises(ModelError, match=r"headless: its adapter holds no trained span head, nor does .*base"):
        load_qa_model(str(tmp_path / "headless"))
    load_qa_model(str(tmp_path / "whole"))
    # On a base with a head of its own, an adapter needs none.
    tuned = save_family("Bert", tmp_path / "tuned", head="ForQuestionAnswering")
    config = peft.LoraConfig(r=2, target_modules=["query"])
    save_model(peft.get_peft_model(load_qa_model(tuned), config), tmp_path / "on tuned", tuned)
    loaded = load_qa_model(str(tmp_path / "on tuned"))
    assert torch.equal(loaded.qa_outputs.weight, load_qa_model(tuned).qa_outputs.weight)


@pytest.mark.parametrize("place", ["bert.encoder.layer.0.output.dense.weight", "qa_outputs.bias"])
def test_weights_that_are_no_numbers_are_refused_on_loading(tmp_path, place):
    source = save_family("Bert", tmp_path, head="ForQuestionAnswering")
    model = AutoModelForQuestionAnswering.from_pretrained(source)
    with torch.no_grad():
        model.get_parameter(place).view(-1)[0] = torch.nan
    model.save_pretrained(source)
    with pytest.raises(ModelError, match=f"holds weights that are no finite numbers \\({place}\\)"):
        load_qa_model(source)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_gives_no_numbers_has_no_answer(tiny_model, tokenizer, value):
    model = tiny_model()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = value
    with pytest.raises(ModelError, match="the model gives no finite numbers"):
        answer(model, tokenizer, ROWS)


# ---- tokenizers ------------------------------------------------------------------------------------------------
def test_padding_and_cutting_are_on_the_right_whatever_the_files_say(tmp_path, in_float32):
    tokenizer = tokenizer_of(BERT)
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    source = save_family("Bert", tmp_path, tokenizer, head="ForQuestionAnswering")
    expected = AutoTokenizer.from_pretrained(source, padding_side="right", truncation_side="right")
    long = asked(9, " ".join(TEXTS * 6), "1871", "When?")
    windows, wanted = (make_windows([long, *ROWS], one, 100, 30) for one in (load_tokenizer(source), expected))
    assert [window.inputs for window in windows] == [window.inputs for window in wanted]
    assert [window.spans for window in windows] == [window.spans for window in wanted]
    assert sum(window.question == 0 for window in windows) > 3
    model, tokenizer = load_qa_model(source), load_tokenizer(source)
    alone = [answer(model, tokenizer, [row]).predictions[0].text for row in ROWS]
    assert [prediction.text for prediction in answer(model, tokenizer, ROWS).predictions] == alone


@pytest.mark.parametrize("family", ["Roberta", "DistilBert"])  # a table of one type; none
def test_token_types_reach_no_model_that_tells_none_apart(tmp_path, family):
    tokenizer = tokenizer_of(BERT)
    assert "token_type_ids" in tokenizer.model_input_names
    source = save_family(family, tmp_path, tokenizer)
    loaded = load_tokenizer(source)
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    model = load_qa_model(source)
    assert answer(model, loaded, ROWS).predictions[0].text
    assert embed(model, loaded, TEXTS[:2]).shape == (2, 32)


@pytest.mark.parametrize(("family", "positions", "most"), [("Bert", 256, 255), ("Bert", 64, 63), ("Roberta", 130, 128)])
def test_windows_are_as_long_as_the_model_reads(tmp_path, family, positions, most):
    source = save_family(family, tmp_path, max_position_embeddings=positions)
    model, tokenizer = load_qa_model(source), load_tokenizer(source)
    long = asked(9, " ".join(TEXTS * 6), "1871", "When?")
    windows = make_windows([long, *ROWS[:1]], tokenizer)
    assert max(map(len, windows)) == most
    assert len(answer(model, tokenizer, [long]).predictions[0].text) > 0
    assert embed(model, tokenizer, [long["context"]]).shape == (1, 32)
    ends = [window.offsets[-1, 1] for window in windows if window.question == 0]
    assert ends[-1] == len(long["context"])


def test_without_a_padding_token_another_pads(tmp_path, in_float32):
    tokenizer = tokenizer_of(BERT)
    tokenizer.pad_token = None
    source = save_family("Bert", tmp_path, tokenizer, head="ForQuestionAnswering", pad_token_id=0)
    model, loaded = load_qa_model(source), load_tokenizer(source)
    assert loaded.pad_token == "[SEP]"
    alone = [answer(model, loaded, [row]).predictions[0].text for row in ROWS]
    assert [prediction.text for prediction in answer(model, loaded, ROWS).predictions] == alone


def test_a_token_that_was_added_gets_a_row_that_no_seed_changes(tmp_path):
    tokenizer = tokenizer_of(BERT)
    known = len(tokenizer)
    tokenizer.add_tokens(["ahlstrom", "eastbrook"])
    source = save_family("Bert", tmp_path, tokenizer, vocab_size=known)
    one, other = (load_qa_model(source, seed) for seed in (1, 2))
    table = one.get_input_embeddings().weight
    assert table.shape == (known + 2, 32)
    assert torch.equal(table[known], table[:known].mean(0))
    assert torch.equal(table, other.get_input_embeddings().weight)
    loaded = load_tokenizer(source)
    assert known in make_windows(ROWS, loaded)[0].inputs["input_ids"]
    assert answer(one, loaded, ROWS).predictions[0].text


def test_an_adapter_on_a_model_with_an_added_token_gives_the_logits_it_was_trained_to(tmp_path, in_float32):
    tokenizer = tokenizer_of(BERT)
    known = len(tokenizer)
    tokenizer.add_tokens(["ahlstrom"])
    source = save_family("Bert", tmp_path / "base", tokenizer, vocab_size=known)
    run, model, loaded = by_heart(source, tmp_path, trainable="lora", epochs=2, seed=3)
    assert [prediction.text for prediction in answer(model, loaded, ROWS).predictions] == run.questions.prediction


def shifted_tokenizer(texts):
    """With offsets that are off by one letter, as RobBERT's pre-tokenizer makes them."""
    tokenizer = Tokenizer(vocabularies.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special, alphabet = ["[PAD]", "[CLS]", "[SEP]"], pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, **options))
    prefix = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), prefix, pre_tokenizers.Punctuation()]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("[SEP]", 2), ("[CLS]", 1), trim_offsets=True, add_prefix_space=True
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.mark.parametrize("load", [load_qa_model, load_tokenizer])
def test_offsets_that_leave_letters_out_are_refused_on_loading(tmp_path, load):
    tokenizer = shifted_tokenizer(TEXTS)
    source = save_family("Roberta", tmp_path, tokenizer)
    with pytest.raises(
        ModelError, match=r"is of no use here: the model's tokenizer leaves out '.' of .*choose another"
    ):
        load(source)


KINDS = {kind[1]: kind for kind, _ in (MUST_LEARN | OTHERS).values()}
SCRIPTS = [
    "उसने अपने घर को बेचा।",
    "عاصمة مصر هي القَاهِرَةُ اليوم",
    "un cafe\u0301 noir, un cafe\u0301",
    "\u1100\u1161\u11a8 \u1100\u1161\u11a8 b",
    "\uff76\uff9e\uff97\uff7d x",
    "don``t ''q'' \ufb01 \ufdfa \u0130stanbul \ud3ec",
    "日本語 😀 x \u3000 \u00a0w  e\u0301 z",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", SCRIPTS)
def test_each_words_label_is_the_word_in_every_tokenizer_and_script(kind, text):
    tokenizer = tokenizer_of(KINDS[kind])
    end = 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        answers = {"text": [word], "answer_start": [start]}
        [window] = make_windows([{"question": "the mill", "context": text, "answers": answers}], tokenizer)
        assert window.characters(window.start, window.end) == (start, end)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_makes_a_control_token(kind):
    tokenizer = tokenizer_of(KINDS[kind])
    unknown = {tokenizer.unk_token} - {tokenizer.eos_token}  # GPT-2 has one token for both
    control = [token for token in tokenizer.all_special_tokens if token not in unknown][:8]
    typed = " ".join([*control, "the mill", *control])
    plain, spelled = (
        make_windows([{"question": text, "context": text}], tokenizer)[0].inputs["input_ids"]
        for text in ("the mill", typed)
    )
    ids = tokenizer.convert_tokens_to_ids(control)
    assert [spelled.count(i) for i in ids] == [plain.count(i) for i in ids]
    assert len(spelled) > len(plain)


def test_a_token_of_white_space_alone_is_no_answer(tmp_path):
    source = save_family("GPT2", tmp_path, head="ForQuestionAnswering")
    model, tokenizer = load_qa_model(source), load_tokenizer(source)
    row = {"question": "the mill", "context": "mill" + " " * 40 + "mill"}
    [window] = make_windows([row], tokenizer)
    assert (window.offsets[:, 0] == window.offsets[:, 1]).sum() > 20
    for span in answer(model, tokenizer, [row], n_best=100).predictions[0].n_best:
        assert span.text.strip() == span.text != ""
