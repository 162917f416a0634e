"""What is timed: each workload prepares itself, untimed, and returns its steps, to be called and timed in order.

Imports stand in the functions, because a process that times one tool must not hold another's.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.inputs import T_R

MODULES = {"gpumask": "gpumask", "nilearn": "nilearn.maskers"}
# By kind of regions: the class of the masker, and the method of `Inputs` that makes its first argument.
KINDS = {
    "labels": ("NiftiLabelsMasker", "atlas"),
    "maps": ("NiftiMapsMasker", "maps"),
    "spheres": ("NiftiSpheresMasker", "seeds"),
    "voxels": ("NiftiMasker", "mask"),
    "grayordinates": ("NiftiLabelsMasker", "dense_atlas"),
}


def _masker(tool, kind, inputs, made, **parameters):
    """A masker of a tool, of the regions that `Inputs` makes with the parameters `made`."""
    name, method = KINDS[kind]
    regions = getattr(inputs, method)(**made)
    own = {"device": "cpu"} if tool == "gpumask" else {}
    regions = str(regions) if isinstance(regions, Path) else regions
    return getattr(importlib.import_module(MODULES[tool]), name)(regions, **parameters, **own)


class Workload:
    """Base of the workloads.

    Attributes
    ----------
    n_volumes : int
        Volumes that a step handles; 1 where it handles none.
    in_process : bool
        Whether the work is done in this process, whose memory then tells something.
    """

    n_volumes = 1
    in_process = True

    def missing(self):
        """Why it can't run here; empty if it can."""
        return ""

    def steps(self, inputs, scratch):
        """Prepare everything, and return the steps.

        Parameters
        ----------
        inputs : Inputs
        scratch : Path
            An empty folder.

        Returns
        -------
        dict of str to callable
            To be called in order. What the last one returns is the result: a list of arrays to be compared with
            other tools' results.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Extraction(Workload):
    """Region signals of a run.

    "first" is `fit` and `transform` with new maskers in a new process: compiling the plan and touching memory for the
    first time are in it. "next" is `transform` of one more run with the same maskers, as in a cohort.

    Attributes
    ----------
    tool : {"gpumask", "nilearn"}
    run : dict
        Parameters of `Inputs.bold`, or of `Inputs.dense_series` for grayordinates.
    atlases : tuple of dict
        Parameters of `Inputs.atlas`, or of the method for another `kind`. gpumask extracts several in one pass,
        nilearn one after the other.
    parameters : dict
        Of the masker.
    confounds : bool
    compared : bool
        Whether the result is to equal gpumask's in the row; another workload of gpumask's may do other work.
    kind : str
        One of `KINDS`.
    """

    tool: str
    run: dict = field(default_factory=dict)
    atlases: tuple = ({},)
    parameters: dict = field(default_factory=dict)
    confounds: bool = False
    compared: bool = True
    kind: str = "labels"

    @property
    def n_volumes(self):
        return self.run.get("first") or self.run.get("n_volumes", 200)

    def steps(self, inputs, scratch):
        run = str((inputs.dense_series if self.kind == "grayordinates" else inputs.bold)(**self.run))
        maskers = [_masker(self.tool, self.kind, inputs, made, **self.parameters) for made in self.atlases]
        table = str(inputs.confounds(self.run.get("n_volumes", 200))) if self.confounds else None

        def following():
            if self.tool == "gpumask" and len(maskers) > 1:
                from gpumask import transform_together

                signals = transform_together(maskers, run, table)
            else:
                signals = [masker.transform(run, confounds=table) for masker in maskers]
            return signals if self.compared else None

        def first():
            for masker in maskers:
                masker.fit(run)
            return following()

        return {"first": first, "next": following}


@dataclass(frozen=True)
class Correlation(Workload):
    """Correlation of regions with all voxels of the brain, both cleaned; nilearn's way is two maskers and a product.

    "first" includes `fit`; see `Extraction` for the attributes.
    """

    tool: str
    run: dict = field(default_factory=dict)
    parameters: dict = field(default_factory=dict)

    @property
    def n_volumes(self):
        return self.run.get("n_volumes", 200)

    def steps(self, inputs, scratch):
        run, table = str(inputs.bold(**self.run)), str(inputs.confounds(self.n_volumes))
        regions = _masker(self.tool, "labels", inputs, {}, **self.parameters)
        mask = str(inputs.mask())

        def ours():
            from gpumask import correlation_maps

            return [correlation_maps(regions, run, table, mask_img=mask)]

        def theirs():
            signals, voxels = (masker.transform(run, confounds=table) for masker in (regions, brain))
            return [signals.T @ voxels / (len(voxels) - 1)]

        following = ours if self.tool == "gpumask" else theirs
        brain = None if self.tool == "gpumask" else _masker(self.tool, "voxels", inputs, {}, **self.parameters)

        def first():
            for masker in filter(None, (regions, brain)):
                masker.fit(run)
            return following()

        return {"first": first, "next": following}


@dataclass(frozen=True)
class Painting(Workload):
    """`inverse_transform` of random signals."""

    tool: str
    n_volumes: int = 20

    def steps(self, inputs, scratch):
        import numpy as np

        masker = _masker(self.tool, "labels", inputs, {}, standardize=None)
        n_regions = masker.fit_transform(str(inputs.bold(suffix=".nii", first=1))).shape[-1]
        signals = np.random.default_rng(0).normal(size=(inputs.n_volumes(self.n_volumes), n_regions))
        return {"next": lambda: [np.asanyarray(masker.inverse_transform(signals).dataobj)]}


@dataclass(frozen=True)
class Compilation(Workload):
    """Compiling the weights; then a new masker's first volume, without and with a `memory` that holds the plan."""

    fwhm: float = 6

    def steps(self, inputs, scratch):
        from gpumask import NiftiLabelsMasker
        from gpumask.engine.plan import compile_plan
        from gpumask.images.labels import load_atlas
        from gpumask.kernels.segments import Segments

        path = str(inputs.atlas())
        atlas = load_atlas(path, 0)
        ids = [value for value in atlas.values if value != 0]
        volumes = [str(inputs.bold(suffix=".nii", first=n)) for n in (10, 20)]
        options = {"smoothing_fwhm": self.fwhm, "standardize": None, "device": "cpu"}

        def compile_it():
            segments = Segments.from_labels(atlas.labels.ravel(order="F"), ids)
            _ = compile_plan(segments, atlas.grid, smoothing_fwhm=self.fwhm).segments.blocks  # made when used

        def extract(run, **more):
            NiftiLabelsMasker(path, **options, **more).fit_transform(run)

        def remember():
            extract(volumes[0], memory=scratch)

        return {
            "compile": compile_it,
            "first run": lambda: extract(volumes[1]),
            "first run, filling `memory`": remember,
            "first run, plan in `memory`": lambda: extract(volumes[1], memory=scratch),
        }


@dataclass(frozen=True)
class Decoding(Workload):
    """The floor of a compressed run: decompressing the very file with isal into one reused buffer, nothing else."""

    run: dict = field(default_factory=dict)

    @property
    def n_volumes(self):
        return self.run.get("n_volumes", 200)

    def steps(self, inputs, scratch):
        from isal import igzip

        path = inputs.bold(**self.run)
        buffer = bytearray(1 << 20)

        def decode():
            with igzip.open(path) as file:
                while file._buffer.readinto(buffer):
                    pass

        return {"next": decode}


@dataclass(frozen=True)
class Command(Workload):
    """A Python process with these arguments, its start included."""

    arguments: tuple
    in_process = False

    def steps(self, inputs, scratch):
        def run():
            subprocess.run([sys.executable, *self.arguments], check=True, stdout=subprocess.DEVNULL)

        return {"next": run}


@dataclass(frozen=True)
class Parcellation(Workload):
    """Means of the parcels of dense series, to `.ptseries.nii`: one command of gpumask's, or Workbench's for each.

    gpumask's command writes tables and sidecars too.

    Attributes
    ----------
    tool : {"gpumask", "wb_command"}
    runs : tuple of dict
        Parameters of `Inputs.dense_series`.
    atlases : tuple of dict
        Parameters of `Inputs.dense_atlas`.
    """

    tool: str
    runs: tuple = ({},)
    atlases: tuple = ({},)
    in_process = False

    @property
    def n_volumes(self):
        return sum(run.get("n_volumes", 400) for run in self.runs)

    def missing(self):
        found = self.tool != "wb_command" or shutil.which("wb_command")
        return "" if found else "wb_command is not installed (apt-get install connectome-workbench)"

    def steps(self, inputs, scratch):
        import nibabel as nib

        runs = [inputs.dense_series(**run) for run in self.runs]
        atlases = [inputs.dense_atlas(**made) for made in self.atlases]
        ours = "{run}_atlas-{atlas}_stat-mean_timeseries.ptseries.nii"
        outs = {
            (run, atlas): scratch / ours.format(run=run.name.removesuffix(".dtseries.nii"), atlas=f"p{number}")
            for number, atlas in enumerate(atlases)
            for run in runs
        }
        # Installed packages have their bytecode.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

        def extract():
            if self.tool == "gpumask":
                command = [
                    sys.executable,
                    "-m",
                    "gpumask",
                    "extract",
                    *runs,
                    "--cifti",
                    "--out",
                    scratch,
                    "--overwrite",
                ]
                command += ["--atlas", *(f"p{number}={atlas}" for number, atlas in enumerate(atlases)), "--quiet"]
                subprocess.run(command, check=True, env=environment)
            else:
                for (run, atlas), out in outs.items():
                    command = ["wb_command", "-cifti-parcellate", run, atlas, "COLUMN", out]
                    subprocess.run(command, check=True, capture_output=True)
            return [nib.load(out).get_fdata() for out in outs.values()]

        return {"next": extract}


# Other tools: the plain mean of a run on the atlas's own grid, all volumes in memory or on disk as each tool likes.


@dataclass(frozen=True)
class Peer(Workload):
    """Base of the other tools: `needs` is the module or the program, `install` how to get it."""

    run: dict = field(default_factory=lambda: {"suffix": ".nii"})

    @property
    def n_volumes(self):
        return self.run.get("first") or self.run.get("n_volumes", 200)

    def missing(self):
        found = importlib.util.find_spec(self.needs) if self.in_process else shutil.which(self.needs)
        return "" if found else f"{self.needs} is not installed ({self.install})"


class Scipy(Peer):
    """SciPy: what one writes by hand, a sparse matrix times all volumes."""

    needs, install = "scipy", "pip install scipy"

    def steps(self, inputs, scratch):
        import nibabel as nib
        import numpy as np
        import scipy.sparse

        run, atlas = inputs.bold(**self.run), inputs.atlas()

        def extract():
            volumes, labels = nib.load(run), np.asanyarray(nib.load(atlas).dataobj).ravel(order="F")
            voxels = np.flatnonzero(labels)
            _, regions, counts = np.unique(labels[voxels], return_inverse=True, return_counts=True)
            weights = scipy.sparse.csr_array((1 / counts[regions], (regions, voxels)), (len(counts), len(labels)))
            return [(weights @ np.asanyarray(volumes.dataobj).reshape(len(labels), -1, order="F")).T]

        return {"next": extract}


class Ants(Peer):
    """ANTsPy: two matrices and their product."""

    needs, install = "ants", "pip install antspyx"

    def steps(self, inputs, scratch):
        import ants

        run, atlas = str(inputs.bold(**self.run)), str(inputs.atlas())

        def extract():
            labels = ants.image_read(atlas)
            mask = ants.threshold_image(labels, 0.5)
            series = ants.timeseries_to_matrix(ants.image_read(run), mask)
            weights = ants.labels_to_matrix(labels, mask)
            return [series @ (weights / weights.sum(axis=1, keepdims=True)).T]

        return {"next": extract}


class SimpleItk(Peer):
    """SimpleITK: label statistics of each volume."""

    needs, install = "SimpleITK", "pip install SimpleITK"

    def steps(self, inputs, scratch):
        import numpy as np
        import SimpleITK

        run, atlas = str(inputs.bold(**self.run)), str(inputs.atlas())

        def extract():
            volumes, labels = SimpleITK.ReadImage(run), SimpleITK.ReadImage(atlas)
            statistics = SimpleITK.LabelStatisticsImageFilter()
            x, y, z, n_volumes = volumes.GetSize()
            rows = []
            for t in range(n_volumes):
                volume = SimpleITK.Extract(volumes, [x, y, z, 0], [0, 0, 0, t])
                volume.CopyInformation(labels)
                statistics.Execute(volume, labels)
                rows.append([statistics.GetMean(label) for label in sorted(statistics.GetLabels()) if label])
            return [np.array(rows)]

        return {"next": extract}


class ScikitImage(Peer):
    """scikit-image: region properties, the volumes as channels."""

    needs, install = "skimage", "pip install scikit-image"

    def steps(self, inputs, scratch):
        import nibabel as nib
        import numpy as np
        from skimage.measure import regionprops_table

        run, atlas = inputs.bold(**self.run), inputs.atlas()

        def extract():
            volumes, labels = (np.asanyarray(nib.load(path).dataobj) for path in (run, atlas))
            table = regionprops_table(labels, volumes, properties=("label", "mean_intensity"))
            return [np.array([table[f"mean_intensity-{t}"] for t in range(volumes.shape[3])])]

        return {"next": extract}


class Workbench(Peer):
    """Connectome Workbench: the atlas is imported untimed; then a dense series, its parcels, and text."""

    needs, install, in_process = "wb_command", "apt-get install connectome-workbench", False

    def steps(self, inputs, scratch):
        import nibabel as nib
        import numpy as np

        def command(*arguments):
            subprocess.run(["wb_command", *map(str, arguments)], check=True, capture_output=True, cwd=scratch)

        atlas = nib.load(inputs.atlas())
        labels = np.asanyarray(atlas.dataobj)
        nib.Nifti1Image((labels > 0).astype(np.int32), atlas.affine).to_filename(scratch / "brain_mask.nii.gz")
        names = [f"R{i}\n{i} {i % 255} {i // 255} 1 255\n" for i in np.unique(labels) if i]
        Path(scratch, "names.txt").write_text("".join(names))
        Path(scratch, "structures.txt").write_text("OTHER\n1 255 0 0 255\n")
        command("-volume-label-import", inputs.atlas().resolve(), "names.txt", "labels.nii.gz")
        command("-volume-label-import", "brain_mask.nii.gz", "structures.txt", "brain.nii.gz")
        command("-cifti-create-label", "a.dlabel.nii", "-volume", "labels.nii.gz", "brain.nii.gz")
        series = ("-volume", inputs.bold(**self.run).resolve(), "brain.nii.gz", "-timestep", T_R)

        def extract():
            command("-cifti-create-dense-timeseries", "b.dtseries.nii", *series)
            command("-cifti-parcellate", "b.dtseries.nii", "a.dlabel.nii", "COLUMN", "b.ptseries.nii")
            command("-cifti-convert", "-to-text", "b.ptseries.nii", "signals.txt")
            return [np.loadtxt(scratch / "signals.txt").T]

        return {"next": extract}


class Mrtrix(Peer):
    """MRtrix3: a mask per region, made untimed; then the statistics of each."""

    needs, install, in_process = "mrstats", "apt-get install mrtrix3", False

    def steps(self, inputs, scratch):
        import nibabel as nib
        import numpy as np

        def command(*arguments):
            done = subprocess.run([*map(str, arguments), "-quiet"], check=True, capture_output=True, cwd=scratch)
            return done.stdout.split()

        atlas, run = inputs.atlas().resolve(), inputs.bold(**self.run).resolve()
        ids = [label for label in np.unique(np.asanyarray(nib.load(atlas).dataobj)) if label]
        for label in ids:
            command("mrcalc", atlas, label, "-eq", f"{label}.mif", "-datatype", "bit")

        def extract():
            means = [command("mrstats", run, "-mask", f"{label}.mif", "-output", "mean") for label in ids]
            return [np.array(means, float).T]

        return {"next": extract}
