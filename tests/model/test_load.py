"""Models: which files are read and which refused, the span head, and what is trained."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from breaking import cut, other
from safetensors.torch import load_file
from torch import nn

from qa_helpers.common.io import ModelError
from qa_helpers.model.load import (
    Float32Linear,
    has_seen_squad,
    is_hub_name,
    load_qa_model,
    load_tokenizer,
)
from qa_helpers.model.packaged import find_packaged


@pytest.fixture
def model_folder(tmp_path):
    """A copy of MiniLM's files, for breaking."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in find_packaged("minilm").parent.iterdir():
        if path.suffix in (".json", ".txt", ".safetensors"):
            shutil.copy(path, folder)
    return folder


# ---- other models -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("load", [load_qa_model, load_tokenizer])
@pytest.mark.parametrize("name", ["bert-base-uncased", "nobody/no-model", "../no-model", "a\0b", "x" * 5000])
def test_a_name_that_is_not_here_gives_one_sentence_and_touches_no_network(no_network, load, name):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set and it is not in the cache.* use 'minilm'") as caught:
        load(name)
    assert name[:100] in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("load", [load_qa_model, load_tokenizer])
def test_a_language_model_is_no_encoder(load):
    with pytest.raises(ModelError, match=r"^'smollm2' \(SmolLM2-135M-Instruct.* is no encoder"):
        load("smollm2")


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_a_pickle_is_refused_and_not_opened(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder)
    (model_folder / "model.safetensors").unlink()
    torch.save({"weights": Planted()}, model_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"is no model that can be loaded from safetensors .*model\.safetensors"):
        load_qa_model(str(model_folder))
    assert not (model_folder / "unpickled").exists()
    torch.load(model_folder / "pytorch_model.bin", weights_only=False)
    assert (model_folder / "unpickled").exists()  # it would have run


def test_code_that_comes_with_a_model_is_not_run(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForQuestionAnswering"), "own.X")}
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / "own.py").write_text(f"open({str(model_folder / 'run')!r}, 'w')")
    with pytest.raises(ModelError):
        load_qa_model(str(model_folder))
    assert not (model_folder / "run").exists()


@pytest.mark.parametrize(
    ("file", "break_it", "words"),
    [
        ("model.safetensors", cut, "no model that can be loaded"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "no model that can be loaded"),
        ("model.safetensors", Path.unlink, "no model that can be loaded"),
        ("config.json", Path.unlink, "no model that can be loaded"),
        ("config.json", lambda path: path.write_text("{"), "not a valid JSON"),
        ("config.json", lambda path: path.write_text("{}"), "no model that can be loaded"),
        ("config.json", other(hidden_size=768), "lacks weights of the encoder .*bert.embeddings"),
        ("config.json", other(num_hidden_layers=8), "lacks weights of the encoder .*layer.6.*32 in all"),
        ("config.json", other(model_type="gpt2"), "lacks weights of the encoder"),
        ("config.json", other(model_type="vit"), "no model that can be loaded"),
        ("config.json", other(model_type="unheard-of"), "no model that can be loaded"),
    ],
)
def test_a_broken_model_folder_gives_one_sentence(model_folder, file, break_it, words):
    break_it(model_folder / file)
    with pytest.raises(ModelError, match=words) as caught:
        load_qa_model(str(model_folder))
    assert str(model_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_tokenizer_gives_one_sentence(model_folder):
    (model_folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError) as caught:
        load_tokenizer(str(model_folder))
    assert str(model_folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert-base-uncased", True),
        ("deepset/roberta-base-squad2", True),
        ("microsoft/deberta-v3-base", True),
        ("a", True),
        ("", False),
        (".", False),
        ("..", False),
        ("a/..", False),
        ("../a", False),
        ("a/../b", False),
        ("./a", False),
        ("/etc", False),
        ("/etc/passwd", False),
        ("~/model", False),
        ("a/b/c", False),
        ("a//b", False),
        ("a/", False),
        ("a\\b", False),
        ("C:\\model", False),
        ("a b", False),
        ("a\0", False),
        ("a\n", False),
        ("https://example.org/model", False),
        ("here", False),  # a folder, see below
        ("here/model", False),
        ("file", False),
    ],
)
def test_names_of_the_hub(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert is_hub_name(name) is expected


def test_an_endless_name_is_no_files():
    assert is_hub_name("a" * 5000)  # only its form is asked; loading it gives a sentence, see above


def test_checkpoints_that_have_seen_squad():
    assert has_seen_squad("deepset/roberta-base-squad2")
    assert has_seen_squad("distilbert-base-cased-distilled-SQuAD")
    assert not has_seen_squad("bert-base-uncased")
    assert not has_seen_squad("/data/squad/minilm")  # the folder's own name decides


# ---- the span head ----------------------------------------------------------------------------------------------
def test_only_the_span_head_is_new_and_the_seed_decides_it():
    stored = load_file(find_packaged("minilm"))
    one, same, other = (load_qa_model(seed=seed).state_dict() for seed in (1, 1, 2))
    new = [name for name in one if name.removeprefix("bert.") not in stored]
    assert new == ["qa_outputs.weight", "qa_outputs.bias"]
    for name, weights in one.items():
        assert weights.dtype == torch.float32
        assert torch.equal(weights, same[name])
        if name in new:
            continue
        assert torch.equal(weights, stored[name.removeprefix("bert.")])
        assert torch.equal(weights, other[name])
    assert one["qa_outputs.weight"].shape == (2, 384)
    assert not torch.equal(one["qa_outputs.weight"], other["qa_outputs.weight"])


def test_a_saved_head_is_loaded_and_not_drawn_again(tmp_path):
    model = load_qa_model(seed=1)
    model.save_pretrained(tmp_path)
    loaded = load_qa_model(str(tmp_path), seed=2).state_dict()
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, loaded[name])


def test_the_head_computes_in_float32_under_autocast(inputs):
    model = load_qa_model().eval()
    assert isinstance(model.qa_outputs, Float32Linear)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = model.bert(**inputs).last_hidden_state
        output = model(**inputs)
        assert nn.functional.linear(encoded, model.qa_outputs.weight).dtype == torch.bfloat16  # as it is otherwise
    assert output.start_logits.dtype == output.end_logits.dtype == torch.float32
    rounded = output.start_logits.bfloat16().float()
    assert (output.start_logits != rounded).float().mean() > 0.5  # and not bfloat16's numbers in float32's clothes


def test_the_head_takes_bfloat16_and_computes_in_float32():
    """As an encoder gives it whose last layer is no LayerNorm."""
    head, x = Float32Linear.like(nn.Linear(5, 2)), torch.randn(3, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(x)
    assert output.dtype == torch.float32
    assert torch.equal(output, nn.functional.linear(x.float(), head.weight, head.bias))


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_is_the_layer_it_was_made_of(bias):
    torch.manual_seed(0)
    linear = nn.Linear(5, 2, bias=bias)
    head = Float32Linear.like(linear)
    x = torch.randn(3, 5)
    assert torch.equal(head(x), linear(x))
    assert [id(p) for p in head.parameters()] == [id(p) for p in linear.parameters()]
