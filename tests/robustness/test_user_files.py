"""A user's files: never replaced by ours, readable as any file, and written wherever the file system lets us."""

import errno
import os
import shutil
import stat
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import diffusion_gym
from algorithms import ALGORITHMS, DDPO, EvaluationConfig
from algorithms.checkpoints.file import read_checkpoint, write_checkpoint
from algorithms.checkpoints.published import RECORD, check_replaceable, published, write_atomically
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.docs_tables.command import Tables, tables
from benchmarks.runs.ownership import locked
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig
from diffusion_gym.errors import warn_once

EXACT = ["--model", "exact-gaussian", "--reward", "exact-quadratic", "--policy.trainable", "full", "--threads", "1"]
SMALL = ["--images-per-iteration", "8", "--num-envs", "8", "--num-inference-steps", "2", "--reward-queries", "8"]
TRAIN = ["train", "ddpo-is", *EXACT, *SMALL, "--evaluation.images", "0"]
MINE = b"mine, and irreplaceable"


def spec_of(queries: int = 8, model: str = "exact-gaussian", reward: str = "exact-quadratic") -> RunSpec:
    """Return a run of iterations of eight images in two steps."""
    trainable = "full" if model == "exact-gaussian" else "lora"
    changes = {"images_per_iteration": 8, "num_envs": 8, "trainable": trainable, "seed": 0}
    config = override(ALGORITHMS["ddpo-is"].config, evaluation=EvaluationConfig(images=4), **changes)
    return RunSpec("ddpo-is", config, TaskConfig(model, reward, num_inference_steps=2), queries)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is loaded."""

    def load(*given: object, **named: object) -> None:
        pytest.fail("a model was loaded first")

    for name in (
        "benchmarks.runs.run.build",
        "diffusion_gym.envs.config.build_mdp",
        "benchmarks.throughput.iteration.build",
    ):
        monkeypatch.setattr(name, load)


# -- never replaced ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ([*TRAIN, "--folder", "."], "README.md"),
        ([*TRAIN, "--folder", "."], "curve.png"),
        ([*TRAIN, "--folder", "."], "thesis/chapter-1/notes.txt"),
        (["compare", "--suite", "exact", "--folder", "."], "table.md"),
        (["compare", "--suite", "exact", "--folder", "."], "results.csv"),
        (["compare", "--suite", "exact", "--folder", "."], "results.json"),
        (["compare", "--suite", "exact", "--folder", "new", "--results", "all.json"], "all.json"),
        (["search", "--folder", "."], "report.html"),
        (["sample", "--output", "cat.png"], "cat.png"),
        (["throughput", "--output", "speed.json"], "speed.json"),
        (["throughput", "--output", "speed.json"], "speed.md"),
        (["pretrain", "--work", "."], "README.md"),
        (["pretrain", "--work", "work", "--output", "out"], "out/README.md"),
        (["pretrain", "--work", "work", "--output", "out", "--judge-output", "judge"], "judge"),
    ],
)
def test_a_file_of_the_users_stays_and_is_named(
    command: list[str], file: str, here: Path, nothing_loads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_bytes(MINE)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert Path(file).parts[0] in error
    assert [path for path in here.rglob("*") if path.is_file()] == [here / file]
    assert Path(file).read_bytes() == MINE


def test_many_names_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "edcba":
        Path(name).write_bytes(MINE)
    assert main([*TRAIN, "--folder", "."]) == 2
    assert "is not empty and holds no run: there is 'a', 'b', 'c' and 2 more." in capsys.readouterr().err


def test_folders_without_files_are_empty(here: Path) -> None:
    """As a process leaves them that was killed before it wrote anything."""
    Path("run/images/more").mkdir(parents=True)
    Path("run/.unfinished-run.json-1234").touch()
    assert main([*TRAIN, "--folder", "run"]) == 0


def test_what_was_written_here_may_be_replaced_until_it_is_changed(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with published(tmp_path) as fresh:
            (fresh / "inner").mkdir()
            (fresh / "inner" / "a.txt").write_text(text)
            (fresh / "b.txt").write_text(text)

    for text in ("one", "one", "two", "three"):
        write(text)
        assert (tmp_path / "inner" / "a.txt").read_text() == (tmp_path / "b.txt").read_text() == text
    (tmp_path / "inner" / "a.txt").write_text("edited")
    with pytest.raises(ValueError, match=r"holds 'inner/a\.txt', which Diffusion Gym did not write there, or which"):
        write("four")
    assert (tmp_path / "inner" / "a.txt").read_text() == "edited"
    assert (tmp_path / "b.txt").read_text() == "three", "nothing is replaced where one file is in the way"
    (tmp_path / "inner" / "a.txt").unlink()
    write("five")
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    check_replaceable(moved, ["b.txt", "inner/a.txt", "new.txt"])
    assert sorted(path.name for path in moved.iterdir()) == [RECORD, "b.txt", "inner"]


def test_the_users_readme_and_report_in_a_runs_folder_stay(
    tiny_sd: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Put there while the run was stopped, or edited after it; also, all files have a file's usual permissions."""
    before = os.umask(0o027)
    try:
        run(spec_of(16, tiny_sd, "compressibility"), here / "run", should_stop=lambda: True)
        Path("run/README.md").write_bytes(MINE)
        with pytest.warns(UserWarning, match=r"holds 'README.md', which Diffusion Gym did not write.*model-card"):
            assert run(spec_of(16, tiny_sd, "compressibility"), here / "run").complete
        assert main(["report", "run"]) == 0
        assert main(["report", "run"]) == 0, "our own may be replaced"
    finally:
        os.umask(before)
    assert Path("run/README.md").read_bytes() == MINE
    assert "tuned toward" in Path("run/model-card/README.md").read_text()
    assert Path("run/model-card/curve.png").is_file()
    modes = {path: oct(stat.S_IMODE(path.stat().st_mode)) for path in here.rglob("*") if path.is_file()}
    assert set(modes.values()) == {"0o640"}, modes
    Path("run/report.html").write_bytes(MINE)
    assert main(["report", "run"]) == 2
    assert "'report.html', which Diffusion Gym did not write there, or which was changed" in capsys.readouterr().err
    assert Path("run/report.html").read_bytes() == MINE


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "pipeline/exact_model.safetensors"])
def test_the_users_weights_in_a_runs_folder_are_refused_at_once(
    file: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(spec_of(16), here / "run", should_stop=lambda: True)
    (here / "run" / file).parent.mkdir(exist_ok=True)
    (here / "run" / file).write_bytes(MINE)
    monkeypatch.setattr("benchmarks.runs.run.build", lambda *given: pytest.fail("a model was loaded first"))
    with pytest.raises(ValueError, match=r"which Diffusion Gym did not write there"):
        run(spec_of(16), here / "run")
    assert (here / "run" / file).read_bytes() == MINE


def test_export_and_save_replace_nothing_of_the_users(tmp_path: Path) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, model="exact-gaussian", reward="exact-linear", num_inference_steps=2)
    algorithm = DDPO(env, trainable="full")
    (tmp_path / "notes.txt").write_bytes(MINE)
    algorithm.export(tmp_path)
    algorithm.export(tmp_path)
    for name in ("exact_model.safetensors", "data.zip", "other.zip"):
        (tmp_path / name).write_bytes(MINE)
    with pytest.raises(ValueError, match="exact_model"):
        algorithm.export(tmp_path)
    with pytest.raises(ValueError, match=r"is not a checkpoint of Diffusion Gym, and is not replaced"):
        algorithm.save(tmp_path / "data")
    shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path, "notes.txt")
    with pytest.raises(ValueError, match="is not replaced"):
        algorithm.save(tmp_path / "other.zip")
    for name in ("exact_model.safetensors", "data.zip", "notes.txt"):
        assert (tmp_path / name).read_bytes() == MINE
    (tmp_path / "empty.zip").touch()  # as tempfile makes one, to be written
    algorithm.save(tmp_path / "empty")
    algorithm.save(tmp_path / "empty")
    assert DDPO.load(tmp_path / "empty").iteration == 0


def test_tables_replace_no_figure_that_no_page_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = tmp_path / "results" / "mine" / "reward-queries.svg"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(MINE)
    page = tmp_path / "page.md"
    page.write_text("<!-- results: exact/figures reward-queries -->\n<!-- end -->\n")
    drawn = page.read_text().replace("<!-- end", "![x](results/mine/reward-queries.svg)\n<!-- end")
    monkeypatch.setattr("benchmarks.docs_tables.command._rendered", lambda before, kept: drawn)
    with pytest.raises(ValueError, match=r"reward-queries\.svg', which no page has shown so far"):
        tables(Tables(tmp_path))
    assert figure.read_bytes() == MINE
    assert page.read_text() != drawn


# -- one process a folder ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="folders are locked on POSIX systems alone")
def test_of_two_that_start_together_the_second_is_refused_while_the_first_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tried = tmp_path / "new" / "run", []

    def load(spec: RunSpec, given: Path) -> Any:
        with pytest.raises(ValueError, match="another process is training in"):
            run(spec, given)
        tried.append(given)
        raise ValueError("a model that does not load")

    monkeypatch.setattr("benchmarks.runs.run.build", load)
    with pytest.raises(ValueError, match="does not load"):
        run(spec_of(), folder)
    assert tried == [folder]
    assert list(tmp_path.iterdir()) == [], "a run that cannot be built leaves no folder behind"


# -- what file systems refuse ------------------------------------------------------------------------------------------


@pytest.fixture
def unwarned() -> None:
    """Forget what was warned of."""
    warn_once.cache_clear()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOSYS])
@pytest.mark.parametrize("of", ["folders", "files"])
def test_a_file_system_without_fsync_is_written_to(
    code: int, of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unwarned: None
) -> None:
    def refuse(handle: int) -> None:
        if of == "files" or stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert run(spec_of(), tmp_path / "run").complete
    assert sum("refuses fsync" in str(warning.message) for warning in told) == 1
    assert read_checkpoint(tmp_path / "run" / "checkpoint.zip").state["iteration"] == 1


def test_a_folder_that_may_not_be_opened_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unwarned: None
) -> None:
    ordinary = os.open

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags == os.O_RDONLY and Path(path).is_dir():
            raise PermissionError(errno.EACCES, "no", str(path))
        return ordinary(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", opened)
    with pytest.warns(UserWarning, match="refuses fsync"):
        write_atomically(tmp_path / "file", MINE)
    with pytest.warns(UserWarning, match="refuses to lock"), locked(tmp_path):
        pass
    assert (tmp_path / "file").read_bytes() == MINE


@pytest.mark.skipif(sys.platform == "win32", reason="folders are locked on POSIX systems alone")
def test_a_file_system_without_locks_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unwarned: None
) -> None:
    import fcntl

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="refuses to lock a folder") as told:
        assert run(spec_of(), tmp_path / "one").complete
    with locked(tmp_path / "two"):
        assert len([warning for warning in told if "refuses to lock" in str(warning.message)]) == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_what_fsync_says_of_lost_data_is_an_error(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(code)):
        write_atomically(tmp_path / "file", MINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        [*TRAIN, "--folder", "new/run"],
        ["compare", "--suite", "exact", "--folder", "new"],
        ["sample", "--output", "new/a.png"],
        ["throughput", "--output", "new/a.json"],
    ],
)
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOTSUP])
def test_a_read_only_file_system_gets_a_sentence(
    command: list[str], code: int, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Any, *given: Any, **named: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr("benchmarks.throughput.command.Bench", lambda options: pytest.fail("measured first"))
    monkeypatch.setattr("diffusion_gym.envs.config.build_mdp", lambda *given: pytest.fail("drawn first"))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write 'new")
    assert os.strerror(code) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("code", "says"), [(errno.EIO, "refused to write"), (errno.ENOSPC, "the disk is full")])
def test_a_disk_that_breaks_under_a_run_gets_a_sentence(
    code: int, says: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, line: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.runs.jsonlines.append_line", refuse)
        assert main([*TRAIN, "--folder", "run"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "the same command then resumes there" in error
    assert "Traceback" not in error
    assert main([*TRAIN, "--folder", "run"]) == 0


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_written_without_a_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"half": torch.randn(300, 1000).half(), "large": torch.randn(1500, 1000), "step": torch.tensor(3)}
    tensors |= {
        "none": torch.zeros(0, 4),
        "counts": torch.arange(5, dtype=torch.uint8),
        "brain": torch.randn(3).bfloat16(),
    }
    tracemalloc.start()
    write_checkpoint(tmp_path / "large.zip", {"iteration": 0}, tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * tensors["large"].nbytes
    back = read_checkpoint(tmp_path / "large.zip").tensors
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in tensors.items())

    env = gymnasium.make(diffusion_gym.ENV_ID, model="exact-gaussian", reward="exact-linear", num_inference_steps=2)
    algorithm, given = DDPO(env, trainable="full"), {}
    monkeypatch.setattr(
        "algorithms.checkpoints.state.write_checkpoint", lambda path, state, tensors: given.update(tensors)
    )
    algorithm.save(tmp_path / "small")
    for name, value in algorithm.trained_parameters().items():
        assert given[f"policy/{name}"].data_ptr() == value.data_ptr(), "written from where it lies"


# -- the home folder ---------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_in_every_path(
    tiny_sd: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = here / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(tiny_sd, home / "model")
    (home / "red.py").write_text("def redness(images, prompts):\n    return images[:, 0].float().mean((1, 2))\n")
    (home / "prompts.txt").write_text("a cat\n")
    train = ["train", "ddpo-is", "--model", "~/model", "--reward", "compressibility:0.5,~/red.py:redness"]
    train += ["--prompts", "~/prompts.txt", *SMALL, "--evaluation.images", "4", "--metrics", "~/red.py:redness"]
    assert main([*train, "--threads", "1", "--folder=~/runs/a"]) == 0
    assert main(["train", "--config=~/runs/a", "--folder", "~/runs/b"]) == 0
    assert main(["report", "~/nothing"]) == 2
    assert f"'{home}/nothing' holds neither a run nor" in capsys.readouterr().err
    assert main(["sample", "--run", "~/runs/b", "--images", "1", "--prompts", "~/prompts.txt", "--output=~/p.png"]) == 0
    assert {path.name for path in here.iterdir()} == {"home"}, "nothing is called ~"
    assert {path.name for path in home.iterdir()} >= {"runs", "p.png"}
    env = gymnasium.make(diffusion_gym.ENV_ID, model="exact-gaussian", reward="exact-linear", num_inference_steps=2)
    DDPO(env, trainable="full", tensorboard_log="~/events").save("~/saved")
    algorithm = DDPO.load("~/saved", env)
    algorithm.set_parameters("~/saved.zip")
    algorithm.export("~/exported")
    assert (home / "exported" / "exact_model.safetensors").is_file()
    with pytest.raises(ValueError, match="~nobody-at-all"):
        gymnasium.make(diffusion_gym.ENV_ID, model="~nobody-at-all/model")
    assert {path.name for path in here.iterdir()} == {"home"}


def test_pretraining_keeps_what_its_new_folder_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.pretrain.pipeline import replaced_folder

    def make(text: str) -> None:
        with replaced_folder(tmp_path / "model") as fresh:
            (fresh / "card.json").write_text(text)

    make("one")
    make("two")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "model" / "notes.txt").write_bytes(MINE)
    make("three")
    assert (tmp_path / "model" / "card.json").read_text() == "three"
    (kept,) = tmp_path.glob("model-before-*")
    assert (kept / "notes.txt").read_bytes() == MINE
    assert f"{kept} is kept" in capsys.readouterr().out
    (tmp_path / "model" / "card.json").unlink()
    (tmp_path / "model" / "notes.txt").write_bytes(MINE)
    with pytest.raises(ValueError, match="holds no model that pretrain made"):
        make("four")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]
