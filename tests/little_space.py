"""A file system that takes no more: as full as a full disk for whatever writes, and for root as for anybody else."""

import contextlib
import resource


@contextlib.contextmanager
def no_file_longer_than(size):
    """Writes beyond `size` bytes of a file fail, as on a full disk; in this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
