"""nilearn's own tests of NiftiLabelsMasker, from its wheel, with gpumask's masker in its place."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("polars", reason="nilearn's tests need polars")
pytest.importorskip("numpydoc", reason="nilearn's tests need numpydoc")

# Checks that run for two estimators each, and why they fail.
EXPECTED = {
    "check_tags": "private: _more_tags(), for scikit-learn before 1.6",
    "check_doc_link": "private: the link to the documentation must lead to nilearn's",
    "check_nifti_masker_fit_transform_5d": "private: expects nilearn's own DimensionError; ours is a TypeError as well",
    "check_masker_joblib_cache": "private: nilearn.image.get_data, called on mask_img_, changes it the first time",
    "check_img_estimator_dtypes_inverse_transform": "nilearn's defect: int32 data under an int64 header",
    "check_masker_generate_report": "private: _report_content and _has_report_data()",
    "check_masker_generate_report_false": "private: _has_report_data(); ours raises instead of an empty report",
    "check_nifti_masker_generate_report_after_fit_with_only_mask": "private: _report_warnings",
}


def test_nilearns_suite_fails_only_where_expected(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "nilearn_suite", "-p", "no:cacheprovider", "-q", "--tb=no", "-rfE"]
    command += ["--disable-warnings", "--pyargs", "nilearn.maskers.tests.test_nifti_labels_masker"]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    report = run.stdout + run.stderr
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|errors?)\b", report)}
    lines = [line for line in report.splitlines() if line.startswith(("FAILED", "ERROR"))]
    failed = [re.sub(r".*test_check_estimator_nilearn\[estimator\d+-\w+-(\w+)\].*", r"\1", line) for line in lines]
    assert sorted(failed) == sorted([*EXPECTED] * 2), report
    assert counts["failed"] == len(failed), report
    assert counts["passed"] + counts["failed"] >= 200, report
