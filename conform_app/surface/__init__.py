# SPDX-License-Identifier: Apache-2.0
"""Cortical surfaces: from volumes (`VolumeToSurface`), from one mesh to another (`SphereResampler`).

Surfaces are pairs ``(coordinates (n, 3) mm, triangles (m, 3))``; arrays in, arrays out.
"""

from conform_app.surface.holes import dilate
from conform_app.surface.mesh import (
    Surface,
    check_hemisphere,
    medial_wall_mask,
    midthickness,
    vertex_areas,
    vertex_normals,
)
from conform_app.surface.quality import Coverage, areal_distortion, edge_distortion, volume_coverage
from conform_app.surface.sphere import SphereResampler
from conform_app.surface.stored import load_transform
from conform_app.surface.volume import VolumeToSurface

__all__ = [
    "Coverage",
    "SphereResampler",
    "Surface",
    "VolumeToSurface",
    "areal_distortion",
    "check_hemisphere",
    "dilate",
    "edge_distortion",
    "load_transform",
    "medial_wall_mask",
    "midthickness",
    "vertex_areas",
    "vertex_normals",
    "volume_coverage",
]
