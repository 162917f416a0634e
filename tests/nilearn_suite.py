"""A pytest plugin that puts gpumask's NiftiLabelsMasker in the place of nilearn's, for nilearn's own tests.

pytest -p nilearn_suite --pyargs nilearn.maskers.tests.test_nifti_labels_masker
"""

import nilearn.maskers
import nilearn.regions.parcellations

from gpumask import NiftiLabelsMasker

# Before `nilearn._utils.estimator_checks` is imported, which binds the name.
nilearn.maskers.NiftiLabelsMasker = nilearn.regions.parcellations.NiftiLabelsMasker = NiftiLabelsMasker
