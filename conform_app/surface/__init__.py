# SPDX-License-Identifier: Apache-2.0
"""Cortical surfaces: from volumes (`VolumeToSurface`), from one mesh to another (`SphereResampler`).

Surfaces are pairs ``(coordinates (n, 3) mm, triangles (m, 3))``; arrays in, arrays out.
"""

from conform_app.surface.mesh import (
    Surface,
    check_hemisphere,
    medial_wall_mask,
    midthickness,
    vertex_areas,
    vertex_normals,
)
from conform_app.surface.sphere import SphereResampler
from conform_app.surface.volume import VolumeToSurface

__all__ = [
    "SphereResampler",
    "Surface",
    "VolumeToSurface",
    "check_hemisphere",
    "medial_wall_mask",
    "midthickness",
    "vertex_areas",
    "vertex_normals",
]
