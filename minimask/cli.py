"""The command ``minimask``: its arguments, its help, and its errors in one line each."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from minimask import commands
from minimask import config as configuration
from minimask._version import __version__
from minimask.errors import InputError

WRONG_INPUT, BUG, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141


def entry_point() -> None:
    """What the installed command calls."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the command's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0; 1 when a check failed or for a bug of ours; 2 for input that cannot be used; 130 after Ctrl-C, 143
        after SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        status = _run(argv, "--debug" in argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output has left, `head` say. The interpreter would complain at its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _run(argv: list[str], debug: bool) -> int:
    try:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except SystemExit as leaving:  # --help and --version; and the second SIGTERM
        return leaving.code if isinstance(leaving.code, int) else 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED, debug)
    except InputError as error:
        return _say(str(error), WRONG_INPUT, debug)
    except MemoryError:
        text = "not enough memory; try a smaller data.crop, train.batch_size or model.max_size"
        return _say(text, WRONG_INPUT, debug)
    except OSError as error:
        return _say(f"{error.filename or 'input or output'}: {error.strerror or error}", WRONG_INPUT, debug)
    except Exception as error:
        text = f"{type(error).__name__}: {error}: this is a bug in minimask, not a mistake of yours"
        return _say(text + ("" if debug else "; --debug shows where"), BUG, debug)


def _say(text: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"minimask: {' '.join(text.split())}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """Answers a wrong argument in one line, as for any other wrong input."""

    def __init__(self, *arguments, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message: str):
        raise InputError(f"{message}; see '{self.prog} --help'")


def _whole(low: int):
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} up, is {text!r}")
        return value

    return whole


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, is {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minimask",
        description="Mask R-CNN from scratch on NumPy: train, evaluate and use it, and check its gradients.",
        epilog="Begin with 'minimask demo' (5 minutes), or 'minimask demo --quick' (1 minute).\n"
        "'minimask COMMAND --help' tells what a command takes, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"minimask {__version__}")
    parser.add_argument("--debug", action="store_true", help="on an error, show where it was raised")
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )

    def command(name: str, run, text: str, description: str, epilog: str = "", device: bool = False):
        added = subparsers.add_parser(name, help=text, description=description, epilog=epilog)
        added.set_defaults(run=run)
        added.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="on an error, show where it was raised",
        )
        if device:
            # Checked by backend.device, which knows why there is no GPU.
            added.add_argument("--device", default="auto", metavar="cpu|cuda|auto", help="where to compute")
        return added

    demo = command(
        "demo",
        commands.demo,
        "train on packaged images of cell nuclei, evaluate, draw",
        "Train a small Mask R-CNN from random weights on 32 packaged images of cell nuclei, evaluate it on\n"
        "10 others, and write pictures, loss curves, the checkpoint and COCO results. What an earlier demo\n"
        "left in the output directory is replaced.",
        device=True,
    )
    demo.add_argument(
        "--quick", action="store_true", help="under a minute instead of five, and worse results"
    )
    demo.add_argument("--seed", type=_whole(0), default=0, help="of weights, order and augmentation (0)")
    demo.add_argument("--output", default="minimask-demo", metavar="DIR", help="(minimask-demo)")
    _add_train(command)
    _add_evaluate_and_predict(command)
    gradcheck = command(
        "gradcheck",
        commands.gradcheck,
        "check every hand-derived gradient against finite differences",
        "Compare the backward pass of every Function (or of those named) with central differences in\n"
        "float64, and print its cases, its worst relative error and where that is. The exit status is 1\n"
        "if any fails.",
        "example:\n  minimask gradcheck RoIAlignFunction",
    )
    gradcheck.add_argument("names", nargs="*", metavar="NAME", help="Functions to check; all by default")
    command(
        "info", commands.info, "versions, BLAS, threads, GPU", "What a report of a problem should begin with."
    )
    return parser


def _add_train(command) -> None:
    default = {
        key: getattr(getattr(configuration.Config(), key.partition(".")[0]), entry.name)
        for key, entry in configuration.options()
    }
    keys = "\n".join(
        f"  {f'{key} = {configuration.shown(default[key])}':<36} {configuration.describe(entry)}"
        for key, entry in configuration.options()
    )
    train = command(
        "train",
        commands.train,
        "train on your own images",
        "Train on images annotated in COCO's instance format. The output directory gets checkpoint.npz,\n"
        "config.toml, losses.csv, losses.png and, with --val, metrics.json and detections.json. Ctrl-C and\n"
        "SIGTERM finish the step, save, and say how to resume; a resumed run equals an unbroken one to the\n"
        "last bit, on the same machine with as many threads.",
        "examples:\n"
        "  minimask train --data train.json --images images --val val.json --output run\n"
        "  minimask train --data shapes --set train.steps=300 --set data.crop=0 --output shapes-run\n"
        "  minimask train --resume --output run\n\n"
        f"options for --set and for TOML files, with their defaults:\n{keys}",
        device=True,
    )
    train.add_argument(
        "--data", dest="train", metavar="FILE", help="COCO instance JSON, or 'nuclei' or 'shapes' (built in)"
    )
    train.add_argument("--images", metavar="DIR", help="folder of its images")
    train.add_argument("--val", metavar="FILE", help="COCO instance JSON to evaluate on when done")
    train.add_argument("--val-images", metavar="DIR", help="folder of its images, if not that of --images")
    train.add_argument(
        "--config",
        metavar="FILE_OR_NAME",
        help=f"a TOML file, or one of {', '.join(configuration.packaged_names())}",
    )
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one option; may be repeated"
    )
    train.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the output directory"
    )
    train.add_argument(
        "--strict", action="store_true", help="refuse annotations without area instead of dropping them"
    )
    train.add_argument("--output", required=True, metavar="DIR", help="made if it does not exist")


def _add_evaluate_and_predict(command) -> None:
    evaluate = command(
        "evaluate",
        commands.evaluate,
        "COCO's average precision of boxes and masks",
        "Predict every image of a COCO instance file at its own size, and compare by pycocotools. The\n"
        "output directory gets detections.json (COCO results) and metrics.json.",
        "example:\n"
        "  minimask evaluate --weights run/checkpoint.npz --data val.json --images images --output results",
        device=True,
    )
    evaluate.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint that train wrote")
    evaluate.add_argument(
        "--data", required=True, metavar="FILE", help="COCO instance JSON, or 'nuclei', 'shapes'"
    )
    evaluate.add_argument("--images", metavar="DIR", help="folder of its images")
    evaluate.add_argument(
        "--max-detections",
        type=_whole(1),
        default=100,
        metavar="N",
        help="most detections an image, in the results and in the metrics (100, as COCO has it)",
    )
    evaluate.add_argument(
        "--strict", action="store_true", help="refuse annotations without area instead of dropping them"
    )
    evaluate.add_argument("--output", required=True, metavar="DIR", help="made if it does not exist")
    predict = command(
        "predict",
        commands.predict,
        "find the objects in image files, and draw them",
        "Write NAME-instances.png for each image: masks, boxes, class names and scores.",
        "example:\n  minimask predict --weights run/checkpoint.npz a.png b.jpg --json --output results",
        device=True,
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    predict.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint that train wrote")
    predict.add_argument("--output", required=True, metavar="DIR", help="made if it does not exist")
    predict.add_argument(
        "--score-threshold",
        type=_share,
        default=commands.SHOWN_ABOVE,
        metavar="S",
        help=f"leave out what scores less ({commands.SHOWN_ABOVE})",
    )
    predict.add_argument(
        "--max-detections", type=_whole(1), metavar="N", help="most objects an image (as trained)"
    )
    predict.add_argument(
        "--json", action="store_true", help="also predictions.json, a COCO document with scores"
    )
    predict.add_argument(
        "--label-maps",
        action="store_true",
        help="also NAME-ids.png (16 bits, the object's number) and NAME-classes.png (8 bits, the class: the "
        "semantic segmentation); 0 is background",
    )
