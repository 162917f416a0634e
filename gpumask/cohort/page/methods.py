"""Section of the page: what was done, in words."""

import html
from pathlib import Path

from gpumask.cohort.page.citation import LICENSE, paragraphs
from gpumask.cohort.page.markup import counted, html_table
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
from gpumask.confounds.denoising import preset_of
from gpumask.inputs import shortened

_LONGEST = 900  # characters of a cell


def section(methods: Methods) -> str:
    """Section of the page: a table for each way of processing, one of what they share, and the paragraphs."""
    if not methods.processings:
        return ""
    parts = ["<h2 id='methods'>What was done</h2>"]
    processings = list(methods.processings.values())
    own = [_words(processing) for processing in processings]
    if len(processings) > 1:
        shared, own = split_shared(own)
        parts.append(f"<h3>The same in all runs and denoisings</h3>{_table(shared)}" if shared else "")
    for processing, rows in zip(processings, own, strict=True):
        name = processing.how.get("denoising")
        title = f"Denoising {text_of(name)}" if name else "Settings"
        runs = counted(max(processing.runs.values()), "run")
        parts.append(f"<h3>{html.escape(title)}: {runs}</h3>{_table(rows)}")
    if methods.n_more:
        parts.append(f"<p>And {counted(methods.n_more, 'output')} made in other ways.</p>")
    texts, references = paragraphs(methods)
    listing = "".join(f"<li>{html.escape(reference)}</li>" for reference in references)
    parts.append(
        f"<h3>For a paper</h3><p><small>{LICENSE} It is in logs/CITATION.md too.</small></p><blockquote>"
        + "".join(f"<p>{html.escape(text)}</p>" for text in texts)
        + f"<ol>{listing}</ol></blockquote>"
    )
    return "".join(parts)


def _table(rows):
    return html_table((), [(html.escape(what), html.escape(words)) for what, words in rows]) if rows else ""


def _words(processing):
    """Rows of the table: what, and in words."""
    how, settings, confounds = processing.how, processing.how["settings"], processing.how.get("confounds") or {}
    rows = [("gpumask", text_of(how.get("version", "unknown")))]
    for name, (described, n_regions) in processing.atlases.items():
        files = (
            "an image of each run"
            if is_of_each_run(described)
            else ", ".join(
                f"{Path(file).name} (SHA-256 {text_of(digest)[:12]}…)" for file, digest in described["files"].items()
            )
        )
        size = "" if n_regions is None else f", {counted(n_regions, 'column')}"
        combined = combined_words(described)
        what = f"{_kind(described)}{f' of {combined}' if combined else ''}{size}: {files}"
        rows.append((f"Atlas {text_of(name)}", shortened(what, _LONGEST)))
    rows.append(("Signal", signal_words(how)))
    if settings.get("smoothing_fwhm") is not None:
        rows.append(("Smoothing", f"Gaussian, FWHM {text_of(settings['smoothing_fwhm'])} mm"))
    matched = "grayordinates of atlas and run are matched by vertex and voxel"
    rows.append(("Grid", matched if is_of_grayordinates(how) else _grid(settings)))
    rows.append(("First volumes", _dummies(how.get("dummy_scans"))))
    rows.append(("Censoring", _censoring(confounds)))
    if (words := OUTPUT_WORDS.get(text_of(how.get("output_type")))) is not None:
        rows.append(("Output", words))
    rows.append(("Confounds", _confounds(confounds)))
    rows.append(("Trend", "mean and linear trend removed" if settings.get("detrend") else "kept"))
    rows.append(("Filter", _filter(settings)))
    rows.append(("Units", standardized(settings) or "those of the images"))
    least = settings.get("min_coverage")
    rows.append(("Regions", "all are kept" if least is None else f"n/a if covered less than {text_of(least)}"))
    known = {
        *("smoothing_fwhm", "strategy", "resampling_target", "detrend", "low_pass", "high_pass", "standardize"),
        "min_coverage",
    }
    usual = {"nan_policy": ("omit", "zero"), "standardize_confounds": (True,), "keep_all_regions": (True,)}
    more = {
        key: value
        for key, value in settings.items()
        if key not in known and value not in (None, False, *usual.get(key, ())) and value != {}
    }
    if more:
        rows.append(("Further settings", text_of(more)))
    return rows


def _kind(described):
    kind = described.get("kind", "labels")
    if kind == "seeds":
        radius = described.get("radius")
        return "seeds" + (f" with spheres of {text_of(radius)} mm" if is_number(radius) else "")
    return text_of(kind)


def _grid(settings):
    target = settings.get("resampling_target")
    return {
        "data": "the atlas is resampled to each run, if they differ",
        "labels": "runs are resampled to the atlas, if they differ",
    }.get(target if isinstance(target, str) else "", "as it is: atlas and runs have one grid")


def _dummies(dummy_scans):
    if dummy_scans in (0, None):
        return "kept"
    if dummy_scans == "auto":
        return "those that the confounds table marks as before the steady state are dropped"
    return f"{text_of(dummy_scans)} are dropped"


def _censoring(confounds):
    if not isinstance(confounds, dict):
        return "none"
    fd, dvars, scrub = (confounds.get(key) for key in ("fd_threshold", "std_dvars_threshold", "scrub"))
    limits = [f"framewise displacement above {text_of(fd)} mm"] * (fd is not None)
    limits += [f"standardized DVARS above {text_of(dvars)}"] * (dvars is not None)
    short = f"; fewer than {text_of(scrub)} volumes between them" if scrub else ""
    strategy = confounds.get("strategy")
    scrubs = isinstance(strategy, str) and strategy.startswith("scrubbing")
    words = f"volumes with {' or '.join(limits)}{short}" if limits else ""
    if (motion_filter := confounds.get("motion_filter")) is not None:
        words += f"{'; ' * bool(words)}motion parameters filtered ({text_of(motion_filter)} breaths per minute)"
    return "; ".join(filter(None, [words, "by the strategy scrubbing" * scrubs])) or "none"


def _confounds(confounds):
    if not isinstance(confounds, dict):
        return text_of(confounds)
    if columns := confounds.get("columns"):
        if not isinstance(columns, list):
            return text_of(columns)
        if any(set("*?[") & set(str(name)) for name in columns):  # each run's table decides how many columns fit
            return expanded(columns)
        named = f"; the preset {preset}" if (preset := preset_of(confounds)) else ""
        return f"{expanded(columns)} ({counted(len(columns), 'column')}{named})"
    strategy = confounds.get("strategy")
    return f"nilearn's strategy {text_of(strategy)}" if strategy else "none are removed"


def _filter(settings):
    low, high = settings.get("low_pass"), settings.get("high_pass")
    if not is_number(low) and not is_number(high):
        return "none"
    if is_number(low) and is_number(high):
        return f"Butterworth, {high:g} to {low:g} Hz"
    return f"Butterworth, below {low:g} Hz" if is_number(low) else f"Butterworth, above {high:g} Hz"
