"""Strings as answers may be: of few letters, so that two often share words, and with all that normalising removes."""

import itertools

from hypothesis import strategies as st

PIECES = [
    *"ab",
    "cat",
    "Cats",
    "the",
    "The",
    "an",
    "AN",
    "a",
    "theatre",
    "'s",
    "1,000",
    "1000",
    "İ",
    "ß",
    "naïve",
    "日本",
]
JOINTS = [" ", "  ", "", "-", "\t", "\u00a0", "\u2003", ".", "—", "_", "/", "\n", "\u0301", "\ufeff"]


@st.composite
def texts(draw):
    parts = draw(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(JOINTS)), max_size=4))
    return "".join(itertools.chain.from_iterable(parts))
