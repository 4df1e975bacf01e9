"""What a program can silence or switch in the libraries that the package uses."""

import logging
import os
import warnings

import datasets
import huggingface_hub
import transformers
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import progress_bar_states
from transformers import modeling_gguf_pytorch_utils as gguf

LOGGERS = ("torch", "transformers", "accelerate", "datasets", "huggingface_hub", "peft", "trl")
SWITCHES = ("TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY", "TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")


def library_state():
    """All of it, as it is now."""
    return {
        "warnings' filters": list(warnings.filters),
        "how warnings are shown": (warnings.showwarning, warnings._showwarnmsg_impl),
        "loggers' levels": {name: logging.getLogger(name).level for name in LOGGERS},
        "logging as a whole": (logging.root.level, logging.root.manager.disable),
        "transformers' bars": (transformers.utils.logging.is_progress_bar_enabled(), transformers.utils.logging.tqdm),
        "transformers' bar of a GGUF file": gguf.tqdm,
        "datasets' bars": datasets.are_progress_bars_disabled(),
        "the Hub's bars": dict(progress_bar_states),
        "the Hub's constants": {name: value for name, value in vars(constants).items() if name.isupper()},
        "environment": {name: os.environ.get(name) for name in SWITCHES},
    }


def all_is_silent():
    return (
        not transformers.utils.logging.is_progress_bar_enabled()
        and datasets.are_progress_bars_disabled()
        and huggingface_hub.utils.are_progress_bars_disabled()
        and all(logging.getLogger(name).level == logging.ERROR for name in ("transformers", "datasets", "trl"))
        and logging.getLogger("huggingface_hub").level == logging.ERROR
        and constants.HF_HUB_DISABLE_TELEMETRY
        and os.environ["TOKENIZERS_PARALLELISM"] == "false"
    )
