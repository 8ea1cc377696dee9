"""Sections that are learned from together."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

import spabit_jax as sj
from spabit_jax.data.components import NoImage, standardised
from spabit_jax.data.joined import APART, align, join, join_features, parts_of, registered
from spabit_jax.data.prepared import ALONE, MOST_KNOWN, Prepared
from spabit_jax.data.section import Frame, Section
from spabit_jax.datasets.simulate import simulate_section, write_section
from spabit_jax.ensemble import predictor, related
from spabit_jax.ensemble.related import lay_out_related
from spabit_jax.errors import InputError
from spabit_jax.neighbours import Context
from spabit_jax.readers import read_section
from spabit_jax.scale import total_counts
from tests import commands
from tests.experiments import small_run


@pytest.fixture(scope="module")
def sections():
    return [
        simulate_section(i, n_rows=8, n_cols=9, n_genes=30, pitch=p, name=f"S{i}") for i, p in ((1, 20.0), (2, 30.0))
    ]


def prepared(sections, config, tmp_path, edit=lambda adata: adata):
    config.data.n_genes = 13
    paths = [write_section(*section, tmp_path) for section in sections]
    made = []
    for (adata, _), path in reversed(list(zip(sections, paths, strict=True))):
        adata = adata.copy()
        adata.uns["spabit"]["image_path"] = str(path.with_suffix(".png"))
        made.append(Prepared(edit(adata), config, "stain", str(tmp_path / "cache"), made))
    made[-1].extract()
    return made[-1]


def test_methods_to_compare_with_see_the_sections_own_image(sections, tmp_path):
    """The components of an image do not depend on what related sections show."""
    together = prepared(sections, sj.Config(), tmp_path)
    alone = Prepared(together.adata, together.config, "stain", str(tmp_path / "cache"))
    np.testing.assert_allclose(together.image_components(), alone.image_components(), atol=1e-4)
    with pytest.raises(InputError, match="w.pt is of a neural encoder, which stain is not"):
        alone.extract("w.pt")


def test_join_keeps_the_first_and_scales_the_others_beside_it(sections):
    a, b = (adata for adata, _ in sections)
    genes = [*a.var_names[3:8], "NOWHERE"]
    joined = join([a, b], genes)
    n = a.n_obs
    np.testing.assert_array_equal(joined.obsm["spatial"][:n], a.obsm["spatial"])
    between = cdist(joined.obsm["spatial"][n:], joined.obsm["spatial"][n:])
    np.testing.assert_allclose(between, cdist(b.obsm["spatial"], b.obsm["spatial"]) * 20 / 30)
    assert cdist(joined.obsm["spatial"][:n], joined.obsm["spatial"][n:]).min() >= APART * 20
    np.testing.assert_array_equal(joined.X[:n, :5].toarray(), a[:, genes[:5]].X.toarray())
    np.testing.assert_array_equal(joined.X[n:, :5].toarray(), b[:, genes[:5]].X.toarray())
    assert joined.X[:, 5].nnz == 0


def test_features_are_standardised_by_section():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (20, 4)), rng.normal(-1, 5, (30, 4))]
    for part in np.split(join_features(parts), [20]):
        np.testing.assert_allclose([part.mean(), part.std()], [0, 1], atol=1e-6)
    assert join_features([None, None]) is None
    constant = np.full((196, 1), 243 / 255, np.float32)
    assert np.abs(standardised(constant)).max() < 1e-6
    assert np.abs(standardised(constant - 1 / 255, constant)).max() < 0.01


def test_sections_keep_to_themselves_and_to_their_train_spots(sections, tiny_config, tmp_path):
    joint = prepared(sections, tiny_config, tmp_path)
    other, n = joint.related[0], joint.adata.n_obs
    section = joint.section()
    assert len(section.xy) == n + other.adata.n_obs
    assert (section.context[:n] < n).all() and (section.context[n:] >= n).all()
    np.testing.assert_array_equal(section.is_train, [*joint.is_train, *other.is_train])
    alone = Prepared(joint.adata, tiny_config, "stain", str(tmp_path / "cache")).section()
    np.testing.assert_array_equal(section.expression[:n], alone.expression)
    train = section.is_train
    means = [section.expression[:n][train[:n]].mean(axis=0), section.expression[n:][train[n:]].mean(axis=0)]
    np.testing.assert_allclose(*means, atol=1e-5)
    alike = joint.scale.expression(other.counts(), total_counts(other.adata))
    spread = (section.expression[n:][train[n:]].std(axis=0), alike[other.is_train].std(axis=0))
    panel = [other.genes.index(gene) for gene in joint.genes if gene in other.genes]
    shared = [joint.genes.index(gene) for gene in joint.genes if gene in other.genes]
    np.testing.assert_allclose(spread[0][shared], spread[1][panel], rtol=1e-4)

    def noisy(adata):
        test = ~(other if adata.uns["spabit"]["name"] == other.name else joint).is_train
        counts = adata.X.toarray()
        counts[test] += 5
        adata.X = sparse.csr_matrix(counts)
        return adata

    changed = prepared(sections, tiny_config, tmp_path, noisy)
    changed.genes = joint.genes  # the reference's panel is chosen on all spots
    for before, now in zip(section[:5], changed.section()[:5], strict=True):
        np.testing.assert_array_equal(before, now)


def test_a_gene_that_a_related_section_lacks_is_as_at_similar_spots(sections, tiny_config, tmp_path):
    joint = prepared(sections, tiny_config, tmp_path)
    whole, n = joint.section(), joint.adata.n_obs
    measured = np.ones((len(joint.genes), 2), bool)
    measured[4, 1] = False
    section = align(whole, [n, len(whole.xy) - n], measured)
    others = np.arange(len(joint.genes)) != 4
    np.testing.assert_allclose(section.expression[:, others], whole.expression[:, others], rtol=1e-5)
    np.testing.assert_array_equal(section.expression[:n], whole.expression[:n])
    known, filled = section.expression[:n][section.is_train[:n], 4], section.expression[n:][section.is_train[n:], 4]
    np.testing.assert_allclose(filled.mean(), known.mean(), rtol=1e-5)
    apart = np.abs(filled[:, None, None] - filled[0] + known[:, None] - known)  # if the first is as at each of them
    assert apart.min(axis=2).max(axis=0).min() < 1e-5
    twice = whole._replace(expression=np.tile(whole.expression[:n], (2, 1)), is_train=np.tile(whole.is_train[:n], 2))
    np.testing.assert_allclose(align(twice, [n, n], measured).expression, twice.expression, rtol=1e-5)

    joint.related[0].adata = joint.related[0].adata[:, joint.related[0].adata.var_names != joint.genes[4]]
    del joint._apart, joint._arrays
    assert joint.section().expression[n:][section.is_train[n:], 4].std() > 0.5 * known.std()


def test_what_does_not_fit_is_refused(sections, tiny_config, tmp_path):
    joint = prepared(sections, tiny_config, tmp_path)
    again = (joint.adata, tiny_config, "stain", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="two of --section and --related are named S1"):
        Prepared(*again, [Prepared(*again)])
    copied = joint.adata.copy()
    copied.uns["spabit"] = joint.adata.uns["spabit"] | {"name": "copied"}
    rng = np.random.default_rng(0)
    in_another_order = copied[rng.permutation(copied.n_obs)[1:], rng.permutation(copied.n_vars)].copy()
    for copy in (copied, in_another_order):
        with pytest.raises(InputError, match="section copied has the counts of section S1"):
            Prepared(*again, [Prepared(copy, *again[1:])])
    bare = joint.related[0].adata.copy()
    del bare.uns["spabit"]["image_path"]
    with pytest.raises(InputError, match="S2 has no image"):
        Prepared(*again, [Prepared(bare, *again[1:])])
    foreign = joint.related[0].adata.copy()
    foreign.var_names = [f"X{i}" if i > 4 else name for i, name in enumerate(foreign.var_names)]
    with pytest.raises(InputError, match="S2 has 0 of the panel's 13 genes by name or id .it names genes as"):
        Prepared(*again, [Prepared(foreign, *again[1:])])
    tiny_config.gat.joint = False
    with pytest.raises(InputError, match="gat.joint"):
        Prepared(*again, joint.related)


def test_a_gene_that_does_not_vary_does_not_decide_on_the_layout(sections, tiny_config, tmp_path, monkeypatch):
    joint = prepared(sections, tiny_config, tmp_path)
    before = {layout: related._error(joint, layout) for layout in (ALONE, APART)}
    make = Prepared._make

    def with_a_constant(self, *args):
        section, frame = make(self, *args)
        expression = section.expression.copy()
        expression[: self.adata.n_obs, 4] *= 0
        return section._replace(expression=expression), frame

    monkeypatch.setattr(Prepared, "_make", with_a_constant)
    del joint._apart
    for layout, error in before.items():
        assert related._error(joint, layout) == pytest.approx(error, rel=0.2)


def test_halves_of_one_related_section(section_data, tiny_config):
    section = section_data(tiny_config)
    section = section._replace(xy=np.where(np.arange(len(section.xy))[:, None] < 9, 0.0, 5.0).astype(np.float32))
    left, right = parts_of(section, [0, len(section.xy)])
    assert abs(len(left) - len(right)) <= 1 and len(right)


def test_align_leaves_one_section_as_it_is(section_data, tiny_config):
    section = section_data(tiny_config)
    np.testing.assert_array_equal(align(section, [len(section.xy)]).expression, section.expression)


@pytest.mark.slow
def test_commands(sections, tmp_path):
    first, second = (write_section(*section, tmp_path) for section in sections)
    flags = [f"--related={second}", "--config.data.related_split=none", "--config.model.members=spabit,ridge"]
    panel = tmp_path / "genes.txt"
    panel.write_text("\n".join(sections[0][0].var_names[:9]))
    flags += ["--config.train.epochs=4", "--num_seeds=1", f"--config.data.panel={panel}"]
    result = small_run.run(first, tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    import anndata

    run = tmp_path / "run"
    found = anndata.read_h5ad(run / "predictions.h5ad")
    assert found.n_obs == sections[0][0].n_obs and np.isfinite(found.X).all()
    n_train, n, n_other = (found.obs["split"] == "train").sum(), found.n_obs, sections[1][0].n_obs
    said = f"{n_train} of {n} spots (split lattice), {n_other} of S2 (split none)"
    assert found.uns["spabit"]["trained_on"] == said
    assert f"(the model also {n_other} of S2)" in (run / "report.html").read_text()
    test = (found.obs["split"] == "test").to_numpy()
    places = pd.DataFrame(found.obsm["spatial"][test], columns=["x", "y"])
    places.to_csv(tmp_path / "places.csv", index=False)
    panel.unlink()  # the run knows its genes
    predict = ["experiments.predict", f"--run={run}", f"--out={tmp_path / 'p.h5ad'}"]
    result = commands.run(*predict, f"--locations={tmp_path / 'places.csv'}")
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(anndata.read_h5ad(tmp_path / "p.h5ad").X, found.X[test], atol=1e-3)
    assert small_run.run(first, tmp_path).returncode == 2  # another run in that folder
    config = run / "config.json"
    assert sj.load(run).prepared.most_known == MOST_KNOWN
    config.write_text(config.read_text().replace(f'"most_known": {MOST_KNOWN}', f'"most_known": "{MOST_KNOWN}"'))
    with pytest.raises(InputError, match="config.json is damaged, inputs.most_known is '1500'"):
        sj.load(run)
    config.write_text(re.sub(r',\s+"most_known": "\d+"', "", config.read_text()))
    assert sj.load(run).prepared.most_known is None


def test_sisters_are_put_where_they_lie(section_data, tiny_config):
    """A section and itself, turned, as its sister: spots come to lie above themselves, and are each other's context."""
    one = section_data(tiny_config)
    n = len(one.xy)
    turned = one.xy @ np.array([[0, 1], [-1, 0]]) + 1000
    pair = Section(*(None if a is None or b is None else np.concatenate([a, b]) for a, b in zip(one, one, strict=True)))
    pair = pair._replace(xy=np.concatenate([one.xy, turned]).astype(np.float32))
    frame = Frame(np.array([50.0, 70.0]), 20.0, NoImage(), Context.of(pair.xy, pair.is_train, 8))
    section, found = registered(pair, frame, [n, n], 3.0, [None])
    np.testing.assert_allclose(section.xy[:n], np.pad(one.xy, ((0, 0), (0, 1))), atol=1e-6)
    np.testing.assert_allclose(section.xy[n:], section.xy[:n] + [0, 0, 3], atol=0.3)
    assert (section.context[:n] >= n).any() and (section.context[:n] < n).any()
    places = found.places(one.xy * 20.0 + [50.0, 70.0], None)  # anywhere else, as at the spots
    np.testing.assert_allclose(places.xy, section.xy[:n], atol=1e-5)
    test = ~section.is_train[:n]
    np.testing.assert_array_equal(places.context[test], section.context[:n][test])


def test_a_sister_is_put_where_its_alignment_says(sections, tiny_config, tmp_path):
    """From its pixels, which are 1.5 times as small, mirrored; the run's config.json knows the matrix again."""
    joint = prepared(sections, tiny_config, tmp_path)
    matrix = np.array([[-2 / 3, 0, 200.0], [0, 2 / 3, 10.0]])
    (tmp_path / "a.csv").write_text("\n".join("\t".join(map(str, row)) for row in matrix))
    (tmp_path / "a.json").write_text(str(np.vstack([matrix, [0, 0, 1]]).tolist()))
    adata, sister = joint.adata, joint.related[0].adata
    related_to = {"related": [sister], "cache_dir": tmp_path / "cache"}
    for given in ([tmp_path / "a.csv"], [str(tmp_path / "a.json")], [matrix]):
        section = sj.prepare(adata, tiny_config, related_alignment=given, **related_to)
        section.lay_out(2.0)
        n = adata.n_obs
        wanted = (np.asarray(sister.obsm["spatial"]) @ matrix[:, :2].T + matrix[:, 2] - adata.obsm["spatial"][0]) / 20
        found = section.section().xy
        np.testing.assert_allclose(found[n:, :2] - found[0, :2], wanted, atol=1e-4)
        assert set(found[n:, 2].tolist()) == {2.0}
    described = section.describe()
    assert described["related"][0]["alignment"] == [*matrix.tolist(), [0, 0, 1]]
    assert described != joint.describe()
    (tmp_path / "bad.csv").write_text("1,2\n3,4\n")
    for given, message in [
        ([matrix + [[0, 0, 9e4]] * 2], "puts none of its spots on section S1, which lies from"),
        ([0 * matrix], "not an affine matrix"),
        ([tmp_path / "bad.csv"], r"bad.csv: a matrix of shape \(2, 2\)"),
        ([None, matrix], "2 alignments for 1 related sections"),
        (matrix, "2 alignments for 1 related sections"),  # its rows
    ]:
        with pytest.raises(InputError, match=message):
            sj.prepare(adata, tiny_config, related_alignment=given, **related_to)


def test_related_sections_are_laid_out_as_held_out_train_spots_say(sections, tiny_config, tmp_path, monkeypatch):
    joint = prepared(sections, tiny_config, tmp_path)
    tiny_config.model.members = "pretrained"
    alone = Prepared(joint.adata, tiny_config, "stain", str(tmp_path / "cache")).section()
    monkeypatch.setattr(related, "_error", lambda prepared, layout: abs(layout - 1.9))
    lay_out_related(joint)
    assert joint.layout == 2.0
    joint.lay_out(ALONE)
    for own, found in zip(alone[:6], joint.section()[:6], strict=True):
        np.testing.assert_array_equal(own, found)
    joint.lay_out(2.0)
    assert set(joint.section().xy[:, 2].tolist()) == {0.0, 2.0}
    tiny_config.model.members, joint.layout = "spabit", None
    lay_out_related(joint)
    assert joint.layout is None  # a network that is trained on a section knows places on a plane only


def test_a_related_section_need_not_have_what_is_asked_for(sections, tiny_config, tmp_path):
    (adata, _), (sister, image) = sections
    lacking = sister[:, sister.var_names != adata.var_names[3]].copy()
    tiny_config.data.panel = f"informative+{adata.var_names[3]}"
    tiny_config.data.n_genes = 13
    paths = [write_section(*section, tmp_path) for section in (sections[0], (lacking, image))]
    section = sj.prepare(paths[0], tiny_config, related=[paths[1]], cache_dir=tmp_path / "cache")
    assert adata.var_names[3] in section.genes and len(section.genes) in (13, 14)
    with pytest.raises(InputError, match=f"{adata.var_names[3]} is not measured in section S2"):
        config = tiny_config.with_data(split="image_only")  # S2 says what there is
        sj.prepare(paths[0], config, related=[paths[1]], cache_dir=tmp_path / "cache")


def test_of_a_large_sister_some_spots_are_learned_from(sections, tiny_config, tmp_path):
    """Beyond a number of known spots places are predicted from the nearest alone: the section's own are all kept."""
    tiny_config.model.members = "pretrained"
    joint = prepared(sections, tiny_config, tmp_path)
    n, own = joint.adata.n_obs, int(joint.is_train.sum())
    joint.most_known = own + 5
    is_train = joint.joined()[2]
    np.testing.assert_array_equal(is_train[:n], joint.is_train)
    assert is_train[n:].sum() == 5 and not (is_train[n:] & ~joint.related[0].is_train).any()
    for most, members in ((own + 10**6, "pretrained"), (own, "pretrained"), (own + 5, "spabit"), (None, "pretrained")):
        joint.most_known, joint.config.model.members = most, members
        assert joint.joined()[2][n:].sum() == joint.related[0].is_train.sum()


def test_what_is_said_of_related_sections_is_what_was_learned_from(sections, tiny_config, tmp_path):
    tiny_config.model.members = "pretrained"
    for layout, said in ((np.inf, {"S2": 5}), (ALONE, {})):
        joint = prepared(sections, tiny_config, tmp_path)
        joint.most_known = int(joint.is_train.sum()) + 5
        joint.lay_out(layout)
        assert joint.learned_from() == said
        assert predictor.provenance(joint).get("related", {}) == said
    assert joint.related[0].is_train.sum() > 5


@pytest.mark.slow
def test_an_image_alone_is_predicted(sections, tiny_config, tmp_path):
    """Its genes are the sister's, all of whose spots are known; nothing is said to be measured."""
    joint = prepared(sections, tiny_config, tmp_path)
    image, tiny_config.model.members = tmp_path / "S1.png", "pretrained"
    adata = read_section(image, um_per_px=5, name="alone")
    with pytest.raises(InputError, match="alone is an image alone: give sections to learn from, --related=A,B"):
        sj.prepare(adata, tiny_config, cache_dir=tmp_path / "cache")
    section = sj.prepare(adata, tiny_config, related=[joint.related[0].adata], cache_dir=tmp_path / "cache")
    assert not section.measured and section.config.data.split == "image_only" and not section.is_train.any()
    assert section.related[0].is_train.all() and section.genes == section.related[0].genes
    model = sj.fit(section, seeds=1)
    for found in (model.predict(), model.predict("grid:2x")):
        assert np.isfinite(found.X).all() and np.ptp(found.X, axis=0).max() > 0
        assert np.isnan(found.layers["truth"]).all() and set(found.obs["split"]) == {"new"}


def test_a_section_of_which_nothing_is_measured(sections, tiny_config, tmp_path):
    """Its panel and scale are its sister's; none of its own expression enters; each half of the sister is left out."""
    few = tiny_config.with_data(split="image_only")
    sister = prepared(sections, few.of_related(), tmp_path).related[0]
    adata = sections[0][0].copy()
    adata.uns["spabit"]["image_path"] = str(tmp_path / "S1.png")
    joint = Prepared(adata, few, "stain", str(tmp_path / "cache"), [sister])
    joint.extract()
    assert joint.genes == sister.genes and joint.scale == sister.scale
    section, n = joint.section(), adata.n_obs
    assert np.isnan(section.expression[:n]).all() and section.is_train[n:].all()
    rows = []
    for others, places, of_train in joint.sections_left_out():
        rows += of_train.tolist()
        hidden = section.train_spots[of_train]
        assert np.isnan(others.expression[hidden]).all() and not np.isin(places.context, hidden).any()
        assert cdist(places.xy, others.xy[others.is_train]).min() > 900
    assert sorted(rows) == list(range(len(section.train_spots)))
    with pytest.raises(InputError, match="0 train spots .* related sections"):
        Prepared(adata, few, "stain", str(tmp_path / "cache"))
