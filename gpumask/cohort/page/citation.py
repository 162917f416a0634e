"""Methods of a cohort as a text for a paper, with references."""

from collections import ChainMap
from typing import NamedTuple

from gpumask.cohort.page.markup import counted
from gpumask.cohort.page.processing import (
    OUTPUT_WORDS,
    Methods,
    combined_words,
    expanded,
    is_number,
    is_of_each_run,
    is_of_grayordinates,
    signal_words,
    split_shared,
    standardized,
    text_of,
)
from gpumask.confounds.denoising import PRESETS, preset_of
from gpumask.references import REFERENCES

LICENSE = "This text is in the public domain (CC0): copy it unchanged, or edit it."
"""What others may do with the text."""
_MOTION = "the six motion parameters, their derivatives, and the squares of both"
_STRATEGIES = {  # of those that are presets, the other sources are the presets'
    "simple": f"{_MOTION}, the mean signals of white matter and cerebrospinal fluid, and slow cosines",
    "scrubbing": f"{_MOTION}, the mean signals of white matter and cerebrospinal fluid with their derivatives and "
    "squares, and slow cosines; volumes with motion, and short segments between them, are censored {power}",
    "compcor": f"{_MOTION}, the components of white matter and cerebrospinal fluid (aCompCor), and slow cosines",
    "ica_aroma": "the mean signals of white matter and cerebrospinal fluid, and slow cosines, from images of which "
    "ICA-AROMA {pruim} had removed motion",
}
_MOTION_FILTERS = {
    "notch": "A notch filter removed {band} breaths per minute from the motion parameters {fair}",
    "lowpass": "A low-pass filter kept up to {band} breaths per minute of the motion parameters {gratton}",
}


def citation(methods: Methods) -> str:
    """The paragraph and its references in Markdown, for ``logs/CITATION.md``."""
    texts, references = paragraphs(methods)
    lines = ["# Methods", "", f"*{LICENSE}*", ""]
    for text in texts:
        lines += [text, ""]
    lines += ["# References", "", *(f"{number}. {reference}" for number, reference in enumerate(references, start=1))]
    return "\n".join(lines) + "\n"


class _Sentence(NamedTuple):
    """A sentence: a template for ``str.format``, whose fields are among the values, or keys of references."""

    template: str
    values: dict[str, str] = {}  # noqa: RUF012 - never written to


class _Numbers(dict):
    """Numbers of references by their keys, in the order of their first use."""

    def __missing__(self, key):
        self[key] = f"[{len(self) + 1}]"
        return self[key]


def paragraphs(methods: Methods) -> tuple[list[str], list[str]]:
    """Paragraphs for a paper, and their references.

    With several ways of processing, the first paragraph has what they share, and each has one with the rest.
    """
    processings = list(methods.processings.values())
    sentences = [list(_sentences(processing)) for processing in processings]
    if len(processings) == 1:
        of_paragraphs = [[_extraction(processings[0], f" of {_runs(processings[0])}"), *sentences[0]]]
    else:
        shared, own = split_shared([[_extraction(p), *s] for p, s in zip(processings, sentences, strict=True)])
        of_paragraphs = [shared] if shared else []
        of_paragraphs += [[_lead(p), *(s or [_AS_ABOVE])] for p, s in zip(processings, own, strict=True)]
    numbers = _Numbers()
    texts = [
        " ".join(template.format_map(ChainMap(values, numbers)) for template, values in one) for one in of_paragraphs
    ]
    return texts, [REFERENCES[key] for key in numbers]


_AS_ABOVE = _Sentence("All is as described above.")


def _runs(processing):
    return counted(max(processing.runs.values()), "run").replace("\u202f", " ")


def _lead(processing):
    name = processing.how.get("denoising")
    named = {"name": text_of(name) if name else "", "runs": _runs(processing)}
    return _Sentence("Denoising {name} ({runs}):" if name else "{runs}, without the name of a denoising:", named)


def _extraction(processing, of_runs=""):
    name = processing.how.get("denoising") if of_runs else None
    return _Sentence(
        "Time series{runs} were extracted{named} with gpumask {version}, which computes what the maskers of nilearn "
        "compute {nilearn}, and uses NumPy {numpy}, SciPy {scipy} and NiBabel {nibabel}.",
        {
            "runs": of_runs,
            "named": f" (denoising {text_of(name)})" if name else "",
            "version": text_of(processing.how.get("version", "")),
        },
    )


def _atlas_words(name, described, n):
    facts = [f"{n} columns"] * (n is not None)
    facts += ["each run's own image"] * is_of_each_run(described)
    if combined := combined_words(described):
        facts.append(combined)
    return text_of(name) + (f" ({', '.join(facts)})" if facts else "")


def _sentences(processing):
    """What was done after the extraction. Each can stand without those before it, as others may share only some."""
    how, settings, confounds = processing.how, processing.how["settings"], processing.how.get("confounds") or {}
    confounds = confounds if isinstance(confounds, dict) else {}
    atlases = [_atlas_words(name, *facts) for name, facts in processing.atlases.items()]
    these = "the atlas" if len(atlases) == 1 else "the atlases"
    yield _Sentence(f"Regions are those of {these} {{atlases}}.", {"atlases": ", ".join(atlases)})
    yield _Sentence("Each signal is {signal}.", {"signal": signal_words(how).replace("each region", "the region")})
    if settings.get("smoothing_fwhm") is not None:
        fwhm = {"fwhm": text_of(settings["smoothing_fwhm"])}
        yield _Sentence("Volumes were smoothed with a Gaussian kernel of {fwhm} mm FWHM.", fwhm)
    dummies = how.get("dummy_scans")
    if dummies == "auto" and (confounds or processing.has_dummies):
        yield _Sentence(
            "Volumes that the confounds tables of fMRIPrep {fmriprep} mark as non-steady state were dropped."
        )
    elif dummies not in ("auto", 0, None):
        yield _Sentence("The first {n} volumes of each run were dropped.", {"n": text_of(dummies)})
    if (motion_filter := confounds.get("motion_filter")) is not None:
        kind, _, band = text_of(motion_filter).partition(":")
        words = _MOTION_FILTERS.get(kind, _MOTION_FILTERS["lowpass"])
        yield _Sentence(f"{words} before framewise displacement was computed.", {"band": band.replace("-", " to ")})
    for key, measure in (("fd_threshold", "framewise displacement"), ("std_dvars_threshold", "standardized DVARS")):
        if (limit := confounds.get(key)) is not None:
            above = {"limit": text_of(limit) + " mm" * (key == "fd_threshold")}
            yield _Sentence(f"Volumes with a {measure} {{power}} above {{limit}} were censored.", above)
    if confounds.get("scrub"):
        yield _Sentence(
            "Segments of fewer than {n} volumes between censored ones were censored too.",
            {"n": text_of(confounds["scrub"])},
        )
    if (words := OUTPUT_WORDS.get(text_of(how.get("output_type")))) is not None:
        yield _Sentence(f"{words[0].upper()}{words[1:]}.")
    yield from _cleaning(settings, confounds)
    least = settings.get("min_coverage")
    if is_number(least) and least > 0:
        if is_of_grayordinates(how):
            few = f"of which a run has less than {least:.0%} of the grayordinates"
        else:
            few = f"less than {least:.0%} within the field of view and the brain mask"
        yield _Sentence(f"Regions {few} are missing values.")


def _cleaning(settings, confounds):
    if settings.get("detrend"):
        yield _Sentence("Mean and linear trend of each signal were removed.")
    low, high = settings.get("low_pass"), settings.get("high_pass")
    is_filtered = is_number(low) or is_number(high)
    if is_filtered:
        bounds = [f"{side} {at:g} Hz" for side, at in (("above", high), ("below", low)) if is_number(at)]
        yield _Sentence(f"A Butterworth filter passed frequencies {' and '.join(bounds)}.")
        if confounds:
            yield _Sentence("Censored volumes were replaced by a cubic spline for the filter, and removed after it.")
    strategy, columns = confounds.get("strategy"), confounds.get("columns")
    preset = preset_of(confounds)
    sources = PRESETS[preset.removesuffix("+gsr")].sources if preset else ("wang",)
    cited = ", ".join(f"{{{key}}}" for key in sources)
    if strategy or columns:
        also = ", after filtering them like the signals {lindquist}" if is_filtered else ""
        tables = "Confounds from the tables of fMRIPrep {fmriprep}"
        yield _Sentence(f"{tables} were removed from the signals by linear regression{also}.")
    if isinstance(strategy, str):
        base = strategy.removesuffix("+gsr")
        what = _STRATEGIES.get(base, "")
        gsr = ", with the global signal" if strategy.endswith("+gsr") else ""
        they_are = 'The confounds are those of nilearn\'s strategy "{strategy}"'
        yield _Sentence(f"{they_are}{gsr} {cited}{f': {what}' if what else ''}.", {"strategy": text_of(base)})
    elif isinstance(columns, list):
        of_preset = f" ({preset} {cited})" if preset else ""
        yield _Sentence(f"The confounds{of_preset} are {{columns}}.", {"columns": expanded(columns)})
    if (words := standardized(settings)) is not None:
        yield _Sentence(f"Signals were standardized {words}.")
