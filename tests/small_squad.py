"""A small data set in SQuAD's form, as a file and as a row."""

import json

CONTEXT = "The Arizona Cardinals beat the 😀 team — 49 to 15."
ROW = {
    "id": "q1",
    "title": "Bowl",
    "context": CONTEXT,
    "question": "Who won?",
    "answers": {"text": ["Arizona Cardinals", "Cardinals"], "answer_start": [4, 12]},
}


def valid():
    """A data file of two articles and three questions."""

    def question(id, text):
        return {"id": id, "question": "Who won?", "answers": [{"text": text, "answer_start": CONTEXT.index(text)}]}

    first = question("q1", "Arizona Cardinals")
    first["answers"].append({"text": "Cardinals", "answer_start": 12})
    return {
        "version": "1.1",
        "data": [
            {"title": "Bowl", "paragraphs": [{"context": CONTEXT, "qas": [first, question("q2", "49 to 15")]}]},
            {"title": "Späte", "paragraphs": [{"context": CONTEXT, "qas": [question("q3", "😀")]}]},
        ],
    }


def write(folder, content, name="data.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path
