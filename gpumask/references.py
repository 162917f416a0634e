"""Publications that texts cite."""

import re

REFERENCES = {
    "nilearn": "Abraham A, Pedregosa F, Eickenberg M, et al. (2014). Machine learning for neuroimaging with "
    "scikit-learn. Frontiers in Neuroinformatics 8:14. doi:10.3389/fninf.2014.00014",
    "numpy": "Harris CR, Millman KJ, van der Walt SJ, et al. (2020). Array programming with NumPy. Nature "
    "585:357-362. doi:10.1038/s41586-020-2649-2",
    "scipy": "Virtanen P, Gommers R, Oliphant TE, et al. (2020). SciPy 1.0: fundamental algorithms for scientific "
    "computing in Python. Nature Methods 17:261-272. doi:10.1038/s41592-019-0686-2",
    "nibabel": "Brett M, Markiewicz CJ, Hanke M, et al. NiBabel: access a cacophony of neuro-imaging file formats. "
    "Zenodo. doi:10.5281/zenodo.591597",
    "fmriprep": "Esteban O, Markiewicz CJ, Blair RW, et al. (2019). fMRIPrep: a robust preprocessing pipeline for "
    "functional MRI. Nature Methods 16:111-116. doi:10.1038/s41592-018-0235-4",
    "power": "Power JD, Barnes KA, Snyder AZ, Schlaggar BL, Petersen SE (2012). Spurious but systematic "
    "correlations in functional connectivity MRI networks arise from subject motion. NeuroImage "
    "59:2142-2154. doi:10.1016/j.neuroimage.2011.10.018",
    "fair": "Fair DA, Miranda-Dominguez O, Snyder AZ, et al. (2020). Correction of respiratory artifacts in MRI head "
    "motion estimates. NeuroImage 208:116400. doi:10.1016/j.neuroimage.2019.116400",
    "gratton": "Gratton C, Dworetsky A, Coalson RS, et al. (2020). Removal of high frequency contamination from motion "
    "estimates in single-band fMRI saves data without biasing functional connectivity. NeuroImage 217:116866. "
    "doi:10.1016/j.neuroimage.2020.116866",
    "friston": "Friston KJ, Williams S, Howard R, Frackowiak RSJ, Turner R (1996). Movement-related effects in fMRI "
    "time-series. Magnetic Resonance in Medicine 35:346-355. doi:10.1002/mrm.1910350312",
    "satterthwaite": "Satterthwaite TD, Elliott MA, Gerraty RT, et al. (2013). An improved framework for confound "
    "regression and filtering for control of motion artifact in the preprocessing of resting-state functional "
    "connectivity data. NeuroImage 64:240-256. doi:10.1016/j.neuroimage.2012.08.052",
    "ciric": "Ciric R, Wolf DH, Power JD, et al. (2017). Benchmarking of participant-level confound regression "
    "strategies for the control of motion artifact in studies of functional connectivity. NeuroImage 154:174-187. "
    "doi:10.1016/j.neuroimage.2017.03.020",
    "behzadi": "Behzadi Y, Restom K, Liau J, Liu TT (2007). A component based noise correction method (CompCor) for "
    "BOLD and perfusion based fMRI. NeuroImage 37:90-101. doi:10.1016/j.neuroimage.2007.04.042",
    "muschelli": "Muschelli J, Nebel MB, Caffo BS, Barber AD, Pekar JJ, Mostofsky SH (2014). Reduction of "
    "motion-related artifacts in resting state fMRI using aCompCor. NeuroImage 96:22-35. "
    "doi:10.1016/j.neuroimage.2014.03.028",
    "pruim": "Pruim RHR, Mennes M, van Rooij D, Llera A, Buitelaar JK, Beckmann CF (2015). ICA-AROMA: a robust "
    "ICA-based strategy for removing motion artifacts from fMRI data. NeuroImage 112:267-277. "
    "doi:10.1016/j.neuroimage.2015.02.064",
    "lindquist": "Lindquist MA, Geuter S, Wager TD, Caffo BS (2019). Modular preprocessing pipelines can reintroduce "
    "artifacts into fMRI data. Human Brain Mapping 40:2358-2376. doi:10.1002/hbm.24528",
    "wang": "Wang HT, Meisler SL, Sharmarke H, et al. (2024). Continuous evaluation of denoising strategies in "
    "resting-state fMRI connectivity using fMRIPrep and Nilearn. PLOS Computational Biology 20:e1011942. "
    "doi:10.1371/journal.pcbi.1011942",
}
"""Text of each reference, by a short key."""


def short_reference(key: str) -> str:
    """First author and year of a reference: "Friston 1996"; without a year, the author alone."""
    author, year = re.match(r"(\w+)(?:.*? \((\d{4})\)\.)?", REFERENCES[key]).groups()  # type: ignore[union-attr]
    return f"{author} {year}" if year else author
