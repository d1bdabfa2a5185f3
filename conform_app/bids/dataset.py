# SPDX-License-Identifier: Apache-2.0
"""The output folder as a BIDS dataset: whose it is, with which settings, from which inputs.

One folder holds the results of one set of settings.  Its ``dataset_description.json`` carries their hash and
``logs/configuration-<hash>.json`` spells them out; another hash is refused.  The description is created in
one step that fails if somebody else was first, so that of many processes starting at once in one folder all
with the same settings go on, and of those with different settings only the first.
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conform_app.bids.description import NAME, describe, grown, merge, readme, real_path
from conform_app.bids.naming import bidsignore, descriptions
from conform_app.bids.provenance import plain, write_json, write_text, write_tsv
from conform_app.errors import CannotCreateError, UsageError

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


def check_folders(
    bids_dir: str | Path,
    output_dir: str | Path,
    work_dir: str | Path | None = None,
    derivatives: Iterable[str | Path] = (),
) -> None:
    """Refuse combinations of folders that would write into the inputs.

    Parameters
    ----------
    bids_dir, output_dir : path
    work_dir : path, optional
    derivatives : paths
        Input derivatives.

    Raises
    ------
    UsageError
        The output is an input; the work folder is the output or lies within the input.
    """
    bids, output = real_path(bids_dir), real_path(output_dir)
    if output == bids:
        raise UsageError(
            f"The output folder {output_dir} is the input dataset.",
            f"Use for instance {Path(bids_dir) / 'derivatives' / 'conform'}.",
        )
    for path in derivatives:
        if "://" not in str(path) and output == real_path(path):
            raise UsageError(
                f"The output folder {output_dir} is one of the input derivatives.", "Use a folder of its own."
            )
    if work_dir is None:
        return
    work = real_path(work_dir)
    if work == output:
        raise UsageError(
            f"The work folder {work_dir} is the output folder.", "Use -w with a folder outside of it."
        )
    if work.is_relative_to(bids):
        raise UsageError(
            f"The work folder {work_dir} lies within the input dataset {bids_dir}.",
            "Use -w with a folder outside of it.",
        )


def check_output(
    output_dir: str | Path,
    configuration: Mapping[str, Any],
    configuration_hash: str,
    *,
    overwrite: bool = False,
) -> None:
    """Check that results of these settings may be written to a folder, and can be.

    Parameters
    ----------
    output_dir : path
        Made if it does not exist.
    configuration : mapping
        The settings that alter results.
    configuration_hash : str
    overwrite : bool
        Go on over results of other settings (but never over a dataset of somebody else).

    Raises
    ------
    CannotCreateError
        The folder cannot be written, is another dataset, or holds results of other settings (the message
        names those that differ).
    """
    output_dir = Path(output_dir)
    _check_writable(output_dir)
    existing = _read_description(output_dir)
    if existing is not None and not overwrite:
        _check_hash(output_dir, existing, configuration, configuration_hash)


def _check_writable(output_dir: Path) -> None:
    probe = output_dir / f".{uuid.uuid4().hex}.tmp"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with probe.open("xb"):
            pass
        probe.unlink()
    except OSError as error:
        raise CannotCreateError(
            f"The output folder {output_dir} cannot be written ({error.strerror}).",
            "Choose another folder, or change its permissions.",
        ) from error


def _read_description(output_dir: Path) -> dict[str, Any] | None:
    """Return the description if it is ours, None if there is none.

    Raises
    ------
    CannotCreateError
        It is somebody else's, or cannot be read.
    """
    path = output_dir / "dataset_description.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CannotCreateError(
            f"{path} cannot be read ({error}).", "Repair it, or choose another output folder."
        ) from error
    if _own_entry(content) is None:
        name = content.get("Name") if isinstance(content, dict) else None
        raise CannotCreateError(
            f"{output_dir} is another dataset ({name or 'without a name'}).",
            "Choose an output folder of its own, for instance derivatives/conform.",
        )
    return content


def _own_entry(description: Any) -> dict[str, Any] | None:
    """Return our entry of GeneratedBy: the first one, if it is ours."""
    chain = description.get("GeneratedBy") if isinstance(description, dict) else None
    first = chain[0] if isinstance(chain, list) and chain else None
    return first if isinstance(first, dict) and first.get("Name") == NAME else None


def _check_hash(
    output_dir: Path, existing: Mapping[str, Any], configuration: Mapping[str, Any], digest: str
) -> None:
    found = (_own_entry(existing) or {}).get("ConfigurationHash")
    if found == digest:
        return
    difference = _difference(output_dir, found, configuration)
    if not any(output_dir.glob("sub-*/log/fits/*.json")) and not (output_dir / "group").is_dir():
        raise CannotCreateError(
            f"{output_dir} was begun with other settings{difference}.",
            "No fit of it is finished yet: add --overwrite, or choose another output folder.",
        )
    raise CannotCreateError(
        f"{output_dir} holds results of other settings{difference}.",
        "Choose another output folder, use the same settings, or add --overwrite.",
    )


def _difference(output_dir: Path, found: Any, configuration: Mapping[str, Any]) -> str:
    """Say which settings differ, as far as the folder tells."""
    try:
        old = json.loads(_configuration_path(output_dir, str(found)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    before, now = _flat(old), _flat(plain(configuration))
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    changes = [f"{name}: {_short(before.get(name))} there, {_short(now.get(name))} now" for name in names[:8]]
    more = f"; and {len(names) - 8} more" if len(names) > 8 else ""
    return f" ({'; '.join(changes)}{more})" if names else ""


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {prefix: content}
    out: dict[str, Any] = {}
    for name, value in content.items():
        out |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return out


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _configuration_path(output_dir: Path, digest: str) -> Path:
    return output_dir / "logs" / f"configuration-{re.sub(r'[^A-Za-z0-9]', '', digest)}.json"


def write_dataset(
    output_dir: str | Path,
    *,
    version: str,
    configuration: Mapping[str, Any],
    configuration_hash: str,
    inputs: Mapping[str, str | Path],
    kind: str = "participant",
    overwrite: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Make the output folder a BIDS derivative dataset, or bring it up to date.

    Writes ``dataset_description.json``, ``.bidsignore``, ``descriptions.tsv`` and ``.json``,
    ``logs/configuration-<hash>.json``, and a README if there is none. Safe in several processes at once.
    Called at the start, so that a crash leaves a valid dataset, and at the end.

    Parameters
    ----------
    output_dir : path
    version : str
        Of CONFORM.
    configuration : mapping
        The settings that alter results; no paths, no resources.
    configuration_hash : str
        Of the configuration.
    inputs : mapping from name to folder or URL
        Datasets read, e.g. ``{"raw": ..., "fmriprep": ...}``; become DatasetLinks, and their descriptions
        give the chain of GeneratedBy, SourceDatasets, License and whom to acknowledge.
    kind : {"participant", "group", "encoding"}
        What the folder holds, as its name and README say.
    overwrite : bool
        Replace the description of results of other settings. Nothing else is removed.
    environ : mapping, optional
        Environment variables, which tell the container; by default the process's own.

    Returns
    -------
    Path
        The description.

    Raises
    ------
    CannotCreateError
        See `check_output`.
    """
    output_dir = Path(output_dir)
    _check_writable(output_dir)
    content = describe(
        output_dir, version, configuration_hash, inputs, os.environ if environ is None else environ, kind
    )
    path = output_dir / "dataset_description.json"
    while not _create(path, _json(content)):
        existing = _read_description(output_dir)
        if existing is None:  # removed in between
            continue
        if kind == "group":  # a collection holds its participants to one method itself
            content = grown(existing, content)
        elif not overwrite:
            _check_hash(output_dir, existing, configuration, configuration_hash)
            content = merge(existing, content)
        if existing != content:
            write_json(path, content)
        break
    # only now: the folder is ours
    write_json(_configuration_path(output_dir, configuration_hash), configuration)
    _write_ignore(output_dir / ".bidsignore")
    rows = descriptions()
    write_tsv(
        output_dir / "descriptions.tsv",
        {"desc_id": [row[0] for row in rows], "description": [row[1] for row in rows]},
    )
    write_json(
        output_dir / "descriptions.json",
        {
            "desc_id": {"Description": "The desc entity of file names."},
            "description": {"Description": "What it means."},
        },
    )
    if not any(output_dir.glob("README*")):
        _create(output_dir / "README.md", readme(kind))
    return path


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n"


def _create(path: Path, text: str) -> bool:
    """Create a complete file in one step; False, and nothing changed, if it exists."""
    if path.exists():
        return False
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    write_text(temporary, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise CannotCreateError(
                f"{path} cannot be written ({error.strerror}).", "Check the disk."
            ) from error
        os.replace(temporary, path)  # no hard links here (some network disks): the last one wins
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write_ignore(path: Path) -> None:
    """Write ``.bidsignore``; lines that somebody added stay."""
    try:
        old = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        old = []
    lines = old + [line for line in bidsignore() if line not in old]
    if lines != old:
        write_text(path, "\n".join(lines) + "\n")
