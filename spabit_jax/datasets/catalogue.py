"""The data sets that the reference and this project's tables name: what each is, where it is published, how it is read.

Addresses are listed only where the publisher has a stable one; the rest says what to fetch by hand.
"""

from __future__ import annotations

import dataclasses

_HER2ST = "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec/data"
_STUTILITY = (
    "https://raw.githubusercontent.com/jbergenstrahle/STUtility/9a8f421499e58b13340ee386db07b0eba923c88c/"
    "inst/extdata/counts"
)
_HUMANPILOT = (
    "https://raw.githubusercontent.com/LieberInstitute/HumanPilot/044446d6bd8fc154aa74f7be62ec67effb1ec376/10X"
)
_DLPFC_COUNTS = "https://spatial-dlpfc.s3.us-east-2.amazonaws.com/h5"
_TENX = "https://cf.10xgenomics.com/samples"
_TENX_PAGE = "https://www.10xgenomics.com/datasets"

_HEX = "lattice (hexagonal, 25% train)"
_SQUARE = "lattice (square, 25% train)"
_STAGGERED = "lattice (staggered square, 50% train)"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One section.

    Attributes:
      name: as the reference or the documents have it.
      what: tissue and technique.
      published: page of the publisher.
      format: the reader, a key of ``spabit_jax.readers.FORMATS``; None where what is published is not known to fit one.
      section: what to give to ``--section``, below the folder of the downloads.
      split: of ``config.data.split``, and the train spots that it gives.
      files: address and place, below the folder of the downloads, of each file; archives (.tar.gz, .zip) are unpacked
        where they are put.
      by_hand: what cannot be fetched by program, or is not.
    """

    name: str
    what: str
    published: str
    format: str | None
    section: str
    split: str
    files: tuple[tuple[str, str], ...] = ()
    by_hand: str = ""


def _dlpfc(name: str) -> DataSet:
    spatial = ("scalefactors_json.json", "tissue_lowres_image.png")
    return DataSet(
        name,
        "human dorsolateral prefrontal cortex, Visium",
        "http://spatial.libd.org/spatialLIBD",
        "visium",
        name,
        _HEX,
        files=(
            (f"{_DLPFC_COUNTS}/{name}_filtered_feature_bc_matrix.h5", f"{name}/filtered_feature_bc_matrix.h5"),
            (f"{_HUMANPILOT}/{name}/tissue_positions_list.txt", f"{name}/spatial/tissue_positions_list.csv"),
            *((f"{_HUMANPILOT}/{name}/{file}", f"{name}/spatial/{file}") for file in spatial),
        ),
        by_hand=f"for a full-resolution image put {name}_full_image.tif, which github.com/LieberInstitute/HumanPilot "
        f"links, into {name}/; the tables in docs are with the lowres image and the spots with counts in paste2 1.0.1",
    )


def _her2st(name: str, image: str | None = None, labels: bool = False) -> DataSet:
    files = [
        (f"{_HER2ST}/ST-cnts/{name}.tsv.gz", f"{name}.tsv.gz"),
        (f"{_HER2ST}/ST-spotfiles/{name}_selection.tsv", f"{name}_selection.tsv"),
    ]
    if image:
        files.append((f"{_HER2ST}/ST-imgs/{name[0]}/{name}/{image}", f"{name}.jpg"))
    if labels:
        file = f"{name}_labeled_coordinates.tsv"
        files.append((f"{_HER2ST}/ST-pat/lbl/{file}", file))
    return DataSet(
        name,
        "HER2-positive breast cancer, legacy Spatial Transcriptomics",
        "https://github.com/almaan/her2st",
        "st",
        f"{name}.tsv.gz",
        _SQUARE,
        files=tuple(files),
        by_hand="" if image else f"the image is in data/ST-imgs/{name[0]}/{name}/; the tables in docs are without",
    )


def _mob(name: str) -> DataSet:
    files = (f"{name}.tsv", f"alignment_table_{name}.tsv", f"{name}.jpg")
    return DataSet(
        name,
        "mouse olfactory bulb, legacy Spatial Transcriptomics",
        "https://github.com/jbergenstrahle/STUtility",
        "st",
        f"{name}.tsv",
        _STAGGERED,
        files=tuple((f"{_STUTILITY}/{file}", file) for file in files),
    )


def _tenx_visium(name: str, what: str, page: str, version: str, sample: str) -> DataSet:
    base = f"{_TENX}/spatial-exp/{version}/{sample}/{sample}"
    files = (f"{sample}_filtered_feature_bc_matrix.h5", f"{sample}_spatial.tar.gz")
    return DataSet(
        name,
        f"{what}, Visium",
        f"{_TENX_PAGE}/{page}",
        "visium",
        name,
        _HEX,
        files=tuple((f"{base}{file.removeprefix(sample)}", f"{name}/{file}") for file in files),
        by_hand=f"for a full-resolution image put the page's {sample}_image.tif or .jpg into {name}/",
    )


def _tenx_hd(name: str, what: str, page: str, sample: str, image: str | None = None) -> DataSet:
    base = f"{_TENX}/spatial-exp/3.1.1/{sample}/{sample}"
    suffixes = ["_binned_outputs.tar.gz", *([image] if image else [])]
    return DataSet(
        name,
        f"{what}, Visium HD",
        f"{_TENX_PAGE}/{page}",
        "visium_hd",
        name,
        _SQUARE,
        files=tuple((base + suffix, f"{name}/{sample}{suffix}") for suffix in suffixes),
        by_hand="" if image else f"for a full-resolution image put the page's {sample}_tissue_image into {name}/",
    )


def _xenium_liver(name: str, kind: str) -> DataSet:
    sample = f"Xenium_V1_hLiver_{kind}_section_FFPE"
    return DataSet(
        name,
        f"human liver ({kind}), Xenium; which of the page's two sections the reference means is not said",
        f"{_TENX_PAGE}/human-liver-data-xenium-human-multi-tissue-and-cancer-panel-1-standard",
        "xenium",
        name,
        _SQUARE,
        files=((f"{_TENX}/xenium/1.9.0/{sample}/{sample}_outs.zip", f"{name}/{sample}_outs.zip"),),
        by_hand=f"for an image put the page's {sample}_he_image.ome.tif and _he_imagealignment.csv into {name}/",
    )


_ALL = (
    *(_dlpfc(str(n)) for n in (151507, 151508, 151509, 151510, *range(151669, 151677))),
    _her2st("A1", labels=True),
    _her2st("C2", "5714_HE_BT_C2.jpg"),
    _her2st("C3", "5714_HE_BT_D1.jpg"),
    _her2st("C5", "5714_HE_BT_E1.jpg"),
    _her2st("D1", labels=True),
    _her2st("E1", labels=True),
    _her2st("F1", labels=True),
    _her2st("F3"),
    _mob("MOB1"),
    _mob("MOB2"),
    _tenx_visium(
        "MBSP",
        "mouse brain, sagittal posterior",
        "mouse-brain-serial-section-1-sagittal-posterior-1-standard-1-1-0",
        "1.1.0",
        "V1_Mouse_Brain_Sagittal_Posterior",
    ),
    _tenx_visium(
        "HCC", "human cervical cancer", "human-cervical-cancer-1-standard", "1.3.0", "Visium_FFPE_Human_Cervical_Cancer"
    ),
    _tenx_visium(
        "HIC",
        "human intestine cancer",
        "human-intestine-cancer-1-standard",
        "1.3.0",
        "Visium_FFPE_Human_Intestinal_Cancer",
    ),
    _tenx_visium(
        "BC",
        "human breast cancer, block A section 1",
        "human-breast-cancer-block-a-section-1-1-standard-1-0-0",
        "1.0.0",
        "V1_Breast_Cancer_Block_A_Section_1",
    ),
    _tenx_hd(
        "HBC_HD",
        "human breast cancer, fresh frozen",
        "visium-hd-cytassist-gene-expression-human-breast-cancer-fresh-frozen",
        "Visium_HD_Human_Breast_Cancer_Fresh_Frozen",
        "_tissue_image.tif",
    ),
    _tenx_hd(
        "MB_HD",
        "mouse brain, fresh frozen",
        "visium-hd-cytassist-gene-expression-mouse-brain-fresh-frozen",
        "Visium_HD_Mouse_Brain_Fresh_Frozen",
    ),
    _xenium_liver("HL_X", "nondiseased"),
    _xenium_liver("HL_X2", "cancer"),
    DataSet(
        "MP", "mouse placenta", "https://codeocean.com/capsule/9820099/tree/v1", None, "MP", _SQUARE,
        by_hand="get the capsule's data from its page",
    ),
    DataSet(
        "HS", "human squamous cell carcinoma, legacy Spatial Transcriptomics",
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC7391009", None, "HS", _SQUARE,
        by_hand="the article names the archive that has its counts, positions and images; legacy ST wants "
        "HS.tsv and HS_selection.tsv",
    ),
    DataSet(
        "preprocessed", "the sections of the reference in its own layout, dataset/<section>/",
        "https://zenodo.org/records/18044067", "reference", "dataset/<section>", "lattice",
        by_hand="download the record's archive and unpack it",
    ),
)  # fmt: skip
DATASETS = {dataset.name: dataset for dataset in _ALL}
