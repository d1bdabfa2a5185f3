# SPDX-License-Identifier: Apache-2.0
"""Fetch the template surfaces that an image brings along: ``python -m conform_app.images.fetching try``.

A build that goes on without some of them says so where it cannot be overlooked, with what will not work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conform_app.images import templates

POLICIES = ("try", "require", "none")


def main(argv: Sequence[str]) -> int:
    """Fetch everything; 1 when something is missing under ``require``, 2 for another word than the three."""
    policy = argv[0] if argv else "try"
    if policy not in POLICIES:
        print(f"TEMPLATES={policy} is none of {', '.join(POLICIES)}.", file=sys.stderr)
        return 2
    missing = [name for _, name in templates.wanted_files()] if policy == "none" else templates.fetch_all()
    missing = [name for name in missing if not templates.is_there(name)]
    if not missing:
        print(f"All {len(templates.wanted_files())} template files are in {templates.templates_home()}.")
        return 0
    print(told(missing), file=sys.stderr)
    return int(policy == "require")


def told(missing: Sequence[str]) -> str:
    """What is missing and what that means, in a frame."""
    lines = [
        f"WARNING: {len(missing)} of {len(templates.wanted_files())} template files are NOT in this image:",
        *(f"  {name}" for name in missing),
        "Without network the app carries volumes to fsaverage:den-10k, fsaverage:den-3k and fsnative only;",
        "other surface spaces end with exit code 66 and the command that fetches what they need.",
        "Do not publish this image: build it where TemplateFlow's store can be reached, with",
        "--build-arg TEMPLATES=require.",
    ]
    rule = "=" * 100
    return "\n".join([rule, *lines, rule])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
