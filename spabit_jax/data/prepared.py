"""What every experiment starts from: a section with its split, its gene panel and its image features."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import logging
from anndata import AnnData
from scipy import sparse

from feature_extraction import cache, encoders
from spabit_jax.chunks import sample
from spabit_jax.config import Config, DataConfig, is_own_split
from spabit_jax.data.components import N_COMPONENTS, ImageComponents, NoImage, standardised
from spabit_jax.data.features import FILE, Cached, OwnFeatures, is_own, made_from, side_by_side
from spabit_jax.data.genes import check_shares_genes, match_genes, select_genes
from spabit_jax.data.locations import Locations
from spabit_jax.data.split import split_spots
from spabit_jax.data.windows import warn_of_windows, window_widths
from spabit_jax.errors import InputError
from spabit_jax.files import content_hash
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.tables import check_affine, read_affine
from spabit_jax.scale import find_scale, total_counts

if TYPE_CHECKING:  # what brings JAX is imported when arrays are made: bad input is said before
    from spabit_jax.data.section import Frame, Places, Section

MIN_TRAIN_SPOTS = 3
MOST_FAR = 1200  # train spots of related sections that are learned from where none is the section's own
# Own train spots and those of related sections together: of more a large sister did harm, as long as each place was
# predicted from the nearest alone.
FEW_COUNTS = 30  # spots of fewer may have the same by chance
MOST_KNOWN = 1500
APART, ALONE = float("inf"), 0.0  # layouts: related sections far from this one, or left out
# Formats whose positions file has the row of a spot's pixel before its column, which the reference takes for (x, y).
ROW_FIRST_FORMATS = ("visium", "visium_hd", "reference")


def read_alignments(related: Sequence, given: Sequence) -> list[np.ndarray | None]:
    """The (3, 3) alignment of each related section: None, or of a matrix or a file; ``none`` is None, too.

    Raises:
      InputError: not as many as sections, or one that is no affine matrix.
    """
    if len(given) not in (0, len(related)):
        raise InputError(f"{len(given)} alignments for {len(related)} related sections: give one of each, or none")
    found = []
    for alignment in given if len(given) else [None] * len(related):
        if alignment is None or isinstance(alignment, str) and alignment == "none":
            found.append(None)
        elif isinstance(alignment, str | os.PathLike):
            found.append(read_affine(Path(alignment)))
        else:
            found.append(check_affine(np.asarray(alignment, np.float64), Path("related_alignment")))
    return found


def _shares_spots(a: AnnData, b: AnnData) -> bool:
    """Whether most spots of either have the counts of spots of the other, in whatever order spots and genes are."""
    column = match_genes(b, a.var)
    shared = np.flatnonzero(column >= 0)
    key, prints = np.random.default_rng(0).integers(2**62, size=len(shared)), []
    for x in (a.X[:, shared], b.X[:, column[shared]]):
        counts = x.astype(np.int64)
        tells = np.asarray(counts.sum(axis=1)).ravel() >= FEW_COUNTS
        prints.append((counts @ key)[tells])  # overflows alike
    return all(map(len, prints)) and max(np.isin(*prints).mean(), np.isin(*prints[::-1]).mean()) > 0.5


def for_section(config: Config, adata: AnnData) -> Config:
    """The configuration for this section: of one without genes, an image alone, the split is ``image_only``."""
    return config if adata.n_vars else config.with_data(split="image_only")


def _with_genes(adata: AnnData, related: Sequence[Prepared]) -> AnnData:
    """A section without genes with those of its first related section, and no counts."""
    if not related:
        name = adata.uns["spabit"]["name"]
        raise InputError(f"section {name} is an image alone: give sections to learn from, --related=A,B")
    var = related[0].adata.var
    counts = sparse.csr_matrix((adata.n_obs, len(var)), dtype=np.float32)
    return AnnData(counts, obs=adata.obs, var=var, obsm=dict(adata.obsm), uns=dict(adata.uns))


def transposed_crop(adata: AnnData, config: Config) -> bool:
    """Whether the fault ``transposed_crop`` is on and has an effect on this section."""
    return config.faults.transposed_crop and adata.uns["spabit"]["format"] in ROW_FIRST_FORMATS


class Prepared:
    """A section as a configuration wants it.

    Args:
      genes: the panel, where a run has chosen it already.

    Attributes:
      adata: the section, N spots, all genes.
      is_train: (N,) bool.
      genes: the panel, G names.
      scale: of expression, from the train spots.
      encoder: of the image, or several as ``stain+nuclei``; ``none`` where there is no image; or what
        ``features.encoder_name`` gives.
      patch_px: widths of the image windows in full-resolution pixels; none of features of the user's own.
      windows: the image features of each encoder and window; empty without an image.
      related: the inputs of other sections, from whose train spots is learned too.
      alignment: of a related section, (3, 3) from its full-resolution pixels to those of the section that it is related
        to; None where it is found.
      measured: whether the section has counts at all; an image alone has none.
      layout: of ``lay_out``; None, which is far apart, where nobody has decided.
      most_known: train spots, own and of related sections, of which is learned; None: all.

    Raises:
      InputError: the split, the panel, the encoder, a cache that is there already or a related section does not fit.
    """

    def __init__(
        self, adata: AnnData, config: Config, encoder: str, cache_dir: str, related: Sequence = (),
        alignment: np.ndarray | None = None, genes: list[str] | None = None,
    ):  # fmt: skip
        config, self.measured = for_section(config.with_absolute_paths(), adata), adata.n_vars > 0
        if not self.measured:
            adata = _with_genes(adata, related)
        self.adata, self.config, self.related, self.alignment = adata, config, list(related), alignment
        self.layout, self.most_known = None, MOST_KNOWN
        info = adata.uns["spabit"]
        self.name = info["name"]
        data = config.data
        self.is_train = split_spots(adata, data.split, data.train_fraction, data.split_seed)
        drawn = DataConfig.train_fraction, DataConfig.split_seed
        if data.split == "lattice" and (data.train_fraction, data.split_seed) != drawn:
            logging.warning("%s: the split lattice has no train_fraction or split_seed: random and block do", self.name)
        few = self.is_train.sum() < MIN_TRAIN_SPOTS
        if few and not self.related:
            raise InputError(
                f"section {self.name} has {self.is_train.sum()} train spots under the split {data.split!r}: "
                f"at least {MIN_TRAIN_SPOTS} are needed, or related sections (--related) that have them"
            )
        chosen = None
        if few:  # next to nothing is known here: the panel's rule and scale are those of the first related section
            self.is_train = np.zeros_like(self.is_train)
            measured = self.related[0]
            found = match_genes(adata, measured.adata.var.loc[measured.genes])
            chosen = list(adata.var_names[found[found >= 0]])
        self.genes = genes or select_genes(adata, data.panel, data.n_genes, self.is_train, chosen)
        self.scale = measured.scale if few else find_scale(data.scale, adata, self.is_train)
        self.encoder, own = encoder, is_own(encoder)
        if not own:
            encoders.check_name(encoder)
        if "image_path" not in info and not own:
            logging.warning("section %s has no image: running without image features", self.name)
            self.encoder = "none"
        self.patch_px = () if own else window_widths(data.windows, adata)
        self.windows = [OwnFeatures(adata, encoder)] if own else []
        if own:
            self.windows[0].read()  # refuses features that do not fit
        elif self.encoder != "none":
            transposed = transposed_crop(adata, config)
            names = encoders.split_names(self.encoder)
            self.windows = [Cached(adata, n, width, cache_dir, transposed) for n in names for width in self.patch_px]
            for window in self.windows:
                cache.is_cached(*window)  # refuses a cache that does not match
            warn_of_windows(self.patch_px, adata)
        elif few:
            raise InputError(f"section {self.name} has no image and next to no train spots: there is nothing to go by")
        self._check_related()

    def __repr__(self) -> str:
        data, widths = self.config.data, " + ".join(f"{width:g}" for width in self.patch_px)
        windows = f", windows of {widths} px" if self.windows and widths else ""
        return (
            f"{self.name}: {self.is_train.sum()} train and {len(self.test_spots)} test spots (split {data.split}), "
            f"{len(self.genes)} genes (panel {data.panel}), {data.scale}\n"
            f"image features: {self.encoder}{windows}; {len(self.related)} related sections"
        )

    def _check_related(self) -> None:
        if self.related and not (self.config.gat.joint and not self.config.faults.array_neighbours):
            raise InputError("--related needs gat.joint on and faults.array_neighbours off, as in default.py")
        names = [self.name, *(other.name for other in self.related)]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise InputError(
                f"two of --section and --related are named {twice[0]}: give each section once (--name, or name of "
                "read_section, is another)"
            )
        if self.related and self.encoder.startswith(FILE):
            raise InputError("--features=FILE is of one section: with --related give obsm:KEY, of each its own")
        for other in self.related:
            if self.measured and _shares_spots(self.adata, other.adata):  # its test spots would be known
                raise InputError(f"section {other.name} has the counts of section {self.name}: give another")
            if is_own(self.encoder) and self.features().shape[1] != other.features().shape[1]:
                raise InputError(f"{self.encoder} is of another width in section {other.name}: give the same features")
            if other.encoder != self.encoder:
                without = other.name if self.windows else self.name
                raise InputError(f"section {without} has no image, others have: leave out the one or the others")
            check_shares_genes(other.adata, self.adata, self.genes)
            if other.alignment is not None:
                self._check_alignment(other)

    def _check_alignment(self, other: Prepared) -> None:
        """Raises InputError where the alignment of a related section puts none of its spots among this one's."""
        xy, placed = np.asarray(self.adata.obsm["spatial"]), other.aligned()
        (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        if not ((placed >= [left, top]) & (placed <= [right, bottom])).all(axis=1).any():
            raise InputError(
                f"the alignment of section {other.name} puts none of its spots on section {self.name}, which lies from "
                f"({left:g}, {top:g}) to ({right:g}, {bottom:g}): is it from the pixels of the former to these?"
            )

    def aligned(self) -> np.ndarray | None:
        """(N, 2) spots in full-resolution pixels of the section that this is related to, if an alignment is known."""
        if self.alignment is None:
            return None
        return np.asarray(self.adata.obsm["spatial"]) @ self.alignment[:2, :2].T + self.alignment[:2, 2]

    @property
    def split(self) -> np.ndarray:
        """(N,) words: train, test, or new where nothing is measured."""
        return np.where(self.is_train, "train", "test" if self.measured else "new")

    @property
    def test_spots(self) -> np.ndarray:
        """(n,) indices."""
        return np.flatnonzero(~self.is_train)

    def check_test_spots(self) -> None:
        """InputError where the split leaves no measured spot to compare methods on."""
        if not (self.measured and len(self.test_spots)):
            split = self.config.data.split
            raise InputError(f"section {self.name}: the split {split!r} leaves no test spot to compare on: give one")

    def extract(self, weights: str | None = None) -> None:
        """Image features into the cache, if they are not there; InputError for weights that no encoder here takes."""
        if weights and not any(isinstance(w, Cached) and w.encoder not in encoders.PLAIN for w in self.windows):
            raise InputError(f"--weights={weights} is of a neural encoder, which {self.encoder} is not: leave it out")
        for prepared in (self, *self.related):
            for window in prepared.windows:
                window.extract(weights)

    def features(self) -> np.ndarray | None:
        """(N, D) image features from the cache; None without an image."""
        return side_by_side(self.windows)

    def describe(self) -> dict:
        """What decides on results besides the configuration: JSON; the features must be in the cache."""
        own_split = is_own_split(self.config.data.split)
        described = {"split_sha256": hashlib.sha256(self.is_train.tobytes()).hexdigest()} if own_split else {}
        described |= {} if self.alignment is None else {"alignment": self.alignment.tolist()}
        described |= {
            "counts_and_positions": content_hash(self.adata),
            "genes": self.genes,
            "encoder": self.encoder,
            "patch_px": list(self.patch_px),
        }
        if self.related:
            described["related"] = [{"name": other.name} | other.describe() for other in self.related]
            described |= {} if self.most_known is None else {"most_known": self.most_known}
        return described | made_from(self.windows)

    def identity(self, seeds: Sequence[int]) -> dict:
        """What makes a run folder that of one run, as config.json has it: with another a run is not continued."""
        return {"inputs": self.describe(), **self.settings(seeds)}

    def settings(self, seeds: Sequence[int]) -> dict:
        """The part of a run's identity that is known before the image features are in the cache."""
        return {"num_seeds": len(seeds), "seeds": list(seeds), "config": self.config.to_dict()}

    def _make(self, adata: AnnData, features, is_train: np.ndarray) -> tuple[Section, Frame]:
        from spabit_jax.data.section import make_section_and_frame

        return make_section_and_frame(adata, self.genes, is_train, features, self.config, self.scale)

    @cached_property
    def _apart(self) -> tuple[Section, Frame]:
        """Own spots, then those of related sections, far from them; and how new places become arrays."""
        from spabit_jax.data.joined import align

        adata, features, is_train = self.joined()
        section, frame = self._make(adata, features, is_train)
        return align(section, self._sizes, adata.varm.get("measured")), frame

    @property
    def _sizes(self) -> list[int]:
        return [len(prepared.is_train) for prepared in (self, *self.related)]

    @cached_property
    def _arrays(self) -> tuple[Section, Frame]:
        if self.layout == ALONE:
            return self._make(self.adata, self.features(), self.is_train)
        if not self.related or self.layout in (None, APART):
            return self._apart
        from spabit_jax.data.joined import registered

        return registered(*self._apart, self._sizes, self.layout, [other.aligned() for other in self.related])

    def lay_out(self, layout: float) -> None:
        """Puts related sections where they lie on this one, in planes so many pitches apart; ``APART`` or ``ALONE``."""
        self.layout = layout
        self.__dict__.pop("_arrays", None)

    def joined(self) -> tuple[AnnData, np.ndarray | None, np.ndarray]:
        """Section, image features and train spots, or those of this and all related sections, one below the other."""
        if not self.related:
            return self.adata, self.features(), self.is_train
        from spabit_jax.data.joined import join, join_features

        parts = (self, *self.related)
        adata, is_train = join([part.adata for part in parts], self.genes), np.concatenate([i.is_train for i in parts])
        own = int(self.is_train.sum())
        known = np.flatnonzero(is_train)[own:]
        most = MOST_FAR if not own else len(known) if self.most_known is None else self.most_known - own
        trained = own and "spabit" in self.config.model.members.split(",")  # to which more spots are more to learn from
        if 0 < most < len(known) and not trained:
            logging.info("%s: of %d train spots of related sections %d are learned from", self.name, len(known), most)
            places = np.asarray(adata.obsm["spatial"], np.float64)[known]
            is_train[np.delete(known, sample(places, most))] = False
        return adata, join_features([i.features() for i in parts]), is_train

    def section(self) -> Section:
        """The spots of this configuration: own ones, then those of related sections."""
        return self._arrays[0]

    def sections_left_out(self) -> Iterator[tuple[Section, Places, np.ndarray]]:
        """Each related section (of a single one, each half) as a section of which nothing is measured.

        Yields:
          The section without its expression, its m train spots as places that are far from all others, and which rows
          of ``section().train_spots`` they are.
        """
        from spabit_jax.data.joined import leave_out, parts_of

        section, frame = self._arrays
        for spots in parts_of(section, self._sizes):
            yield *leave_out(section, frame, spots), np.searchsorted(section.train_spots, spots)

    def learned_from(self) -> dict[str, int]:
        """How many train spots of each related section are among those of ``section()``; empty where they are none."""
        n_of, _ = np.histogram(self.section().train_spots, np.cumsum([0, *self._sizes]))
        return {other.name: int(n) for other, n in zip(self.related, n_of[1:], strict=True) if n}

    def places(self, locations: Locations, features: np.ndarray | None = None) -> Places:
        """M new places.

        Args:
          locations: where.
          features: (M, D) their image features; None without an image.
        """
        if self.related and self.layout != ALONE and features is not None:
            features = standardised(features, by=self.features())
        return self._arrays[1].places(locations.xy, features)

    def image_components(self) -> np.ndarray:
        """(N, C) first image components of the own spots, for methods to compare with; C is 0 without an image."""
        data = self.config.data
        if data.image_transform == "components" and not self.related:
            return self.section().image[:, :N_COMPONENTS]
        features, xy = self.features(), np.asarray(self.adata.obsm["spatial"], np.float64)
        xy = ((xy - xy.mean(axis=0)) / spot_pitch(xy)).astype(np.float32)
        width = data.image_components if data.image_transform == "components" else N_COMPONENTS
        return NoImage().at(xy) if features is None else ImageComponents.fit(xy, features, width)[1][:, :N_COMPONENTS]

    def near(self) -> np.ndarray:
        """(N, 2) coordinates by which neighbours are found."""
        from spabit_jax.data.section import neighbour_coordinates

        return neighbour_coordinates(self.adata, self.config)

    def truth(self) -> np.ndarray:
        """(N, G) measured expression of every spot, NaN without a measurement: for metrics, and nothing before them."""
        if not self.measured:
            return np.full((self.adata.n_obs, len(self.genes)), np.nan, np.float32)
        return self.scale.expression(self.counts(), self.totals)

    @property
    def totals(self) -> np.ndarray:
        """(N,) counts of all genes: as ``truth``."""
        return total_counts(self.adata)

    def counts(self) -> np.ndarray:
        """(N, G) counts of every spot: as ``truth``."""
        return self.adata[:, self.genes].X.toarray()

    def protocol(self) -> dict:
        """The protocol as metrics.json has it."""
        return {
            "split": self.config.data.split,
            "panel": self.config.data.panel,
            "scale": self.config.data.scale,
            "n_genes": len(self.genes),
            "n_train": int(self.is_train.sum()),
            "n_test": len(self.test_spots),
        }
