"""A pytest plugin that puts gpumask's maskers and functions in the place of nilearn's, for nilearn's own tests.

pytest -p nilearn_suite --pyargs nilearn.maskers.tests.test_nifti_labels_masker
"""

import nilearn.image.image
import nilearn.maskers._mixin
import nilearn.regions.parcellations
import nilearn.signal

import gpumask

# Before `nilearn._utils.estimator_checks` and the tests are imported, which bind the names.
nilearn.maskers.NiftiLabelsMasker = nilearn.regions.parcellations.NiftiLabelsMasker = gpumask.NiftiLabelsMasker
nilearn.maskers.MultiNiftiLabelsMasker = gpumask.MultiNiftiLabelsMasker
nilearn.maskers.NiftiSpheresMasker = gpumask.NiftiSpheresMasker
nilearn.maskers.NiftiMasker, nilearn.maskers.MultiNiftiMasker = gpumask.NiftiMasker, gpumask.MultiNiftiMasker
nilearn.maskers.NiftiMapsMasker, nilearn.maskers.MultiNiftiMapsMasker = (
    gpumask.NiftiMapsMasker,
    gpumask.MultiNiftiMapsMasker,
)
nilearn.signal.clean = gpumask.signal.clean
for module in (nilearn.image, nilearn.image.image):
    module.clean_img, module.smooth_img = gpumask.clean_img, gpumask.smooth_img
# What `isinstance` tells the checks that a masker takes lists of confounds.
nilearn.maskers._mixin._MultiMixin = (
    nilearn.maskers._mixin._MultiMixin,
    gpumask.MultiNiftiLabelsMasker,
    gpumask.MultiNiftiMasker,
    gpumask.MultiNiftiMapsMasker,
)
