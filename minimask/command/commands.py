"""What each subcommand of ``minimask`` does with its arguments; each function returns the exit status.

The docstrings are the text of ``--help``. Heavy imports stand inside the functions, so that ``--help`` and a
wrong argument are answered at once.
"""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from minimask import config as configuration
from minimask.command import sources
from minimask.command.telling import drawing, note, tell
from minimask.errors import InputError, one_line

SHOWN_ABOVE = 0.5


def demo(arguments: argparse.Namespace) -> int:
    """Show at once what the packaged weights find in images of cell nuclei. Then train a small Mask R-CNN
    from random weights on 32 such images, evaluate it on 10 others, and write pictures, loss curves, the
    checkpoint and COCO results. What an earlier demo left in the output directory is replaced, and nothing
    else.
    """
    from minimask.command.demo import check_output, run
    from minimask.command.demo import configuration as demo_configuration
    from minimask.files import check_output_directory

    output = check_output_directory(arguments.output)
    check_output(output)
    config = demo_configuration(arguments.quick, arguments.seed)

    def tell_first(path: Path, seconds: float) -> None:
        tell(
            f"{path}: what the weights that come with minimask find in images that they have not seen, after "
            f"{seconds:.0f} seconds. Look at it while other weights are trained:"
        )
        tell(
            f"training {config.model.name} from random weights on 32 images of cell nuclei, "
            f"{config.train.steps} steps of {config.train.batch_size}, "
            f"on the {'CPU' if arguments.device == 'cpu' else 'GPU'}"
        )

    def tell_evaluation(evaluation: Any) -> None:
        counts = f"{evaluation.images} validation images with {evaluation.objects} nuclei"
        print(f"\n{counts}:\n\n{evaluation.table()}\n")

    finished = run(config, output, note, arguments.device, tell_evaluation, tell_first)
    evaluation = finished.evaluation
    if evaluation is None:
        return _stopped(finished.outcome, config, output, arguments)
    print(f"box AP {evaluation.box['AP']:.3f}, mask AP {evaluation.mask['AP']:.3f}", end="")
    print(f" (AP50 {evaluation.mask['AP50']:.3f}), after {finished.seconds:.0f} seconds. Look at")
    for name, what in {
        "predictions.png": "ground truth beside predictions, on validation images",
        "losses.png": "how the losses fell",
        "checkpoint.npz": "the weights: minimask predict --weights ... IMAGE --output DIR",
        "detections.json": "the detections in COCO's results format",
    }.items():
        if (output / name).exists():
            tell(f"  {output / name!s:<32} {what}")
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Train on images annotated in COCO's instance format. The output directory gets checkpoint.npz,
    config.toml, losses.csv, log.jsonl and curves.png, which is redrawn while it trains; with --val also
    metrics.json, detections.json and report.html, and with train.validate_every best.npz and, each time, a
    sheet of predictions in validation/. --config auto chooses options that fit the data and prints each with
    its reason; what --set sets stays (minimask check-data --config auto prints them without training). Ctrl-C
    and SIGTERM finish the step, save, and say how to resume; a resumed run equals an unbroken one to the last
    bit, on the same machine with as many threads. Started with mpiexec -n N, N processes share each batch,
    each on its own GPU if there are any (install the extra mpi).
    """
    from minimask.command import reporting
    from minimask.command.demo import MARK
    from minimask.command.fitting import fitted, is_auto
    from minimask.command.watching import watching
    from minimask.files import check_output_directory
    from minimask.models.starting import start_from
    from minimask.training.distributed import world
    from minimask.training.loop import train as run

    output = check_output_directory(arguments.output)
    config = sources.train_config(arguments, output)
    dataset, validation = sources.training_data(arguments, config, note)
    start = None
    if not arguments.resume:
        config, start = start_from(config, note)
    if is_auto(arguments.config):
        recipe = fitted(config, dataset, arguments.set)
        config = recipe.config
        tell(f"a recipe for {dataset.name}:")
        print(f"{recipe.table()}\n")
    for line in sources.beyond_limits(config, dataset, validation):
        note(line)
    if world().rank == 0:
        (output / MARK).unlink(missing_ok=True)  # from here on it is more than a demo's
    device, command = arguments.device, reporting.command_line(arguments.argv)
    watch = watching(config, validation, output, command, note)
    outcome = run(config, dataset, output, arguments.resume, False, note, device, start, watch)
    if outcome.stopped_by is not None:
        return _stopped(outcome, config, output, arguments)
    if world().rank:
        return 0  # process 0 evaluates and draws
    tell(f"{outcome.step} steps done: {outcome.checkpoint}")
    if outcome.early:
        tell(_ended_early(outcome, config))
    try:
        if validation is not None:
            weights, known = _best_of(outcome, watch.validate)
            story = lambda _: reporting.trained(output, config, outcome, dataset, validation, device)  # noqa: E731
            reporting.evaluate_weights(weights, validation, None, output, device, story, known=known)
    except Exception:
        _draw_curves(output)
        raise
    _draw_curves(output)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Predict on every image of a COCO instance file, at its own size, and score the predictions with
    pycocotools; or score results that another program wrote (--results). Without --weights and --results, the
    packaged weights for cell nuclei are evaluated. The output directory gets detections.json (COCO results),
    metrics.json and report.html; with --results it is optional and gets metrics.json alone. Where AP is -1 or
    0, the command says why.
    """
    from minimask.command import reporting
    from minimask.command.own_data import check_evaluate, evaluate_results
    from minimask.files import check_inputs_are_kept, check_output_directory
    from minimask.results.evaluate import FILES

    check_evaluate(arguments)
    if arguments.results:
        return evaluate_results(arguments)
    output, weights = check_output_directory(arguments.output), sources.weights_or_default(arguments, note)
    check_inputs_are_kept([arguments.data, weights], [output / name for name in (*FILES, reporting.REPORT)])
    dataset = sources.open_dataset(arguments.data, arguments.images, "val", arguments.strict)
    for line in dataset.notes:
        note(line)
    most = arguments.max_detections
    story = partial(reporting.evaluated, weights, dataset, arguments.argv)
    reporting.evaluate_weights(weights, dataset, most, output, arguments.device, story, arguments.per_class)
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Write NAME-instances.png for each image: masks, boxes, keypoints, class names and scores. Without
    --weights it finds cell nuclei.
    """
    from minimask.files import check_inputs_are_kept, check_output_directory
    from minimask.models.detector import load_detector
    from minimask.results.fonts import missing_letters
    from minimask.results.predict import check_images, expanded, predict_files, results_of
    from minimask.training.progress import each

    output = check_output_directory(arguments.output)
    images, also = expanded(arguments.images), (arguments.json, arguments.label_maps)
    weights = sources.weights_or_default(arguments, note)
    # Before the weights: a wrong name should not wait for them.
    for line in check_images(images, output, *also):
        note(line)
    written = [result for path in images for result in results_of(path, output, arguments.label_maps)]
    check_inputs_are_kept([weights], [*written, output / "predictions.json"])
    options = {"detections": arguments.max_detections, "score_threshold": arguments.score_threshold}
    detector = load_detector(weights, arguments.device, note, **options)
    if missing := missing_letters(detector.class_names):
        note(f"no font on this computer has {missing}: class names get boxes in their place; install one")
    progress = lambda paths: each(paths, "predicting")  # noqa: E731
    counts = predict_files(detector, images, output, *also, progress, note)
    most = detector.detections
    for path, count in zip(images, counts):
        objects = f"{count} object{'s' * (count != 1)}"
        tell(f"{path}: {objects}, {output / Path(path).stem}-instances.png")
        if count == most:
            note(f"{path}: may have more objects than the {most} shown; --max-detections allows more")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write the weights of a run for torch, under torchvision's names: as .safetensors, with the names of the
    classes, or as .pth. Other files of weights, of torch or detectron2, are written as they are.
    """
    from minimask.command.exporting import check_target, how_to_load, write
    from minimask.weights import read_weights
    from minimask.weights.download import local_weights

    target = Path(arguments.target)
    check_target(target, Path(arguments.weights))
    source = local_weights(arguments.weights, note)
    weights = read_weights(source)
    write(weights, target)
    numbers = sum(array.size for array in weights.values())
    size = f"{target.stat().st_size / 1e6:.1f} MB"
    tell(f"{target}: {len(weights)} arrays of {numbers:,} numbers, {size}")
    for line in how_to_load(weights, target):
        tell(line)
    return 0


def gradcheck(arguments: argparse.Namespace) -> int:
    """Compare the backward pass of every Function (or of those named) with central differences in float64;
    print its cases, its worst relative error and where that is. The exit status is 1 if any fails.
    """
    from minimask.lessons.gradient_cases import run_table

    return 0 if run_table(arguments.names, out=print) else 1


def misalign(arguments: argparse.Namespace) -> int:
    """Measure RoIPool, RoIWarp and RoIAlign without training: the worst displacement of a bin's edge beside
    its derived bound, for strides 4, 8, 16 and 32; and, on a ramp and on an image, outputs and gradients of
    boxes moved over a stride, against the exact integral over each bin. Prints tables; writes misalign.json
    and figures for slides (SVG and PNG, each with its description).
    """
    from minimask.files import (
        check_inputs_are_kept,
        check_output_directory,
        output_directory,
        write_json,
    )
    from minimask.lessons.misalign import IMAGE, image_map, measure, table
    from minimask.lessons.misalign_figures import FILES, draw

    output, image = check_output_directory(arguments.output), Path(arguments.image or IMAGE)
    check_inputs_are_kept([image], [output / name for name in FILES])
    x = image_map(image, arguments.stride)
    with output_directory(output):
        found = measure(x, arguments.stride, arguments.bins, arguments.boxes, arguments.seed, image.name)
        try:
            found["figures"] = {}
            with drawing(output / "misalign-*.svg"):
                found["figures"] = draw(found, x, output)
            write_json(output / "misalign.json", found, indent=1)
        finally:
            print(table(found))
    figures = f"; figures: {output / 'misalign-*.svg'} and .png" if found["figures"] else ""
    print()
    tell(f"{output / 'misalign.json'}{figures}")
    return 0


def ablate(arguments: argparse.Namespace) -> int:
    """Train small networks that differ in one of the paper's choices on generated stars, several seeds of
    each from the same weights and pictures, and print their AP beside the paper's, with its spread and
    whether the direction is the same (docs/ablations.md). The output directory gets a folder for each run and
    table.md. Ctrl-C finishes the step and saves; the same command goes on, and finished runs stay. Started in
    several terminals, it shares the runs among them. The ablations: roi-layer, sampling, mask-loss,
    class-agnostic, mask-branch, multi-task.
    """
    import difflib

    from minimask.ablations.designs import ABLATIONS
    from minimask.ablations.runs import run
    from minimask.ablations.table import table
    from minimask.files import check_output_directory, write_text

    name = arguments.name
    if name not in ABLATIONS:
        near = difflib.get_close_matches(name, ABLATIONS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ABLATIONS)}"
        raise InputError(f"ablate: there is no ablation {name!r}; {hint}")
    ablation, output = ABLATIONS[name], check_output_directory(arguments.output or f"ablate-{name}")
    seeds = arguments.seeds or ablation.seeds
    seconds = None if arguments.minutes is None else 60 * arguments.minutes
    finished = run(ablation, output, seeds, note, arguments.device, seconds)
    shown = table(ablation, finished.results, seeds)
    write_text(output / "table.md", f"{shown}\n")
    left = f"{len(finished.results)} of {finished.of} runs are done, all is saved"
    go_on = f"{left}; go on with: {_ablate_command(arguments, output)}"
    if finished.stopped_by is not None:
        print(f"minimask: {one_line(go_on)}", file=sys.stderr)
        return 128 + finished.stopped_by
    print(f"{shown}\n")
    ended = "other processes are doing the rest" if finished.elsewhere else "time is up"
    tell(f"{output / 'table.md'}: this table" if finished.complete else f"{ended}: {go_on}")
    return 0


def _ablate_command(arguments: argparse.Namespace, output: Path) -> str:
    words = ["minimask", "ablate", arguments.name, "--output", str(output)]
    words += ["--seeds", str(arguments.seeds)] if arguments.seeds else []
    return shlex.join(words + _device_words(arguments))


def _device_words(arguments: argparse.Namespace) -> list[str]:
    """For a command that goes on with the work: its --device, where one was asked for."""
    return [] if arguments.given_device == "auto" else ["--device", arguments.device]


def info(arguments: argparse.Namespace) -> int:
    """Print versions, BLAS and its threads, the processor, and the GPU or why none is used: what a report
    of a problem should begin with.
    """
    from minimask.backend.machine import report

    print(report())
    return 0


def _best_of(outcome: Any, validator: Any) -> tuple[Path, Any]:
    """The weights that a run is judged by, the best or else the last, and their evaluation if it is known."""
    from minimask.training.loop import BEST

    if outcome.best is None:
        return outcome.checkpoint, None
    tell(f"the weights after step {outcome.best['step']} were the best in validation, and are evaluated now")
    step, evaluation = validator.best or (None, None)
    return outcome.checkpoint.with_name(BEST), evaluation if step == outcome.best["step"] else None


def _ended_early(outcome: Any, config: configuration.Config) -> str:
    waited, best = config.train.patience, outcome.best
    found = f"{best['validation'].get('by', 'score')} {best['validation']['score']:.3f}"
    return (
        f"ended early, at step {outcome.step} of {config.train.steps}: {waited} validations in a row were "
        f"worse than that after step {best['step']} ({found}); to go on, --resume with a greater "
        "train.patience"
    )


def _draw_curves(output: Path) -> None:
    from minimask.command.watching import CURVES, draw_curves

    with drawing(output / CURVES):
        tell(f"{draw_curves(output)}: how the losses fell")


def _stopped(outcome: Any, config: configuration.Config, output: Path, arguments: argparse.Namespace) -> int:
    from minimask.training.keeper import resume_command

    done = f"stopped after step {outcome.step} of {config.train.steps}, saved"
    line = one_line(f"{done}; go on with: {' '.join([resume_command(output), *_device_words(arguments)])}")
    print(f"minimask: {line}", file=sys.stderr)
    return 128 + outcome.stopped_by
