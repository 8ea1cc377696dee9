"""Several processes as one run: all train, the first alone writes and prints.

In each process the same command with ``--distributed=HOST:PORT,N,I``: address of the first, at a free port; how many
there are; which this is, from 0. Or ``--distributed=auto`` where JAX finds that out itself: under Slurm's ``srun``,
Open MPI, on Kubernetes, TPU pods. All need the same files under the same paths. A process waits five minutes for the
others to come; if one dies the others end too, and the same commands go on from the checkpoints.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

from absl import logging

from spabit_jax.errors import InputError

USAGE = "give HOST:PORT,N,I (address of the first of N processes, number of this one from 0), or auto"

SECONDS_TO_END = 30  # that a process which is done or fails waits for the others


def join(given: str | None) -> None:
    """Joins the processes that ``--distributed`` names, before JAX is asked for devices; InputError if it is bad."""
    if given is None:
        return
    address = () if given == "auto" else _parse(given)
    import jax

    try:
        jax.distributed.initialize(*address, shutdown_timeout_seconds=SECONDS_TO_END)
    except (ValueError, RuntimeError) as error:  # no cluster found; the port is taken
        raise InputError(f"--distributed={given}: {' '.join(str(error).split())}: {USAGE}") from error
    if jax.process_index() > 0:
        logging.set_verbosity(logging.ERROR)


def _parse(given: str) -> tuple[str, int, int]:
    try:
        address, count, index = given.split(",")
        host, port = address.rsplit(":", 1)
        socket.getaddrinfo(host.strip("[]"), int(port))
        if not 0 <= int(index) < int(count):
            raise ValueError(f"there is no process {index} of {count}")
    except (ValueError, OSError, OverflowError) as error:
        raise InputError(f"--distributed={given}: {error}: {USAGE}") from error
    return address, int(count), int(index)


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    import jax

    return jax.process_index() == 0


def first_does(action: Callable[[], None]) -> None:
    """The first process does it; the others wait until it is done, and end where it fails."""
    import jax

    if not jax.distributed.is_initialized():
        return action()
    from jax.experimental import multihost_utils

    error = None
    if jax.process_index() == 0:
        try:
            action()
        except Exception as raised:
            error = raised
    failed = multihost_utils.broadcast_one_to_all(error is not None)
    if error is not None:
        raise error
    if failed:
        sys.exit(2)  # the first says why
