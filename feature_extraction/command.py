"""What every script shares: how it starts, how it fails, and the flags that describe a section.

Imports neither jax nor torch, so that ``--help`` is fast and the PyTorch side can use it too.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from logging import INFO, Formatter
from pathlib import Path

from absl import app, flags, logging

from feature_extraction.ending import end_by_signal, refused_by_the_system
from spabit_jax import presets
from spabit_jax.errors import InputError
from spabit_jax.presets import PRESETS
from spabit_jax.user_cache import keep_compiled

FLAGS = flags.FLAGS
FILES = ("image", "positions", "labels", "alignment")
# Flags that are arguments of read_section
READING = ("format", "name", "bin_um", "spot_um", "um_per_px", "swap_xy", "turn", "image_scale", *FILES)
# What a shell may set for another project, as it is by default: all here is in float32.
JAX_SETTINGS = {
    "JAX_ENABLE_X64": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    "JAX_NUMPY_RANK_PROMOTION": "allow",
    "JAX_TRANSFER_GUARD": "allow",
    "JAX_DEFAULT_PRNG_IMPL": "threefry2x32",
}
EXTRAS = {"torch": "extract", "timm": "extract", "igraph": "analyses", "gseapy": "analyses", "submitit": "sweeps"}
NO_CONFIG = "--config names no Python file with a get_config() that returns a spabit_jax.config.Config"


def run(main: Callable[[], None]) -> None:
    """Runs ``main()`` under absl; bad flags and ``InputError`` give one line on stderr and exit status 2.

    So does a package of ``EXTRAS`` that is not installed, and what the system refuses: a full disk, too little memory.
    SIGINT and SIGTERM end the process at once, with one line, and status 130 or 143.
    """
    end_by_signal()
    os.environ |= JAX_SETTINGS
    gc.set_threshold(100_000)  # packages make 400,000 objects that stay: looking through them takes a second,
    atexit.register(gc.freeze)  # and another at the end

    def guarded(argv: Sequence[str]) -> None:
        _quiet_logging()
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument {argv[1]!r}: every option is a flag, --name=value")
            keep_compiled()
            main()
        except InputError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            _fail(f'{error.name} is not installed: pip install "spabit_jax[{EXTRAS[error.name]}]"')
        except Exception as error:
            if (refused := refused_by_the_system(error)) is None:
                raise
            _fail(refused)

    for flag in _own_flags():  # --help shows the flags that are key flags of the script, wherever they were defined
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(guarded, flags_parser=_parse_flags)


def _quiet_logging() -> None:
    """Our own messages from INFO on, as plain lines; those of libraries from WARNING on."""
    root = Path(__file__).parents[1]
    ours = tuple(f"{root / package}/" for package in ("spabit_jax", "feature_extraction", "experiments"))
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(Formatter("%(message)s"))
    handler.addFilter(lambda record: record.levelno > INFO or record.pathname.startswith(ours))


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _fail(f"unknown flag --{error.flagname}; known flags: {', '.join(f'--{flag.name}' for flag in _own_flags())}")
    except flags.Error as error:
        _fail(" ".join(str(error).split()))
    except Exception as error:  # the config file is the user's program: whatever goes wrong in it is bad input
        _fail_config(error)


def _own_flags() -> list[flags.Flag]:
    by_module = FLAGS.flags_by_module_dict()
    own = {flag.name: flag for module, own in by_module.items() if not module.startswith("absl") for flag in own}
    return [own[name] for name in sorted(own)]


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def define_section_flags(several: bool = False, features: bool = True) -> None:
    """Defines the flags that every script taking a section has, or several sections.

    Args:
      several: also --sections.
      features: also --features, for ``asked_encoder``.
    """
    flags.DEFINE_string("section", None, "The section: a folder; for legacy ST and .h5ad the file.")
    flags.DEFINE_string("name", None, "Name of the section; by default the file's stem or the folder's name.")
    flags.DEFINE_string("format", "auto", "Layout on disk: auto, or a reader's name.")
    flags.DEFINE_string("image", None, "Image file, instead of the one that is found; none: run without one.")
    flags.DEFINE_string("turn", None, "Turn the image: 90, 180, 270 (clockwise), mirror (left to right), mirror+90, …")
    flags.DEFINE_float("image_scale", None, "Image pixels per full-resolution pixel (default: as files say, else 1).")
    flags.DEFINE_string("positions", None, "Positions file, instead of the one that is found.")
    flags.DEFINE_string("labels", None, "File with a label for each spot, instead of the one that is found.")
    flags.DEFINE_integer("bin_um", None, "Visium HD: size of the bins in µm (default 8).")
    flags.DEFINE_float("spot_um", None, "Xenium: sum cells over squares of this width in µm. Image: of a spot.")
    flags.DEFINE_float("um_per_px", None, "An image alone as the section: µm of a pixel.")
    flags.DEFINE_string("alignment", None, "Xenium: file of the 3 x 3 matrix from H&E pixels to Xenium's pixels.")
    flags.DEFINE_boolean("swap_xy", False, "Exchange x and y of the spots: the positions are transposed.")
    flags.DEFINE_string("encoder", "stain", "Image encoder, or several as stain+nuclei; an unknown name lists all.")
    if features:
        files = "FILE.npy|.npz|.parquet|.h5, or obsm:KEY of an .h5ad"
        flags.DEFINE_string("features", None, f"Image features of your own, instead of --encoder: {files}.")
    if several:
        flags.DEFINE_list("sections", [], "Several sections, instead of --section.")
    default = "default: as in config.data.windows, in spot diameters"
    widths = f"Width of the image window in full-resolution pixels, or several as 56+112 ({default})"
    if several:
        flags.DEFINE_list("patch_px", None, f"{widths}; one, or one a section.")
    else:
        flags.DEFINE_string("patch_px", None, f"{widths}.")
    flags.DEFINE_string("patch_um", None, "The same in micrometres, instead of --patch_px.")
    flags.DEFINE_string("cache_dir", "cache", "Folder of the image features.")


def asked_encoder() -> str:
    """``--encoder``, or the name that stands for ``--features``; InputError where both are given."""
    if FLAGS.features is None:
        return FLAGS.encoder
    from spabit_jax.data.features import encoder_name

    if FLAGS["encoder"].present:
        raise InputError("give --encoder or --features, not both")
    return encoder_name(FLAGS.features)


def read_flagged_section():
    """Reads the section that the flags describe.

    Returns:
      AnnData as ``spabit_jax.readers.read_section`` makes it.

    Raises:
      InputError: no ``--section``, or it cannot be read.
    """
    return _read(given("section"))


def given(flag: str) -> str:
    """The value of a flag; InputError where it is missing."""
    if not FLAGS[flag].value:
        raise InputError(f"--{flag} is missing: {FLAGS[flag].help}")
    return FLAGS[flag].value


def check_known(flag: str, asked: Iterable[str], known: Iterable[str]) -> None:
    """InputError for the first of the values of a flag that is not among those known."""
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"unknown {unknown[0]!r} in --{flag}: known are {', '.join(known)}")


def read_flagged_sections(shard: int = 0, n_shards: int = 1):
    """Reads the sections of ``--sections`` (or the one of ``--section``) one after the other.

    Args:
      shard, n_shards: every ``n_shards``-th section, from the one numbered ``shard``.

    Yields:
      AnnData as ``spabit_jax.readers.read_section`` makes it, and what ``--patch_px`` says of it, or None.

    Raises:
      InputError: none is given, one cannot be read, or there are not as many of ``--patch_px`` as sections.
    """
    if FLAGS.sections and FLAGS.section:
        raise InputError("give --section or --sections, not both")
    paths = FLAGS.sections or ([FLAGS.section] if FLAGS.section else [])
    if not paths:
        raise InputError("--sections is missing: give the sections' folders or files, separated by commas")
    widths = FLAGS.patch_px or [None]
    if len(widths) not in (1, len(paths)):
        raise InputError(f"--patch_px has {len(widths)} values for {len(paths)} sections: give one, or one a section")
    single = ("name", "image", "turn", "image_scale", "positions", "labels", "alignment")
    if len(paths) > 1 and any(FLAGS[flag].value not in (None, "none") for flag in single):
        names = ", ".join(f"--{flag}" for flag in single)
        raise InputError(f"{names} are for one section: use --section with them")
    for path, width in list(zip(paths, widths * len(paths), strict=False))[shard::n_shards]:
        yield _read(path), width


def _read(path: str):
    from spabit_jax.readers import read_section

    return read_section(path, **{name: FLAGS[name].value for name in READING})


def read_related_sections():
    """Reads the sections of ``--related``, one after the other; InputError where one cannot be read."""
    from spabit_jax.readers import read_section

    for path in FLAGS.related:
        yield read_section(path, **how_to_read_related())


def how_to_read_related() -> dict:
    """What ``read_section`` is given for ``--related``: what is not of a single section. JSON, for config.json."""
    given = {name: FLAGS[name].value for name in ("bin_um", "spot_um")}
    if FLAGS.um_per_px is not None:  # --section is an image, of which --spot_um is
        given["spot_um"] = None
    return given | ({"image": "none"} if FLAGS.image == "none" else {})


def how_to_read() -> dict:
    """What ``read_section`` was given besides the path, files as absolute paths: JSON, for config.json."""
    given = {name: FLAGS[name].value for name in READING}
    files = {name for name in FILES if given[name] not in (None, "none")}
    return {name: str(Path(v).resolve()) if name in files else v for name, v in given.items()}


def asked_windows(patch_px: str | None, windows: str) -> str:
    """Image windows as ``config.data.windows`` names them: of ``--patch_px`` or ``--patch_um``, else ``windows``.

    Args:
      patch_px: what ``--patch_px`` says of a section.
    """
    if patch_px is not None and FLAGS.patch_um is not None:
        raise InputError("give --patch_px or --patch_um, not both")
    for given, unit in ((patch_px, "px"), (FLAGS.patch_um, "um")):
        if given is not None:
            return "+".join(part.strip() + unit for part in given.split("+"))
    return windows


def with_windows(config, patch_px: str | None):
    """The configuration for a section of which ``--patch_px`` says this: its ``data.windows`` are ``asked_windows``."""
    return config.with_data(windows=asked_windows(patch_px, config.data.windows))


def define_config_flag(default: str = "default") -> None:
    """Defines ``--config=NAME|FILE``, from the command line the overrides of its fields, and ``--genes``."""
    from ml_collections import config_flags

    flags.DEFINE_string("genes", None, "+A,B: genes added to the panel, whatever it is.")

    # ml_collections wants the file before its overrides in sys.argv, and this function --config=NAME in one word; users
    # should not have to know
    words = iter(sys.argv[1:])
    typed = [f"{a}={next(words, '')}" if a in ("-config", "--config") else a for a in words]
    rest = sorted(typed, key=lambda a: not a.lstrip("-").startswith("config="))
    sys.argv[1:] = [
        f"--config={_preset_file(a.partition('=')[2])}" if a.lstrip("-").startswith("config=") else a for a in rest
    ]
    try:
        help = f"Preset ({', '.join(PRESETS)}, or a file); its fields are set as in --config.model.depth=6, and an "
        config_flags.DEFINE_config_file("config", _preset_file(default), f"{help}unknown one lists all.")
    except Exception as error:  # ml_collections looks at the overrides on the command line as it defines them
        _fail_config(error)


def _preset_file(given: str) -> str:
    """What ml_collections reads for ``--config``: a preset's name, or a file of this folder or of the checkout."""
    if given in PRESETS:
        return f"{presets.__file__}:{given}"
    of_checkout = Path(__file__).parents[1] / given
    return str(of_checkout) if not Path(given).exists() and of_checkout.is_file() else given


def run_preset(path: str) -> dict:
    """What a preset's file defines, once it is run, or a preset by name; InputError if it cannot be run."""
    import runpy

    if path in PRESETS:
        return {"get_config": PRESETS[path]}
    try:
        path = _preset_file(path)
        return runpy.run_path(path)
    except Exception as error:  # the file is the user's program: whatever goes wrong in it is bad input
        raise InputError(f"{path}: {' '.join(str(error).split())}: {NO_CONFIG}") from error


def read_flagged_config():
    """The validated ``spabit_jax.config.Config`` that ``--config`` and its overrides give; InputError if it is none."""
    from spabit_jax.config import Config

    config = FLAGS.config
    if not isinstance(config, Config):
        raise InputError(NO_CONFIG)
    if FLAGS.genes is not None:
        if not FLAGS.genes.startswith("+"):
            raise InputError(f"--genes={FLAGS.genes}: give +A,B to add genes to the panel; --config.data.panel is it")
        config = config.with_data(panel=config.data.panel + FLAGS.genes)
    return config.validate()


def _fail_config(error: Exception) -> None:
    from spabit_jax.config import Config, leaves

    if isinstance(error, KeyError):
        _fail(f"{error.args[0]}; known fields: {', '.join(f'config.{name}' for name in leaves(Config()))}")
    _fail(f"{NO_CONFIG}: {' '.join(str(error).split())}")
