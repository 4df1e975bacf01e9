"""Span search: `best_spans` on a batch against the nested Python loop of the well-known example scripts."""

import time
from statistics import median

import numpy as np
import pytest
import torch
from tables import print_table

from qa_helpers.data.windows import MAX_LENGTH
from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS, best_spans

pytestmark = pytest.mark.benchmark

WINDOWS = 32
N_BEST = 20  # of the loop: starts and ends tried; of ours: spans returned
ROUNDS = 30
LEAST_SPEEDUP = 5.0


def loop_best(start_logits: np.ndarray, end_logits: np.ndarray, allowed: np.ndarray) -> float:
    """The best score of one window among its 20 best starts and 20 best ends; -inf if no pair of them is a span."""
    best = -np.inf
    for start in np.argsort(start_logits)[: -N_BEST - 1 : -1].tolist():
        for end in np.argsort(end_logits)[: -N_BEST - 1 : -1].tolist():
            if not allowed[start] or not allowed[end]:
                continue
            if end < start or end - start + 1 > MAX_ANSWER_TOKENS:
                continue
            best = max(best, start_logits[start] + end_logits[end])
    return float(best)


def make_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random logits, and windows whose first 12 to 31 tokens are the question and the last one a separator."""
    generator = torch.Generator().manual_seed(seed)
    start_logits, end_logits = torch.randn(2, WINDOWS, MAX_LENGTH, generator=generator) * 3
    first = torch.randint(12, 32, (WINDOWS, 1), generator=generator)
    position = torch.arange(MAX_LENGTH)
    return start_logits, end_logits, (position >= first) & (position < MAX_LENGTH - 1)


def test_span_search_is_five_times_as_fast() -> None:
    ours_seconds, loop_seconds, better = [], [], 0
    for seed in range(ROUNDS):
        start_logits, end_logits, allowed = make_batch(seed)
        begin = time.perf_counter()
        found = best_spans(start_logits, end_logits, allowed, N_BEST)
        ours = found.scores[:, 0].tolist()
        ours_seconds.append(time.perf_counter() - begin)

        windows = zip(start_logits.numpy(), end_logits.numpy(), allowed.numpy(), strict=True)
        begin = time.perf_counter()
        loop = [loop_best(*window) for window in windows]
        loop_seconds.append(time.perf_counter() - begin)

        assert all(one >= other for one, other in zip(ours, loop, strict=True))
        better += sum(one > other for one, other in zip(ours, loop, strict=True))
    speedup = median(theirs / own for own, theirs in zip(ours_seconds, loop_seconds, strict=True))
    print_table(
        f"Span search on batches of {WINDOWS} windows of {MAX_LENGTH} tokens, median of {ROUNDS}",
        ["way", "microseconds a window", "better span found"],
        [
            ("best_spans, exact, 20 best", 1e6 * median(ours_seconds) / WINDOWS, f"{better} of {ROUNDS * WINDOWS}"),
            ("loop over 20 x 20, the best", 1e6 * median(loop_seconds) / WINDOWS, "0"),
            ("ratio", speedup, ""),
        ],
    )
    assert speedup >= LEAST_SPEEDUP, f"the search is {speedup:.1f} times as fast as the loop"
