"""Output folders: what a run writes appears whole or not at all, and what is not its own is left alone."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from filelock import FileLock

from graphwright import output
from graphwright.errors import Exit, ResourceError, UsageError
from graphwright.manifest import FILE, Manifest, Reference, TargetRecord, Verified, write
from graphwright.output import check_output, output_folder


def manifest(*targets: str) -> Manifest:
    never = Verified(verdict="no device here")
    records = [TargetRecord(target=name, precision="fp32", status="failed", verified=never) for name in targets]
    return Manifest(source={}, reference=Reference(runtime="torch", precision="fp32", version=""), targets=records)


def fill(folder: Path, *targets: str, text: str = "new") -> None:
    """What `ship` writes: a folder a target, the manifest, and a file."""
    for name in targets:
        (folder / f"{name}-fp32").mkdir()
        (folder / f"{name}-fp32" / "model.onnx").write_text(text)
        write(manifest(name), folder / f"{name}-fp32")
    (folder / "report.html").write_text(text)
    write(manifest(*targets), folder)


def break_off(folder: Path, error: type[BaseException]) -> None:
    fill(folder, "one")
    raise error


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("existing", [True, False])
def test_what_was_written_is_there_when_the_block_ends(tmp_path: Path, existing: bool) -> None:
    out = tmp_path / "a" / "b"
    if existing:
        out.mkdir(parents=True)
    with output_folder(out) as folder:
        fill(folder, "one")
        assert not (out / FILE).exists(), "nothing is seen before the end"
        assert folder.parent == out, "on the same disk, so that moving is no copying"
    assert names(out) == [FILE, "one-fp32", f"one-fp32/{FILE}", "one-fp32/model.onnx", "report.html"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_of_a_block_that_raises(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), output_folder(tmp_path / "a" / "b") as folder:
        break_off(folder, error)
    assert names(tmp_path) == []


def test_an_earlier_run_is_kept_where_the_next_one_fails(tmp_path: Path) -> None:
    with output_folder(tmp_path) as folder:
        fill(folder, "one", text="old")
    before = names(tmp_path)
    with pytest.raises(LookupError), output_folder(tmp_path) as folder:
        break_off(folder, LookupError)
    assert names(tmp_path) == before
    assert (tmp_path / "one-fp32" / "model.onnx").read_text() == "old"


def test_a_second_run_replaces_the_first_and_leaves_other_files_alone(tmp_path: Path) -> None:
    with output_folder(tmp_path) as folder:
        fill(folder, "one", "two", text="old")
        (folder / "one-fp32" / "model.engine").write_text("old")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with output_folder(tmp_path) as folder:
        fill(folder, "one")
    assert names(tmp_path) == [
        FILE,
        "notes",
        "notes/mine.txt",
        "one-fp32",
        f"one-fp32/{FILE}",
        "one-fp32/model.onnx",
        "report.html",
    ]
    assert (tmp_path / "one-fp32" / "model.onnx").read_text() == "new"


def test_files_and_folders_of_one_name_replace_each_other(tmp_path: Path) -> None:
    with output_folder(tmp_path) as folder:
        write(manifest(), folder)
        (folder / "a").write_text("a file")
        (folder / "b").mkdir()
        (folder / "b" / "inside").touch()
    with output_folder(tmp_path) as folder:
        write(manifest(), folder)
        (folder / "a").mkdir()
        (folder / "b").write_text("a file")
    assert (tmp_path / "a").is_dir()
    assert (tmp_path / "b").read_text() == "a file"


def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with output_folder(out) as folder:
        write(manifest(), folder)
    (out / "one-fp32").symlink_to(other)
    with output_folder(out) as folder:
        fill(folder, "one")
    assert not (out / "one-fp32").is_symlink()
    assert names(other) == ["mine.txt"]


def test_a_manifest_that_names_other_folders_removes_none_of_them(tmp_path: Path) -> None:
    other, out = tmp_path / "other-fp32", tmp_path / "out"
    other.mkdir()
    write(manifest("other"), other)
    out.mkdir()
    write(manifest("../other"), out)
    with output_folder(out) as folder:
        fill(folder, "one")
    assert names(other) == [FILE]


def test_the_manifest_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace

    def watch(self: Path, target: Path) -> Path:
        moved.append(target.name)
        return replace(self, target)

    with output_folder(tmp_path) as folder:
        fill(folder, "one")
        monkeypatch.setattr(Path, "replace", watch)
    assert sorted(moved) == sorted(["one-fp32", "report.html", FILE])
    assert moved[-1] == FILE


# --- what cannot be an output folder


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    wanted = r"The output folder .*/file is a file: name a folder that does not exist yet, or an empty one\."
    with pytest.raises(UsageError, match=wanted):
        check_output(tmp_path / "file")
    with pytest.raises(UsageError, match=wanted), output_folder(tmp_path / "file"):
        pass
    with pytest.raises(UsageError, match="cannot be used"), output_folder(tmp_path / "file" / "below"):
        pass
    assert (tmp_path / "file").read_text() == "text"


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        UsageError, match=r"holds other files and no manifest\.json of an earlier run: name an"
    ) as caught:
        check_output(tmp_path)
    assert caught.value.code is Exit.USAGE
    assert names(tmp_path) == ["mine.txt"]


def test_folders_that_are_new_empty_or_of_an_earlier_run_will_do(tmp_path: Path) -> None:
    check_output(tmp_path / "none")
    check_output(tmp_path)
    write(manifest(), tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    check_output(tmp_path)


def test_what_a_killed_run_left_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    for name in ("killed", "living"):
        (tmp_path / f"{output.PART}{name}").mkdir()
        (tmp_path / f"{output.PART}{name}" / "model.onnx").write_text("half")
    (tmp_path / f"{output.PART}killed.lock").touch()
    (tmp_path / f"{output.PART}at-once.lock").touch()
    with FileLock(tmp_path / f"{output.PART}living.lock"):
        check_output(tmp_path)
        with output_folder(tmp_path) as folder:
            fill(folder)
        assert names(tmp_path) == [".part-living", ".part-living.lock", ".part-living/model.onnx", FILE, "report.html"]


def test_runs_into_one_folder_at_once_do_not_meet(tmp_path: Path) -> None:
    with output_folder(tmp_path) as first, output_folder(tmp_path) as second:
        fill(first)
        fill(second)
    assert names(tmp_path) == [FILE, "report.html"]


def test_a_disk_that_fills_is_a_lack_of_resources_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"out cannot be written: the disk is full"),
        output_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []
