"""The README's Python blocks run, one after the other, as a reader would type them."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 3
    # One iteration of 64 images instead of eight: the same code, an eighth of the time.
    text = "\n".join(blocks)
    assert "total_timesteps=5_120" in text
    names: dict[str, object] = {}
    exec(compile(text.replace("total_timesteps=5_120", "total_timesteps=640"), str(README), "exec"), names)
    assert (tmp_path / "ddpo.zip").is_file()
    assert (tmp_path / "tuned" / "pytorch_lora_weights.safetensors").is_file()
    assert names["terminated"]
