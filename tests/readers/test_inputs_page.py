"""Each row of the table of layouts in docs/INPUTS.md has a test, on a fixture in that layout."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS = {
    "Visium, Space Ranger 1 to 4": "test_visium_gives_what_is_promised test_positions_as_parquet_in_a_visium_folder",
    "– raw matrix only": "test_raw_matrix_at_the_spots_in_tissue",
    "– GEO's flat files": "test_a_sample_is_named_by_its_prefix test_nothing_is_taken_from_another_sample",
    "– two genomes": "test_two_genomes_are_named",
    "Visium HD": "test_bins_of_each_size test_the_microscope_s_image_is_taken_not_cytassist_s",
    "Visium HD, segmented cells (Space Ranger 4)": "test_segmented_visium_hd test_other_outlines_of_cells",
    "Xenium": "test_cells_on_the_image test_names_of_the_he_image test_xenium_without_its_experiment_file",
    "legacy ST": "test_legacy_st test_turned_table_and_adjusted_names test_places_however_names_write_them",
    "– GSE144240": "test_gse144240",
    "– her2st's folders": "test_her2st_folders",
    "– coordinates in the names of spots": "test_spots_whose_names_are_their_coordinates",
    "pairs of tables": "test_pairs_of_csv test_slide_seq_lies_on_no_lattice",
    "SpatialData": "test_spots_land_in_the_pixels_of_the_largest_image test_a_preview_is_used_at_its_scale",
    "PyTorch SpaBiT": "test_reference_folder",
    "AnnData": "test_h5ad_round_trip test_h5ad_finds_raw_counts test_h5ad_finds_places",
    "– several sections in it": "test_one_section_of_a_concatenated_h5ad test_columns_that_tell_sections_apart",
    "an image alone": "test_places_lie_on_the_tissue_of_an_image",
}


def test_each_row_has_its_test():
    page = (HERE.parents[1] / "docs" / "INPUTS.md").read_text()
    table = re.search(r"\| Layout \|.*\n\|[-| ]+\n((?:\|.*\n)+)", page)[1]
    assert [line.split("|")[1].strip() for line in table.splitlines()] == list(TESTS)
    code = "\n".join(path.read_text() for path in HERE.glob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)\(", code, re.MULTILINE))
    assert {name for names in TESTS.values() for name in names.split()} <= there
