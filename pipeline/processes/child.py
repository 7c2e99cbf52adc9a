"""Runs an object in a child process, for work that may crash, such as decoding.

Run as a module, this file is the child: it makes the object, and calls the methods whose names arrive through a pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any

from pipeline.errors import RunError, UserError
from pipeline.processes.home import HOME

MOST_KILLS_FROM_OUTSIDE = 2
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""Signals that other processes send. The current image is blamed for them only if they repeat: it may exhaust the memory."""
_ITEM, _END, _ERROR = "item", "end", "error"


class Died(Exception):
    """The child process was killed by the signal `signal`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"a process was killed by {signal.Signals(number).name}")
        self.signal = signal.Signals(number)

    @property
    def reason(self) -> str:
        """The reason with which the current image is quarantined."""
        return f"the decoder's process died on this image ({self.signal.name})"

    @property
    def from_outside(self) -> bool:
        """Whether other processes send this signal, so that the current work is hardly to blame."""
        return self.signal in _FROM_OUTSIDE


class ChildProcess:
    """An object in a child process, made at the first call, and again at the first call after a crash.

    Args:
        make: makes the object in the child; a class or function of a module.
        arguments: arguments of `make`; like everything sent between the two processes, they are pickled.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._make, self._arguments = make, arguments
        self._child: _Child | None = None

    def call(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method of the object, and yield what it yields.

        Raises:
            Died: the process was killed; the items before that were yielded.
            UserError, RunError: raised by the method; RunError too where it failed in another way.
        """
        child, fresh = self._child, self._child is None
        if child is None:
            child = self._child = _Child.spare()
        try:
            if fresh:
                child.pipe.send((None, self._make, self._arguments))
            child.pipe.send((method, None, arguments))
            while True:
                kind, item = child.pipe.recv()
                if kind == _END:
                    return
                if kind == _ERROR:
                    raise item
                yield item
        except (EOFError, ConnectionError):  # the child has ended
            self._child = None
            raise child.death() from None
        except BaseException:  # the rest is not wanted, and would be taken for the next answer
            self._child = None
            child.stop()
            raise

    def close(self) -> None:
        """Release the process; it is kept for the next `ChildProcess`, since starting one takes seconds."""
        if self._child is not None:
            _spare[:] = [self._child]
            self._child = None

    def end(self) -> None:
        """End the process, to free its memory."""
        if self._child is not None:
            self._child.stop()
            self._child = None


class _Child:
    """The process, and our end of the pipe to it; the process ends when this object is collected."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        self._owner, self._stderr = os.getpid(), tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.processes.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join((str(HOME), *(path or os.getcwd() for path in sys.path)))},
            )
        self.stop = weakref.finalize(self, _stop, self._owner, self._process, self.pipe, self._stderr)

    @classmethod
    def spare(cls) -> _Child:
        """The idle process, if there is one, or a new one."""
        try:
            child = _spare.pop()
        except IndexError:
            return cls()
        return child if child._owner == os.getpid() and child._process.poll() is None else cls()

    def death(self) -> Exception:
        """The exception for the end of the process: `Died`, or a RunError that names its exit code."""
        code = self._process.wait()
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        self.stop()
        return Died(-code) if code < 0 else _failed(f"exit code {code}", text)


_spare: list[_Child] = []
"""The idle process, if there is one."""


def _stop(owner: int, process: subprocess.Popen[bytes], pipe: Connection, stderr: IO[bytes]) -> None:
    pipe.close()
    if owner != os.getpid():  # a fork of its owner
        return
    if process.poll() is None:
        process.kill()  # it may be busy with work that nobody wants any more
    process.wait()
    stderr.close()


def _failed(how: str, text: str) -> RunError:
    return RunError(f"a process that was to decode images failed ({how}): {text[-2000:]}")


def _main(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    target = None
    while True:
        try:
            method, make, arguments = pipe.recv()
        except EOFError:  # the parent has ended
            return
        try:
            if method is None:
                target = make(*arguments)
                continue
            for item in getattr(target, method)(*arguments):
                pipe.send((_ITEM, item))
            pipe.send((_END, None))
        except (UserError, RunError) as error:
            pipe.send((_ERROR, error))
        except Exception:  # noqa: BLE001  the parent raises it
            pipe.send((_ERROR, _failed("an error of ours", traceback.format_exc())))


if __name__ == "__main__":
    _main(Connection(int(sys.argv[1])))
