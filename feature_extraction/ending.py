"""How a command ends that is interrupted, or to which the system refuses something."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable

from spabit_jax.files import remove_temporary

AT_SIGNAL: list[Callable[[], None]] = [remove_temporary]  # what is done before a signal ends the process


def end_by_signal() -> None:
    """SIGINT and SIGTERM end the process whatever it is in: files are whole or not there, so nothing need be finished.

    Python's own handlers wait until a compiled program returns, and their exception may be lost in a library.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # the thread does it

    def wait() -> None:
        arrived = iter(lambda: os.read(read, 1)[0], None)  # of all signals that Python handles
        number = next(number for number in arrived if number in (signal.SIGINT, signal.SIGTERM))
        try:
            for action in AT_SIGNAL:
                action()
            os.write(2, b"\ninterrupted: the same command goes on from here\n"[not sys.stderr.isatty() :])
        finally:
            os._exit(128 + number)

    threading.Thread(target=wait, name="signals", daemon=True).start()


REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EFBIG,
            errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ESTALE}  # fmt: skip


def refused_by_the_system(error: BaseException) -> str | None:
    """A line on what the system refused, where that is why ``error`` was raised: disk or memory; None otherwise."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror or error}: make room, or give a folder that can be written to"
        text = " ".join(str(error).split())
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # h5py and TensorStore have it in their text
            if os.strerror(number) in text:
                return f"{os.strerror(number)} ({text[:200]}): make room, or give a folder that can be written to"
        if "nable to initialize backend" in text or "Unknown backend" in text:
            return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} cannot be had here ({text[:200]}): unset it"
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
            return f"not enough memory ({text[:200]}): ask for less, as fewer spots, genes, epochs or narrower windows"
        error = error.__cause__ or error.__context__
    return None
