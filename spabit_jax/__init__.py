"""Expression at the places of a tissue section that nobody measured.

    import spabit_jax as sj

    section = sj.prepare(sj.read_section("data/C2.tsv.gz"), sj.Config(), encoder="stain", cache_dir="cache")
    model = sj.fit(section, seeds=5, out="runs/C2")
    dense = model.predict(sj.grid(section, 4))

Names are found when they are asked for (PEP 562), so that the import costs nothing.
"""

import importlib

__version__ = "0.2.0"
_FACE = {
    "read_section": "readers",
    "Config": "config",
    "InputError": "errors",
    "presets": "presets",
    **dict.fromkeys(("prepare", "fit", "load", "grid", "evaluate", "report"), "api"),
    **dict.fromkeys(("register_callback", "register_encoder", "register_loss", "register_member"), "api"),
    **dict.fromkeys(("plot_calibration", "plot_scores"), "api"),
    "plot_gene": "evaluation.plots",
}
__all__ = ["__version__", *_FACE]


def __getattr__(name: str):
    if name not in _FACE:
        raise AttributeError(f"module 'spabit_jax' has no attribute {name!r}")
    module = importlib.import_module(f"spabit_jax.{_FACE[name]}")
    return module if name == _FACE[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
