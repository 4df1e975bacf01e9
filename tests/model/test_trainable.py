"""What is trained and what is stored: which weights move and which stay, adapters saved, loaded, merged, broken."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from breaking import cut, other
from safetensors.torch import load_file, save_file
from torch import nn

from qa_helpers.common.device import default_device, set_seed
from qa_helpers.common.io import ModelError
from qa_helpers.common.quiet import quiet
from qa_helpers.data.windows import make_windows, training_features
from qa_helpers.model.load import Float32Linear, load_qa_model, resolve
from qa_helpers.model.trainable import (
    LORA_RANK,
    adapter_base,
    attach_adapter,
    count_parameters,
    depths,
    encoder_layers,
    has_span_head,
    merge_adapter,
    save_model,
    set_trainable,
    trained_bytes,
)
from qa_helpers.training.trainer import Settings, train


# ---- what is trained --------------------------------------------------------------------------------------------
def trained_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_what_is_trained():
    model = load_qa_model()
    every = {name for name, _ in model.named_parameters()}
    head = {"qa_outputs.weight", "qa_outputs.bias"}
    assert len(encoder_layers(model)) == 6
    assert trained_names(set_trainable(model, "head")) == head
    assert count_parameters(model)[0] == 2 * 384 + 2
    expected = {name for name in every if re.search(r"\.layer\.[45]\.", name)} | head
    assert trained_names(set_trainable(model, "last:2")) == expected
    assert trained_names(set_trainable(model, "last:6")) == {n for n in every if ".layer." in n} | head
    assert trained_names(set_trainable(model, "all")) == every
    trained, total = count_parameters(model)
    assert trained == total == sum(p.numel() for p in model.parameters()) > 20_000_000


WRONG_WORDS = [
    "",
    "last",
    "last:",
    "last:0",
    "last:7",
    "last:-1",
    "last:1.5",
    "last:²",
    "last: 2",
    "last:2 ",
    "last:2:1",
]
WRONG_WORDS += ["last:x", "LoRA", "lora:8", "ia³", "All", "all:3", "head:1", "none"]


@pytest.mark.parametrize(
    "word",
    [*WRONG_WORDS, "last:" + "2" * 5000],
    ids=lambda word: word[:10],
)
def test_other_words_say_what_can_be_trained_and_change_nothing(word):
    model = set_trainable(load_qa_model(), "head")
    before = trained_names(model)
    words = r"cannot be trained: use 'all', 'head', 'lora', 'ia3', or 'last:N' with N from 1 to 6$"
    with pytest.raises(ModelError, match=words):
        set_trainable(model, word)
    assert trained_names(model) == before


HEAD = ["qa_outputs.modules_to_save.default.bias", "qa_outputs.modules_to_save.default.weight"]
MINILM_LORA = [  # the linear layers of one of BERT's layers
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
]
MINILM_IA3 = ["attention.self.key", "attention.self.value", "attention.output.dense", "output.dense"]


def test_lora_trains_a_correction_to_each_linear_layer_and_the_head():
    model = set_trainable(load_qa_model(), "lora")
    expected = [
        f"bert.encoder.layer.{layer}.{name}.lora_{part}.default.weight"
        for layer in range(6)
        for name in MINILM_LORA
        for part in "AB"
    ]
    assert trained_names(model) == {f"base_model.model.{name}" for name in expected + HEAD}
    trained, total = count_parameters(model)
    shapes = [(384, 384)] * 4 + [(384, 1536)] * 2
    assert trained == 6 * sum(LORA_RANK * (one + other) for one, other in shapes) + 2 * 384 + 2
    assert trained < 0.02 * total


def test_ia3_trains_a_factor_for_each_unit_and_the_head():
    model = set_trainable(load_qa_model(), "ia3")
    expected = [f"bert.encoder.layer.{layer}.{name}.ia3_l.default" for layer in range(6) for name in MINILM_IA3]
    assert trained_names(model) == {f"base_model.model.{name}" for name in expected + HEAD}
    assert count_parameters(model)[0] == 6 * (3 * 384 + 1536) + 2 * 384 + 2


@pytest.mark.parametrize("what", ["lora", "ia3"])
def test_an_adapter_changes_no_answer_before_it_is_trained(what, inputs):
    assert inputs["token_type_ids"].any()  # they reach the encoder through peft, too
    plain = load_qa_model().eval()
    before = logits(plain, inputs)
    model = set_trainable(plain, what).eval()
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=1e-6)
    assert has_span_head(model)


@quiet()
def llama():
    """A language model of SmolLM2's kind with few and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)).eval()


@pytest.mark.parametrize(
    ("what", "modules", "ends"),
    [
        ("lora", ["self_attn.q_proj", "self_attn.v_proj"], ["lora_A.default.weight", "lora_B.default.weight"]),
        ("ia3", ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"], ["ia3_l.default"]),
    ],
)
def test_what_is_trained_of_a_language_model(what, modules, ends):
    model = set_trainable(llama(), what)
    layers = [f"base_model.model.model.layers.{layer}.{module}" for layer in range(3) for module in modules]
    assert trained_names(model) == {f"{name}.{end}" for name in layers for end in ends}
    assert not has_span_head(model)


def test_all_of_a_language_model_can_be_trained():
    model = set_trainable(llama(), "all")
    assert trained_names(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("word", ["head", "last:1", "", "x"])
def test_what_a_model_without_a_span_head_cannot_train_is_said_in_one_sentence(word):
    model = llama()
    with pytest.raises(ModelError, match=r"of a LlamaForCausalLM, which has no span head: use 'all', 'lora' or 'ia3'$"):
        set_trainable(model, word)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("what", ["lora", "ia3"])
def test_an_adapter_does_not_fit_a_model_of_no_known_kind(what):
    with pytest.raises(ModelError, match=rf"^'{what}' does not fit a Sequential: "):
        set_trainable(nn.Sequential(nn.Linear(2, 2)), what)


@pytest.mark.parametrize("what", ["head", "last:2", "lora", "ia3", "all"])
def test_frozen_weights_stay_bit_by_bit_and_the_others_change(tmp_path, tokenizer, course, what):
    set_seed(0)
    model = set_trainable(load_qa_model(), what).to(default_device())
    before = {name: weights.detach().clone() for name, weights in model.state_dict().items()}
    chosen = trained_names(model)
    features = training_features(make_windows(course[:16], tokenizer))
    assert all(one["start_positions"] for one in features)
    train(model, tokenizer, features, Settings(epochs=1, batch_size=4, learning_rate=1e-3), tmp_path)
    changed = {name for name, weights in model.state_dict().items() if not torch.equal(weights, before[name])}
    # A key's bias shifts all of a token's scores alike, which softmax cancels: it may stay where it is.
    assert chosen - {name for name in chosen if "key.bias" in name} <= changed <= chosen
    assert changed


# ---- adapters: saved, loaded, merged ----------------------------------------------------------------------------
def logits(model, inputs):
    """All logits of a model, in float32."""
    with torch.inference_mode():
        output = model(**inputs)
    return torch.cat([output.start_logits, output.end_logits], dim=1) if "start_logits" in output else output.logits


def with_random_adapter(model, what):
    """A model with an adapter whose every weight is away from where training begins."""
    torch.manual_seed(1)
    model = set_trainable(model, what).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module", params=["lora", "ia3"])
def adapted(request, inputs, tmp_path_factory):
    """MiniLM with an adapter, the folder it was saved in, and its logits. No test changes them."""
    model = with_random_adapter(load_qa_model(seed=3), request.param)
    folder = tmp_path_factory.mktemp(request.param)
    save_model(model, folder, "minilm")
    return model, folder, logits(model, inputs)


def test_merging_changes_no_logit(adapted, inputs):
    model, _, expected = adapted
    assert (expected - logits(load_qa_model(seed=3).eval(), inputs)).abs().max() > 0.01
    merged = merge_adapter(copy.deepcopy(model))
    torch.testing.assert_close(logits(merged, inputs), expected, rtol=0, atol=1e-4)
    assert set(merged.state_dict()) == set(load_qa_model().state_dict())  # nothing of peft is left
    assert isinstance(merged.qa_outputs, Float32Linear)


def test_a_saved_adapter_is_loaded_with_the_model_it_belongs_to(adapted, inputs):
    _, folder, expected = adapted
    assert adapter_base(folder) == "minilm"
    loaded = load_qa_model(str(folder), seed=4).eval()  # its head is the saved one, whatever the seed
    torch.testing.assert_close(logits(loaded, inputs), expected, rtol=0, atol=1e-4)
    assert trained_names(set_trainable(loaded, "all")) == {name for name, _ in load_qa_model().named_parameters()}


@pytest.mark.parametrize("task", [None, "QUESTION_ANS"])  # peft's class for the second hands no token_type_ids on
def test_a_saved_adapter_is_attached_unmerged_and_gives_the_same_logits(adapted, inputs, tmp_path, task):
    model, saved, expected = adapted
    folder = shutil.copytree(saved, tmp_path / "copy")
    other(task_type=task)(folder / "adapter_config.json")
    attached = attach_adapter(load_qa_model(seed=4), folder).eval()
    assert torch.equal(logits(attached, inputs), expected)
    assert set(attached.state_dict()) == set(model.state_dict())


def test_an_adapters_folder_is_small_and_holds_the_models_name_and_no_path(adapted):
    model, folder, _ = adapted
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (folder / "adapter_model.safetensors").stat().st_size < 2_000_000
    text = (folder / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "minilm"
    for path in folder.iterdir():
        assert resolve("minilm")[0].encode() not in path.read_bytes()
    # The file has other names for the same tensors, so its head may differ by some bytes.
    assert (folder / "adapter_model.safetensors").stat().st_size == pytest.approx(trained_bytes(model), rel=0.05)


def test_an_adapter_on_weights_without_a_name_is_saved_merged(adapted, inputs, tmp_path):
    model, _, expected = adapted
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    save_model(model, tmp_path, None)
    assert adapter_base(tmp_path) is None
    torch.testing.assert_close(logits(load_qa_model(str(tmp_path)).eval(), inputs), expected, rtol=0, atol=1e-4)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())


def test_a_model_without_an_adapter_is_saved_whole(inputs, tmp_path):
    model = load_qa_model(seed=5).eval()
    save_model(model, tmp_path, "minilm")
    assert adapter_base(tmp_path) is None
    assert torch.equal(logits(load_qa_model(str(tmp_path)).eval(), inputs), logits(model, inputs))


@pytest.mark.parametrize("what", ["lora", "ia3"])
def test_the_adapter_of_a_language_model_is_saved_attached_and_merged(tmp_path, what):
    ids = {"input_ids": torch.arange(12).reshape(2, 6)}
    model = with_random_adapter(llama(), what)
    expected = logits(model, ids)
    assert (expected - logits(llama(), ids)).abs().max() > 0.001
    save_model(model, tmp_path, "a/name")
    assert adapter_base(tmp_path) == "a/name"
    attached = attach_adapter(llama(), tmp_path).eval()
    assert torch.equal(logits(attached, ids), expected)
    torch.testing.assert_close(logits(merge_adapter(attached), ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("what", ["head", "last:2", "lora", "ia3"])
def test_trained_bytes_are_those_of_a_file_with_these_tensors(tmp_path, what):
    model = set_trainable(load_qa_model(), what)
    tensors = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_file(tensors, tmp_path / "trained.safetensors")
    assert trained_bytes(model) == (tmp_path / "trained.safetensors").stat().st_size
    assert trained_bytes(model) > 4 * count_parameters(model)[0]


# ---- broken adapters --------------------------------------------------------------------------------------------
def renamed(path):
    """A tensor under another name, as of an adapter of another model."""
    tensors = load_file(path)
    first = min(tensors)
    save_file({("other." + name if name == first else name): value for name, value in tensors.items()}, path)


def without_its(part):
    def change(path):
        tensors = load_file(path)
        tensors.pop(next(name for name in sorted(tensors) if part in name))
        save_file(tensors, path)

    return change


def pickled(path):
    torch.save(load_file(path), path.with_name("adapter_model.bin"))
    path.unlink()


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BROKEN_ADAPTERS = {
    "weights missing": (WEIGHTS, Path.unlink, "its adapter lacks adapter_model.safetensors"),
    "weights pickled": (WEIGHTS, pickled, "its adapter lacks adapter_model.safetensors"),
    "weights empty": (WEIGHTS, lambda path: path.write_bytes(b""), "its adapter cannot be loaded"),
    "weights cut": (WEIGHTS, cut, "its adapter cannot be loaded"),
    "a tensor of another name": (WEIGHTS, renamed, r"its adapter does not fit a BertForQuestionAnswering \("),
    "a tensor too few": (WEIGHTS, without_its("lora_A"), r"its adapter does not fit a BertForQuestionAnswering \("),
    "no head": (WEIGHTS, without_its("qa_outputs"), r"its adapter cannot be loaded \(KeyError: .*qa_outputs"),
    "another rank": (CONFIG, other(r=4), "its adapter cannot be loaded .*size mismatch"),
    "rank as text": (CONFIG, other(r="x"), "its adapter cannot be loaded"),
    "fewer layers": (CONFIG, other(layers_to_transform=[0, 1]), "its adapter does not fit"),
    "modules that are not there": (CONFIG, other(target_modules=["no_such"]), "its adapter cannot be loaded"),
    "modules of no kind": (CONFIG, other(target_modules=5), "its adapter cannot be loaded"),
    "another kind": (CONFIG, other(peft_type="PREFIX_TUNING"), "its adapter is neither LoRA nor IA3"),
    "a kind of no kind": (CONFIG, other(peft_type=["LORA"]), "its adapter is neither LoRA nor IA3"),
    "no kind": (CONFIG, lambda path: path.write_text('{"base_model_name_or_path": "minilm"}'), "neither LoRA nor IA3"),
    "not JSON": (CONFIG, lambda path: path.write_text("{"), "is not valid JSON"),
    "a list": (CONFIG, lambda path: path.write_text("[]"), "names no whole model"),
    "no base": (CONFIG, other(base_model_name_or_path=None), "names no whole model"),
    "an empty base": (CONFIG, other(base_model_name_or_path=""), "names no whole model"),
    "a number as base": (CONFIG, other(base_model_name_or_path=5), "names no whole model"),
    "a base that is not here": (CONFIG, other(base_model_name_or_path="a/b"), "'a/b' could not be loaded"),
    "a language model as base": (CONFIG, other(base_model_name_or_path="smollm2"), "'smollm2' .* is no encoder"),
}


@pytest.mark.parametrize(("file", "break_it", "words"), BROKEN_ADAPTERS.values(), ids=BROKEN_ADAPTERS)
@pytest.mark.filterwarnings("error")
def test_a_broken_adapter_gives_one_sentence(tmp_path, no_network, lora_folder, file, break_it, words):
    shutil.copytree(lora_folder, tmp_path, dirs_exist_ok=True)
    break_it(tmp_path / file)
    with pytest.raises(ModelError, match=words) as caught:
        load_qa_model(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def lora_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    save_model(set_trainable(load_qa_model(), "lora"), folder, "minilm")
    return folder


def test_an_adapter_that_belongs_to_an_adapter_is_refused(tmp_path, lora_folder):
    shutil.copytree(lora_folder, tmp_path, dirs_exist_ok=True)
    other(base_model_name_or_path=str(tmp_path))(tmp_path / CONFIG)  # to itself, even
    with pytest.raises(ModelError, match=r"adapter_config\.json: names no whole model"):
        load_qa_model(str(tmp_path))


def test_an_adapter_does_not_fit_another_kind_of_model(lora_folder):
    with pytest.raises(ModelError, match=re.escape(f"{lora_folder}: its adapter")) as caught:
        attach_adapter(llama(), lora_folder)
    assert "\n" not in str(caught.value)


def test_a_name_or_a_folder_without_an_adapter_has_no_base(tmp_path):
    for name in ("minilm", "a/b", "a\0b", "x" * 5000, str(tmp_path)):
        assert adapter_base(name) is None


# ---- how deep a parameter lies ----------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["all", "lora", "ia3"])
def test_each_parameter_has_its_depth_below_the_head(tiny_model, what):
    found = depths(set_trainable(tiny_model(), what))
    expected = {"qa_outputs": 0, "layer.1.": 1, "layer.0.": 2, "embeddings.": 3}
    for name, depth in found.items():
        assert [depth] == [number for place, number in expected.items() if place in name], name
    assert set(found.values()) == {0, 1, 2, 3}
