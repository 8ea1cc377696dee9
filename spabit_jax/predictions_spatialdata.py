"""Predictions as SpatialData. Needs the package ``spatialdata``, of the extra of that name."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from spabit_jax.data.tissue import thumbnail
from spabit_jax.neighbours import spot_pitch


def to_spatialdata(predictions: AnnData):
    """SpatialData of M predicted locations.

    Args:
      predictions: as in predictions.h5ad.

    Returns:
      A ``spatialdata.SpatialData``: table ``predictions`` (M, G) with its layers; shapes ``locations``, circles that
      touch, and ``image``, the section's small image where there is one, both in full-resolution pixels.
    """
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale

    table = predictions.copy()
    table.uns.pop("spatial", None)  # the image has a place of its own
    table.obs["region"], table.obs["location"] = "locations", table.obs_names.to_numpy(str)
    table.obs["region"] = table.obs["region"].astype("category")
    xy = np.asarray(predictions.obsm["spatial"], np.float64)
    radius = spot_pitch(xy) / 2 if len(xy) > 1 else 1.0
    circles = ShapesModel.parse(xy, geometry=0, radius=radius, index=table.obs_names.to_numpy(str))
    elements = {
        "locations": circles,
        "predictions": TableModel.parse(table, region="locations", region_key="region", instance_key="location"),
    }
    found = thumbnail(predictions)
    if found is not None:
        image, scale = found
        to_pixels = {"global": Scale([1 / scale, 1 / scale], axes=("x", "y"))}
        elements["image"] = Image2DModel.parse(
            np.moveaxis(np.asarray(image), -1, 0), dims=("c", "y", "x"), transformations=to_pixels
        )
    return spatialdata.SpatialData.init_from_elements(elements)
