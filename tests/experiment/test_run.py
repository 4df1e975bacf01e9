"""How an experiment's training is set up; what a run records, see `test_store`."""

import pytest
import torch

from qa_helpers.experiment import run
from qa_helpers.experiment.spec import LanguageTraining, SpanTraining


@pytest.mark.parametrize(
    ("device", "kind", "large", "expected"),
    [
        ("cpu", SpanTraining, 1_000_000, None),
        ("cpu", SpanTraining, 100_000, 4),
        ("cuda", SpanTraining, 100_000, None),
        ("cpu", LanguageTraining, 100_000, None),  # which computes its activations again
    ],
)
def test_a_large_encoder_takes_few_windows_at_once_on_a_cpu(monkeypatch, tiny_model, device, kind, large, expected):
    monkeypatch.setattr(run, "LARGE", large)  # the tiny one has half a million weights
    monkeypatch.setattr(run, "default_device", lambda: torch.device(device))
    settings = run._settings(kind(name="any", epochs=2, batch_size=16, warmup=0.1), tiny_model(), 3)
    assert settings.windows_at_once == expected
    assert settings.recompute is (kind is LanguageTraining)
    assert (settings.epochs, settings.batch_size, settings.warmup, settings.checkpoints) == (2, 16, 0.1, 3)
