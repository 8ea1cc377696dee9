"""Brings what the reference left on disk into a run folder of the port.

    python -m experiments.import_reference --torch_weights=FILE --out=DIR
    python -m experiments.import_reference --torch_weights=FILE --section=PATH --processed=PATH/processed --out=DIR

``--torch_weights`` is a state dict of SpaBiT (``checkpoints/seed_0``) or of the GAT (``checkpoints/gat/pass_0``).
``--processed`` takes ``local_ebd*.pt`` into the feature cache and ``gat_ebd.pt`` as gene tokens. The flags with which
``experiments.run`` predicts from the folder are printed at the end.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from feature_extraction import command as cli
from spabit_jax.config import leaves
from spabit_jax.errors import InputError
from spabit_jax.files import check_new, sha256, write_json

# local_ebd.pt and local_ebd_NAME.pt: the reference's names of encoders that have another one here
ENCODERS = {"": "uni", "resnet": "resnet50"}


def main() -> None:
    out, weights, processed = cli.given("out"), cli.FLAGS.torch_weights, cli.FLAGS.processed
    if weights is None and processed is None:
        raise InputError("nothing to import: give --torch_weights=FILE, --processed=DIR or both")
    asked = cli.read_flagged_config()
    config, same_flags = asked, ["--num_seeds=1"]
    found = None if processed is None else Processed(Path(processed), Path(out), config)  # before anything is written
    if weights is not None:
        from spabit_jax.reference.checkpoint import import_weights

        config = import_weights(Path(weights), Path(out), config)
    if found is not None:
        found.write()
        same_flags += found.flags
    flag = cli.FLAGS["config"]
    fields, before = config_flags.get_override_values(flag), leaves(asked)
    fields |= {name: value for name, value in leaves(config).items() if value != before[name]}
    same_flags += [f"--config.{name}={value}" for name, value in fields.items()]
    command = f"python -m experiments.run --config={config_flags.get_config_filename(flag)} --out={out}"
    print(f"predict with the flags of the section and: {command} --stages=gat,predict,evaluate {' '.join(same_flags)}")


class Processed:
    """What is of use in the reference's folder ``processed/`` of the section that the flags describe.

    Attributes:
      flags: of ``experiments.run``, to make use of it.

    Raises:
      InputError: no section is given, there is nothing in the folder, its files are of other spots or genes, or what
        they would become is there already.
    """

    def __init__(self, folder: Path, out: Path, config):
        from feature_extraction import cache, encoders
        from spabit_jax.data.prepared import transposed_crop
        from spabit_jax.data.windows import window_widths
        from spabit_jax.reference.torch_files import read_matrix

        self.adata = cli.read_flagged_section()
        transposed = transposed_crop(self.adata, config)
        width, *others = window_widths(cli.asked_windows(cli.FLAGS.patch_px, config.data.windows), self.adata)
        if others:
            raise InputError("the reference has one image window: give one --patch_px, or the preset reference.py")
        self.flags, self.caches, self.tokens, self.tokens_path = [], [], None, out / "gene_tokens.npz"
        for path in sorted(folder.glob("local_ebd*.pt")):
            name = path.stem.removeprefix("local_ebd").removeprefix("_")
            encoder = ENCODERS.get(name, name)
            try:
                encoders.check_name(encoder)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            asked = cache.request(self.adata, encoder, width, transposed)
            if asked["image_file"] is None:
                raise InputError(f"section {asked['section']} has no image: name that of {path} with --image=FILE")
            npy = cache.cache_path(
                cli.FLAGS.cache_dir, asked["section"], encoder, asked["patch_px"], asked["transposed_crop"]
            )
            check_new(npy)
            self.caches.append((npy, asked, self._of_spots(read_matrix(path), path)))
        tokens, panel = folder / "gat_ebd.pt", folder / "selected_gene_list.txt"
        if tokens.exists():
            check_new(self.tokens_path)
            self.tokens = self._of_spots(read_matrix(tokens), tokens)
        elif not self.caches:
            raise InputError(f"{folder}: holds neither local_ebd*.pt nor gat_ebd.pt: give the reference's processed/")
        if self.caches:
            encoders_found = [asked["encoder"] for _, asked, _ in self.caches]
            self.flags += [f"--encoder={'|'.join(encoders_found)}", f"--cache_dir={cli.FLAGS.cache_dir}"]
        if panel.exists():
            self.flags.append(f"--config.data.panel={panel}")
            n_genes = len(panel.read_text().split())
            if self.tokens is not None and n_genes != self.tokens.shape[1]:
                raise InputError(
                    f"{tokens} has {self.tokens.shape[1]} genes, {panel} {n_genes}: they must be of one run"
                )

    def write(self) -> None:
        """Features into the cache, gene tokens into the run folder."""
        import numpy as np

        from feature_extraction import cache
        from spabit_jax.files import replacing

        for npy, asked, features in self.caches:
            with replacing(npy) as temporary:
                np.save(temporary, features)
            meta = {
                "image_file": Path(asked["image_file"]).name,
                **cache.image_stamp(asked["image_file"]),
                "dim": features.shape[1],
                "weights_hash": None,
                "transform": "the reference's",
                "dtype": str(features.dtype),
                "data_sha256": sha256(npy),
            }
            write_json(npy.with_suffix(".json"), asked | meta)  # last: a cache is whole once this is there
            logging.info("%s: %d spots x %d", npy, *features.shape)
        if self.tokens is not None:
            part = np.zeros(len(self.tokens), np.int32)  # one GAT for all spots
            with replacing(self.tokens_path, sealed=True) as temporary:
                np.savez(temporary, tokens=self.tokens[None], part=part, losses=np.empty((1, 0, 2)))
            logging.info("%s: %d spots x %d genes", self.tokens_path, *self.tokens.shape)

    def _of_spots(self, matrix, path: Path):
        if len(matrix) != self.adata.n_obs:
            raise InputError(
                f"{path}: has {len(matrix)} rows, and the section {self.adata.n_obs} spots in tissue with counts: give "
                "the section that it was computed for"
            )
        return matrix


if __name__ == "__main__":
    cli.define_section_flags(features=False)
    cli.define_config_flag("experiments/configs/reference.py")
    flags.DEFINE_string("out", None, "Folder of the run.")
    flags.DEFINE_string("torch_weights", None, "State dict of the reference's SpaBiT or GAT.")
    flags.DEFINE_string("processed", None, "The reference's folder processed/ of this section.")
    cli.run(main)
