"""A pytest plugin that puts gpumask's maskers and `clean` in the place of nilearn's, for nilearn's own tests.

pytest -p nilearn_suite --pyargs nilearn.maskers.tests.test_nifti_labels_masker
"""

import nilearn.maskers._mixin
import nilearn.regions.parcellations
import nilearn.signal

import gpumask

# Before `nilearn._utils.estimator_checks` and the tests are imported, which bind the names.
nilearn.maskers.NiftiLabelsMasker = nilearn.regions.parcellations.NiftiLabelsMasker = gpumask.NiftiLabelsMasker
nilearn.maskers.MultiNiftiLabelsMasker = gpumask.MultiNiftiLabelsMasker
nilearn.maskers.NiftiMapsMasker, nilearn.maskers.MultiNiftiMapsMasker = (
    gpumask.NiftiMapsMasker,
    gpumask.MultiNiftiMapsMasker,
)
nilearn.signal.clean = gpumask.signal.clean
# What `isinstance` tells the checks that a masker takes lists of confounds.
nilearn.maskers._mixin._MultiMixin = (
    nilearn.maskers._mixin._MultiMixin,
    gpumask.MultiNiftiLabelsMasker,
    gpumask.MultiNiftiMapsMasker,
)
