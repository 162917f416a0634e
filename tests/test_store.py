"""The Parquet store: equal to the tables to the bit, for every run that is done, and refusing what doesn't fit."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from gpumask.cli import main
from gpumask.cohort import parquet as store

from . import cohorts
from .cohorts import make_atlases, make_cohort

pq = pytest.importorskip("pyarrow.parquet")

REGIONS = ["LH_Vis", 'a "quoted" one', "it's, 50 %"]
KEYS = ["participant_id", "session", "task", "run", "space", "name"]


def write_run(out, name, values, *, regions=REGIONS, atlas="A", stat="mean", made="c1", **sidecar):
    """Outputs and record of a run, as `gpumask cohort` leaves them."""
    head, _, tail = name.partition("_res-")
    stem = f"{head}_atlas-{atlas}{'_res-' * bool(tail)}{tail}_stat-{stat}_timeseries"
    cells = [["n/a" if np.isnan(value) else repr(value) for value in row] for row in values.tolist()]
    out.joinpath("logs").mkdir(exist_ok=True)
    table = out / f"{stem}.tsv"
    table.write_text("".join("\t".join(row) + "\n" for row in [regions, *cells]), "utf-8")
    out.joinpath(f"{stem}.json").write_text(json.dumps({"RepetitionTime": 2.0, "TaskName": "rest", **sidecar}))
    record = out / "logs" / f"{name}.json"
    outputs = (
        [tuple(output.values()) for output in json.loads(record.read_text())["outputs"]] if record.exists() else []
    )
    sizes = {f"{stem}.tsv": table.stat().st_size, f"{stem}.json": 1, f"{stem}x_stat-coverage_bold.tsv": 1}
    outputs += [(path, size, made) for path, size in sizes.items()]
    record.write_text(json.dumps(cohorts.record(name, outputs)))
    return table


def random_values(seed, n_volumes=7, n_regions=3, dtype="f8"):
    values = np.random.default_rng(seed).normal(size=(n_volumes, n_regions)) * 10.0 ** (seed - 3)
    return values.astype(dtype)


def named(number, rest="_ses-b_task-rest_run-02_space-MNI_res-2"):
    return f"sub-{number:02}{rest}"


@pytest.mark.parametrize("group", [1, 30, 10**6])
def test_equal_to_the_tables(tmp_path, monkeypatch, group):
    monkeypatch.setattr(store, "_GROUP", group)
    tables = []
    for number in range(7):
        values = random_values(number, n_volumes=number + 1)
        values[:, 1] = np.nan if number == 3 else values[:, 1]
        tables.append(write_run(tmp_path, named(number), values, Sources=[number]))
    path = tmp_path / "all.parquet"
    assert cohorts.write_store(tmp_path, path) == ([path], {})
    frame = pd.read_parquet(path)
    assert list(frame) == [*KEYS, "repetition_time", "volume", *REGIONS]
    read = [[line.split("\t") for line in table.read_text("utf-8").splitlines()[1:]] for table in tables]
    expected = np.array([[float(cell.replace("n/a", "nan")) for cell in row] for rows in read for row in rows])
    stored = frame[REGIONS].to_numpy()
    assert np.isnan(stored).tolist() == np.isnan(expected).tolist()
    assert np.nan_to_num(stored).tobytes() == np.nan_to_num(expected).tobytes()
    lengths = [len(table) for table in read]
    assert frame["volume"].tolist() == [volume for length in lengths for volume in range(length)]
    assert frame["name"].tolist() == [named(k) for k, length in enumerate(lengths) for _ in range(length)]
    assert frame["participant_id"].iloc[-1] == "sub-06"
    assert frame.loc[0, KEYS[1:5]].tolist() == ["b", "rest", "02", "MNI"]
    assert set(frame["repetition_time"]) == {2.0}
    metadata = json.loads(pq.read_metadata(path).metadata[b"gpumask"])
    assert metadata == {"atlas": "A", "stat": "mean", "sidecar": {"RepetitionTime": 2.0, "TaskName": "rest"}}
    assert not list(tmp_path.glob(".gpumask*"))


def test_numbers_of_singles_and_extremes(tmp_path):
    values = np.array([[0.1, 1e-310, -0.0], [np.inf, 1 / 3, 5e-324], [1.7976931348623157e308, -np.inf, 123456789.125]])
    table = write_run(tmp_path, named(1), values)
    path = tmp_path / "s.parquet"
    cohorts.write_store(tmp_path, path)
    assert pd.read_parquet(path)[REGIONS].to_numpy().tobytes() == values.tobytes()
    singles = random_values(2, 50, dtype="f4")
    lines = ["\t".join(row) for row in singles.astype("U").tolist()]
    table.write_text("\n".join(["\t".join(REGIONS), *lines, ""]))
    record = tmp_path / "logs" / f"{named(1)}.json"
    record.write_text(json.dumps(cohorts.record(named(1), [(table.name, table.stat().st_size, "c1")])))
    cohorts.write_store(tmp_path, path)
    assert pd.read_parquet(path)[REGIONS].to_numpy().astype("f4").tobytes() == singles.tobytes()


def test_row_groups_have_whole_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_GROUP", 3 * 15)
    for number in range(6):
        write_run(tmp_path, named(number), random_values(number))
    path = tmp_path / "s.parquet"
    cohorts.write_store(tmp_path, path)
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(k)["name"].to_pylist() for k in range(file.num_row_groups)]
    assert [len(group) for group in groups] == [14, 14, 14]
    assert [len(set(group)) for group in groups] == [2, 2, 2]
    one = pd.read_parquet(path, filters=[("name", "==", named(4))], columns=["name", "LH_Vis"])
    assert one["LH_Vis"].to_numpy().tobytes() == random_values(4)[:, 0].tobytes()


def test_names_without_entities_and_censored_volumes(tmp_path):
    write_run(tmp_path, "100307_REST1", random_values(1, 3), NumberOfVolumes=6, CensoredVolumes=[4, 1, 3])
    write_run(tmp_path, "sub-1_task-a", random_values(2, 2), RepetitionTime=0.8)
    write_run(tmp_path, "sub-2_task-a", random_values(2, 0), NumberOfVolumes=1, CensoredVolumes=[0])
    path = tmp_path / "s.parquet"
    assert cohorts.write_store(tmp_path, path) == ([path], {})
    frame = pd.read_parquet(path)
    assert frame["volume"].tolist() == [0, 2, 5, 0, 1]
    assert frame["name"].tolist() == ["100307_REST1"] * 3 + ["sub-1_task-a"] * 2
    assert frame["participant_id"].isna().tolist() == [True] * 3 + [False] * 2
    assert frame["session"].isna().all()
    assert frame["repetition_time"].tolist() == [2.0] * 3 + [0.8] * 2


def test_a_file_per_atlas_and_statistic(tmp_path):
    for number in range(3):
        write_run(tmp_path, named(number), random_values(number))
        write_run(tmp_path, named(number), random_values(number, n_regions=1), regions=["x"], atlas="B", stat="sum")
    paths, refused = cohorts.write_store(tmp_path, tmp_path / "s.parquet")
    assert [path.name for path in paths] == ["s_atlas-A_stat-mean.parquet", "s_atlas-B_stat-sum.parquet"]
    assert refused == {}
    assert pd.read_parquet(paths[1])["x"].to_numpy()[-7:].tobytes() == random_values(2, n_regions=1).tobytes()
    assert not (tmp_path / "s.parquet").exists()


def test_refused_runs(tmp_path):
    for number in range(4):
        write_run(tmp_path, named(number), random_values(number))
    other = write_run(tmp_path, named(4), random_values(4), regions=["LH_Vis", "b", "c"])
    older = write_run(tmp_path, named(5), random_values(5), made="c0")
    text = write_run(tmp_path, named(6), random_values(6))
    cell = repr(float(random_values(6)[3, 1]))
    text.write_text(text.read_text().replace(cell, "x" * len(cell)))
    alone = write_run(tmp_path, named(7), random_values(7))
    alone.with_suffix(".json").unlink()
    short = write_run(tmp_path, named(8), random_values(8))
    short.write_text(short.read_text()[:-9])
    kept = write_run(tmp_path, named(9), random_values(9), NumberOfVolumes=9, CensoredVolumes=[1])
    (tmp_path / "logs" / "sub-90.json").write_text('{"outputs": [{"path": "x')
    unfinished = write_run(tmp_path, named(10), random_values(10))
    (tmp_path / "logs" / f"{named(10)}.json").unlink()
    path = tmp_path / "s.parquet"
    paths, refused = cohorts.write_store(tmp_path, path)
    assert paths == [path]
    assert pd.read_parquet(path)["name"].unique().tolist() == [named(k) for k in range(4)]
    assert refused == {
        "logs/sub-90.json": refused["logs/sub-90.json"],
        other.name: "has other regions than most",
        older.name: "was made with another configuration (c0) than most (c1)",
        text.name: f"could not convert string to float: '{'x' * len(cell)}'",
        alone.name: "No such file or directory",
        short.name: f"has {short.stat().st_size} bytes, {short.stat().st_size + 9} by the run's record",
        kept.name: "has 7 rows, but its sidecar has 9 volumes, 1 of them censored",
    }
    assert "isn't JSON: Unterminated string" in refused["logs/sub-90.json"]
    assert not any(unfinished.name in message for message in refused)


def test_a_cohort_from_the_command_line(tmp_path, capsys):
    make_cohort(tmp_path / "d", 6, bad=False)
    atlas = make_atlases(tmp_path)[0]
    words = ["cohort", tmp_path / "d", tmp_path / "out", "participant", "--atlas", atlas, "--device", "cpu"]
    words += ["--fd-threshold", "0.5", "--min-time", "0", "--store", tmp_path / "s.parquet"]
    assert main([str(word) for word in words]) == 0
    mean = tmp_path / "out" / "group_atlas-Toy_stat-pearsoncorrelation_relmat.tsv"
    assert f"{mean}\n{tmp_path / 's.parquet'}\n" in capsys.readouterr().out
    frame = pd.read_parquet(tmp_path / "s.parquet")
    tables = sorted((tmp_path / "out").rglob("*_timeseries.tsv"))
    assert len(tables) == 6
    for (name, part), table in zip(frame.groupby("name", observed=True), tables, strict=True):
        expected = pd.read_table(table)
        assert table.name.startswith(name)
        np.testing.assert_array_equal(part[list(expected)].to_numpy(), expected.to_numpy())
        assert part["volume"].tolist() == [volume for volume in range(40) if volume != 7]  # moved more than 0.5 mm
        assert part["participant_id"].unique().tolist() == [name[:6]]
    page = (tmp_path / "out" / "cohort.html").read_text("utf-8")
    assert "<b>6</b>done" in page
    assert "Toy99" in page

    size = tables[2].stat().st_size
    tables[2].write_text("x")
    assert main([str(word) for word in [*words[:3], "group", *words[-2:]]]) == 1
    listed = tmp_path / "out" / "group_unused.tsv"
    path = tables[2].relative_to(tmp_path / "out")
    assert listed.read_text().splitlines()[1:] == [f"{path}\thas 1 bytes, {size} by the run's record"]
    message = (
        f"Unusable files: 1, listed in {listed}. The first: {path}: has 1 bytes, {size} by the run's record. To redo a "
        "run's file, delete it and repeat the participant command.\n"
    )
    assert message in capsys.readouterr().err
    assert frame["name"].nunique() - pd.read_parquet(tmp_path / "s.parquet")["name"].nunique() == 1


@pytest.mark.parametrize("regions", [["run", "b", "c"], ["b", "b", "c"]])
def test_names_that_cant_be_columns(tmp_path, regions):
    table = write_run(tmp_path, named(1), random_values(1), regions=regions)
    path = tmp_path / "s.parquet"
    path.write_text("old")
    with pytest.raises(ValueError) as error:
        cohorts.write_store(tmp_path, path)
    assert str(error.value) == (
        f"{table}: columns of a Parquet file need different names, but {regions[0]} would occur twice. Rename "
        "the regions in the look-up table; participant_id, session, task, run, space, name, repetition_time, volume "
        "are reserved."
    )
    assert path.read_text() == "old"


def test_labels_of_a_sidecar_that_are_no_labels(tmp_path):
    """JSON has Infinity: the names stay without labels."""
    labels = [{"index": float("inf")}, {"index": 2}, {"index": 3}]
    write_run(tmp_path, named(1), random_values(1), Regions=labels)
    (path,), refused = cohorts.write_store(tmp_path, tmp_path / "all.parquet")
    assert refused == {}
    assert list(pd.read_parquet(path))[-3:] == REGIONS


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    write_run(tmp_path, named(1), random_values(1))
    path = tmp_path / "s.parquet"
    path.write_text("old")

    def fail(*_):
        msg = "No space left on device"
        raise OSError(28, msg)

    with monkeypatch.context() as patched:
        patched.setattr(store, "_row_group", fail)
        with pytest.raises(OSError, match="No space left"):
            cohorts.write_store(tmp_path, path)
    assert path.read_text() == "old"
    assert not list(tmp_path.glob(".gpumask*"))
    (tmp_path / ".gpumask-s.parquet.part").write_bytes(b"left by a killed process" * 1000)
    cohorts.write_store(tmp_path, path)
    assert len(pd.read_parquet(path)) == 7
    assert not list(tmp_path.glob(".gpumask*"))


def test_nothing_to_store(tmp_path):
    with pytest.raises(ValueError) as error:
        cohorts.write_store(tmp_path, tmp_path / "s.parquet")
    assert str(error.value) == (
        f"{tmp_path} has no finished runs: expected records in {tmp_path / 'logs'}, and their tables."
    )


def test_without_pyarrow(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError) as error:
        cohorts.write_store(tmp_path, tmp_path / "s.parquet")
    message = "Missing package 'pyarrow' for Parquet files. Run: pip install 'gpumask[parquet]'"
    assert str(error.value) == message
    words = ["cohort", tmp_path / "d", tmp_path / "out", "participant", "--atlas", "a.nii", "--store", "s.parquet"]
    assert main([str(word) for word in words]) == 2
    assert capsys.readouterr().err == f"gpumask cohort: error: {message}\n"
    assert not (tmp_path / "out").exists()
