"""README and docs do what they say: every Python block runs or says why not, commands parse, links have targets.

Blocks of one page run in their order, in one namespace and one empty directory, as a reader would type them, in a fresh
process that has imported nothing of ours. A fence with ``title="name"`` is a file of that name. ``<!-- not run: reason
-->`` above a fence leaves it out there; where a tiny model can stand in for the published one, it runs by itself.
Quick pages belong to ``make test``; the others, the notebook and the built site to ``make docs`` (marker docs).
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import gymnasium
import pytest
import torch
import yaml

from algorithms import ALGORITHMS, DDPO
from benchmarks.__main__ import COMMANDS, main
from benchmarks.commands.train import defaults
from benchmarks.runs.loading_code import loading_code
from diffusion_gym import PROMPT_SETS, REWARDS
from diffusion_gym.choices import DEFAULT_MODEL
from diffusion_gym.models.loading import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}
#: What gives the same code an eighth of its budget.
SHORTER = {"total_timesteps=5_120": "total_timesteps=640", "range(8)": "range(1)"}
#: Pages whose commands are run too, each with this budget.
RUN_COMMANDS = [f"docs/{name}.md" for name in ("first-hour", "your-own-reward", "your-own-prompts")]
RUN_COMMANDS += ["docs/your-own-algorithm.md"]
BUDGET = ["--reward-queries", "64"]

#: What a fresh process does with blocks.
FRESH = """
import sys
assert not any(name in sys.modules for name in ("diffusion_gym", "algorithms", "benchmarks"))
names = {{}}
for number, block in enumerate({blocks!r}):
    names = {{}} if {apart} else names
    exec(compile(block, f"block {{number}}", "exec"), names)
"""

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)(?:[ ]+title=\"(?P<title>[^\"]+)\")?[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)```[ ]*$",
    flags=re.DOTALL | re.MULTILINE,
)
#: How a command of this project begins, whichever way it is called.
_COMMAND = re.compile(r"^(?:diffusion-gym|\S*python3? -m benchmarks|python (?P<script>\w+\.py))(?:\s+|$)")


@dataclass(frozen=True)
class Block:
    """One fenced block: ``title`` is the file it shows whole, ``reason`` why it is not run."""

    language: str
    title: str | None
    reason: str | None
    text: str

    def commands(self) -> list[tuple[str | None, list[str]]]:
        """This project's commands in a shell block: (script or None, arguments)."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        lines = [re.split(r"\s[|>]", line.strip())[0] for line in joined.splitlines()]
        found = [(match, line) for line in lines if (match := _COMMAND.match(line))]
        return [(match["script"], shlex.split(line[match.end() :], comments=True)) for match, line in found]


def read_blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    found = [Block(m["language"], m["title"], m["reason"], textwrap.dedent(m["text"])) for m in _BLOCK.finditer(text)]
    assert len(found) == len(re.findall(r"^ *```\w", text, flags=re.MULTILINE)), f"{page}: a fence is not read"
    return found


WITH_PYTHON = [name for name in PAGES if any(b.language == "python" and not b.reason for b in read_blocks(name))]
WITH_COMMANDS = [name for name in PAGES if any(b.language == "bash" and b.commands() for b in read_blocks(name))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory that modules can be imported from; what a page registers is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    registries: list[dict[str, Any]] = [ALGORITHMS, FAMILIES, REWARDS, PROMPT_SETS]
    kept = [dict(registry) for registry in registries]
    yield tmp_path
    for registry, before in zip(registries, kept, strict=True):
        registry.clear()
        registry.update(before)
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


def run_python(page: str, folder: Path, first: int | None = None) -> dict[str, Any]:
    """Write the page's files, run its Python blocks (or the ``first`` of them), and return their names."""
    names: dict[str, Any] = {}
    write_files(page, folder)
    for block in runnable(page)[:first]:
        exec(compile(shorter(block), page, "exec"), names)
    return names


def shorter(block: str) -> str:
    """Return the code with less to train."""
    for long, short in SHORTER.items():
        block = block.replace(long, short)
    return block


def run_fresh(blocks: list[str], folder: Path, apart: bool = False) -> str:
    """Run blocks in a fresh process in the folder, in one namespace, or ``apart``, each in its own; return stdout."""
    code = FRESH.format(blocks=list(map(shorter, blocks)), apart=apart)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def runnable(page: str) -> list[str]:
    """The page's Python that is run in its order."""
    return [b.text for b in read_blocks(page) if b.language == "python" and not b.title and not b.reason]


def write_files(page: str, folder: Path) -> None:
    for block in read_blocks(page):
        if block.title is not None:
            (folder / block.title).write_text(block.text, encoding="utf-8")


@pytest.mark.slow
def test_readme_runs(folder: Path) -> None:
    """At most 12 lines train and print the reward that the page names; at most 8 step through an episode."""
    training, stepping = runnable("README.md")
    assert lines(training) <= 12
    assert lines(stepping) <= 8
    printed = run_fresh([training, stepping, "assert done and info['image'].shape == (64, 64, 3)"], folder)
    (first,) = re.findall(r"# (\d\.\d\d) in the first iteration", training)
    assert float(printed.removeprefix("redness ")) == pytest.approx(float(first), abs=0.02)
    assert (folder / "tuned" / "pytorch_lora_weights.safetensors").is_file()


def lines(code: str) -> int:
    """Return how many lines are not blank."""
    return len(list(filter(str.strip, code.splitlines())))


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].read_text(encoding="utf-8").splitlines()) <= 100


def test_policy_gradient_of_the_mdp_page(folder: Path) -> None:
    """The page promises that the gradient of the mean's first coordinate is about 1 and that of the second about 0."""
    gradient = run_python("docs/mdp.md", folder)["policy"].denoiser.means.grad[0]
    assert gradient.tolist() == pytest.approx([1.0, 0.0], abs=0.15)


def test_own_algorithm_learns(folder: Path) -> None:
    """Without a KL the mean leaves 0.5 (std 0.5) far behind; with one it stays where it should. The check passes."""
    names = run_python("docs/your-own-algorithm.md", folder, first=3)
    assert names["free"].policy.denoiser.means[0, 0] > 2.0
    assert 1.0 < names["held"].policy.denoiser.means[0, 0] < 1.5


def test_own_family_is_the_pipeline(folder: Path) -> None:
    """The adapter draws the pipeline's pictures; what training leaves behind is the tuned network, not the base one."""
    names = run_python("docs/your-own-family.md", folder)
    assert names["difference"] <= 1
    assert names["ours"].float().std() > 5, "a flat picture would prove nothing"
    assert names["first"]["train/log_ratio_abs_max"] == 0.0
    code = loading_code(names["algorithm"])
    assert 'pipe = DiTPipeline.from_pretrained(".")' in code
    assert code.endswith("# call it as DiTPipeline is called, with num_inference_steps=5, guidance_scale=1.0")
    latents, times, labels = names["latents"], torch.tensor([500]), torch.tensor([207])
    conditioning = names["model"].encode_prompts(["207"])
    with torch.no_grad():
        tuned = names["algorithm"].policy.denoiser(latents, times, conditioning)
        base, exported = (
            pipe.transformer(latents, times, class_labels=labels).sample[:, :4]
            for pipe in (names["pipe"], names["tuned"])
        )
    assert (exported - tuned).abs().max() < 1e-4 * (base - tuned).abs().max() + 1e-6
    assert (base - tuned).abs().max() > 1e-3


@pytest.mark.docs
@pytest.mark.parametrize("page", [name for name in WITH_PYTHON if name not in ("README.md", "docs/mdp.md")])
def test_python_blocks_run(page: str, folder: Path) -> None:
    write_files(page, folder)
    run_fresh(runnable(page), folder)


@pytest.fixture
def stand_ins(tiny_sd: str, tmp_path: Path) -> dict[str, str]:
    """What a page names -> the tiny thing in its place."""
    env = gymnasium.make("DiffusionDenoise-v0", model=tiny_sd)
    DDPO(env, images_per_iteration=4, num_envs=4).export(tmp_path / "run")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    width = env.unwrapped.mdp.model.pipe.unet.get_submodule(layer).to_q.weight.shape[0]
    old = {f"{layer}.processor.to_q_lora.{way}.weight": torch.ones(4, width) for way in ("down", "up")}
    old[f"{layer}.processor.to_q_lora.up.weight"] = torch.ones(width, 4)
    torch.save(old, tmp_path / "old.bin")
    return {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": tiny_sd,
        "path/to/the/run": str(tmp_path / "run"),
        "logs/RUN/checkpoints/checkpoint_5/pytorch_lora_weights.bin": str(tmp_path / "old.bin"),
    }


def test_blocks_for_plain_diffusers_run_alone(folder: Path, stand_ins: dict[str, str]) -> None:
    """As a reader copies one of them, who has the environment of the README and imports nothing of ours before.

    (How Stable Diffusion 3 is saved without T5 is run in tests/families/test_card_code.py.)
    """
    DDPO("DiffusionDenoise-v0", images_per_iteration=4, num_envs=4).export(folder / "tuned")
    blocks = [b.text for page in PAGES for b in read_blocks(page) if b.language == "python"]
    (merging,) = (text for text in blocks if text.startswith("def merge_old_lora"))
    texts = [text for text in blocks if text.startswith("from diffusers import StableDiffusionPipeline")]
    assert len(texts) == 3, "of the questions, of Stable Diffusion's family, of moving from ddpo-pytorch"
    for name, tiny in stand_ins.items():
        texts = [text.replace(name, tiny) for text in texts]
    run_fresh([f"import torch\n{merging}{text}" if "merge_old_lora(" in text else text for text in texts], folder, True)
    assert (folder / "from-ddpo-pytorch" / "unet").is_dir()


@pytest.mark.docs
def test_every_block_imports_alone(folder: Path) -> None:
    """Its own imports, each block's in a process of its own, whatever the page has imported before it."""
    for page in PAGES:
        write_files(page, folder)
    blocks = [b.text for page in PAGES for b in read_blocks(page) if b.language == "python" and not b.title]
    imports = {"\n".join(map(ast.unparse, filter(_is_import, ast.parse(block).body))) for block in blocks}
    for text in sorted(imports - {""}):
        if not re.search(r"^from trl ", text, flags=re.MULTILINE):
            run_fresh([text], folder)


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_are_not_run_are_valid(page: str) -> None:
    for block in read_blocks(page):
        if block.language == "python":
            ast.parse(block.text)


def parsed(*options: object) -> int:
    """Stand for the command that would run now."""
    return 0


@pytest.fixture
def parsing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line do no more than parse; every model stands for the shipped one, every run for one of it."""
    for name, (options, _) in COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, (options, f"{__name__}:parsed"))
    monkeypatch.setattr("benchmarks.commands.train.train", parsed)
    monkeypatch.setattr("benchmarks.commands.repeat.repeat", parsed)
    monkeypatch.setattr("benchmarks.commands.repeat.recorded", lambda config: ("ddpo-is", defaults("ddpo-is")))
    monkeypatch.setattr("benchmarks.__main__.named_model", lambda words: DEFAULT_MODEL)


@pytest.mark.usefixtures("parsing_alone")
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_parse(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every ``diffusion-gym`` and ``python -m benchmarks`` line has options that exist, with values that are taken."""
    write_files(page, folder)
    for block in read_blocks(page):
        for script, arguments in block.commands() if block.language == "bash" else ():
            if script is not None:
                assert (folder / script).is_file(), f"{page} shows no file {script!r}"
                continue
            status: object = 0
            try:
                status = main(arguments)
            except SystemExit as ended:  # with 0 after --help
                status = ended.code
            assert not status, f"{page}: diffusion-gym {shlex.join(arguments)}\n{capsys.readouterr().err}"


@pytest.mark.docs
@pytest.mark.parametrize("page", RUN_COMMANDS)
def test_commands_run(page: str, folder: Path) -> None:
    write_files(page, folder)
    for block in read_blocks(page):
        for script, arguments in block.commands() if block.language == "bash" and not block.reason else ():
            program = ["-m", "benchmarks"] if script is None else [script]
            budget = BUDGET if arguments[0] in ("train", "compare") else []
            done = subprocess.run([sys.executable, *program, *arguments, *budget], capture_output=True, text=True)
            assert done.returncode == 0, f"{page}: {shlex.join(arguments)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    """Relative links have targets; external ones are https addresses (nothing is fetched)."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(\s*<?([^)\s>]+)", prose):
        url = urlparse(link)
        if url.scheme:
            assert url.scheme == "https", f"{page}: {link}"
            assert "." in url.netloc, f"{page}: {link}"
        elif url.path:
            assert (PAGES[page].parent / url.path).exists(), f"{page}: {link}"


def test_the_navigation_is_short() -> None:
    """At most 25 titles, each a few words, each page once."""
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    titles = [title for section in sections for pages in section.values() for page in pages for title in page]
    assert 0 < len(titles) <= 25
    assert max(map(len, titles)) <= 20
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("page", PAGES)
def test_formulas_are_not_latex(page: str) -> None:
    """The site fetches nothing that could draw it."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"\$\$|\\\(|\\\[|\\(?:frac|mathrm|sum|mu)\b", prose)


def test_results_show_narrow_tables_first() -> None:
    """Beside a task's chart and outside of what is folded away no table has more than six columns."""
    page = re.sub(r"<details.*?</details>", "", PAGES["docs/results.md"].read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^(\|.*)\n\|---", page, flags=re.MULTILINE)
    tasks = re.findall(r'<div class="task" markdown="1">\n\n!\[[^]]*\]\([^)]*\)\n\n(\|.*)\n', page)
    assert len(tasks) == page.count('class="task"') > 5
    assert max(head.count("|") - 1 for head in heads) <= 6
    assert max(head.count("|") - 1 for head in tasks) <= 5


def test_every_algorithm_is_listed() -> None:
    listed = re.findall(
        r"^\| `([\w-]+)` \|", PAGES["docs/algorithms.md"].read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert set(listed) == set(ALGORITHMS)


@pytest.mark.docs
def test_notebook_runs_anew(tmp_path: Path) -> None:
    """Each cell runs, and gives outputs of the kinds that are committed."""
    import nbformat
    from nbclient import NotebookClient

    committed = nbformat.read(DOCS / "notebooks" / "first-hour.ipynb", as_version=4)
    fresh = nbformat.read(DOCS / "notebooks" / "first-hour.ipynb", as_version=4)
    NotebookClient(fresh, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for old, new in zip(committed.cells, fresh.cells, strict=True):
        if old.cell_type == "code":
            assert old.execution_count == new.execution_count, old.source
            assert _kinds(old.outputs) == _kinds(new.outputs), old.source


def _kinds(outputs: list[Any]) -> set[str]:
    """What a cell shows: MIME types and stdout; not stderr, where a library's warnings go."""
    kinds = {kind for output in outputs for kind in output.get("data", [output.get("name", output.output_type)])}
    return kinds - {"stderr"}


class _Resources(HTMLParser):
    """Collects what a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get("src") if tag in ("script", "img", "iframe", "source", "video") else None
        if tag == "link" and given.get("rel") != "canonical":
            address = given.get("href")
        if address and re.match(r"(https?:)?//", address):
            self.found.append(address)


@pytest.mark.docs
def test_site_needs_no_network() -> None:
    pages = sorted((ROOT / "site").rglob("*.html"))
    assert pages, "the site is not built; run `make docs`"
    for page in pages:
        resources = _Resources()
        resources.feed(page.read_text(encoding="utf-8"))
        assert not resources.found, f"{page.relative_to(ROOT)} fetches {resources.found}"
