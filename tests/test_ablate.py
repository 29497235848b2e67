"""`minimask ablate`: equal starts, interruption and resume, the verdict on synthetic results, bad input."""

import csv
import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from minimask.ablations import designs, runs, stars
from minimask.ablations import measured as measuring
from minimask.ablations.designs import ABLATIONS, Ablation, Comparison, Training, Variant
from minimask.ablations.measured import FOLDER, measured
from minimask.ablations.networks import PYRAMID, Network, Sizes, build
from minimask.ablations.runs import Result, design_of, run
from minimask.ablations.stars import Stars
from minimask.ablations.table import Difference, paired, table, verdict
from minimask.command import cli
from minimask.errors import InputError
from minimask.training.stopping import StopSignals

ROOT = Path(__file__).parent.parent

TINY = Ablation(
    "tiny",
    "Table 0",
    "mask",
    "AP75",
    (
        Comparison(
            "stride 16",
            (
                Variant("pool", "RoIPool", Network(roi_layer="roi_pool"), (1.0, 2.0, 3.0), "below"),
                Variant("align", "RoIAlign", Network(), (2.0, 4.0, 6.0)),
            ),
            size=64,
        ),
    ),
    seeds=2,
    training=Training(objects=(1, 2), steps=3, batch_size=1, warmup_steps=1, evaluated=2),
    sizes=Sizes(body=(8, 8, 8, 8), features=8, box_width=8),
)


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken")
    return run(TINY, output, 2, silent), output


def losses(output, name: str, seed: int) -> list[dict]:
    """The steps of a run, as losses.csv has them."""
    text = (output / name / f"seed-{seed}" / "losses.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def kinds(finished) -> dict:
    return {key: result.kinds for key, result in finished.results.items()}


# ------------------------------------------------------------------------------------------------ the designs


def test_every_design_is_whole():
    assert list(ABLATIONS) == [
        "roi-layer",
        "sampling",
        "mask-loss",
        "class-agnostic",
        "mask-branch",
        "multi-task",
    ]
    for ablation in ABLATIONS.values():
        names = [variant.name for variant in ablation.variants]
        assert len(set(names)) == len(names) and ablation.seeds >= 5
        assert len(set(variant.network for variant in ablation.variants)) == len(names)
        for comparison in ablation.comparisons:
            *others, reference = comparison.variants
            assert reference.claim is None and len({v.network.stride for v in comparison.variants}) == 1
            for variant in others:
                known = variant.paper[0] is not None and reference.paper[0] is not None
                if variant.claim == "below":
                    assert known and variant.paper[0] < reference.paper[0]
    rois = ABLATIONS["roi-layer"]
    assert (rois.kind, rois.metric) == ("mask", "AP75")
    assert [(v.network.stride, v.network.roi_layer) for v in rois.variants] == [
        (stride, layer)
        for stride in (16, 32)
        for layer in ("roi_pool", "roi_warp_max", "roi_warp", "roi_align_max", "roi_align")
    ]
    assert ABLATIONS["multi-task"].kind == "box"


@pytest.mark.parametrize("name", ABLATIONS)
def test_networks_of_a_seed_begin_with_the_same_weights_wherever_they_have_the_same_layers(name):
    for comparison in ABLATIONS[name].comparisons:
        states = [build(v.network, 4, 64, 3, ABLATIONS[name].sizes).state_dict() for v in comparison.variants]
        reference = states[-1]
        for state in states[:-1]:
            differ = [n for n in state if n not in reference or state[n].shape != reference[n].shape]
            differ += [n for n in reference if n not in state]
            assert all(n.startswith("roi_heads.mask_") for n in differ)
            for key in state.keys() - set(differ):
                np.testing.assert_array_equal(state[key], reference[key], err_msg=key)
        assert name in ("class-agnostic", "mask-branch", "multi-task") or not differ
    other = build(comparison.variants[-1].network, 4, 64, 4, ABLATIONS[name].sizes).state_dict()
    assert any(np.any(other[key] != reference[key]) for key in reference)


@pytest.mark.parametrize("stride", [16, 32])
def test_the_heads_of_a_single_map_read_it_alone(stride):
    model = build(Network(stride), 4, 64, 0, TINY.sizes)
    (level,) = model.backbone(np.zeros((1, 3, 64, 96), np.float32))
    assert level.shape == (1, TINY.sizes.features, 64 // stride, 96 // stride)
    assert model.box_head.pooler.strides == model.mask_head.pooler.strides == (stride,)
    assert f"backbone.body.layer{5 if stride == 32 else 4}.0.conv1.weight" not in model.state_dict()


def test_a_networks_choices_are_what_its_heads_are_built_with():
    network = Network(PYRAMID, sampling_ratio=0, aligned=False, mask_loss="softmax", class_agnostic=True)
    model = build(network, 4, 64, 0, TINY.sizes)
    for head in (model.box_head, model.mask_head):
        assert head.pooler.roi_layer.keywords == dict(sampling_ratio=0, aligned=False)
    assert model.mask_head.mask_loss.channels(4) == 2
    assert build(replace(network, masks=False), 4, 64, 0, TINY.sizes).mask_head is None


# ----------------------------------------------------------------------------------------------- the pictures


@pytest.mark.parametrize("name", stars.STARS)
def test_a_stars_mask_has_the_stars_area_and_its_symmetry(name):
    (tips, notch), pictures = stars.STARS[name], Stars(1, 0, size=120)
    for seed in range(20):
        mask = pictures._shape(name, np.random.default_rng(seed))
        radius = np.random.default_rng(seed).uniform(*stars.RADIUS) * 120
        if mask[[0, -1]].any() or mask[:, [0, -1]].any():
            continue  # cut off by the picture's edge
        area = tips * notch * np.sin(np.pi / tips) * radius**2  # 2 n triangles with sides R and notch R
        assert mask.sum() == pytest.approx(area, rel=0.05)
        y, x = np.nonzero(mask)
        farthest = np.hypot(x - x.mean(), y - y.mean()).max()
        assert radius - 2 < farthest < radius + 1


def test_pictures_depend_on_seed_and_number_alone_and_show_every_class():
    few, many = Stars(3, 5, 96, (2, 4)), Stars(30, 5, 96, (2, 4))
    np.testing.assert_array_equal(few[2].image, many[2].image)
    assert np.any(few[2].image != Stars(3, 6, 96, (2, 4))[2].image)
    assert {label for sample in many for label in sample.labels} == {1, 2, 3}
    sides = np.concatenate([sample.boxes[:, 2:] - sample.boxes[:, :2] for sample in many])
    assert sides.max() <= 2 * stars.RADIUS[1] * 96 + 1


# ------------------------------------------------------------------------------------ running, and going on


def test_all_runs_are_done_and_leave_results_without_checkpoints(unbroken):
    finished, output = unbroken
    assert finished.complete and finished.stopped_by is None
    assert list(finished.results) == [("pool", 0), ("align", 0), ("pool", 1), ("align", 1)]
    for (name, seed), result in finished.results.items():
        folder = output / name / f"seed-{seed}"
        found = json.loads((folder / "result.json").read_text())
        assert (found["variant"], found["seed"], found["kinds"]) == (name, seed, result.kinds)
        assert not (folder / "checkpoint.npz").exists() and not (folder / "config.toml").exists()
        assert set(result.kinds) == {"box", "mask"} and result.seconds > 0
    again = run(TINY, output, 2, pytest.fail)  # nothing is left to do, and nothing is said
    assert again.results == finished.results


def test_networks_of_a_seed_see_the_same_pictures_and_seeds_see_others(unbroken):
    _, output = unbroken

    def first(name, seed):
        rows = losses(output, name, seed)
        assert len(rows) == TINY.training.steps
        return rows[0]["loss_objectness"], rows[0]["loss_rpn_box_reg"]

    # What comes before the RoI layer: of equal weights, pictures and samples
    assert first("pool", 0) == first("align", 0) != first("pool", 1) == first("align", 1)


class Interrupting:
    """Takes notes, and presses Ctrl-C when a run begins: it ends after the first of its steps."""

    def __init__(self, words: str):
        self.words, self.lines = words, []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if self.words in line:
            signal.raise_signal(signal.SIGINT)


def test_stopped_in_a_run_and_gone_on_with_it_gives_the_same_results(unbroken, tmp_path, capfd):
    stopped = run(TINY, tmp_path, 2, Interrupting("run 2 of 4: align, seed 0"))
    assert stopped.stopped_by == signal.SIGINT and list(stopped.results) == [("pool", 0)]
    assert len(losses(tmp_path, "align", 0)) == 1, "it was to be stopped after its first step"
    notes = []
    finished = run(TINY, tmp_path, 2, notes.append)
    assert finished.complete and kinds(finished) == kinds(unbroken[0])
    assert any(line.startswith("run 2 of 4: align, seed 0; about ") for line in notes)
    assert losses(tmp_path, "align", 0) == losses(unbroken[1], "align", 0)
    assert table(TINY, finished.results, 2) == table(TINY, unbroken[0].results, 2)
    capfd.readouterr()


def test_stopped_in_an_evaluation_it_is_evaluated_again(unbroken, tmp_path, monkeypatch, capfd):
    evaluate = runs.evaluate

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(runs, "evaluate", interrupted)
    stopped = run(TINY, tmp_path, 1, silent)
    assert stopped.stopped_by == signal.SIGINT and not stopped.results
    assert (tmp_path / "pool" / "seed-0" / "checkpoint.npz").exists()
    monkeypatch.setattr(runs, "evaluate", evaluate)
    finished = run(TINY, tmp_path, 1, silent)
    assert kinds(finished) == {key: found for key, found in kinds(unbroken[0]).items() if key[1] == 0}
    capfd.readouterr()


def test_a_run_that_another_process_is_at_is_left_to_it(tiny, unbroken, tmp_path, capsys):
    theirs = list(runs.plan(TINY, tmp_path, 2))[1]
    with runs._held(theirs):
        finished = run(TINY, tmp_path, 2, silent)
        assert cli.main(["ablate", "tiny", "--output", str(tmp_path)]) == 0
    assert (len(finished.results), finished.elsewhere) == (3, 1) and not finished.complete
    told = " ".join(capsys.readouterr().out.split())
    assert "other processes are doing the rest: 3 of 4 runs are done" in told
    assert kinds(run(TINY, tmp_path, 2, silent)) == kinds(unbroken[0])


def test_processes_share_the_runs_and_do_each_once(unbroken, tmp_path):
    program = "from pathlib import Path; from tests.test_ablate import TINY, run; import sys; "
    program += "run(TINY, Path(sys.argv[1]), 2, print)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    begun = [line.partition(": ")[2].partition(";")[0] for text in said for line in text.splitlines()]
    assert sorted(line for line in begun if "seed" in line) == [
        f"{name}, seed {seed}" for name in ("align", "pool") for seed in (0, 1)
    ]
    assert kinds(run(TINY, tmp_path, 2, silent)) == kinds(unbroken[0])


def test_a_signal_within_is_handed_on_to_the_work_around():
    with StopSignals(tell=False) as around:
        with StopSignals(tell=False) as within:
            signal.raise_signal(signal.SIGTERM)
        assert within.signal == around.signal == signal.SIGTERM
    with StopSignals(tell=False) as around:
        with StopSignals(tell=False):
            pass
        assert around.signal is None


def test_a_run_that_diverges_is_named_with_what_can_be_done(tmp_path, capfd):
    wild = replace(TINY, training=replace(TINY.training, learning_rate=1e30, warmup_steps=0))
    says = r"seed 0: training stopped at step .*; remove .* to try it again"
    with pytest.raises(InputError, match=says) as caught:
        run(wild, tmp_path, 1, silent)
    assert "--resume" not in str(caught.value)


def test_more_seeds_keep_the_runs_there_are(tmp_path, capfd):
    one = run(TINY, tmp_path, 1, silent)
    notes = []
    two = run(TINY, tmp_path, 2, notes.append)
    assert two.complete and two.results.items() >= one.results.items()
    assert [line.split(";")[0] for line in notes if line.startswith("run")] == [
        "run 3 of 4: pool, seed 1",
        "run 4 of 4: align, seed 1",
    ]
    capfd.readouterr()


# ------------------------------------------------------------------------------------ spreads and the verdict


def test_beyond_the_spread_means_what_a_paired_t_test_says():
    rng = np.random.default_rng(0)
    seen = set()
    for shift in (-2.0, -1.0, 0.0, 1.0, 2.0):
        for count in (2, 3, 5):
            a, b = rng.normal(shift, 1.0, count), rng.normal(0.0, 1.0, count)
            found = paired(dict(enumerate(a)), dict(enumerate(b)))
            p = stats.ttest_rel(a, b).pvalue
            assert (found.direction != "inside") == (p < 0.05)
            interval = stats.ttest_rel(a, b).confidence_interval(0.95)
            np.testing.assert_allclose((found.low, found.high), interval, rtol=1e-9)
            assert found.direction == "inside" or found.direction == ("below" if found.mean < 0 else "above")
            seen.add(found.direction)
    assert seen == {"below", "above", "inside"}


def test_differences_are_taken_seed_by_seed():
    ours, reference = {0: 10.0, 1: 50.0, 2: 30.0, 7: 1.0}, {0: 12.0, 1: 52.5, 2: 31.5}
    found = paired(ours, reference)
    assert (found.count, found.mean) == (3, -2.0) and found.deviation == pytest.approx(0.5)
    assert found.direction == "below", "though the means lie within the spread of either"
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: 1.0}, {0: 2.0}).direction is None


@pytest.mark.parametrize(
    "low, high, claim, words",
    [
        (-2, -1, "below", "below, agrees"),
        (-2, 1, "below", "inside the spread"),
        (1, 2, "below", "above, disagrees"),
        (-2, 1, "equal", "inside the spread, agrees"),
        (-2, -1, "equal", "below, disagrees"),
        (1, 2, "equal", "above, disagrees"),
        (-2, -1, None, "below"),
        (-2, 1, None, "inside the spread"),
        (-1, 0, "below", "inside the spread"),
    ],
)
def test_the_verdict_says_whether_the_paper_says_the_same(low, high, claim, words):
    assert verdict(Difference(5, (low + high) / 2, 1.0, low, high), claim) == words


def test_one_seed_and_none_get_no_verdict():
    assert verdict(paired({0: 1.0}, {0: 9.0}), "below") == "one seed tells no spread"
    assert verdict(None, "below") == ""


def synthetic(pool: list[float], align: list[float]) -> dict:
    def result(ap75):
        values = dict(AP=ap75 / 2, AP50=2 * ap75, AP75=ap75, small=-1.0, medium=-1.0, large=-1.0)
        return Result({"mask": values, "box": values}, 1.0)

    return {
        (name, seed): result(value)
        for name, values in (("pool", pool), ("align", align))
        for seed, value in enumerate(values)
    }


def cells(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_table_has_means_spreads_and_what_the_paper_found():
    shown = table(TINY, synthetic([0.1, 0.2, 0.3], [0.3, 0.42, 0.48]), 3)
    head, _, pool, align = cells(shown)
    assert head == [
        *("stride 16", "paper AP", "AP50", "AP75", "ours AP", "AP50", "AP75", "box AP75", "n"),
        *("ΔAP75 paper", "ΔAP75 ours", "AP75 is"),
    ]
    ours = ["10.0 ± 5.0", "40.0 ± 20.0", "20.0 ± 10.0", "20.0 ± 10.0", "3"]
    told = ["-3.0", "-20.0 ± 2.0", "below, agrees"]
    assert pool == ["RoIPool", "1.0", "2.0", "3.0", *ours, *told]
    assert align[0] == "RoIAlign" and align[6] == "40.0 ± 9.2" and align[-3:] == ["", "", ""]
    assert "runs are done" not in shown
    assert len({len(line) for line in shown.splitlines() if line.startswith("|")}) == 1


def test_a_table_of_what_is_done_so_far_says_so():
    shown = table(TINY, synthetic([0.1], []), 3)
    _, _, pool, align = cells(shown)
    assert "**1 of 6 runs are done**" in shown
    assert pool[4:9] == ["5.0", "20.0", "10.0", "10.0", "1"] and pool[-2:] == ["", ""]
    assert align[4:9] == ["", "", "", "", "0"]
    assert not math.isnan(float(pool[4]))


# ------------------------------------------------------------------------------------------------ the command


def ablate(*arguments) -> int:
    return cli.main(["ablate", *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(designs.ABLATIONS, "tiny", TINY)


def test_the_command_prints_the_table_and_writes_it(tiny, unbroken, tmp_path, capsys):
    assert ablate("tiny", "--seeds", 1, "--output", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert "| RoIPool" in out and "one seed tells no spread" in out and "run 2 of 2: align, seed 0" in err
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") in out


def test_when_time_is_up_it_tells_how_to_go_on_and_shows_what_there_is(tiny, tmp_path, capsys):
    output = tmp_path / "two words"
    assert ablate("tiny", "--minutes", 1e-9, "--output", output) == 0
    out, _ = capsys.readouterr()
    assert "**0 of 4 runs are done**" in out
    command = f"minimask ablate tiny --output '{output}' --device cpu"
    assert out.endswith(f"time is up: 0 of 4 runs are done, all is saved; go on with: {command}\n")


def test_ctrl_c_ends_it_with_one_line_that_says_how_to_go_on(tiny, tmp_path, monkeypatch, capfd):
    train = runs.train

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return train(*arguments, **options)

    monkeypatch.setattr(runs, "train", interrupted)
    assert ablate("tiny", "--seeds", 1, "--output", tmp_path) == 130
    out, err = capfd.readouterr()
    command = f"minimask ablate tiny --output {tmp_path} --seeds 1 --device cpu"
    assert not out and err.splitlines()[-1] == (
        f"minimask: 0 of 2 runs are done, all is saved; go on with: {command}"
    )


def test_bad_input_is_one_line_and_makes_nothing(tiny, unbroken, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cases = [
        (["roi-layers"], "ablate: there is no ablation 'roi-layers'; did you mean roi-layer?"),
        (["x"], "there are roi-layer, sampling, mask-loss, class-agnostic, mask-branch, multi-task"),
        (["tiny", "--seeds", "0"], "--seeds: must be a whole number from 1"),
        (["tiny", "--minutes", "0"], "--minutes: must be a number above 0, is '0'"),
        (["tiny", "--minutes", "nan"], "--minutes: must be a number above 0, is 'nan'"),
        (["tiny", "--output", tmp_path / "file"], "file"),
        (["tiny", "--output", ""], "--output: is empty"),
        (["mask-loss", "--output", unbroken[1]], "design.json: this directory holds the ablation tiny"),
    ]
    for arguments, words in cases:
        assert ablate(*arguments) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and words in err, arguments
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_design_and_damaged_results_are_named(tiny, tmp_path, monkeypatch, capsys):
    assert ablate("tiny", "--minutes", 1e-9, "--output", tmp_path) == 0
    longer = replace(TINY, training=replace(TINY.training, steps=4))
    monkeypatch.setitem(designs.ABLATIONS, "tiny", longer)
    capsys.readouterr()
    assert ablate("tiny", "--output", tmp_path) == 2
    assert "this directory holds another design of it" in capsys.readouterr().err
    monkeypatch.setitem(designs.ABLATIONS, "tiny", TINY)
    folder = tmp_path / "pool" / "seed-0"
    folder.mkdir(parents=True)
    for text in ("{", "[]", '{"kinds": {"mask": {"AP": 1}}, "seconds": 1}', '{"kinds": {}, "seconds": "x"}'):
        (folder / "result.json").write_text(text)
        assert ablate("tiny", "--output", tmp_path) == 2
        err = capsys.readouterr().err
        assert f"{folder / 'result.json'}: is damaged; remove it" in err and err.count("\n") == 1


# ------------------------------------------------------------------------- the results that the package has


PAGE = Path(__file__).parent.parent / "docs" / "ablations.md"


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_page_shows_the_packages_own_results_of_todays_design(name):
    ablation, results = ABLATIONS[name], measured(name)
    page = PAGE.read_text(encoding="utf-8")
    if results is None:
        assert f"`minimask ablate {name}`, the paper's" not in page
        return
    kept = json.loads((FOLDER / f"{name}.json").read_text())
    assert kept["design"] == design_of(ablation), "another design than today's: its runs are to be made again"
    assert list(results) == [(r.variant.name, r.seed) for r in runs.plan(ablation, PAGE, ablation.seeds)]
    assert table(ablation, results, ablation.seeds) in page


def test_what_the_page_says_beside_its_tables_follows_from_the_same_results():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for name in ABLATIONS:
        if results := measured(name):
            minutes = sum(result.seconds for result in results.values()) / 60
            section = page.partition(f"### {name} ")[2].partition("###")[0]
            assert f"add up to {minutes:.0f} minutes." in section, name

    def by_seed(ablation, variant, kind):
        results = measured(ablation)
        return {seed: 100 * results[variant, seed].kinds[kind]["AP"] for seed in range(5)}

    align, pool = (by_seed("multi-task", f"faster-roi-{name}", "box") for name in ("align", "pool"))
    found = paired(align, pool)
    assert f"is {found.mean:.1f} ± {found.deviation:.1f} points" in page and found.direction == "inside"
    assert f"an interval from {found.low / 100:.3f} to {found.high / 100:.3f}" in page
    three, two = (by_seed("mask-branch", name, "mask") for name in ("mlp3", "mlp2"))
    assert f"in {sum(three[seed] > two[seed] for seed in three)} of 5 seeds" in page
    (comparison,), results = ABLATIONS["sampling"].comparisons, measured("sampling")
    ap75 = {
        v.name: [100 * results[v.name, seed].kinds["mask"]["AP75"] for seed in range(5)]
        for v in comparison.variants
    }
    *others, chosen = (dict(enumerate(values)) for values in ap75.values())
    found = [paired(other, chosen) for other in others]
    assert all(difference.direction == "inside" for difference in found)
    reach = [(difference.high - difference.low) / 2 for difference in found]
    assert f"reaches {min(reach):.0f} to {max(reach):.0f} points to either side" in page
    means = [
        dict(enumerate(np.mean([ap75[name] for name in ap75 if ("not" in name) == offset], axis=0)))
        for offset in (False, True)
    ]
    found = paired(*means)
    assert f"by {found.mean:.1f} ± {found.deviation:.1f} points" in page


def test_a_finished_ablation_is_kept_and_one_with_a_run_missing_is_not(unbroken, tmp_path, monkeypatch):
    finished, output = unbroken
    monkeypatch.setattr(measuring, "FOLDER", tmp_path / "measured")
    monkeypatch.setitem(ABLATIONS, TINY.name, TINY)
    assert measured(TINY.name) is None
    measuring.keep(TINY.name, output)
    kept = measured(TINY.name)
    assert list(kept) == list(finished.results)
    for key, result in kept.items():
        for kind, values in result.kinds.items():
            assert values == pytest.approx(
                {score: finished.results[key].kinds[kind][score] for score in values}, abs=5e-6
            )
    monkeypatch.setitem(ABLATIONS, TINY.name, replace(TINY, seeds=3))
    with pytest.raises(InputError, match="seed-2: this run is not done"):
        measuring.keep(TINY.name, output)
