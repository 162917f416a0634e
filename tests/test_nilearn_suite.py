"""nilearn's own tests of its maskers and functions, from its wheel, with gpumask's in their place."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("polars", reason="nilearn's tests need polars")
pytest.importorskip("numpydoc", reason="nilearn's tests need numpydoc")

# The checks of estimators run for each masker (for two of each class for labels). What fails, and why:
EITHER_MASKER = {
    "check_tags": "private: _more_tags(), for scikit-learn before 1.6",
    "check_doc_link": "private: the link to the documentation must lead to nilearn's",
    "check_masker_joblib_cache": "private: nilearn.image.get_data, called on mask_img_, changes it the first time",
    "check_img_estimator_dtypes_inverse_transform": "nilearn's defect: int32 data under an int64 header",
    "check_masker_generate_report": "private: _report_content and _has_report_data()",
    "check_masker_generate_report_false": "private: _has_report_data(); ours raises instead of an empty report",
    "check_nifti_masker_generate_report_after_fit_with_only_mask": "private: _report_warnings",
}
OTHER_MASKER = EITHER_MASKER | {
    "check_img_estimator_dict_unchanged": "`transform` sets plan_ and seconds_; the check allows that for labels",
}
A_5D_IMAGE = {
    "check_nifti_masker_fit_transform_5d": "private: expects nilearn's own DimensionError; ours is a TypeError too"
}
SEVERAL_RUNS = {
    "check_doc_attributes": "the documentation refers to the single-run masker's for the parameters that both have",
    "check_multimasker_generate_report": "private: _report_content",
}
NO_FUTURE = "keep_masked_maps stays, without nilearn's FutureWarning"
EXPECTED = {
    "nilearn.maskers.tests.test_nifti_labels_masker": EITHER_MASKER | A_5D_IMAGE,
    "nilearn.maskers.tests.test_multi_nifti_labels_masker": EITHER_MASKER | SEVERAL_RUNS,
    "nilearn.maskers.tests.test_nifti_masker": OTHER_MASKER | A_5D_IMAGE,
    "nilearn.maskers.tests.test_multi_nifti_masker": OTHER_MASKER | SEVERAL_RUNS,
    "nilearn.image.tests.test_image": {},
    "nilearn.maskers.tests.test_nifti_spheres_masker": OTHER_MASKER
    | A_5D_IMAGE
    | {"test_sphere_extraction": "the mean must have the bits of NumPy's; ours differs in the last one"},
    "nilearn.maskers.tests.test_nifti_maps_masker": OTHER_MASKER
    | A_5D_IMAGE
    | dict.fromkeys(("test_resampling_to_mask", "test_resampling_to_maps", "test_clipped_mask"), NO_FUTURE),
    "nilearn.maskers.tests.test_multi_nifti_maps_masker": OTHER_MASKER
    | SEVERAL_RUNS
    | {"test_multi_nifti_maps_masker": NO_FUTURE, "test_errors": "private: nilearn's own DimensionError"},
    "nilearn.tests.test_signal": {
        "test_clean_detrending": "no FutureWarning about booleans as `standardize`",
        "test_clean_standardize_true_false": "no FutureWarning about booleans as `standardize`",
        "test_clean_standardize_none": "the filter must have the bits of nilearn's; ours differs by 1e-14",
    },
}
# A check runs for one masker of the class or for two, and a test for each of its parameters.
FAILURES = dict(zip(EXPECTED, (16, 18, 9, 10, 0, 19, 24, 23, 3), strict=True))
AT_LEAST = dict(zip(EXPECTED, (185, 120, 80, 70, 14, 122, 115, 100, 27), strict=True))
# Tests of what is private to nilearn, or isn't `clean`: they would only test nilearn.
NOT_OURS = (
    "test_butterworth or cosine_drift or handle_scrubbed or mean_of_squares or row_sum_of_squares or test_detrend "
    "or test_standardize or test_high_variance"
)
# test_clean_img_error begins with a surface image.
OURS = {"nilearn.image.tests.test_image": "(smooth_img or clean_img) and not surface and not clean_img_error"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The modules' runs, all at once: by module, the process and the file of its report."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "pytest", "-p", "nilearn_suite", "-p", "no:cacheprovider", "-q", "--tb=line"]
    command += ["-rfE", "--disable-warnings", "--pyargs"]
    started = {}
    for module in EXPECTED:
        folder = tmp_path_factory.mktemp("suite")
        with (folder / "report.txt").open("w") as out:
            chosen = ["-k", OURS.get(module, f"not ({NOT_OURS})"), module]
            process = subprocess.Popen([*command, *chosen], cwd=folder, env=environment, stdout=out, stderr=out)
        started[module] = process, folder / "report.txt"
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("module", EXPECTED)
def test_nilearns_suite_fails_only_where_expected(module, runs):
    process, path = runs[module]
    process.wait(timeout=600)
    report = path.read_text()
    counts = Counter({what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|errors?)\b", report)})
    lines = [line for line in report.splitlines() if line.startswith(("FAILED", "ERROR"))]
    failed = [re.sub(r".*::(\w+)(\[estimator\d+-\w+-(\w+)\])?.*", lambda m: m[3] or m[1], line) for line in lines]
    assert set(failed) == set(EXPECTED[module]), report
    assert counts["failed"] == len(failed) == FAILURES[module], report
    assert counts["passed"] >= AT_LEAST[module], report
