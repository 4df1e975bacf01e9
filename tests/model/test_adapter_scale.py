"""How strongly an adapter acts: a model with one against the same model whose weights were changed by hand.

LoRA adds alpha / r times B A to a weight (Hu et al. 2021, arXiv:2106.09685, section 4.1), with alpha = 2 r here; IA3
multiplies each unit (Liu et al. 2022, arXiv:2205.05638, section 3.3).
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from qa_helpers.model.trainable import set_trainable

LORA_SCALE = 2.0


def with_drawn_adapter(model: nn.Module, what: str) -> nn.Module:
    """The model with an adapter whose every weight is away from where training begins."""
    adapted = set_trainable(model, what).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return adapted


@torch.no_grad()
def change_by_hand(plain: nn.Module, adapted: nn.Module) -> int:
    """Put what each adapted layer of one model does into the other's weights; how many layers these are."""
    count = 0
    for name, module in adapted.get_base_model().named_modules():  # type: ignore[operator]
        if hasattr(module, "lora_A"):
            weight = plain.get_submodule(name).weight
            weight += LORA_SCALE * module.lora_B["default"].weight @ module.lora_A["default"].weight
        elif hasattr(module, "ia3_l"):
            layer, factor = plain.get_submodule(name), module.ia3_l["default"].flatten()
            if len(factor) == layer.weight.shape[1] and module.is_feedforward:
                layer.weight *= factor
            else:
                layer.weight *= factor[:, None]
                if layer.bias is not None:
                    layer.bias *= factor
        else:
            continue
        count += 1
    return count


@pytest.mark.parametrize(("what", "layers"), [("lora", 2 * 6), ("ia3", 2 * 4)])
def test_an_adapter_of_an_encoder_acts_as_strongly_as_its_paper_says(
    what: str, layers: int, tiny_model: Callable[[], nn.Module], inputs: dict[str, torch.Tensor]
) -> None:
    plain = tiny_model().eval()
    with torch.no_grad():  # as drawn, its layers hardly change what goes through them
        for layer in plain.bert.encoder.modules():
            if isinstance(layer, nn.Linear):
                layer.weight *= 20
    adapted = with_drawn_adapter(copy.deepcopy(plain), what)
    before = plain(**inputs).start_logits
    assert change_by_hand(plain, adapted) == layers
    for part in ("start_logits", "end_logits"):
        expected = getattr(plain(**inputs), part)
        torch.testing.assert_close(getattr(adapted(**inputs), part), expected, rtol=0, atol=1e-4)
    assert float((plain(**inputs).start_logits - before).abs().max().detach()) > 0.01  # else nothing was compared


@pytest.mark.parametrize("what", ["lora", "ia3"])
def test_an_adapter_of_a_language_model_acts_as_strongly_as_its_paper_says(what: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval()
    adapted = with_drawn_adapter(copy.deepcopy(plain), what)
    ids = torch.arange(12)[None] % 50
    before = plain(ids).logits
    assert change_by_hand(plain, adapted) > 0
    torch.testing.assert_close(adapted(ids).logits, plain(ids).logits, rtol=0, atol=1e-4)
    assert float((plain(ids).logits - before).abs().max().detach()) > 0.01
