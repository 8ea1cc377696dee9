"""Weights of image encoders from the Hugging Face hub, and what to do where they cannot be had."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from absl import logging

from feature_extraction.encoder_table import ENCODERS, PLAIN, Encoder
from spabit_jax.errors import InputError

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model_vision.bin")
WEIGHTS = "--weights=FILE of experiments.run or feature_extraction.extract, whose cache every command takes"


def download(encoder: Encoder, login: str | None) -> str:
    """Path of the weights file: downloaded before, or from the hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if not encoder.repo:
        raise InputError(f"--encoder={encoder.name} has no weights on the Hugging Face hub: give them, {WEIGHTS}")
    for filename in _WEIGHT_FILES:
        path = try_to_load_from_cache(encoder.repo, filename)
        if isinstance(path, str):
            return path
    logging.info("downloading the weights of %s (licence: %s)", encoder.repo, encoder.licence)
    for filename in _WEIGHT_FILES:
        try:
            return from_hub(encoder.repo, functools.partial(hf_hub_download, filename=filename), login)
        except RemoteEntryNotFoundError:
            continue
    raise InputError(f"https://huggingface.co/{encoder.repo} has none of {', '.join(_WEIGHT_FILES)}: give {WEIGHTS}")


def from_hub(repo: str, get: Callable[[str], Any], login: str | None) -> Any:
    """``get(repo)`` with the token ``login``, and one line for whatever keeps us from it."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # it warns at each of its retries
    page = f"https://huggingface.co/{repo}"
    before = os.environ.get("HF_TOKEN")
    if login:
        os.environ["HF_TOKEN"] = login
    try:
        return get(repo)
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo} is gated: ask for access at {page}, then set HF_TOKEN, or give the file, "
            f"{WEIGHTS}; encoders open to all: {open_encoders()}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{page} is not there, or the token of --login or HF_TOKEN is not allowed to see it; "
            f"encoders open to all: {open_encoders()}"
        ) from error
    except errors.RemoteEntryNotFoundError:
        raise
    except (errors.HTTPError, OSError) as error:
        reason = "no network" if isinstance(error, errors.LocalEntryNotFoundError) else str(error).split("\n")[0]
        raise InputError(
            f"{page} cannot be reached ({reason}): give its file, {WEIGHTS}; or use --encoder=stain, which needs none"
        ) from error
    finally:
        if login:
            os.environ.pop("HF_TOKEN")
            if before is not None:
                os.environ["HF_TOKEN"] = before


def open_encoders() -> str:
    return ", ".join([*PLAIN, *(e.name for e in ENCODERS.values() if not e.gated), "timm:NAME"])
