"""Ways to break a file, for tests of what is said of broken ones."""

import json


def cut(path):
    """Keep the first part only."""
    path.write_bytes(path.read_bytes()[:100_000])


def other(**values):
    """Put other values into a JSON object."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))
