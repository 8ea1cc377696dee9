"""The data sets that the reference and this project's tables name: what each is, where it is published, how it is read.

Addresses are listed only where the publisher has a stable one; the rest says what to fetch by hand.
"""

from __future__ import annotations

import dataclasses

from spabit_jax.errors import InputError

_HER2ST = "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec/data"
_STUTILITY = (
    "https://raw.githubusercontent.com/jbergenstrahle/STUtility/9a8f421499e58b13340ee386db07b0eba923c88c/"
    "inst/extdata/counts"
)
_HUMANPILOT = (
    "https://raw.githubusercontent.com/LieberInstitute/HumanPilot/044446d6bd8fc154aa74f7be62ec67effb1ec376/10X"
)
_DLPFC_COUNTS = "https://spatial-dlpfc.s3.us-east-2.amazonaws.com/h5"
_LAYERS = f"{_HUMANPILOT}/barcode_level_layer_map.tsv"
_DLPFC_IMAGES = "https://spatial-dlpfc.s3.us-east-2.amazonaws.com/images"
_GEO_SAMPLES = "https://ftp.ncbi.nlm.nih.gov/geo/samples"
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
      by_hand: what cannot be fetched by program, or is not, and what else is to be known.
      labels: of ``files``, the place of a table without header of barcode, section and label, from which
        ``<name>/layers.csv`` is written.
    """

    name: str
    what: str
    published: str
    format: str | None
    section: str
    split: str
    files: tuple[tuple[str, str], ...] = ()
    by_hand: str = ""
    labels: str = ""


def _dlpfc(name: str) -> DataSet:
    spatial = ("scalefactors_json.json", "tissue_lowres_image.png", "tissue_hires_image.png")
    labels = f"{name}/barcode_level_layer_map.tsv"
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
            (_LAYERS, labels),
            (f"{_DLPFC_IMAGES}/{name}_full_image.tif", f"{name}/{name}_full_image.tif"),
        ),
        by_hand="nothing is missing; this project's tables are with the spots with counts in paste2 1.0.1 and "
        f"--image={name}/spatial/tissue_lowres_image.png",
        labels=labels,
    )


# Images of the sections of each patient, in their order (https://github.com/almaan/her2st, data/ST-imgs).
_HER2ST_IMAGES = {
    "A": ("9769_{}_HE_small.jpg", "C1 C2 D1 D2 E1 E2"),
    "B": ("BT10737_{}_HE.jpg", "C1 C2 D1 D2 E1 E2"),
    "C": ("5714_HE_BT_{}.jpg", "C1 C2 D1 D2 E1 E2"),
    "D": ("10426_HE_BT_{}.jpg", "C1 C2 D1 D2 E1 E2"),
    "E": ("HE_BT23567_{}.jpg", "D2 E1 E2"),
    "F": ("HE_BT23810_{}.jpg", "D2 E1 E2"),
    "G": ("HE_BT23903_{}.jpg", "C1a C2a D1a"),
    "H": ("HE_BT24044_{}.jpg", "D2 E1 E2"),
}
_HER2ST_LABELLED = ("A1", "B1", "C1", "D1", "E1", "F1", "G2", "H1")  # by a pathologist


def _her2st(patient: str) -> list[DataSet]:
    """The three or six sections of a patient."""
    pattern, places = _HER2ST_IMAGES[patient]
    return [_her2st_section(f"{patient}{i}", pattern.format(at)) for i, at in enumerate(places.split(), 1)]


def _her2st_section(name: str, image: str) -> DataSet:
    files = [
        (f"{_HER2ST}/ST-cnts/{name}.tsv.gz", f"{name}.tsv.gz"),
        (f"{_HER2ST}/ST-spotfiles/{name}_selection.tsv", f"{name}_selection.tsv"),
        (f"{_HER2ST}/ST-imgs/{name[0]}/{name}/{image}", f"{name}.jpg"),
    ]
    if name in _HER2ST_LABELLED:
        file = f"{name}_labeled_coordinates.tsv"
        files.append((f"{_HER2ST}/ST-pat/lbl/{file}", file))
    missing = "" if name in _HER2ST_LABELLED else "labels are missing, there are none of this section"
    without = "this project's tables are without its image: --image=none" if name in ("A1", "D1", "E1", "F1") else ""
    return DataSet(
        name,
        "HER2-positive breast cancer, legacy Spatial Transcriptomics",
        "https://github.com/almaan/her2st",
        "st",
        f"{name}.tsv.gz",
        _SQUARE,
        files=tuple(files),
        by_hand=missing or without,
    )


def _carcinoma(sample: int, patient: str, replicate: int) -> DataSet:
    """A section of GSE144240, under the names of its files there."""
    gsm, section = f"GSM{sample}", f"{patient}_ST_rep{replicate}"
    counts = f"{gsm}_{section}_stdata.tsv.gz"
    names = (counts, f"{gsm}_spot_data-selection-{section}.tsv.gz", f"{gsm}_{section}.jpg.gz")
    return DataSet(
        f"HSCC_{patient}_rep{replicate}",
        "human cutaneous squamous cell carcinoma, legacy Spatial Transcriptomics",
        "https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE144240",
        "st",
        counts,
        _SQUARE,
        files=tuple((f"{_GEO_SAMPLES}/GSM{sample // 1000}nnn/{gsm}/suppl/{name}", name) for name in names),
        by_hand="labels are missing, there are none of this section",
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


def _tenx_hd(name: str, what: str, page: str, sample: str) -> DataSet:
    base = f"{_TENX}/spatial-exp/3.1.1/{sample}/{sample}"
    suffixes = ("_binned_outputs.tar.gz", "_tissue_image.tif")
    return DataSet(
        name,
        f"{what}, Visium HD",
        f"{_TENX_PAGE}/{page}",
        "visium_hd",
        name,
        _SQUARE,
        files=tuple((base + suffix, f"{name}/{sample}{suffix}") for suffix in suffixes),
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
    *(section for patient in _HER2ST_IMAGES for section in _her2st(patient)),
    *(
        _carcinoma(4284316 + 3 * i + replicate - 1, patient, replicate)
        for i, patient in enumerate(("P2", "P5", "P9", "P10"))
        for replicate in (1, 2, 3)
    ),
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
        "MP", "mouse placenta, STARmap", "https://codeocean.com/capsule/9820099/tree/v1", None, "MP", _SQUARE,
        by_hand="get the capsule's data from its page, as an .h5ad with obsm['spatial']; there is no H&E image",
    ),
    DataSet(
        "HS", "human cutaneous squamous cell carcinoma, legacy Spatial Transcriptomics",
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC7391009", None, "HS", _SQUARE,
        by_hand="which of the twelve sections HSCC_P2_rep1 to HSCC_P10_rep3 the reference means is not said: take one "
        "of these",
    ),
    DataSet(
        "preprocessed", "the sections of the reference in its own layout, dataset/<section>/",
        "https://zenodo.org/records/18044067", "reference", "dataset/<section>", "lattice",
        by_hand="download the record's archive and unpack it",
    ),
)  # fmt: skip
DATASETS = {dataset.name: dataset for dataset in _ALL}
ALIASES = {"HBCHD": "HBC_HD", "MBHD": "MB_HD", "HL": "HL_X", "HSCC": "HS"}  # as the reference writes them elsewhere


def find(name: str) -> DataSet:
    """The data set of a name or an alias; InputError, naming all, where there is none."""
    name = ALIASES.get(name, name)
    if name not in DATASETS:
        known = ", ".join([*DATASETS, *ALIASES])
        raise InputError(f"unknown data set {name!r} in --dataset: known are {known}; or list")
    return DATASETS[name]
