"""Files of tensors: what the safetensors package writes is read, and what is written it reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attnspec.spec.files import DTYPES, Stored, read, write


def some() -> dict[str, Stored]:
    rng = np.random.default_rng(0)
    found = {}
    for n, dtype in enumerate(DTYPES):
        shape = ((), (0, 3), (5,), (2, 3, 4))[n % 4]
        numbers = rng.integers(0, 2, shape).astype("uint16" if dtype == "bfloat16" else dtype)
        found[dtype] = Stored(dtype, shape, np.ascontiguousarray(numbers).reshape(-1).view(np.uint8))
    return found


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    """Every dtype, a scalar, an empty tensor, texts; the same bytes twice."""
    package = pytest.importorskip("safetensors", reason="the safetensors package is not installed")
    path = tmp_path / "x.safetensors"
    write(path, some(), {"case": "b=1", "says": 'ü "quoted"\n'})
    first = path.read_bytes()
    write(path, dict(reversed(some().items())), {"case": "b=1", "says": 'ü "quoted"\n'})
    assert path.read_bytes() == first
    with package.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"case": "b=1", "says": 'ü "quoted"\n'}
        for name, x in some().items():
            got = file.get_tensor(name)
            assert (str(got.dtype).removeprefix("torch."), tuple(got.shape)) == (name, x.shape)
            assert got.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == x.data.tobytes()


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    """Every dtype, and bfloat16 as the numbers that it holds."""
    save = pytest.importorskip("safetensors.torch", reason="the safetensors package is not installed").save_file
    path = tmp_path / "x.safetensors"
    wanted = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) / 1 for name in ("float64", "bfloat16", "float16")}
    wanted = {name: x.to(getattr(torch, name)) for name, x in wanted.items()}
    save(wanted | {"mask": torch.tensor([True, False])}, path, {"a": "b"})
    found, metadata = read(path)
    assert metadata == {"a": "b"}
    assert found["mask"].array.tolist() == [True, False]
    for name, x in wanted.items():
        assert found[name].dtype == name
        assert found[name].array.tolist() == x.double().tolist()


@pytest.mark.parametrize(
    ("header", "size", "says"),
    [
        (b"", 0, "how long its header is"),
        (b"{}", 1 << 40, "how long its header is"),
        (b"[1]", None, "can't be read"),
        (b"{" * 9, None, "can't be read"),
        (b'{"q":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', None, "needs 8 bytes"),
        (b'{"q":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}', None, "needs 8 bytes"),
        (b'{"q":{"dtype":"F32","shape":[-2],"data_offsets":[0,0]}}', None, "is another"),
        (b'{"q":{"dtype":"F8","shape":[2],"data_offsets":[0,2]}}', None, "choose from"),
        (b'{"q":{"dtype":"F32","shape":[2]}}', None, "can't be read"),
    ],
)
def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path, header: bytes, size: int | None, says: str) -> None:
    """With one clear message."""
    path = tmp_path / "x.safetensors"
    path.write_bytes((len(header) if size is None else size).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=says):
        read(path)


def test_arrays_come_back() -> None:
    """Also those that are not contiguous, or of the other byte order."""
    x = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert Stored.of(x).array.tolist() == x.tolist()
    assert json.dumps(Stored.of(x).dtype) == '"float32"'
