"""The right to write into an output folder, which one run has at a time."""

import errno
import logging
import os
from pathlib import Path

from rmd_core.errors import RMDError

from .files import make_folder, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

log = logging.getLogger(__name__)

NAME = "run.lock"
"""An empty file in the output folder; it stays there, and says nothing by being there."""

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class RunLock:
    """Within the block no other run on this machine writes into ``folder``, which is made if it is not there.

    The system itself takes the right back from a process that ends, however it ends. Raises RMDError where another run
    has it, or the folder cannot be written. A file system without locks is told in a warning.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._file = None

    def __enter__(self):
        make_folder(self.folder)
        with writing(self.folder / NAME):
            self._file = open(self.folder / NAME, "ab")
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno in _HELD:
                self._file.close()
                raise RMDError(
                    f"another run is writing into the output folder {self.folder} at this moment; wait until it has "
                    "ended, stop it, or choose another folder with --set output.folder=..."
                ) from None
            reason = error.strerror or error
            log.warning("warning: %s cannot be locked (%s); let no other run write into it", self.folder, reason)
        return self

    def __exit__(self, *_):
        self._file.close()  # which gives the lock back


def _lock(file):
    """Take an exclusive lock or raise OSError at once."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
