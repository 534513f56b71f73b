"""Detectors of reward hacking: curves on which each must fire and must not; the rule, the watch, their measures."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import ALGORITHMS, DDPO, EvaluationConfig
from algorithms.checkpoints.file import read_checkpoint, read_iteration
from algorithms.config.base import override
from algorithms.parallel.ranks import ALONE
from benchmarks.__main__ import main
from benchmarks.analysis.curves import curves
from benchmarks.charts import styles
from benchmarks.commands.train import defaults
from benchmarks.hacking.csv_files import read_csv
from benchmarks.hacking.detectors import DETECTORS
from benchmarks.hacking.inspection import report
from benchmarks.hacking.judged import Judged
from benchmarks.hacking.measure import detector_alarms, f1, fixed_alarms, skill, stops, tuned_threshold
from benchmarks.hacking.readings import Reading, reading_of
from benchmarks.hacking.rule import Alarm, Rule, Sign
from benchmarks.hacking.tables import measured_text
from benchmarks.hacking.tuning import tune
from benchmarks.report.charts import evaluation_charts
from benchmarks.report.hacked import marks
from benchmarks.runs import watch
from benchmarks.runs.folder import EVALUATIONS, log_lines
from benchmarks.runs.record import Evaluation
from benchmarks.runs.run import read_run, run
from benchmarks.runs.safeguards import Safeguards
from benchmarks.runs.spec import RunSpec, TaskConfig
from diffusion_gym.prompts import evaluation_prompts


def curve(**columns: list[float]) -> list[Reading]:
    """Return readings 256 queries apart; the reward rises by 0.1 each, with a spread of 1 at the start."""
    count = len(next(iter(columns.values())))
    columns = {"reward": [0.1 * at for at in range(count)], "reward_spread": [1.0] * count, **columns}
    return [Reading(256.0 * at, {name: column[at] for name, column in columns.items()}) for at in range(count)]


#: Detector -> a curve on which it must fire at its last reading, what it says then, and one on which it must not.
CURVES: Mapping[str, tuple[list[Reading], str, list[Reading]]] = {
    "metric-falls": (
        curve(clip_score=[25, 30, 28]), "clip_score has been falling", curve(clip_score=[25, 30, 29.5]),
    ),
    "diversity": (curve(diversity=[30, 29, 22]), "getting alike", curve(diversity=[30, 29, 28])),
    "kl": (curve(kl_to_start=[0, 10, 40]), "far from the starting", curve(kl_to_start=[0, 10, 20])),
    "kl-rate": (curve(kl_to_start=[0, 10, 30]), "growing fast", curve(kl_to_start=[0, 10, 20])),
    "prompt-spread": (curve(prompt_spread=[1, 1.1, 2]), "drifting apart", curve(prompt_spread=[1, 1.1, 1.2])),
    "reward-spread": (curve(reward_spread=[1, 1, 0]), "rewards of all pictures", curve(reward_spread=[1, 1, 1.2])),
    "no-spread": (curve(no_spread=[0, 0.2, 0.6]), "equal reward", curve(no_spread=[0, 0.2, 0.4])),
    "sharpness": (curve(sharpness=[20, 22, 40]), "sharper", curve(sharpness=[20, 22, 21])),
    "colourfulness": (curve(colourfulness=[50, 40, 20]), "losing their colours", curve(colourfulness=[50, 45, 40])),
    "flat-area": (curve(flat_area=[0.3, 0.4, 0.6]), "getting flat", curve(flat_area=[0.3, 0.3, 0.2])),
    "reward-rise": (curve(reward=[0, 1, 2]), "far above its start", curve(reward=[0, 1, -2])),
}  # fmt: skip
#: Of these tests' own: the shipped ones change with the committed runs.
THRESHOLDS = {"metric-falls": 0.05, "kl": 28.0, "kl-rate": 15.0, "diversity": 0.15, "prompt-spread": 0.29}
THRESHOLDS |= {"reward-spread": 0.25, "no-spread": 0.5, "sharpness": 0.5, "colourfulness": 0.5, "flat-area": 0.5}
THRESHOLDS |= {"reward-rise": 1.3}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_fires_where_it_must_and_nowhere_else(name: str) -> None:
    rule = Rule(THRESHOLDS, [name], 1)
    hacked, said, whole = CURVES[name]
    alarm = rule.alarm(hacked)
    assert alarm is not None
    assert alarm.queries == 512
    assert said in str(alarm)
    assert str(alarm).endswith("since 512 queries")
    assert rule.alarm(hacked[:2]) is None
    assert rule.alarm(whole) is None
    assert rule.signs(whole)[name] is None
    assert name not in Rule(rule.thresholds, [], 0).signs([Reading(0.0, {"reward": 1.0})])


def test_a_metric_that_falls_with_the_reward_is_no_sign() -> None:
    assert DETECTORS["metric-falls"].score(curve(reward=[1, 0.5], clip_score=[30, 10])) == 0.0


def test_a_metric_around_0_has_no_share_that_could_fall() -> None:
    falls = DETECTORS["metric-falls"].score
    assert np.isnan(falls(curve(compressibility=[-2.0, -1.0, -3.0])))
    assert np.isnan(falls(curve(imagereward=[0.1, 0.5, 0.4])))
    both = curve(compressibility=[-2.0, -1.0, -3.0], clip_score=[25, 30, 27])
    assert falls(both) == pytest.approx(0.1)
    assert "metric-falls does not look at compressibility: what begins at 0 or below" in report(both, "queries")


def test_gold_and_parts_of_the_reward_are_hidden_from_detectors() -> None:
    metrics = {
        "recognised": 0.5,
        "judge-counting": 0.1,
        "exact-target-kl?beta=1.0": 2.0,
        "clip_score": 30.0,
        "diversity": 9.0,
    }
    line = Evaluation(iteration=0, costs={"reward_queries": 64}, rewards=[1.0, 3.0, 2.0, 2.0], metrics=metrics)
    reading = reading_of(line, ["a", "a", "b", "b"], "aesthetic,clip_score:floor=58")
    assert reading.queries == 64
    assert reading.values == pytest.approx(
        {"diversity": 9.0, "reward": 2.0, "reward_spread": (2 / 3) ** 0.5, "prompt_spread": 1.0, "no_spread": 0.5}
    )
    assert "clip_score" in reading_of(line, ["a", "a", "b", "b"], "aesthetic").values


def test_the_rule_fires_with_the_second_sign() -> None:
    rule = Rule({"diversity": 0.2, "reward-rise": 1.5}, ["diversity", "reward-rise"], 2)
    readings = curve(diversity=[30, 20, 20, 20], reward=[0, 1, 2, 3])
    alarm = rule.alarm(readings)
    assert alarm is not None
    assert str(alarm) == (
        "pictures of a prompt have been getting alike since 256 queries, and the reward has been far above its start "
        "since 512 queries"
    )
    assert rule.alarm(readings[:2]) is None


def judged(fall: int | None, score: list[float], gold: list[float] | None = None) -> Judged:
    places = np.arange(len(score)) * 256.0
    values = np.array(gold or [1.0] * len(score))
    return Judged("task/variant/seed-0", places, values, places / 256, fall, {"diversity": np.array(score)})


def test_skill_by_hand() -> None:
    """Of two falls one is named, an evaluation early; one alarm is too late, one is in a run that keeps its gold."""
    runs = [
        judged(2, [0, 1, 1, 1, 1]),
        judged(1, [0, 0, 0, 1, 1]),
        judged(None, [0, 0, 1, 0, 0]),
        judged(None, [0] * 5),
    ]
    runs.append(replace(runs[0], scores={}))
    found = skill(runs, detector_alarms("diversity", 0.5))
    assert (found.runs, found.falls, found.unmeasured, found.false_alarms) == (4, 2, 1, 1)
    assert (found.precision.estimate, found.recall.estimate, found.lead.estimate) == (1 / 3, 1 / 2, 256)
    assert found.precision.low <= 1 / 3 <= found.precision.high
    assert f1(runs, detector_alarms("diversity", 0.5)) == pytest.approx(2 / 5)
    assert skill(runs, fixed_alarms(512)).recall.estimate == pytest.approx(1.0)
    assert tuned_threshold([judged(2, [0.1, 0.2, 0.8]), judged(None, [0.1, 0.5, 0.5])], "diversity") == pytest.approx(
        0.8, abs=0.3
    )
    assert tuned_threshold(runs[2:4], "diversity") is None


def test_a_stop_is_the_best_reward_before_the_alarm() -> None:
    found = stops([judged(2, [0, 0, 0, 1, 1], gold=[0.8, 1.0, 0.8, 0.3, 0.1])], detector_alarms("diversity", 0.5))
    assert (found.stopped, found.gold_at_stop.estimate, found.gold_at_end.estimate) == (1, 0.8, 0.1)
    assert found.reward.estimate == 2 / 4


def test_tuning_chooses_on_one_half_and_measures_on_the_other() -> None:
    runs = [replace(judged(2, [0, 0.1, 0.9, 0.9, 0.9]), name=f"a/b/seed-{seed}") for seed in range(8)]
    runs += [replace(judged(None, [0, 0.1, 0.2, 0.2, 0.2]), name=f"a/c/seed-{seed}") for seed in range(8)]
    assert {one.tunes for one in runs} == {True, False}
    rule, measured = tune(runs)
    assert list(rule.thresholds) == list(rule.watch) == ["diversity"]
    assert 0.2 < rule.thresholds["diversity"] <= 0.9
    assert sum(half["all"] for half in measured["runs"]) == 16
    assert measured["watch"]["precision"]["estimate"] == measured["watch"]["recall"]["estimate"] == 1.0
    text = measured_text(measured)
    assert "| diversity |" in text
    assert "1 of diversity" in text


def test_a_csv_file_of_another_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(
        "step,reward_mean,reward_std,diversity,clip_score,loss\n0,1,1,30,25,9\n10,2,1,30,,9\n20,4,1,10,20,9\n"
    )
    found = read_csv(file)
    assert found.unknown == ["loss"]
    both = tmp_path / "both.csv"
    both.write_text("queries,step,reward,\n0,0,1,\n")
    assert (read_csv(both).place, read_csv(both).unknown) == ("queries", ["step", "(no name)"])
    assert found.readings[1] == Reading(10.0, {"reward": 2.0, "reward_spread": 1.0, "diversity": 30.0})
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert "columns that no detector looks at: loss" in said
    assert "pictures of a prompt have been getting alike since 20 steps" in said
    assert "metric-falls   not measured" in said  # an empty cell
    assert "probably being hacked, since 20 steps" in said


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("reward,diversity\n1,2\n", "lacks the column queries or step, got reward, diversity"),
        ("step,diversity\n1,2\n", "lacks the column reward"),
        ("step,reward\n", "no line below its header"),
        ("step,reward\n1,good\n", "line 2 of .* has 'good' for reward"),
        ("step,reward\n1\n", "line 2 of .* has 1 cells; expected 2"),
        ("step,reward\n1,\n", "needs a number for step and reward"),
        ("step,reward\n\n1,inf\n", "line 3 of .* has 'inf' for reward"),
        ("step,reward\n8,1\n4,2\n", "line 3 of .* has the step 4 after 8"),
        ("step,reward,kl, kl_to_start\n1,2,3,4\n", "has kl_to_start in several columns \\('kl', ' kl_to_start'\\)"),
        ("", "lacks the column queries or step and the column reward, got nothing"),
    ],
)  # fmt: skip
def test_a_csv_file_that_lacks_something_is_refused(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=error):
        read_csv(tmp_path / "metrics.csv")


# -- in a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def early_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The linear reward rises at every iteration: the rule fires once it is 0.5 standard deviations up."""
    torch.set_num_threads(1)
    monkeypatch.setattr(watch, "shipped_rule", lambda: Rule({"reward-rise": 0.5}, ["reward-rise"], 1))


def spec_of(**safeguards: Any) -> RunSpec:
    """Six iterations of 16 images with an evaluation at each."""
    changes = {"images_per_iteration": 16, "num_envs": 8, "images_per_prompt": 8, "trainable": "full", "chunk_size": 8}
    config = override(
        ALGORITHMS["ddpo-is"].config, evaluation=EvaluationConfig(images=8), learning_rate=0.05, **changes
    )
    task = TaskConfig("exact-gaussian", "exact-linear", num_inference_steps=4)
    return RunSpec("ddpo-is", config, task, 96, Safeguards(**safeguards))


def weights(file: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in read_checkpoint(file).tensors.items()}


class StopAfter:
    """Ask to stop at the n-th question."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_it_stops_when_hacked_exports_the_best_before_and_decides_alike_when_resumed(
    early_rule: None, tmp_path: Path
) -> None:
    said: list[str] = []
    free = run(spec_of(keep_best="reward"), tmp_path / "free", on_alarm=said.append)
    assert len(free.evaluations) == 7
    means = [line.mean_reward for line in free.evaluations]
    spread = float(np.std(free.evaluations[0].rewards, ddof=1))
    fired = next(at for at, mean in enumerate(means) if mean >= means[0] + 0.5 * spread)
    assert 1 < fired < 6
    (line,) = said  # once
    assert line.startswith(
        f"is the reward being hacked? the reward has been far above its start since {16 * fired} queries"
    )
    best = int(np.argmax(means[:fired]))
    whole = run(spec_of(stop_when_hacked=True), tmp_path / "whole", on_alarm=said.append)
    assert whole.complete
    assert [line.iteration for line in whole.evaluations] == list(range(fired + 1))
    plain = run(spec_of(), tmp_path / "plain")
    for stopped, line in zip(whole.evaluations, plain.evaluations, strict=False):  # until it stops it is the plain run
        assert (stopped.rewards, stopped.metrics) == (line.rewards, line.metrics)
    assert whole.stopped_early is not None
    assert "the log shows reward hacking: the reward has been far above" in whole.stopped_early
    assert whole.stopped_early.endswith(f"exported are the weights of iteration {best}")
    assert whole.best == {"metric": "reward", "value": pytest.approx(means[best]), "iteration": best}
    exported = "pipeline/exact_model.safetensors"
    DDPO.load(tmp_path / "whole" / "best.zip").export(tmp_path / "best")
    assert read_iteration(tmp_path / "whole" / "best.zip") == best
    assert (tmp_path / "whole" / exported).read_bytes() == (tmp_path / "best" / "exact_model.safetensors").read_bytes()
    assert not run(spec_of(stop_when_hacked=True), tmp_path / "parts", should_stop=StopAfter(21)).complete
    resumed = run(spec_of(stop_when_hacked=True), tmp_path / "parts")
    assert (resumed.best, resumed.stopped_early) == (whole.best, whole.stopped_early)
    assert weights(tmp_path / "parts" / "best.zip") == weights(tmp_path / "whole" / "best.zip")
    assert (tmp_path / "parts" / exported).read_bytes() == (tmp_path / "whole" / exported).read_bytes()
    assert len(said) == 1  # its own end says the rest


def test_a_run_that_cannot_be_watched_says_so_at_its_first_evaluation() -> None:
    """Its prompts are shown once each, so that one of three detectors is left."""
    said: list[str] = []
    readings = iter(curve(reward=[0, 1, 9]))
    watching = watch.WatchForHacking(lambda: next(readings), (), said.append)
    watching.model = SimpleNamespace(ranks=ALONE)  # type: ignore[assignment]
    for _ in range(3):
        watching.on_evaluation(None)  # type: ignore[arg-type]
    (line,) = said
    assert line.startswith("reward hacking is not watched for: 2 of diversity, prompt-spread, reward-rise decide, and ")
    assert "diversity, prompt-spread could not be measured: an evaluation must show prompts at least twice" in line


def test_a_lengthened_run_returns_to_a_best_that_its_log_no_longer_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last evaluation of the shorter run, at iteration 3, was out of turn, and is not made again."""
    torch.set_num_threads(1)
    late = Alarm(64, [Sign("reward-rise", 64, "it rises")])
    rule = SimpleNamespace(
        alarm=lambda readings: late if readings and readings[-1].queries >= 64 else None, silent=lambda readings: None
    )
    monkeypatch.setattr(watch, "shipped_rule", lambda: rule)
    spec = spec_of(stop_when_hacked=True)
    spec = replace(spec, config=override(spec.config, evaluation=EvaluationConfig(images=8, every=2)))
    short = run(replace(spec, reward_queries=48), tmp_path)
    assert short.best is not None
    assert short.best["iteration"] == 3
    longer = run(spec, tmp_path)
    assert [line.iteration for line in longer.evaluations] == [0, 2, 4]
    assert longer.stopped_early is not None
    assert longer.stopped_early.endswith("exported are the weights of iteration 3")


def test_what_was_said_before_a_run_is_resumed_is_not_said_again() -> None:
    said: list[str] = []
    readings = curve(reward=[0, 1, 2, 3])
    rest = iter(readings[3:])
    rule = Rule({"reward-rise": 1.5}, ["reward-rise"], 1)
    whole = watch.WatchForHacking(lambda: next(rest), readings[:3], said.append, rule=rule)
    whole.model = SimpleNamespace(ranks=ALONE)  # type: ignore[assignment]
    assert whole.alarm is not None
    whole.on_evaluation(None)  # type: ignore[arg-type]
    assert (said, whole.reason) == ([], None)


def test_inspect_and_the_report_say_the_same_of_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log is rewritten: pictures of the one prompt get alike, and the reward rises."""
    torch.set_num_threads(1)
    folder = tmp_path / "run"
    run(spec_of(), folder)
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    for at, line in enumerate(lines):
        line["rewards"] = [3.0 * max(0, at - 3) + image % 2 for image in range(8)]
        line["metrics"] = {"diversity": 30.0 if at < 3 else 10.0}
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "pictures of a prompt have been getting alike since 48 queries" in said
    assert "probably being hacked, since 64 queries" in said
    record = read_run(folder)
    (mark,) = marks(curves([record]), [record])
    assert mark.at == 4
    assert "getting alike since 48 queries, and the reward has been far above its start since 64 queries" in mark.text
    chart = evaluation_charts(curves([record]), [mark])[0].chart
    assert [row.get("mark") for row in chart.rows] == [None] * 4 + [mark.text] + [None] * 2
    layers = chart.specification(styles(["ddpo-is"]))["layer"]
    assert layers[-1]["transform"] == [{"filter": "isValid(datum.mark)"}]
    lines[1]["rewards"].pop()
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["inspect", str(folder)]) == 2
    assert "evaluations.jsonl' has 7 rewards; expected one for each of the prompts" in capsys.readouterr().err


def test_inspect_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is neither a run's folder" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "missing.csv")]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
    assert report(curve(reward=[1.0]), "queries").startswith("Not known: there is one evaluation so far")


def test_a_damaged_evaluation_is_not_blamed_on_another_file(tmp_path: Path) -> None:
    (tmp_path / EVALUATIONS).write_text('{"iteration": 0, "rewards": [1.0], "metrics": {}}\n')
    with pytest.raises(ValueError, match=r"line 1 of '.*evaluations\.jsonl' is not an evaluation .* it lacks 'costs'"):
        log_lines(tmp_path, EVALUATIONS)
    for rewards in ([], [None], ["1"]):
        line = {"iteration": 0, "rewards": rewards, "metrics": {}, "costs": {"reward_queries": 8}}
        (tmp_path / EVALUATIONS).write_text(json.dumps(line) + "\n")
        with pytest.raises(ValueError, match=r"line 1 of .* must be numbers"):
            log_lines(tmp_path, EVALUATIONS)


def test_stopping_needs_two_pictures_of_a_prompt() -> None:
    safeguards = Safeguards(stop_when_hacked=True)
    with pytest.raises(ValueError, match="of which there are none"):
        safeguards.check(0, False, False)
    with pytest.raises(ValueError, match="stop_when_hacked compares images of one prompt"):
        safeguards.check_prompts(["a", "b"], EvaluationConfig(images=2))
    safeguards.check_prompts(["a", "b"], EvaluationConfig(images=4))


def test_train_watches_by_default_whatever_the_number_of_prompts() -> None:
    """Its evaluations show each prompt twice, so diversity and the spread within a prompt are measured."""
    evaluation = defaults("ddpo-is").algorithm.evaluation
    shown = evaluation_prompts([f"prompt {number}" for number in range(1000)], evaluation.images, 2)
    assert evaluation.images_per_prompt == 2
    assert shown[::2] == shown[1::2]
    assert len(set(shown)) == 8
    Safeguards(stop_when_hacked=True).check_prompts([f"prompt {number}" for number in range(1000)], evaluation)
