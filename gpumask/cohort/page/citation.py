"""Methods of a cohort as a text for a paper, with references."""

from gpumask.cohort.page.markup import counted
from gpumask.cohort.page.processing import (
    OUTPUT_WORDS,
    Methods,
    expanded,
    is_number,
    is_of_grayordinates,
    signal_words,
    standardized,
    text_of,
)

LICENSE = "This text is in the public domain (CC0): copy it unchanged, or edit it."
"""What others may do with the text."""
_MOTION = "the six motion parameters, their derivatives, and the squares of both {friston}"
_STRATEGIES = {
    "simple": f"{_MOTION}, the mean signals of white matter and cerebrospinal fluid, and slow cosines",
    "scrubbing": f"{_MOTION}, the mean signals of white matter and cerebrospinal fluid with their derivatives and "
    "squares, and slow cosines; volumes with motion, and short segments between them, are censored {power}",
    "compcor": f"{_MOTION}, the components of white matter and cerebrospinal fluid (aCompCor {{behzadi}}), and slow "
    "cosines",
    "ica_aroma": "the mean signals of white matter and cerebrospinal fluid, and slow cosines, from images of which "
    "ICA-AROMA {pruim} had removed motion",
}
_MOTION_FILTERS = {
    "notch": ("A notch filter removed {} breaths per minute from the motion parameters", "fair"),
    "lowpass": ("A low-pass filter kept up to {} breaths per minute of the motion parameters", "gratton"),
}
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
    "behzadi": "Behzadi Y, Restom K, Liau J, Liu TT (2007). A component based noise correction method (CompCor) for "
    "BOLD and perfusion based fMRI. NeuroImage 37:90-101. doi:10.1016/j.neuroimage.2007.04.042",
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


def citation(methods: Methods) -> str:
    """The paragraph and its references in Markdown, for ``logs/CITATION.md``."""
    texts, references = paragraphs(methods)
    lines = ["# Methods", "", f"*{LICENSE}*", ""]
    for text in texts:
        lines += [text, ""]
    lines += ["# References", "", *(f"{number}. {reference}" for number, reference in enumerate(references, start=1))]
    return "\n".join(lines) + "\n"


class _Citing:
    """Numbers of references in the order of their first use."""

    def __init__(self):
        self.keys = []

    def __call__(self, *keys):
        self.keys += [key for key in keys if key not in self.keys]
        return "[" + ", ".join(str(self.keys.index(key) + 1) for key in keys) + "]"


def paragraphs(methods: Methods) -> tuple[list[str], list[str]]:
    """Paragraphs for a paper, one for each way of processing, and their references."""
    cite = _Citing()
    texts = [" ".join(_sentences(processing, cite)) for processing in methods.processings.values()]
    return texts, [REFERENCES[key] for key in cite.keys]


def _sentences(processing, cite):
    how, settings, confounds = processing.how, processing.how["settings"], processing.how.get("confounds") or {}
    confounds = confounds if isinstance(confounds, dict) else {}
    n_runs = counted(max(processing.runs.values()), "run").replace("\u202f", " ")
    name = how.get("denoising")
    named = f" (denoising {text_of(name)})" if name else ""
    yield (
        f"Time series of {n_runs} were extracted{named} with gpumask {text_of(how.get('version', ''))}, which "
        f"computes what the maskers of nilearn compute {cite('nilearn')}, and uses NumPy {cite('numpy')}, SciPy "
        f"{cite('scipy')} and NiBabel {cite('nibabel')}."
    )
    atlases = [
        f"{text_of(atlas)}{'' if n is None else f' ({n} columns)'}" for atlas, (_, n) in processing.atlases.items()
    ]
    yield f"Regions are those of {'the atlas' if len(atlases) == 1 else 'the atlases'} {', '.join(atlases)}."
    yield f"Each signal is {signal_words(how).replace('each region', 'the region')}."
    if settings.get("smoothing_fwhm") is not None:
        yield f"Volumes were smoothed with a Gaussian kernel of {text_of(settings['smoothing_fwhm'])} mm FWHM."
    dummies = how.get("dummy_scans")
    if dummies == "auto" and (confounds or processing.has_dummies):
        yield f"Volumes that the confounds tables of fMRIPrep {cite('fmriprep')} mark as non-steady state were dropped."
    elif dummies not in ("auto", 0, None):
        yield f"The first {text_of(dummies)} volumes of each run were dropped."
    if (motion_filter := confounds.get("motion_filter")) is not None:
        kind, _, band = text_of(motion_filter).partition(":")
        words, reference = _MOTION_FILTERS.get(kind, _MOTION_FILTERS["lowpass"])
        filtered = words.format(band.replace("-", " to "))
        yield f"{filtered} {cite(reference)} before framewise displacement was computed."
    if (limit := confounds.get("fd_threshold")) is not None:
        yield f"Volumes with a framewise displacement {cite('power')} above {text_of(limit)} mm were censored."
    if (limit := confounds.get("std_dvars_threshold")) is not None:
        yield f"Volumes with a standardized DVARS {cite('power')} above {text_of(limit)} were censored."
    if confounds.get("scrub"):
        yield f"Segments between them of fewer than {text_of(confounds['scrub'])} volumes were censored too."
    if (words := OUTPUT_WORDS.get(text_of(how.get("output_type")))) is not None:
        yield f"{words[0].upper()}{words[1:]}."
    yield from _cleaning(settings, confounds, cite)
    least = settings.get("min_coverage")
    if is_number(least) and least > 0:
        if is_of_grayordinates(how):
            yield f"Regions of which a run has less than {least:.0%} of the grayordinates are missing values."
        else:
            yield f"Regions less than {least:.0%} within the field of view and the brain mask are missing values."


def _cleaning(settings, confounds, cite):
    if settings.get("detrend"):
        yield "Mean and linear trend of each signal were removed."
    low, high = settings.get("low_pass"), settings.get("high_pass")
    is_filtered = is_number(low) or is_number(high)
    if is_filtered:
        bounds = [f"{side} {at:g} Hz" for side, at in (("above", high), ("below", low)) if is_number(at)]
        yield f"A Butterworth filter passed frequencies {' and '.join(bounds)}."
        if confounds:
            yield "Censored volumes were replaced by a cubic spline for the filter, and removed after it."
    strategy, columns = confounds.get("strategy"), confounds.get("columns")
    if isinstance(strategy, str):
        base = strategy.removesuffix("+gsr")
        what = _STRATEGIES.get(base, "")
        for key in ("friston", "power", "behzadi", "pruim"):
            if f"{{{key}}}" in what:
                what = what.replace(f"{{{key}}}", cite(key))
        gsr = ", with the global signal" if strategy.endswith("+gsr") else ""
        yield (
            f"Confounds were chosen from the tables of fMRIPrep {cite('fmriprep')} by nilearn's strategy "
            f'"{text_of(base)}"{gsr} {cite("wang")}{f": {what}" if what else ""}.'
        )
    elif isinstance(columns, list):
        yield f"Confounds were {expanded(columns)}, from the tables of fMRIPrep {cite('fmriprep')}."
    if strategy or columns:
        also = f", after filtering them like the signals {cite('lindquist')}" if is_filtered else ""
        yield f"They were removed from the signals by linear regression{also}."
    if (words := standardized(settings)) is not None:
        yield f"Signals were standardized {words}."
