"""nilearn's own tests of its labels and maps maskers and of `clean`, from its wheel, with gpumask's in their place."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("polars", reason="nilearn's tests need polars")
pytest.importorskip("numpydoc", reason="nilearn's tests need numpydoc")

# The checks of estimators run for two maskers of each class. What fails, and why:
EITHER_MASKER = {
    "check_tags": "private: _more_tags(), for scikit-learn before 1.6",
    "check_doc_link": "private: the link to the documentation must lead to nilearn's",
    "check_masker_joblib_cache": "private: nilearn.image.get_data, called on mask_img_, changes it the first time",
    "check_img_estimator_dtypes_inverse_transform": "nilearn's defect: int32 data under an int64 header",
    "check_masker_generate_report": "private: _report_content and _has_report_data()",
    "check_masker_generate_report_false": "private: _has_report_data(); ours raises instead of an empty report",
    "check_nifti_masker_generate_report_after_fit_with_only_mask": "private: _report_warnings",
}
NO_FUTURE = "keep_masked_maps stays, without nilearn's FutureWarning"
OF_MAPS = {
    "check_img_estimator_dict_unchanged": "`transform` adds plan_ and seconds_, which describe the last run",
}
EXPECTED = {
    "nilearn.maskers.tests.test_nifti_labels_masker": EITHER_MASKER
    | {"check_nifti_masker_fit_transform_5d": "private: expects nilearn's own DimensionError; ours is a TypeError too"},
    "nilearn.maskers.tests.test_multi_nifti_labels_masker": EITHER_MASKER
    | {
        "check_doc_attributes": "the documentation refers to NiftiLabelsMasker's for the parameters that both have",
        "check_multimasker_generate_report": "private: _report_content",
    },
    "nilearn.maskers.tests.test_nifti_maps_masker": EITHER_MASKER
    | OF_MAPS
    | {"check_nifti_masker_fit_transform_5d": "private: expects nilearn's own DimensionError; ours is a TypeError too"}
    | dict.fromkeys(("test_resampling_to_mask", "test_resampling_to_maps", "test_clipped_mask"), NO_FUTURE),
    "nilearn.maskers.tests.test_multi_nifti_maps_masker": EITHER_MASKER
    | OF_MAPS
    | {
        "check_doc_attributes": "the documentation refers to NiftiMapsMasker's for the parameters that both have",
        "check_multimasker_generate_report": "private: _report_content",
        "test_multi_nifti_maps_masker": NO_FUTURE,
    },
    "nilearn.tests.test_signal": {
        "test_clean_detrending": "no FutureWarning about booleans as `standardize`",
        "test_clean_standardize_true_false": "no FutureWarning about booleans as `standardize`",
        "test_clean_standardize_none": "the filter must have the bits of nilearn's; ours differs by 1e-14",
    },
}
# Once per module, not for each masker class.
ONCE = {"nilearn.maskers.tests.test_multi_nifti_maps_masker": ["test_errors"]}  # private: nilearn's own DimensionError
AT_LEAST = dict(zip(EXPECTED, (185, 120, 115, 100, 27), strict=True))
# Tests of what is private to nilearn, or isn't `clean`: they would only test nilearn.
NOT_OURS = (
    "test_butterworth or cosine_drift or handle_scrubbed or mean_of_squares or row_sum_of_squares or test_detrend "
    "or test_standardize or test_high_variance"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The modules' runs, all at once: by module, the process and the file of its report."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "pytest", "-p", "nilearn_suite", "-p", "no:cacheprovider", "-q", "--tb=line"]
    command += ["-rfE", "--disable-warnings", "-k", f"not ({NOT_OURS})", "--pyargs"]
    started = {}
    for module in EXPECTED:
        folder = tmp_path_factory.mktemp("suite")
        with (folder / "report.txt").open("w") as out:
            process = subprocess.Popen([*command, module], cwd=folder, env=environment, stdout=out, stderr=out)
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
    times = 1 if module == "nilearn.tests.test_signal" else 2
    assert Counter(failed) == Counter([*EXPECTED[module]] * times + ONCE.get(module, [])), report
    assert counts["failed"] == len(failed), report
    assert counts["passed"] >= AT_LEAST[module], report
