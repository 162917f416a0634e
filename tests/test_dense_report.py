"""The HTML report of maskers of grayordinates: numbers of the tables counted one by one, signals, lost regions."""

import pickle
import re

import numpy as np
import pytest

from gpumask import MultiNiftiLabelsMasker, NiftiLabelsMasker, NiftiMapsMasker
from tests import dense
from tests.test_report import parsed, picture

pytest.importorskip("matplotlib")


def tables(report):
    """Rows of cells of the tables of brain models, of regions and of parameters."""
    found = []
    for table in re.findall(r"<table>(.*?)</table>", report.html, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        found.append([re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows])
    return found


@pytest.fixture
def made(tmp_path):
    """Series and labels of different brain models; no grayordinate of region 5 is in the series, half of 7 is."""
    axis, atlas_axis = dense.models(np.random.default_rng(1)), dense.models(np.random.default_rng(2))
    there = set(dense.identities(axis))
    present = np.array([identity in there for identity in dense.identities(atlas_axis)])
    labels = np.where(np.arange(len(present)) % 2 == 0, 1, 2)
    labels[np.flatnonzero(~present)[:4]] = 5
    labels[np.flatnonzero(~present)[4:7]] = labels[np.flatnonzero(present)[:3]] = 7
    data = np.random.default_rng(3).standard_normal((30, len(axis))).astype(np.float32) + 9
    run = dense.save(dense.series_image(data, axis), tmp_path / "run.dtseries.nii")
    names = {0: ("???", (1, 1, 1, 0))} | {k: (f"<{k}>", (1, 0, 0, 1)) for k in (1, 2, 5, 7)}
    atlas = dense.save(dense.labels_image(labels, atlas_axis, tables=[names]), tmp_path / "atlas.dlabel.nii")
    return run, atlas, labels, present, axis, atlas_axis


def test_before_a_run(made):
    run, atlas, labels, _, _, atlas_axis = made
    for masker in (NiftiLabelsMasker(atlas).fit(), NiftiLabelsMasker(atlas).fit(run)):
        report = masker.generate_report(title="<Parcels>")
        page = parsed(report)
        assert page.images == []
        assert page.texts["h1"] == ["<Parcels>"]
        assert page.texts["h2"] == ["Brain models", "Regions: 4", "Parameters"]
        assert (
            "The regions aren't drawn: that needs surfaces, which these files lack (wb_view shows both)." in report.html
        )
        assert "color-scheme:light dark" in report.html
        models, regions, parameters = tables(report)
        assert models[0] == ["structure", "kind", "grayordinates"]
        n_left, n_right = ((atlas_axis.name == name).sum() for name in (dense.LEFT, dense.RIGHT))
        assert models[1:] == [
            [dense.LEFT, "surface of 60 vertices", str(n_left)],
            [dense.RIGHT, "surface of 60 vertices", str(n_right)],
            ["voxels", "in a volume of 7 x 8 x 6", str(len(labels) - n_left - n_right)],
        ]
        assert regions[0] == ["label", "name", "grayordinates"]
        assert regions[1:] == [[str(k), f"&lt;{k}&gt;", str((labels == k).sum())] for k in (1, 2, 5, 7)]
        assert {row[0] for row in parameters} == set(masker.get_params())


@pytest.mark.parametrize("keep", [False, True])
def test_after_a_run(made, keep, tmp_path):
    run, atlas, labels, present, _, atlas_axis = made
    masker = NiftiLabelsMasker(atlas, keep_all_regions=keep, min_coverage=0.51)
    if keep:
        masker.fit_transform(run)
    else:
        with pytest.warns(UserWarning, match="has no grayordinate of 1 of 4 labels"):
            masker.fit_transform(run)
    report = masker.generate_report()
    pixels = picture(report)
    assert np.ptp(pixels[..., 0]) > 0.9  # black and white: a carpet
    assert parsed(report).images[0]["alt"] == "signals of the regions"
    models, regions, _ = tables(report)
    assert models[0][3] == "in the run"
    for row, own in zip(models[1:], (atlas_axis.name == dense.LEFT, atlas_axis.name == dense.RIGHT), strict=False):
        assert row[2:] == [str(own.sum()), str((own & present).sum())]
    expected = []
    for k in (1, 2, 5, 7) if keep else (1, 2, 7):
        n, covered = (labels == k).sum(), ((labels == k) & present).sum()
        expected.append([str(k), f"&lt;{k}&gt;", str(n), str(covered), f"{covered / n:.1%}"])
    assert regions == [["label", "name", "grayordinates", "in the run", "share"], *expected]
    assert ["7", "&lt;7&gt;", "6", "3", "50.0%"] in regions
    assert "<p>Lost, as the run has too few of their grayordinates: &lt;5&gt;, &lt;7&gt;.</p>" in report.html
    report.save_as_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.html
    again = pickle.loads(pickle.dumps(masker)).generate_report()  # without the signals
    assert parsed(again).images == []
    assert tables(again)[:2] == [models, regions]
    assert tables(masker.fit().generate_report())[1][0] == ["label", "name", "grayordinates"]


def test_signals_are_those_of_the_last_run(made, tmp_path):
    run, atlas, _, _, axis, _ = made
    flat = np.ones((30, len(axis)), np.float32)
    other = dense.save(dense.series_image(flat, axis), tmp_path / "flat.dtseries.nii")
    masker = NiftiLabelsMasker(atlas, keep_all_regions=True).fit()
    signals = masker.transform(run)
    first = masker.generate_report().html
    signals[:] = 0  # the caller's
    assert masker.generate_report().html == first
    masker.transform(other)
    assert masker.generate_report().html != first
    single = masker.transform(run, sample_mask=[3])
    assert single.shape == (1, 4)
    assert parsed(masker.generate_report()).images == []  # nothing varies


def test_maps_and_many_runs(made, tmp_path):
    run, atlas, _, _, axis, _ = made
    weights = np.zeros((2, len(axis)))
    weights[0, :7], weights[1, 5:30] = 1, 0.5
    maps = dense.save(dense.scalars_image(weights, axis), tmp_path / "maps.dscalar.nii")
    masker = NiftiMapsMasker(maps).fit()
    assert tables(masker.generate_report())[1][1:] == [["0", "niftimapsmasker0", "7"], ["1", "niftimapsmasker1", "25"]]
    masker.transform(run)
    report = masker.generate_report(displayed_maps="all")
    assert len(parsed(report).images) == 1
    assert tables(report)[1][1:] == [
        ["0", "niftimapsmasker0", "7", "7", "100.0%"],
        ["1", "niftimapsmasker1", "25", "25", "100.0%"],
    ]
    many = MultiNiftiLabelsMasker(atlas, keep_all_regions=True).fit()
    many.transform([run, run])
    assert len(tables(many.generate_report())[1]) == 5


def test_without_reports(made):
    with pytest.raises(ValueError, match=r"^generate_report needs reports=True, but the masker has reports=False\.$"):
        NiftiLabelsMasker(made[1], reports=False).fit().generate_report()
