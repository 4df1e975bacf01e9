"""Print the SQuAD validation questions whose passages the installed tokenizers package does not read to their ends.

What `qa_helpers/assets/unread-questions.json` holds, and the command that found it; with a sound version, none.
"""

from qa_helpers.data import load_qa
from qa_helpers.features import cut, unread_ends
from qa_helpers.models import load_tokenizer

if __name__ == "__main__":
    rows, tokenizer = list(load_qa("squad", "validation")), load_tokenizer()
    print(*(rows[question]["id"] for question in unread_ends(rows, cut(rows, 0, tokenizer), tokenizer)), sep="\n")
