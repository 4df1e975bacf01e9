"""Print the SQuAD validation questions whose passages the installed tokenizers package does not read to their ends.

What `qa_helpers/assets/unread-questions.json` holds, and the command that found it; with a sound version, none.
"""

from qa_helpers.common.io import ModelError
from qa_helpers.data.squad import load_qa
from qa_helpers.data.windows import make_windows
from qa_helpers.model.load import load_tokenizer

if __name__ == "__main__":
    tokenizer = load_tokenizer()
    for row in load_qa("squad", "validation"):
        try:
            make_windows([row], tokenizer)
        except ModelError:
            print(row["id"])
