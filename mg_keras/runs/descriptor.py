"""Whether a run's p* and whitenings are of its network as it is now, and what is said where they are not.

Training may have gone on since they were chosen and fitted, and another p* been chosen since a whitening was fitted.
What older releases left does not say of which network it is, and counts.
"""

from collections.abc import Iterable

from mg_keras.finishing.whitening import projection_kind
from mg_keras.runs.run import Run


def has_p_star(run: Run, size: int) -> bool:
    """Whether p* was chosen at a resolution, for the network as it is now."""
    choice = run.results.choices.get(size)
    return choice is not None and _is_of_now(run, choice.network)


def is_whitened(run: Run, size: int) -> bool:
    """Whether there is a whitening of a resolution's descriptors as the network and p* make them now."""
    exponent, entry = run.results.exponent_at(size), run.results.whitening_report.get(size, {})
    is_there = run.results.whitening_path(size).exists()
    return is_there and entry.get("p_star", exponent) == exponent and _is_of_now(run, entry.get("network"))


def is_projected(run: Run) -> bool:
    """Whether the projection that the objective trained is the run's descriptor, in place of a whitening."""
    entry = run.results.whitening_report.get(run.settings.resolution, {})
    return entry.get("fitted_on") == projection_kind(run.settings.objective)


def whiten_command(run: Run, sizes: Iterable[int]) -> str:
    """The command that fits a whitening at some resolutions, or takes the projection where that is the descriptor."""
    return _command(run, "whiten", sizes) + (" --descriptor projected" if is_projected(run) else "")


def notes(run: Run, p_star_at: Iterable[int], whitened_at: Iterable[int]) -> list[str]:
    """What is not of the run's network as it is now, for programs that take it as it lies there.

    Args:
        run: `Run`.
        p_star_at: resolutions whose p* is taken.
        whitened_at: resolutions whose whitening is taken, if there is one.

    Returns:
        list of str: a line on p* and one on whitenings, each with the command that makes it anew; empty if all is well.
    """
    results, lines = run.results, []
    old = sorted(size for size in p_star_at if size in results.p_star and not has_p_star(run, size))
    if old:
        command = _command(run, "choose-p-star", old)
        lines.append(f"p* at {_listed(old)} px was chosen before training went on: {command} chooses it anew")
    old = sorted(size for size in whitened_at if results.whitening_path(size).exists() and not is_whitened(run, size))
    if old:
        networks = (results.whitening_report.get(size, {}).get("network") for size in old)
        why = "at another p*" if all(_is_of_now(run, network) for network in networks) else "before training went on"
        lines.append(f"the whitening at {_listed(old)} px was fitted {why}: {whiten_command(run, old)} fits it anew")
    return lines


def _is_of_now(run, network):
    """Whether a fingerprint, or None of an older release, is that of the run's network."""
    return network is None or network == run.fingerprint


def _command(run, program, sizes):
    checkpoint = "" if run.checkpoint == "last" else f" --checkpoint {run.checkpoint}"
    return f"mg-keras {program} --run {run.path} --resolutions {_listed(sorted(sizes))}{checkpoint}"


def _listed(sizes):
    return ",".join(map(str, sizes))
