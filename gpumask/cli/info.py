"""``gpumask info``."""

import argparse
import sysconfig
from pathlib import Path


def command(args: argparse.Namespace) -> int:
    """Show versions, devices and decoders, or what presets remove; returns the exit status."""
    if args.denoise:
        from gpumask.confounds.denoising import PRESETS

        for name, preset in PRESETS.items():
            gsr = "" if preset.has_gsr else f"; {name}+gsr: global_signal too"
            print(f"{name:12}{preset.removes}{gsr}\n{'':12}({preset.source})")
        return 0
    from importlib import metadata

    from gpumask import devices
    from gpumask.cohort.contents import versions
    from gpumask.images import gzip_decoders
    from gpumask.kernels import compiled
    from gpumask.process import n_cores

    facts = versions(cupy=True)
    for name in ("nilearn", "isal", "rapidgzip", "cupy"):
        if any(known.startswith(name) for known in facts):
            continue
        try:
            facts = {**facts, name: metadata.version(name)}
        except metadata.PackageNotFoundError:
            facts = {**facts, name: "not installed"}
    driver, status = devices.driver_cuda_version(), devices.cuda_status(None)
    facts |= {"driver": f"CUDA {driver[0]}.{driver[1]}" if driver else "no NVIDIA driver found"}
    found = {f"cuda:{index}": (name, devices.cuda_status(index)) for index, name in enumerate(status.devices)}
    for device, (name, of_one) in (found or {"GPU": ("", status)}).items():
        facts[device] = name
        if of_one.problem:
            facts[device] = f"{name}, can't be used: {of_one.problem}".removeprefix(", ")
            facts["remedy"] = " ".join(dict.fromkeys([*facts.get("remedy", "").splitlines(), of_one.remedy]))
    slower = "NumPy and SciPy, several times slower than the compiled ones"
    facts["kernels"] = "compiled" if compiled.problem is None else f"{slower}: {_why_not_compiled(compiled.problem)}"
    try:
        facts["gzip decoder"] = "{0.name} ({0.reason})".format(gzip_decoders.choose())
    except (ValueError, ImportError) as error:
        facts["gzip decoder"] = f"can't be used: {error}"
    facts["cores"] = str(n_cores())
    for name, fact in facts.items():
        print(f"{name:14}{fact}")
    return 0


def _why_not_compiled(problem):
    if not isinstance(problem, ModuleNotFoundError):
        return f"they can't be loaded ({problem}). Reinstall gpumask"
    folder = Path(__file__).parents[1] / "kernels"
    for file in sorted(folder.glob("_compiled.*")):
        if file.suffix in (".so", ".pyd"):
            this = sysconfig.get_config_var("SOABI")
            return f"{file.name} was built for another Python than this one ({this}). Reinstall gpumask"
    return (
        "they weren't built when gpumask was installed. Reinstall it with a C compiler available; if there was one, "
        "pip install -v shows what failed"
    )
