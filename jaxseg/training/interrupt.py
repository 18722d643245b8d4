"""Signals that ask a run to stop."""

import os
import signal


class Interrupted(BaseException):
    """The run was asked to stop by a signal, and has saved itself.

    No error, just as KeyboardInterrupt is none.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int, step: int):
        """Says after which step the run was saved."""
        name = signal.Signals(signum).name
        super().__init__(
            f"{name}: saved after step {step}; the same command goes on from there."
        )
        self.signum = signum


class StopSignal:
    """Remembers the first SIGTERM or SIGINT instead of dying of it.

    Attributes:
        signum: the signal that came, or None.
    """

    def __enter__(self) -> "StopSignal":
        """Listens from now on."""
        self.signum = None
        signals = (signal.SIGTERM, signal.SIGINT)
        self._previous = {s: signal.signal(s, self._note) for s in signals}
        return self

    def _note(self, signum, frame):
        del frame
        self.signum = signum
        name = signal.Signals(signum).name
        text = f"\n{name}: saving after this step; once more to stop without.\n"
        os.write(2, text.encode())  # print may be in the middle of a line of its own
        # A second signal takes its usual effect, for a run that hangs.
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def __exit__(self, *error) -> None:
        """Leaves the signals as they were."""
        for s, handler in self._previous.items():
            signal.signal(s, handler)
