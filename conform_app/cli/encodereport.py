# SPDX-License-Identifier: Apache-2.0
"""What the group page says of encoding models, from the tables and maps in ``group/encoding``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from conform_app.mosaic.collection import Collection
    from conform_app.reports.braincorl import EncodingData


def read_encoding(output_dir: Path, collection: Collection | None) -> EncodingData | None:
    """Read what there is of encoding models; None when there are none.

    Parameters
    ----------
    output_dir : Path
    collection : Collection or None
        For noise ceilings; models of a participant who is no longer in it are left out of that figure.
    """
    import pandas as pd

    from conform_app.bids.encoding import FOLDER, METHOD_DESC, encode_names
    from conform_app.encode.seal import SUMMARY
    from conform_app.images import read_maps
    from conform_app.reports.braincorl import EncodingData, write_methods
    from conform_app.reports.maps import file_kind, read_values

    root = output_dir / FOLDER
    try:
        summary = json.loads((root / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not summary.get("Participants"):
        return None
    space = summary["Space"]
    tables = {
        key: pd.read_csv(root / encode_names(key, None, space)[0], sep="\t", na_values="n/a")
        for key in ("metrics", "needed")
    }
    desc = METHOD_DESC[summary["Method"]][0]
    own, against = {}, {}
    for key in summary["Participants"]:
        files = _there(root, summary["Products"][key].get(f"r_{desc}"))
        if files:
            own[key] = read_values(files)
            ceiling = _ceiling(collection, key)
            if ceiling is not None:
                against[key] = (ceiling, read_maps(files)[1])
    means = {}
    kind = next(
        (file_kind(_there(root, its.get(f"r_{desc}"))[0]) for its in summary["Products"].values() if its), ""
    )
    for method, (its, _) in METHOD_DESC.items():
        files = _there(root, encode_names("r", None, space, kind, desc=its)) if kind else []
        if files and method != "five-fold ridge":
            means[method] = read_values(files)
    write_methods(root / "logs", summary)
    queries, winners = _winners(root, summary)
    return EncodingData(summary, tables["metrics"], tables["needed"], means, own, against, queries, winners)


def _winners(root: Path, summary: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Names of the queries, and the number of the winner at each point, of those who were asked the same."""
    import pandas as pd

    from conform_app.reports.maps import read_values

    queries: tuple[str, ...] = ()
    winners = {}
    for key in summary["Participants"]:
        products = summary["Products"][key]
        table, files = _there(root, products.get("queries")), _there(root, products.get("query"))
        if not table or not files:
            continue
        names = tuple(pd.read_csv(table[0], sep="\t", dtype=str)["name"])
        queries = queries or names
        if names == queries:
            winners[key] = read_values(files)
    return queries, winners


def _there(root: Path, names: Any) -> list[Path]:
    files = [root / name for name in names or ()]
    return files if all(path.is_file() for path in files) else []


def _ceiling(collection: Collection | None, key: str) -> np.ndarray | None:
    if collection is None or key not in collection.keys:
        return None
    return collection.noise_ceilings(key).get(("test", "avg"))
