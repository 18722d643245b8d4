"""Signals that ask a run to stop."""

import os
import signal
from types import FrameType, TracebackType


class Interrupted(BaseException):
    """A signal asked the run to stop, and a checkpoint was saved.

    Like KeyboardInterrupt, this is not an error.

    Attributes:
        signum: number of the signal.
    """

    def __init__(self, signum: int, step: int):
        """Describes the interruption.

        Args:
            signum: number of the signal.
            step: step of the checkpoint.
        """
        name = signal.Signals(signum).name
        super().__init__(
            f"{name}: saved after step {step}; run the same command again to resume."
        )
        self.signum = signum


class StopSignal:
    """Catches the first SIGTERM or SIGINT, so that a run can save before it ends.

    Attributes:
        signum: number of the signal that was received, or None.
    """

    def __enter__(self) -> "StopSignal":
        """Installs the signal handlers."""
        self.signum: int | None = None
        signals = (signal.SIGTERM, signal.SIGINT)
        self._previous = {s: signal.signal(s, self._note) for s in signals}
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = signum
        name = signal.Signals(signum).name
        text = (
            f"\n{name}: saving a checkpoint after this step; repeat it to stop at once "
            "without saving.\n"
        )
        os.write(2, text.encode())  # print may be interrupted in the middle of a line
        # A second signal has its usual effect, in case the run hangs.
        self._restore()

    def _restore(self) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restores the previous signal handlers."""
        self._restore()
