"""What the machine has of CUDA: asked without a crash where it has nothing."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnxruntime as ort
import pytest

from graphwright.errors import DeviceError
from graphwright.runtimes import cuda
from graphwright.runtimes.cuda import LIBRARIES, Library


def test_a_library_is_found_where_pip_puts_it_or_in_the_system(tmp_path: Path) -> None:
    absent = Library("libgraphwright-has-none.so.1", "nothing", "nvidia/cu13/lib")
    folders = [str(tmp_path / "other"), str(tmp_path)]
    assert cuda.locate(absent, folders) is None
    path = tmp_path / absent.folder / absent.name
    path.parent.mkdir(parents=True)
    path.touch()
    assert cuda.locate(absent, folders) == str(path)
    assert cuda.locate(Library("libc.so.6", "glibc", "nowhere"), folders) == cuda.SYSTEM


def test_what_is_missing_is_named_with_the_package_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Library("libnone-a.so.1", "nvidia-a", "lib")
    second = Library("libnone-b.so.1", "nvidia-a", "lib")
    other = Library("libnone-c.so.1", "nvidia-c", "lib", needed=False, use="nothing")
    monkeypatch.setattr(cuda, "LIBRARIES", (first, second, other))
    monkeypatch.syspath_prepend(tmp_path)
    assert cuda.libraries_missing() == "libnone-a.so.1, libnone-b.so.1 cannot be loaded: `pip install nvidia-a`"
    (tmp_path / "lib").mkdir()
    for library in (first, second):
        (tmp_path / "lib" / library.name).touch()
    assert cuda.libraries_missing() is None
    with pytest.raises(DeviceError, match=r"libnone-a\.so\.1 cannot be loaded: .*\. Install nvidia-a again\."):
        cuda.preload()  # the file is no library


def test_the_list_holds_what_the_provider_links() -> None:
    """The names as they stand in the header of the provider, where the installed ONNX Runtime has it."""
    for provider in Path(ort.__file__).parent.glob("capi/libonnxruntime_providers_cuda.so"):
        with provider.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            linked = {library.name for library in LIBRARIES if data.find(f"\0{library.name}\0".encode()) >= 0}
        assert linked >= {library.name for library in LIBRARIES[:4]}


def test_devices_are_listed_where_there_are_any() -> None:
    found = cuda.devices()
    assert bool(found) == (cuda.cuda_missing() is None)
    assert [device.index for device in found] == list(range(len(found)))
    for device in found:
        assert device.capability.startswith("sm")
        assert device.memory > 1 << 30
        assert all(number > 0 for number in cuda.limits(device.index).values())
