# SPDX-License-Identifier: Apache-2.0
"""Stimulus files -> pixels: every kind of image, damaged ones, videos, folders of frames; bounded memory."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest

from conform_app.braincorl import Extractor, extract
from conform_app.braincorl.pictures import content_of, frames_of_folder, read_frames, spaced
from conform_app.errors import ConformError, DataError, FileFaultError, NoInputError

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(256, size=(12, 20, 3), dtype=np.uint8)


def mean_colour(images) -> np.ndarray:
    return np.array([np.asarray(x, float).mean(axis=(0, 1)) + 1 for x in images])


def saved(image, file: Path, **options) -> np.ndarray:
    image.save(file, **options)
    (frame,) = read_frames(file, 8)
    assert frame.dtype == np.uint8
    assert frame.shape[2] == 3
    return frame


def test_colours_come_as_they_are(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tiff"):
        np.testing.assert_array_equal(saved(Image.fromarray(COLOURS), tmp_path / f"a.{suffix}"), COLOURS)


def test_grey_is_repeated_over_the_channels(tmp_path: Path) -> None:
    grey = COLOURS[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(saved(Image.fromarray(grey), tmp_path / "8.png"), expected)
    # Pillow's own conversion of 16 bits clips at 255: nearly everything would be white.
    np.testing.assert_array_equal(
        saved(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "16.png"), expected
    )
    bits = Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8)).convert("1")
    frame = saved(bits, tmp_path / "1.png")
    np.testing.assert_array_equal(frame[..., 1], np.where(grey > 127, 255, 0))
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"float\.tiff"):
        read_frames(tmp_path / "float.tiff", 1)


def test_alpha_is_dropped_and_not_blended(tmp_path: Path) -> None:
    alpha = RNG.integers(256, size=(12, 20, 1), dtype=np.uint8)
    frame = saved(Image.fromarray(np.concatenate([COLOURS, alpha], axis=2)), tmp_path / "rgba.png")
    np.testing.assert_array_equal(frame, COLOURS)
    grey = saved(Image.fromarray(np.concatenate([COLOURS[..., :1], alpha], axis=2)), tmp_path / "la.png")
    np.testing.assert_array_equal(grey[..., 2], COLOURS[..., 0])


def test_cmyk_and_palettes_become_colours(tmp_path: Path) -> None:
    flat = np.kron(
        np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]), np.ones((16, 16, 1))
    )
    flat = flat.astype(np.uint8)
    frame = saved(Image.fromarray(flat).convert("CMYK"), tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(frame.astype(int) - flat).max() <= 3
    frame = saved(Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "p.png")
    np.testing.assert_array_equal(frame, flat)


def test_the_orientation_tag_is_not_applied(tmp_path: Path) -> None:
    """As CLIP's preprocessing: the pixels of the file, not those that a photo viewer turns upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    frame = saved(Image.fromarray(COLOURS), tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(frame, COLOURS)
    with Image.open(tmp_path / "turned.png") as image:
        assert image.getexif()[0x0112] == 6


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff", "bmp"])
def test_damaged_images_are_one_line_that_names_the_file(kind: str, tmp_path: Path) -> None:
    """Files cut off and with flipped bytes are read, or refused by name; nothing else comes out."""
    whole = io.BytesIO()
    Image.fromarray(np.tile(COLOURS, (4, 4, 1))).save(whole, kind)
    data = whole.getvalue()
    rng = np.random.default_rng(1)
    file = tmp_path / f"damaged.{kind}"
    messages = []
    for trial in range(150):
        broken = bytearray(data[: rng.integers(1, len(data))] if trial % 3 == 0 else data)
        for place in rng.integers(len(broken), size=rng.integers(1, 12)):
            broken[place] = rng.integers(256)
        file.write_bytes(bytes(broken))
        try:
            read_frames(file, 2)
        except (FileFaultError, DataError) as error:
            messages.append(str(error))
    assert messages
    assert all(str(file) in message and "\n" not in message for message in messages)
    file.write_bytes(b"")
    with pytest.raises(FileFaultError, match="damaged"):
        read_frames(file, 1)


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(FileFaultError, match="bomb"):
        read_frames(tmp_path / "bomb.png", 1)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    for content in (b"", b"\x93NUMPY", b"junk"):
        (tmp_path / "torn.npy").write_bytes(content)
        with pytest.raises(FileFaultError, match="torn"):
            read_frames(tmp_path / "torn.npy", 1)


def test_animations_are_videos_and_pages_are_not(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((8, 8), 20 * i, np.uint8)) for i in range(10)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:])
    assert [int(f[0, 0, 0]) for f in read_frames(tmp_path / "a.gif", 2)] == [40, 140]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert len(read_frames(tmp_path / "a.tiff", 2)) == 1


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full((4, 4), 10 * i, np.uint8)).save(folder / f"frame{i}.png")
    (folder / "notes.txt").write_text("not a frame")
    assert [f.stem for f in frames_of_folder(folder)] == [f"frame{i}" for i in range(12)]
    assert [int(f[0, 0, 0]) for f in read_frames(folder, 3)] == [20, 60, 100]
    found = extract([folder], Extractor("colour", 3, mean_colour), n_frames=3)
    assert found.shape == (1, 3)
    before = content_of(folder)
    (folder / "frame3.png").rename(folder / "frame3b.png")
    assert content_of(folder) == before  # the same frames in the same order
    (folder / "frame3b.png").rename(folder / "frame99.png")
    assert content_of(folder) != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match="empty"):
        content_of(tmp_path / "empty")


def test_a_video_file_gives_evenly_spaced_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="the Python package av, which reads videos, is not installed")
    file = tmp_path / "ramp.mp4"
    with av.open(str(file), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    frames = read_frames(file, 4)
    np.testing.assert_allclose([f.mean() for f in frames], [20, 70, 120, 170], atol=4)
    vectors = mean_colour(frames)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = vectors.mean(axis=0)
    found = extract([file], Extractor("colour", 3, mean_colour), n_frames=4)[0]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), rtol=1e-5)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(FileFaultError, match="ramp"):
        read_frames(file, 4)


def test_frames_are_the_middles_of_equal_parts() -> None:
    assert spaced(20, 4) == [2, 7, 12, 17]
    assert spaced(3, 8) == [0, 1, 2]
    for n in range(1, 40):
        for k in range(1, 12):
            assert len(spaced(n, k)) == min(n, k)


def test_memory_holds_a_bounded_number_of_images(tmp_path: Path) -> None:
    """Images that are prepared and not yet encoded: at most ``batch + (2 n_threads + 1) n_frames``."""
    files = []
    for i in range(40):
        files.append(tmp_path / f"{i}.npy")
        np.save(files[-1], np.full((6, 4, 4, 3), i, np.uint8))
    lock, alive, peak, sizes = threading.Lock(), 0, 0, []

    def prepare(image):
        nonlocal alive, peak
        with lock:
            alive += 1
            peak = max(peak, alive)
        return image

    def encode(images):
        nonlocal alive
        found = mean_colour(images)
        with lock:
            alive -= len(images)
        sizes.append(len(images))
        return found

    counting = Extractor("counting", 3, encode, prepare=prepare)
    found = extract(files, counting, batch=4, n_frames=3, n_threads=2)
    assert found.shape == (40, 3)
    assert peak <= 4 + 5 * 3
    assert set(sizes) == {4}  # 120 frames in full batches: videos share them
    assert alive == 0


def test_threads_and_batches_change_nothing(tmp_path: Path) -> None:
    files = []
    for i in range(11):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(RNG.integers(256, size=(9, 7, 3), dtype=np.uint8)).save(files[-1])
    colour = Extractor("colour", 3, mean_colour)
    one = extract(files, colour, batch=1, n_threads=1)
    np.testing.assert_array_equal(extract(files, colour, batch=5, n_threads=4), one)


def test_one_bad_file_stops_without_hanging(tmp_path: Path) -> None:
    files = []
    for i in range(20):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(files[-1])
    files[7].write_bytes(b"junk")
    colour = Extractor("colour", 3, mean_colour)
    with pytest.raises(FileFaultError, match=r"7\.png"):
        extract(files, colour, cache=tmp_path / "cache", batch=2)
    kept = len(list((tmp_path / "cache").rglob("*.npy")))
    assert kept >= 4  # what was done before stays
    files[7].unlink()
    with pytest.raises(ConformError, match=r"7\.png"):
        extract(files, colour)


def test_a_still_image_is_kept_whatever_the_number_of_frames(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    np.save(tmp_path / "v.npy", RNG.integers(256, size=(9, 4, 4, 3), dtype=np.uint8))
    calls: list[int] = []

    def encode(images):
        calls.append(len(images))
        return mean_colour(images)

    counting = Extractor("counting", 3, encode)
    for n_frames in (2, 4):
        extract([tmp_path / "a.png", tmp_path / "v.npy"], counting, cache=tmp_path / "c", n_frames=n_frames)
    assert calls == [3, 4]


def test_a_bad_vector_names_its_file(tmp_path: Path) -> None:
    files = [tmp_path / "white.png", tmp_path / "black.png"]
    for file, level in zip(files, (255, 0), strict=True):
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(file)
    with pytest.raises(DataError, match=r"black\.png"):
        extract(files, Extractor("colour", 3, lambda images: mean_colour(images) - 1))
    with pytest.raises(DataError, match="not"):
        extract(files, Extractor("wrong", 4, mean_colour))
    assert extract([], Extractor("colour", 3, mean_colour)).shape == (0, 3)
