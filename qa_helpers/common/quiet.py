"""Keeping libraries quiet while they work for the course, and no longer."""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator

_LOGGERS = ("transformers", "datasets", "huggingface_hub", "trl")
_WARNERS = r"(torch|transformers|accelerate|datasets|huggingface_hub|peft|trl)(\.|$)"


class _Inside:
    """Who is within `quiet` now: the first to enter silences the libraries, the last to leave undoes it."""

    lock = threading.Lock()
    count = 0
    undo = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, no progress bars, warnings and reports of usage of the libraries below; errors still show.

    The one place where the package does this, around what a reader or the command line calls: as `with quiet():`, or
    `@quiet()` before a function. What a reader must know of the silenced text (that a span head is newly initialised,
    say) the notebooks say in words. On leaving, also by an error, all is as it was before; calls may lie within each
    other, or overlap in several threads.
    """
    with _Inside.lock:
        if not _Inside.count:
            _silence(_Inside.undo)
        _Inside.count += 1
    try:
        yield
    finally:
        with _Inside.lock:
            _Inside.count -= 1
            if not _Inside.count:
                _Inside.undo.close()


def _silence(undo: contextlib.ExitStack) -> None:
    """Silence the libraries; `undo` takes down how to undo it.

    trl's trainers report their use unless a constant of the Hub's says no; and in notebooks, transformers' bar over a
    GGUF file's tensors does not heed TQDM_DISABLE.
    """
    import datasets
    import transformers
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import progress_bar_states
    from transformers import modeling_gguf_pytorch_utils as gguf

    from qa_helpers.common.device import progress_bar

    undo.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module=_WARNERS)
    for logger in map(logging.getLogger, _LOGGERS):
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
    if not datasets.are_progress_bars_disabled():
        undo.callback(datasets.enable_progress_bars)
        datasets.disable_progress_bars()
    undo.callback(progress_bar_states.update, dict(progress_bar_states))
    undo.callback(progress_bar_states.clear)
    if transformers.utils.logging.is_progress_bar_enabled():
        undo.callback(transformers.utils.logging.enable_progress_bar)
    transformers.utils.logging.disable_progress_bar()  # the Hub's, too
    for module, name, instead in ((constants, "HF_HUB_DISABLE_TELEMETRY", True), (gguf, "tqdm", progress_bar)):
        undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, instead)
    if "TOKENIZERS_PARALLELISM" not in os.environ:
        undo.callback(os.environ.pop, "TOKENIZERS_PARALLELISM", None)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else a warning at every fork
