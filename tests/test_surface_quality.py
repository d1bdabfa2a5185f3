# SPDX-License-Identifier: Apache-2.0
"""Distortion of a registration and coverage of the cortex: closed forms and wrong input."""

import numpy as np
import pytest
from surface_cases import OBLIQUE, SHAPE, fsaverage5, icosphere

from conform_app.errors import DataError
from conform_app.surface import (
    areal_distortion,
    edge_distortion,
    vertex_areas,
    vertex_normals,
    volume_coverage,
)


def test_areas_add_up_to_the_surface():
    x, t = icosphere(5, 10.0)
    assert vertex_areas((x, t)).sum() == pytest.approx(4 * np.pi * 100, rel=2e-3)


def test_normals_of_a_sphere_point_outward():
    x, t = icosphere(4, 10.0)
    np.testing.assert_allclose(vertex_normals((x, t)), x / 10, atol=0.02)


def test_scaling_is_areal_distortion():
    x, t = icosphere(3)
    np.testing.assert_allclose(areal_distortion((x, t), (2 * x, t)), 2)
    np.testing.assert_allclose(edge_distortion((x, t), (2 * x, t)), 1)
    np.testing.assert_allclose(edge_distortion((2 * x, t), (x, t)), 1)
    turned = x[:, [1, 2, 0]]
    np.testing.assert_allclose(areal_distortion((x, t), (turned, t)), 0, atol=1e-12)


def test_shear_keeps_areas_but_not_edges():
    sphere, triangles = fsaverage5("L", "sphere")
    angle = sphere[:, 2] / 60  # a twist about z keeps the area of a sphere
    c, s = np.cos(angle), np.sin(angle)
    twisted = np.stack(
        [c * sphere[:, 0] - s * sphere[:, 1], s * sphere[:, 0] + c * sphere[:, 1], sphere[:, 2]], 1
    )
    area = areal_distortion((sphere, triangles), (twisted, triangles))
    edges = edge_distortion((sphere, triangles), (twisted, triangles))
    assert np.abs(area).mean() < 0.02
    assert edges.mean() > 0.2


def test_vertices_without_area_are_nan():
    x, t = icosphere(1)
    flat = x.copy()
    flat[t[0]] = 0
    ring = np.unique(t[(np.isin(t, t[0])).any(1)])
    out = edge_distortion((x, t), (flat, t))
    assert np.isnan(out[t[0]]).all()
    assert np.isfinite(np.delete(out, ring)).all()


def test_coverage_counts_area():
    white, pial = fsaverage5("L", "white"), fsaverage5("L", "pial")
    around = np.eye(4)
    around[:3, 3] = -120
    whole = volume_coverage(white, pial, (240, 240, 240), around)
    assert (whole.fraction, whole.full, whole.none) == pytest.approx((1, 1, 0))
    part = volume_coverage(white, pial, SHAPE, OBLIQUE)
    assert 0 < part.none < 1 - part.full < 1
    assert part.full < part.fraction < 1 - part.none
    mask = np.zeros(SHAPE)
    mask[:26] = 1
    less = volume_coverage(white, pial, SHAPE, OBLIQUE, mask=mask)
    assert 0 < less.fraction < part.fraction
    assert (less.share <= part.share).all()
    cortex = less.share > 0
    only = volume_coverage(white, pial, SHAPE, OBLIQUE, mask=mask, cortex=cortex)
    assert only.none == 0
    assert volume_coverage(white, pial, SHAPE, OBLIQUE + np.eye(4, k=3) * 900).fraction == 0


def test_bad_input():
    x, t = icosphere(1)
    more = icosphere(2)
    for measure in (areal_distortion, edge_distortion):
        with pytest.raises(DataError, match="has 42 vertices, the distorted one 162"):
            measure((x, t), more)
    white, pial = fsaverage5("L", "white"), fsaverage5("L", "pial")
    with pytest.raises(DataError, match="cortex mask"):
        volume_coverage(white, pial, SHAPE, OBLIQUE, cortex=np.zeros(10242))
