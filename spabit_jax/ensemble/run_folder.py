"""What a run folder says of its run: config.json, and the section and the inputs that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import numpy as np
from absl import logging
from anndata import AnnData

from spabit_jax.config import CONFIGS, Config
from spabit_jax.data.prepared import Prepared
from spabit_jax.ensemble.members import MEMBERS
from spabit_jax.errors import InputError
from spabit_jax.files import (
    FORMAT,
    check_format,
    check_matches,
    check_whole,
    first_difference,
    is_whole,
    read_json,
    replacing,
    write_json,
)
from spabit_jax.models import MODELS
from spabit_jax.readers import read_section
from spabit_jax.readers.libraries import WHOLE
from spabit_jax.readers.tables import check_affine, reading
from spabit_jax.training.losses import LOSSES

LOCK = ".run.lock"  # of the command that writes into the folder
MOST_SEEDS = 1000
READING = dict.fromkeys(("format", "name", "image", "positions", "labels", "alignment"), str | NoneType)
READING |= dict.fromkeys(("bin_um", "spot_um", "um_per_px", "image_scale"), int | float | NoneType)
READING |= {"swap_xy": bool | NoneType, "turn": str | int | NoneType}  # what read_section is given, and its types
PACKAGES = ("jax", "jaxlib", "flax", "optax", "jraph", "orbax-checkpoint", "numpy", "anndata")


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds themselves; InputError unless they are 1 to ``MOST_SEEDS`` whole numbers that JAX takes, each once."""
    n = seeds.stop if isinstance(seeds, range) else len(seeds)  # that of a range may not fit into len()
    if not 0 < n <= MOST_SEEDS:
        raise InputError(f"{n} seeds: give 1 to {MOST_SEEDS}")
    for seed in seeds:
        if not isinstance(seed, Integral) or not 0 <= seed < 2**31 or seeds.count(seed) > 1:
            raise InputError(f"seed {seed!r:.40}: seeds are whole numbers from 0 to {2**31 - 1}, each once")
    return [int(seed) for seed in seeds]


def write_config(out: Path, prepared: Prepared, seeds: Sequence[int], origin: dict | None = None) -> None:
    """Writes config.json before anything else goes into a run folder; InputError where it holds another run.

    Args:
      origin: where the section comes from and how it is read, what a command was given; None for a section from memory,
        which is then kept in the folder.
    """
    identity, path = prepared.identity(seeds), out / "config.json"
    if origin is None:
        check_no_related(prepared)
    if there := path.exists():
        check_matches(path, identity, keys=tuple(identity))
    if origin is None:
        origin = _kept_in(out, prepared, again=not there)  # one from before a kill may be of another run
    also = {"config_class": type(prepared.config).__name__, "versions": {name: version(name) for name in PACKAGES}}
    if not there:
        write_json(path, {"format": FORMAT, **origin, **identity, **also}, sealed=True)


def check_name(config: Path, name: str) -> None:
    """InputError where a run's config.json is of a section of another name, which predictions and figures have."""
    section = read_json(config, "delete the folder, or give another --out").get("section")
    if isinstance(section, dict) and section.get("name", name) != name:
        raise InputError(f"{config} is of section {section['name']}, not {name}: give --name={section['name']}")


def check_no_related(prepared: Prepared) -> None:
    """InputError for a section from memory that has related ones, which a run folder could not read again."""
    if prepared.related:
        raise InputError("a model with related sections is not kept from memory: use experiments.run --related")


def _kept_in(out: Path, prepared: Prepared, again: bool) -> dict:
    """A section from memory, written into the run folder where it is not there, and what config.json says of it."""
    info, adata = prepared.adata.uns["spabit"], prepared.adata
    path, image = out / "section.h5ad", str(info.get("image_path", ""))
    if again or not is_whole(path):
        uns = {**adata.uns, "spabit": info | {WHOLE: adata.n_obs}}
        with replacing(path, sealed=True) as temporary:
            AnnData(adata.X, obs=adata.obs, var=adata.var, uns=uns, obsm=dict(adata.obsm)).write_h5ad(temporary)
    section = {"name": info["name"], "format": info["format"], "image": image, "path": path.name}
    section["reading"] = {"name": info["name"], "format": "h5ad", "image": image or "none"}
    section["reading"] |= {key: info[key] for key in ("turn", "image_scale") if key in info}
    cache_dir = prepared.windows[0].cache_dir if prepared.patch_px and prepared.windows else "cache"
    return {"section": section, "cache_dir": str(Path(cache_dir).resolve()), "command": []}


def read_run(run: Path) -> dict:
    """The content of a run's config.json; InputError if it cannot be used to read the section again."""
    path = run / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file: --run must be the folder of a run of experiments.run")
    content = read_json(path, "run experiments.run again")
    check_format(content, path)
    if not is_whole(path):
        logging.warning("%s was changed since it was written", path)
    section = content.get("section")
    if not isinstance(section, dict) or "reading" not in section:
        raise InputError(f"{path} does not say how its section is read: run experiments.run again, into another --out")
    for name, value, wanted in _kept(content):
        if not isinstance(value, wanted):
            raise InputError(f"{path} is damaged, {name} is {value!r:.60}: run again, into another --out")
    return content


def _kept(content: dict) -> Iterator[tuple[str, Any, type | UnionType]]:
    """What is read of config.json: its name, its value, and the types that this may have."""
    for name, wanted in {"inputs": dict, "config": dict, "cache_dir": str}.items():
        yield name, content.get(name), wanted
    yield "config_class", content.get("config_class", "Config"), str
    yield "num_seeds", content.get("num_seeds"), int
    seeds = content.get("seeds") or []
    yield "seeds", seeds, list
    yield from (("seeds", seed, int) for seed in seeds)
    section, inputs = content["section"], content["inputs"]
    related, others = section.get("related", []), inputs.get("related", [])
    yield "section.related", related, list
    yield "inputs.related", others, list
    for path in (section.get("path"), *related):
        yield "section.path", path, str
    for given in (section["reading"], *[section.get("reading_related")] * bool(related)):
        yield "section.reading", given, dict
        yield from ((f"section.reading.{key}", value, READING.get(key, ())) for key, value in given.items())
    yield "inputs.most_known", inputs.get("most_known"), int | None
    for described in (inputs, *others):
        yield "inputs", described, dict
        yield "inputs.genes", described.get("genes"), list
        yield from (("inputs.genes", gene, str) for gene in described["genes"])
        yield "inputs.encoder", described.get("encoder"), str
        yield "inputs.patch_px", described.get("patch_px"), list | int | float


def read_config(run: Path, content: dict) -> Config:
    """The configuration in what ``read_run`` gave; InputError if this code does not know it."""
    kind = content.get("config_class", "Config")
    _check_registered(run, "configuration class", kind, CONFIGS)
    try:
        config = CONFIGS[kind].from_dict(content["config"]).validate()
    except InputError as error:
        raise InputError(f"{run / 'config.json'}: {error}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{run / 'config.json'} is of another version of the code ({error}): run again") from error
    _check_registered(run, "model", config.model.name, MODELS)
    _check_registered(run, "loss", config.train.loss, LOSSES)
    for member in config.model.members.split(","):
        _check_registered(run, "member", member, MEMBERS)
    return config


def _check_registered(run: Path, kind: str, name: str, known) -> None:
    """Raises InputError for what only a file of the user's knows: no file that a run folder names is executed."""
    if name not in known:
        raise InputError(
            f"{run} is of the {kind} {name!r}, which is not registered: give the preset that defines it with "
            "--config=FILE, or import it first"
        )


def read_inputs(run: Path, content: dict, config: Config, weights: str | None = None) -> Prepared:
    """The inputs that the run was made from, with their image features.

    Args:
      content, config: of ``read_run`` and ``read_config``.
      weights: file of the encoder's weights, where image features are not in the cache any more.

    Raises:
      InputError: they are not what they were.
    """
    section, before = content["section"], content["inputs"]
    encoder = "stain" if before["encoder"] == "none" else before["encoder"]  # an image that has come up is told below
    cache_dir = content["cache_dir"]
    if not Path(cache_dir).is_dir():  # of another machine; a folder that a file names is not made
        cache_dir = str(run / "cache")
    paths = section.get("related", [])

    def prepare(adata, config: Config, was: dict, related=(), alignment=None) -> Prepared:
        # a panel's file may have moved, and a rule may have become another
        genes = was["genes"] if set(was["genes"]) <= set(adata.var_names) else None
        return Prepared(adata, _of_its_time(config, was), encoder, cache_dir, related, alignment, genes)

    related = [
        prepare(read_section(path, **section["reading_related"]), config.of_related(), was, (), _alignment(run, was))
        for path, was in zip(paths, before.get("related", []), strict=True)
    ]
    adata = read_section(run / section["path"], **section["reading"])  # a path of its own stays as it is
    prepared = prepare(adata, config, before, related)
    prepared.most_known = before.get("most_known")  # a folder from before there was one: all
    prepared.extract(weights)
    now = prepared.describe()
    if now != before:
        where = first_difference(before, now, "inputs")
        raise InputError(f"{section['path']} is not what {run} was trained on, {where}: put it back, or run again")
    return prepared


def _alignment(run: Path, described: dict) -> np.ndarray | None:
    """That of a related section, as ``Prepared.describe`` wrote it."""
    if "alignment" not in described:
        return None
    path = run / "config.json"
    with reading(path, "an alignment", "run again, into another --out"):
        return check_affine(np.array(described["alignment"], np.float64), path)


def _of_its_time(config: Config, described: dict) -> Config:
    """The configuration with the windows of ``described``, which in folders from before ``data.windows`` is a number.

    There it becomes the list that it is now, in place.
    """
    if isinstance(described["patch_px"], list):
        return config
    windows = f"{described['patch_px']:.9g}px"
    described["patch_px"] = [described["patch_px"]]
    return config.with_data(windows=windows)


def read_made_by(path: Path, stage: str, read):
    """``read(path)``; InputError naming the stage of ``experiments.run`` that writes it if it is missing or damaged."""
    if not path.exists():
        raise InputError(f"{path} is missing: run the stage {stage} first (--stages={stage})")
    remedy = f"delete it and run the stage {stage} again (--stages={stage})"
    check_whole(path, remedy)
    with reading(path, f"what the stage {stage} writes", remedy):
        return read(path)
