"""What a model answers, what the answers are worth, and how far the figure can be trusted."""

from typing import Any

from qa_helpers.common.moved import no_longer_here


def __getattr__(name: str) -> Any:
    return no_longer_here(__name__, name)
