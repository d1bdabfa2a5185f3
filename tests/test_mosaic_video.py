# SPDX-License-Identifier: Apache-2.0
"""Movies known by the frames of their files."""

import importlib.util

import numpy as np
import pytest

from conform_app.collect.given import hash_stimuli
from conform_app.errors import FileFaultError, NoInputError
from conform_app.mosaic import frame_hashes, overlapping_movies, video

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


def write_video(path, seed, n=12):
    """A film of moving noise, every fourth frame a key frame."""
    import av

    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size, stream.max_b_frames = 4, 0
        for i in range(n):
            picture = np.roll(base, 3 * i, axis=1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def cut(source, target, n):
    """Copy the first packets into another container, without encoding anew."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(old.demux(old.streams.video[0])):
            if packet.dts is None or i >= n:
                break
            packet.stream = stream
            new.mux(packet)


@needs_av
def test_a_cut_of_a_film_shares_its_frames(tmp_path):
    write_video(tmp_path / "film.mp4", 0)
    write_video(tmp_path / "other.mp4", 1)
    cut(tmp_path / "film.mp4", tmp_path / "scene.mkv", 6)
    frames = {name: frame_hashes(tmp_path / name) for name in ("film.mp4", "other.mp4", "scene.mkv")}
    assert [len(its) for its in frames.values()] == [12, 12, 6]
    assert frames["scene.mkv"] == frames["film.mp4"][:6]
    assert overlapping_movies(frames) == [("film.mp4", "scene.mkv", 1.0)]
    contents = hash_stimuli(tmp_path, ["film.mp4", "scene", "other.mp4", "gone.mp4"])
    assert contents.frames == {"film.mp4": frames["film.mp4"], "scene": frames["scene.mkv"],
                               "other.mp4": frames["other.mp4"]}  # fmt: skip
    assert len(set(contents.hashes.values())) == 3
    assert contents.unread == 0


@needs_av
def test_files_that_are_no_films(tmp_path):
    (tmp_path / "text.mp4").write_text("no film\n" * 100)
    with pytest.raises(FileFaultError, match=r"text.mp4 cannot be decoded"):
        frame_hashes(tmp_path / "text.mp4")


def test_without_a_decoder_videos_are_known_by_their_files_and_this_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"two")
    monkeypatch.setattr(video, "can_read_videos", lambda: False)
    contents = hash_stimuli(tmp_path, ["a.mp4", "b.png"])
    assert set(contents.hashes) == {"a.mp4", "b.png"}
    assert contents.unread == 1
    with pytest.raises(NoInputError, match="PyAV is not installed"):
        frame_hashes(tmp_path / "a.mp4")
