"""Shared fixtures. Types and shapes of the annotated functions are checked while tests run."""

import gc
import os
import re

# The small programs of tests take longer to compile than to run. For the code that users run set the first to 3.
LEVEL, FUSION = "--xla_backend_optimization_level", "--xla_cpu_use_fusion_emitters"
if LEVEL not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {LEVEL}=0 {FUSION}=false"
gc.set_threshold(100_000)  # as in the commands: programs that JAX has traced are millions of objects that stay
os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices are small, and each of pytest's processes has a core

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("spabit_jax.models", "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from spabit_jax.config import Config  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Many tests build the same small model: compile each program once, in the commands that they start too."""
    import jax

    settings = {
        # of this worker alone: without a limit JAX does not lock it, and with one looks through it at each program
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_compilation_cache_max_size": -1,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)
    from spabit_jax.ensemble import pretrained

    # is run so often that it pays
    options = {"xla_backend_optimization_level": max(1, int(re.search(f"{LEVEL}=([0-9])", os.environ["XLA_FLAGS"])[1]))}
    pretrained._apply = jax.jit(pretrained._apply.__wrapped__, static_argnames="graphdef", compiler_options=options)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """A small simulated section on disk: path of its .h5ad, with the image beside it."""
    from spabit_jax.datasets.simulate import simulate_section, write_section

    adata, image = simulate_section(seed=1, n_rows=16, n_cols=14, n_genes=60, name="tiny")
    return write_section(adata, image, tmp_path_factory.mktemp("section"))


@pytest.fixture
def tiny_config():
    """A small model with every fault off."""
    config = Config()
    config.data.n_genes = 13
    config.gat.heads, config.gat.head_width, config.gat.out_width, config.gat.mlp_width = 2, 5, 11, 17
    config.gat.epochs = 7
    config.model.n_context, config.model.width, config.model.mlp_width, config.model.depth = 5, 12, 17, 1
    config.model.cross_heads, config.model.heads, config.model.head_width, config.model.feedforward_width = 3, 2, 5, 7
    config.train.epochs, config.train.batch_size, config.train.chunk_epochs = 9, 13, 3
    config.model.members = "spabit,kriging,ridge"
    return config


@pytest.fixture
def section_data(simulated):
    """Makes Section of the simulated section: ``section_data(config)``; features are noise."""

    def make(config, features=7):
        from spabit_jax.data.genes import select_genes
        from spabit_jax.data.section import make_section
        from spabit_jax.data.split import split_spots
        from spabit_jax.readers import read_section

        adata = read_section(simulated)
        is_train = split_spots(adata, "lattice")
        genes = select_genes(adata, "train_spots", config.data.n_genes, is_train)
        image = np.random.default_rng(0).standard_normal((adata.n_obs, features)) if features else None
        return make_section(adata, genes, is_train, image, config)

    return make


@pytest.fixture
def predictions():
    """Content of a predictions.h5ad, 300 spots and 24 genes: three bands of tissue, each with 8 genes of its own.

    The prediction is the expectation, the truth has noise and a library size; a quarter of the spots are train spots.
    """
    import pandas as pd
    from anndata import AnnData

    rng = np.random.default_rng(0)
    row, col = (index.ravel() for index in np.indices((15, 20)))
    band = row // 5
    mean = 2 + 2.5 * (band[:, None] == np.arange(24) // 8)
    split = np.where((row % 2 == 0) & (col % 2 == 0), "train", "test")
    label = np.array(["stroma", "invasive cancer", "adipose"], object)[band]
    label[:7] = "undetermined"
    adata = AnnData(
        mean.astype(np.float32),
        obs=pd.DataFrame(
            {"split": pd.Categorical(split), "label": pd.Categorical(label)}, index=[f"spot{i}" for i in range(300)]
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(24)]),
        obsm={"spatial": np.stack([col, row], axis=1) * 100.0},
    )
    adata.layers["truth"] = mean + rng.normal(0, 0.8, mean.shape) + rng.normal(0, 0.5, (len(row), 1))
    adata.layers["sd"] = np.full(mean.shape, np.sqrt(0.8**2 + 0.5**2))
    return adata
