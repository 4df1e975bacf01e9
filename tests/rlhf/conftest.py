"""What several tests of rlhf start from."""

import pytest

from qa_helpers.rlhf.measure import ask_reference
from qa_helpers.rlhf.policy import one_window


@pytest.fixture(scope="module")
def references(tokenizer, course, tiny_model):
    """What the small model says of 48 questions on 18 articles."""
    questions, _ = one_window(course[::13], tokenizer)
    return ask_reference(tiny_model(), tokenizer, questions)
