"""What is kept for all of a user's projects: compiled programs, unpacked images."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from spabit_jax.errors import InputError


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/spabit_jax`` (default ``~/.cache``): what may be deleted, of all the user's projects.

    InputError where the user has no home folder, as in some containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spabit_jax"
    except RuntimeError as error:
        raise InputError("there is no home folder to keep files in: set XDG_CACHE_HOME to a folder") from error


def keep_compiled() -> None:
    """What JAX compiles is kept for the next run; its own settings, where the user has them, come first.

    In a folder of the user's, as programs from there are run, and of the machine: XLA runs programs that were compiled
    for another CPU, and they may crash. Not where one CPU plays several devices: four on two cores wait for each other
    forever in a program that was kept (jaxlib 0.10.2).
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(user_cache() / "compiled" / platform.node()))
    except InputError:
        return  # it is compiled each time
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    if "jax" in sys.modules:  # it has looked at its variables
        import jax
        from jax.experimental.compilation_cache import compilation_cache

        if jax.config.jax_compilation_cache_dir is None:
            least = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
            jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
            compilation_cache.reset_cache()  # or where something was compiled before, nothing is kept
