"""The files of one section among those of several: all have one prefix before the names of their layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from spabit_jax.errors import InputError

# {what a file is: patterns of its name, the best first}, without prefix and .gz
Endings = Mapping[str, tuple[str, ...]]
Samples = dict[str, dict[str, Path]]  # {prefix: {what a file is: path}}


def by_prefix(folders: Iterable[Path], endings: Endings) -> Samples:
    """Files and folders in ``folders`` (the best first) that end as in ``endings``, grouped by what stands before.

    The prefix is without ``_spatial`` and separators at its end; it may be that of the folder (``S1_spatial/``).
    """
    samples: Samples = {}
    files = [(folder, path) for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    for what, patterns in endings.items():
        for pattern in patterns:
            form = re.compile(rf"(|.*[_.-]){pattern}(\.gz)?")
            for folder, path in files:
                if match := form.fullmatch(path.name):
                    own = re.sub(r"[_.-]$|[_.-]?spatial[_.-]$", "", match[1])
                    prefix = own or folder.name.removesuffix("spatial").rstrip("_.-") * folder.name.endswith("_spatial")
                    samples.setdefault(prefix, {}).setdefault(what, path)
    return samples


def one_sample(samples: Samples, name: str, place: Path, whole: Iterable[str]) -> tuple[str, dict[str, Path]]:
    """The one sample that has counts, or that ``name`` asks for; nothing of another is ever in it.

    Files without a prefix belong to it if there is no other sample. A prefix may be shortened to its last or first
    words (``S1`` for ``GSM1_S1``), by ``name`` and by files, where only one sample has it.

    Args:
      samples: as ``by_prefix`` gives them.
      name: of the section.
      place: the folder, for error messages.
      whole: what makes a sample whole: a whole one without a prefix comes before others of which something is missing.

    Returns:
      Its prefix and its files, none if no sample has counts.

    Raises:
      InputError: several samples, and ``name`` is of none of them, or of several.
    """
    counted = [prefix for prefix in samples if "counts" in samples[prefix]]
    if not counted:
        return "", {}
    prefix = counted[0]
    if len(counted) > 1:
        is_whole = [prefix for prefix in counted if set(whole) <= set(samples[prefix])]
        asked = [p for p in counted if p == name] or [p for p in counted if is_short(name, p)]
        if is_whole == [""] and not asked:
            asked = [""]
        if len(asked) != 1:
            names = ", ".join(sorted(prefix or "one without a prefix" for prefix in counted)[:6])
            raise InputError(f"{place}: holds {len(counted)} samples ({names}): name one with --name=PREFIX")
        prefix = asked[0]
    others = [other for other in counted if other != prefix]
    anyones = [other for other in samples if other not in counted and (not other or is_short(other, prefix))]
    its = [p for p in anyones if not any(not p or is_short(p, other) for other in others)]
    return prefix, {what: path for p in (*its, prefix) for what, path in samples[p].items()}


def is_short(name: str, prefix: str) -> bool:
    """Whether ``name`` is the first or the last words of ``prefix``."""
    return bool(name) and bool(re.fullmatch(rf"({re.escape(name)}[_.-].*|.*[_.-]{re.escape(name)})", prefix))
