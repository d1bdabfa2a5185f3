# SPDX-License-Identifier: Apache-2.0
"""Files <-> arrays: volumes (NIfTI), surface pairs (GIFTI) and grayordinates (CIFTI) behind one interface.

Whatever the format, a run is `(n_voxels, n_volumes)` and a map is `(n_points,)`, where the points are those
of a `Grid`: all voxels of the volume in C order, the left then the right vertices, or the grayordinates.
"""

from conform_app.images.files import check_complete
from conform_app.images.grid import Grid, grid_difference, same_grid
from conform_app.images.maprows import MapRows, Shelf
from conform_app.images.maps import read_maps, read_mask, write_maps
from conform_app.images.runs import BoldRun, finite_varying, open_run

__all__ = [
    "BoldRun",
    "Grid",
    "MapRows",
    "Shelf",
    "check_complete",
    "finite_varying",
    "grid_difference",
    "open_run",
    "read_maps",
    "read_mask",
    "same_grid",
    "write_maps",
]
