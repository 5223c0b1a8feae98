"""Ctrl-C and SIGTERM as a wish that the loop grants after the update at hand."""

import signal


class StopSignals:
    """Within the block the first SIGINT or SIGTERM is noted in ``received``; a second one acts at once.

    With ``launcher`` a second one does nothing: a launcher passes on what its processes may have got already, and ends
    them itself when they take too long.
    """

    def __init__(self, *, launcher=False):
        self.received = None
        self._launcher = launcher
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        self._restore()

    @property
    def exit_code(self):
        """128 plus the signal's number, as shells have it."""
        return 128 + self.received

    def _note(self, number, _frame):
        self.received = self.received or number
        if not self._launcher:
            self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
