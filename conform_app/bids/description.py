# SPDX-License-Identifier: Apache-2.0
"""The content of ``dataset_description.json``: what made the dataset, from what, under which terms.

The chain of GeneratedBy begins with CONFORM and goes on with what made the inputs; licence, sources and whom
to acknowledge are the inputs' own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BIDS_VERSION = "1.11.1"
NAME = "CONFORM"
_ASKS = "The source dataset asks: "
_COLLECTION = "collection of "
_MERGED = "logs/CITATION.md of each dataset merged"
_CITE = {
    "participant": "Cite the references in logs/CITATION.md.",
    "group": f"Cite the references in {_MERGED}.",
    "encoding": f"Cite the references in logs/CITATION.md, and in {_MERGED}.",
}


def real_path(path: str | Path) -> Path:
    """Return an absolute path without links."""
    return Path(os.path.realpath(path))


def describe(
    output_dir: Path,
    version: str,
    digest: str,
    inputs: Mapping[str, str | Path],
    environ: Mapping[str, str],
    kind: str = "participant",
) -> dict[str, Any]:
    """Build the description of a dataset written here from these inputs (see `dataset.write_dataset`)."""
    found = {name: _input_description(root) for name, root in inputs.items()}
    own: dict[str, Any] = {"Name": NAME, "Version": version, "CodeURL": _code_url()}
    own |= {"Container": _container(environ), "ConfigurationHash": digest}
    own = {name: value for name, value in own.items() if value}
    licences = list(dict.fromkeys(d["License"] for d in found.values() if d.get("License")))
    content = {
        "Name": f"{NAME}: {_title(found, kind)}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": "; ".join(licences) or None,
        "HowToAcknowledge": _acknowledge(found.values(), kind),
        "GeneratedBy": _distinct([own, *(e for d in found.values() for e in _entries(d, "GeneratedBy"))]),
        "SourceDatasets": _distinct([s for d in found.values() for s in _sources(d)]) or None,
        "DatasetLinks": {name: _link(root, output_dir) for name, root in inputs.items()} or None,
    }
    return {name: value for name, value in content.items() if value is not None}


def readme(kind: str) -> str:
    """Return the README of a kind of output: participant, group or encoding."""
    return (Path(__file__).resolve().parents[1] / "data" / "readme" / f"{kind}.md").read_text(
        encoding="utf-8"
    )


def _title(found: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    """Say in a few words what the dataset is, and of what."""
    if kind == "group":
        return _COLLECTION + ", ".join(found)
    named = [d["Name"] for d in (found.get("raw", {}), *found.values()) if d.get("Name")]
    if kind == "encoding":
        return f"encoding models from the {named[0].removeprefix(f'{NAME}: ') if named else 'collection'}"
    return f"single-trial responses from {named[0] if named else 'a BIDS dataset'}"


def _input_description(root: str | Path) -> dict[str, Any]:
    """Read an input's description; an input without a readable one contributes nothing."""
    if "://" in str(root):
        return {}
    try:
        content = json.loads((Path(root) / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _entries(description: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = description.get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _sources(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    doi = str(description.get("DatasetDOI") or "").removeprefix("doi:").removeprefix("https://doi.org/")
    own = [{"URL": f"https://doi.org/{doi}", "DOI": doi}] if doi else []
    return own + _entries(description, "SourceDatasets")


def _distinct(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for item in items:
        if item not in out:
            out.append(item)
    return out


def _acknowledge(found: Iterable[Mapping[str, Any]], kind: str) -> str:
    asked: dict[str, None] = {}
    for description in found:
        text = " ".join(str(description.get("HowToAcknowledge") or "").split())
        ours = any(entry.get("Name") == NAME for entry in _entries(description, "GeneratedBy")[:1])
        # Of what we wrote ourselves only the sources' wishes are handed on.
        texts = [part.strip() for part in text.split(_ASKS)[1:]] if ours else [text]
        asked |= dict.fromkeys(part for part in texts if part)
    return _with_wishes(kind, asked)


def _with_wishes(kind: str, asked: Iterable[str]) -> str:
    return " ".join([_CITE[kind], *(_ASKS + text for text in asked)])


def _container(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Say which container this runs in, if any: a tag, or the file's name without its path."""
    if tag := environ.get("CONFORM_DOCKER_TAG"):
        return {"Type": "docker", "Tag": tag}
    for name, kind in (("APPTAINER_CONTAINER", "apptainer"), ("SINGULARITY_CONTAINER", "singularity")):
        if image := environ.get(name):
            if "://" in image:
                return {"Type": kind, "URI": image}
            return {"Type": kind, "Tag": Path(image).name}
    return None


def _code_url() -> str | None:
    """Return the address of the source as the installed package gives it."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("conform-app").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    found = dict(line.split(", ", 1) for line in urls if ", " in line)
    return found.get("Source") or found.get("Repository") or next(iter(found.values()), None)


def _link(root: str | Path, output_dir: Path) -> str:
    """Link a dataset: relative if it travels with the output (a near neighbour), else as a URI."""
    if "://" in str(root):
        return str(root)
    target, here = real_path(root), real_path(output_dir)
    common = Path(os.path.commonpath([target, here]))
    relative = os.path.relpath(target, here)
    if common != Path(common.anchor) and relative.count("..") <= 2:
        return Path(relative).as_posix()
    return target.as_uri()


def grown(existing: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new description of a collection with the datasets that earlier calls merged.

    That of a participant level, whose folder the collection shares, stays as it is.
    """
    if not str(existing.get("Name", "")).startswith(f"{NAME}: {_COLLECTION}"):
        return dict(existing)
    out = dict(new)
    links = dict(existing.get("DatasetLinks") or {}) | dict(new.get("DatasetLinks") or {})
    both = (existing, new)
    licences = dict.fromkeys(word for d in both for word in str(d.get("License") or "").split("; ") if word)
    wishes = [str(d.get("HowToAcknowledge") or "").split(_ASKS)[1:] for d in both]
    out["Name"] = f"{NAME}: {_COLLECTION}{', '.join(links)}"
    out["HowToAcknowledge"] = _with_wishes("group", dict.fromkeys(w.strip() for part in wishes for w in part))
    own, *_ = new["GeneratedBy"]
    chains = (entry for d in both for entry in _entries(d, "GeneratedBy")[1:])
    out["GeneratedBy"] = _distinct([own, *chains])
    sources = _distinct(entry for d in both for entry in _entries(d, "SourceDatasets"))
    found = {"License": "; ".join(licences), "SourceDatasets": sources, "DatasetLinks": links}
    return out | {name: value for name, value in found.items() if value}


def merge(existing: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new description with the inputs that earlier runs with the same settings named."""
    out = dict(new)
    own, *_ = new["GeneratedBy"]
    before = [entry for entry in _entries(existing, "GeneratedBy")[1:] if entry.get("Name") != NAME]
    out["GeneratedBy"] = _distinct([own, *new["GeneratedBy"][1:], *before])
    sources = _distinct([*_entries(new, "SourceDatasets"), *_entries(existing, "SourceDatasets")])
    if sources:
        out["SourceDatasets"] = sources
    links = dict(existing.get("DatasetLinks") or {}) | dict(new.get("DatasetLinks") or {})
    if links:
        out["DatasetLinks"] = links
    return out
