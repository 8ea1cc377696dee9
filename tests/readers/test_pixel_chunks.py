import numpy as np
import zarr

from spabit_jax.readers.pixel_chunks import Chunks


def test_windows_are_those_of_the_array_and_a_chunk_is_decoded_once(monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (53, 41, 3), dtype=np.uint8)
    array = zarr.create_array({}, data=pixels, chunks=(16, 7, 2))
    decoded = []
    whole = Chunks._decoded
    monkeypatch.setattr(Chunks, "_decoded", lambda self, *index: decoded.append(index) or whole(self, *index))
    chunks = Chunks(array)
    for _ in range(60):
        (top, bottom), (left, right) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in pixels.shape[:2])
        key = slice(top, bottom), slice(left, right), [slice(None), 1][rng.integers(2)]
        np.testing.assert_array_equal(chunks[key], pixels[key])
    assert len(decoded) == len(set(decoded)) == 4 * 6 * 2
