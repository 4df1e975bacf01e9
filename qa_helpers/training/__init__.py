"""Fine-tuning: what a model is taught, and the loop that teaches it."""

from typing import Any

from qa_helpers.common.moved import no_longer_here


def __getattr__(name: str) -> Any:
    return no_longer_here(__name__, name)
