"""The command ``minimask``: its arguments, its help, and its errors in one line each."""

import argparse
import difflib
import errno
import itertools
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from minimask import backend
from minimask import config as configuration
from minimask._version import __version__
from minimask.command import commands, inspecting, own_data, process
from minimask.command.streams import UnfailingStream, unfailing_streams
from minimask.errors import InputError, memory_story, one_line
from minimask.training import distributed
from minimask.weights.published import DEFAULT

WRONG_INPUT, BUG, INTERRUPTED, BROKEN_PIPE = 2, 1, process.INTERRUPTED, 141


def entry_point() -> None:
    """What the installed command calls."""
    process.run(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the command's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0; 1 if a check failed or for a bug in minimask; 2 for input that cannot be used, or if standard
        output could not be written; 130 after Ctrl-C, 143 after SIGTERM; 141 when nobody reads our output.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # Without errstate, NumPy would warn of overflow in diverged weights, in lines of its own.
    with np.errstate(all="ignore"), warnings.catch_warnings(), unfailing_streams() as streams:
        # Pillow's warnings about damaged metadata: nothing the user could act on. Filters are set only here,
        # where the process is ours and has no other threads; images may be read in any process.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        status = _run(argv, "--debug" in argv, streams)
        streams[0].flush()
        return status or _unwritten(streams[0])


def _unwritten(out: UnfailingStream) -> int:
    """The exit status of a command that did its work: 0 if its output could be written as well."""
    if out.error is None:
        return 0
    left_on_windows = os.name == "nt" and getattr(out.error, "errno", None) == errno.EINVAL
    if isinstance(out.error, BrokenPipeError) or left_on_windows:  # whoever was reading has left (head, say)
        return BROKEN_PIPE
    reason = getattr(out.error, "strerror", None) or out.error
    return _say(f"standard output: cannot be written ({reason}); everything else is done", WRONG_INPUT)


def _run(argv: list[str], debug: bool, streams: Sequence[UnfailingStream]) -> int:
    for stream in streams:  # under mpiexec all processes would say the same of wrong arguments
        stream.muted = not distributed.is_first()
    try:
        arguments = _parser().parse_args(argv)
        arguments.argv = argv
        rank = distributed.world().rank
        with distributed.together(), _muted(streams, rank > 0):
            if distributed.world().size > 1 and arguments.run is not commands.train:
                raise InputError("mpiexec is only for 'minimask train'; start this without it")
            if "device" in arguments:
                arguments.given_device, arguments.device = arguments.device, backend.device(arguments.device)
            return arguments.run(arguments)
    except SystemExit as leaving:  # --help and --version; and the second SIGTERM
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED, debug)
    except InputError as error:
        return _say(str(error), WRONG_INPUT, debug)
    except MemoryError as error:
        less = "a smaller train.batch_size, data.crop, model.max_size or --max-detections needs less"
        return _say(f"{memory_story(error)}; {less}", WRONG_INPUT, debug)
    except OSError as error:
        return _say(f"{error.filename or 'input or output'}: {error.strerror or error}", WRONG_INPUT, debug)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"{what}: this is a bug in minimask, not a mistake of yours"
        return _say(text + ("" if debug else "; --debug shows where"), BUG, debug)


@contextmanager
def _muted(streams: Sequence[UnfailingStream], muted: bool) -> Iterator[None]:
    """Inside, mute the streams of all processes but the first; afterwards any of them may report an error."""
    for stream in streams:
        stream.muted = muted
    try:
        yield
    finally:
        for stream in streams:
            stream.muted = False


def _say(text: str, status: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"minimask: {one_line(text)}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """Answers a wrong argument in one line, like any other input that cannot be used."""

    def __init__(self, *arguments, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, allow_abbrev=False, **options)

    def parse_known_args(self, args: Sequence[str], namespace: argparse.Namespace | None = None):
        """Refuse an unknown option before argparse complains that the one meant by it is missing."""
        parts = itertools.takewhile(lambda part: part != "--", args)
        if self._subparsers:  # its own options stand before the command, which reads what follows
            parts = itertools.takewhile(lambda part: part.startswith("-"), parts)
        known = list(self._option_string_actions)
        for part in parts:
            option = part.partition("=")[0]
            if option.startswith("--") and option not in known and " " not in part:
                near = difflib.get_close_matches(option[2:], [name[2:] for name in known], 1)
                self.error(f"{option}: no such option" + (f"; did you mean --{near[0]}?" if near else ""))
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        command = " COMMAND" if message.startswith("unrecognized") else ""  # whose arguments they would be
        raise InputError(f"{message}; see '{self.prog}{command} --help'")


def _whole(low: int, high: int = 2**63 - 1):
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            upwards = "up" if value < low or high == 2**63 - 1 else f"to {high}"
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} {upwards}, is {text!r}")
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


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, is {text!r}")
    return value


def _name(text: str) -> str:
    if not text:  # an unset variable of the shell, say
        raise argparse.ArgumentTypeError("is empty; give a name")
    return text


# Arguments that several commands take.
SHARED = {
    "debug": {"action": "store_true", "help": "on an error, show where it was raised"},
    # Checked by backend.device, which knows why there is no GPU.
    "device": {"default": "auto", "metavar": "cpu|cuda|auto", "help": "where to compute"},
    "output": {"required": True, "type": _name, "metavar": "DIR", "help": "created if it does not exist"},
    "weights": {
        "type": _name,
        "metavar": "FILE_OR_NAME",
        "help": "a run's checkpoint; weights of torchvision or detectron2; or a name such as "
        "torchvision:maskrcnn_resnet50_fpn (docs/weights.md)",
    },
    "images": {"type": _name, "metavar": "DIR", "help": "folder with its images"},
    "strict": {"action": "store_true", "help": "refuse annotations without area, instead of dropping them"},
}


def _take(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(f"--{name}", **SHARED[name])


def _take_weights(parser: argparse.ArgumentParser) -> None:
    """--weights, which may be left out."""
    shared = SHARED["weights"]
    text = f"{shared['help']}; if not given, {DEFAULT}, which comes with the package"
    parser.add_argument("--weights", **(shared | {"help": text}))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minimask",
        description="Mask R-CNN from scratch on NumPy: train, evaluate and use it, and check its gradients.",
        epilog="Begin with 'minimask demo' (5 minutes), or 'minimask demo --quick' (1 minute).\n"
        "'minimask COMMAND --help' shows what a command takes, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"minimask {__version__}")
    parser.add_argument("--debug", **SHARED["debug"])
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run, text: str, epilog: str = "") -> argparse.ArgumentParser:
        description = textwrap.fill(" ".join((run.__doc__ or "").split()), 96)
        name = run.__name__.replace("_", "-")
        added = subparsers.add_parser(name, help=text, description=description, epilog=epilog)
        # SUPPRESS: without a --debug after the command, one before it must still count.
        added.set_defaults(run=run)
        added.add_argument("--debug", **SHARED["debug"], default=argparse.SUPPRESS)
        return added

    _add_demo(command)
    _add_train(command)
    _add_evaluate(command)
    _add_predict(command)
    _add_inspect(command)
    _add_export(command)
    _add_convert(command)
    _add_check_data(command)
    gradcheck = command(
        commands.gradcheck,
        text="check the hand-derived gradients",
        epilog="example:\n  minimask gradcheck RoIAlign",
    )
    gradcheck.add_argument("names", nargs="*", metavar="NAME", help="Functions to check; all by default")
    _add_misalign(command)
    _add_ablate(command)
    command(commands.info, text="versions, BLAS, threads, GPU")
    return parser


def _add_demo(command) -> None:
    demo = command(commands.demo, text="train on packaged images, evaluate, draw")
    demo.add_argument("--quick", action="store_true", help="under a minute instead of five; worse results")
    demo.add_argument("--seed", type=_whole(0), default=0, help="for weights, order and augmentation (0)")
    demo.add_argument(
        "--output", default="minimask-demo", type=_name, metavar="DIR", help="default: minimask-demo"
    )
    _take(demo, "device")


def _add_train(command) -> None:
    defaults = configuration.to_dict(configuration.Config())
    options = []
    for key, entry in configuration.options():
        section, _, name = key.partition(".")
        value = configuration.shown(defaults[section].get(name))
        line = f"  {f'{key} = {value}':<36} {configuration.describe(entry)}"
        options += textwrap.wrap(line, 118, subsequent_indent=39 * " ", break_on_hyphens=False)
    train = command(
        commands.train,
        text="train on your own images",
        epilog="examples:\n"
        "  minimask train --data train.json --images images --val val.json --output run\n"
        "  minimask train --data train.json --images images --val val.json --output run \\\n"
        "      --set train.validate_every=500 --set train.patience=5\n"
        "  minimask train --data train.json --images images --config auto --output run\n"
        "  minimask train --data shapes --set train.steps=300 --set data.crop=0 --output shapes-run\n"
        "  minimask train --resume --output run\n\n"
        "options for --set and for TOML files, with their defaults:\n" + "\n".join(options),
    )
    names = ", ".join(configuration.packaged_names())
    add = train.add_argument
    add(
        "--data",
        dest="train",
        type=_name,
        metavar="FILE",
        help="COCO instance JSON; or nuclei, shapes, figures (built in)",
    )
    _take(train, "images")
    add("--val", type=_name, metavar="FILE", help="the same, to evaluate on when done")
    add("--val-images", type=_name, metavar="DIR", help="folder with its images, if not that of --images")
    text = "start from these: a checkpoint, torchvision's or detectron2's weights, or a name"
    add("--weights", type=_name, metavar="FILE_OR_NAME", help=text)
    text = "start the backbone from a ResNet classifier's: torchvision:resnet50, or a file"
    add("--backbone-weights", type=_name, metavar="FILE_OR_NAME", help=text)
    text = f"a TOML file, or one of {names}; or auto: chosen to fit the data, with its reasons"
    add("--config", type=_name, metavar="FILE_OR_NAME", help=text)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change an option; may be repeated")
    add("--resume", action="store_true", help="go on from the checkpoint in the output directory")
    _take(train, "strict", "device", "output")


def _add_evaluate(command) -> None:
    evaluate = command(
        commands.evaluate,
        text="COCO's average precision of boxes, masks and keypoints",
        epilog="examples:\n"
        "  minimask evaluate --weights run/checkpoint.npz --data val.json --images images --output results\n"
        "  minimask evaluate --results detections.json --data val.json",
    )
    add = evaluate.add_argument
    _take_weights(evaluate)
    add("--results", type=_name, metavar="FILE", help="instead of weights: COCO results of another program")
    add(
        "--data",
        required=True,
        type=_name,
        metavar="FILE",
        help="COCO instance JSON; or nuclei, shapes, figures (built in)",
    )
    _take(evaluate, "images")
    text = "most detections per image, in the results and in the metrics (model.detections, as trained)"
    add("--max-detections", type=_whole(1, configuration.DETECTIONS_MOST), metavar="N", help=text)
    add("--per-class", action="store_true", help="also AP, AP50 and the number of objects of each class")
    text = "for --results: its category ids are the data's (as-given), or count the classes from 0 or from 1"
    add("--category-ids", choices=("as-given", "from-0", "from-1"), help=text)
    _take(evaluate, "strict", "device")
    add("--output", type=_name, metavar="DIR", help="created if it does not exist; optional with --results")


def _add_predict(command) -> None:
    predict = command(
        commands.predict,
        text="find the objects in image files, and draw them",
        epilog="examples:\n"
        "  minimask predict cells.png\n"
        "  minimask predict --weights run/checkpoint.npz a.png b.jpg --json --output results\n"
        "  minimask predict --weights torchvision:maskrcnn_resnet50_fpn photo.jpg",
    )
    add, above = predict.add_argument, commands.SHOWN_ABOVE
    add("images", nargs="+", type=_name, metavar="IMAGE", help="an image file")
    _take_weights(predict)
    add("--score-threshold", type=_share, default=above, metavar="S", help=f"lowest score shown ({above})")
    text = "most objects per image (model.detections, as trained)"
    add("--max-detections", type=_whole(1, configuration.DETECTIONS_MOST), metavar="N", help=text)
    add("--json", action="store_true", help="also write predictions.json, a COCO document with scores")
    text = (
        "also write NAME-ids.png (16 bits, the object's number) and NAME-classes.png (8 bits, or 16 for more "
    )
    text += "than 255 classes, the class: the semantic segmentation); 0 is background"
    add("--label-maps", action="store_true", help=text)
    _take(predict, "device")
    add("--output", default="predictions", type=_name, metavar="DIR", help="created if missing (predictions)")


def _add_inspect(command) -> None:
    inspect = command(
        inspecting.inspect,
        text="show what each stage of a model makes of an image",
        epilog="example:\n"
        "  minimask inspect photo.jpg --weights run/checkpoint.npz --annotations val.json --output page.html",
    )
    add = inspect.add_argument
    add("image", type=_name, metavar="IMAGE", help="an image file")
    text = "COCO instance JSON that lists the image by its file name: a training step is traced, too"
    add("--annotations", type=_name, metavar="FILE", help=text)
    _take_weights(inspect)
    _take(inspect, "device")
    add("--output", required=True, type=_name, metavar="FILE", help="the page to write")


def _add_export(command) -> None:
    export = command(
        commands.export,
        text="write weights in a format that torch or safetensors reads",
        epilog="example:\n  minimask export --weights run/checkpoint.npz model.safetensors",
    )
    text = "the file to write; its ending decides the format: .safetensors, or .pth, which torch.load opens"
    export.add_argument("target", type=_name, metavar="FILE", help=text)
    export.add_argument("--weights", required=True, **SHARED["weights"])


def _add_convert(command) -> None:
    convert = command(
        own_data.convert,
        text="make COCO JSON from label maps, labelme or YOLO",
        epilog="examples:\n"
        "  minimask convert photos --output train.json\n"
        "  minimask convert masks --images photos --classes nucleus --output train.json\n"
        "  minimask convert camvid --colours table.txt --output train.json\n"
        "  minimask convert yolo-set --split train --output train.json\n\n"
        "docs/own_data.md goes from photos to a trained model.",
    )
    add = convert.add_argument
    add("source", type=_name, metavar="SOURCE", help="folder of the annotations, and of the images")
    add("--images", type=_name, metavar="DIR", help="folder of the images, if they are elsewhere")
    add("--format", choices=("label-maps", "labelme", "yolo"), help="detected by default")
    text = "names separated by commas (perhaps numbered: 7=cat,24=dog), or a .txt, data.yaml or COCO .json"
    add("--classes", type=_name, metavar="NAMES_OR_FILE", help=text)
    text = "label maps: each value is an object (instances), or a class: each region is an object (classes), "
    text += "or all of it in an image (classes-whole)"
    add("--values", choices=("instances", "classes", "classes-whole"), help=text)
    text = "label maps in colours: rows such as '128,0,0 cat'"
    add("--colours", "--colors", type=_name, metavar="FILE", help=text)
    add(
        "--ignore",
        action="append",
        type=_whole(0, 2**31 - 1),
        metavar="VALUE",
        help="label maps: a value that is background, as 0 is; may be repeated",
    )
    add("--boxes", action="store_true", help="YOLO: take boxes as rectangular masks")
    add("--split", type=_name, metavar="FOLDER", help="only what lies in folders of this name, such as train")
    add("--output", required=True, type=_name, metavar="FILE", help="the COCO JSON to write")


def _add_check_data(command) -> None:
    check = command(
        own_data.check_data,
        text="find what is wrong with a data set, and how to mend it",
        epilog="example:\n"
        "  minimask check-data --data train.json --images photos --val val.json --output check",
    )
    add = check.add_argument
    add(
        "--data", required=True, type=_name, metavar="FILE", help="COCO instance JSON, to train on; or nuclei"
    )
    _take(check, "images")
    add("--val", type=_name, metavar="FILE", help="the same, to evaluate on")
    add("--val-images", type=_name, metavar="DIR", help="folder with its images, if not that of --images")
    add("--config", type=_name, metavar="FILE_OR_NAME", help="options of the planned training")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="one of them; may be repeated")
    _take(check, "output")


def _add_misalign(command) -> None:
    misalign = command(
        commands.misalign,
        text="measure how far RoI layers misplace their bins",
        epilog="example:\n  minimask misalign --image photo.jpg --stride 32 --output misalign",
    )
    add = misalign.add_argument
    add(
        "--image",
        type=_name,
        metavar="FILE",
        help="an image at least 8 strides wide and high (packaged nuclei)",
    )
    add("--bins", type=_whole(1), default=7, metavar="N", help="bins along each side of a box (7)")
    add("--stride", type=_whole(1), default=16, metavar="N", help="image pixels per feature cell (16)")
    add("--boxes", type=_whole(1), default=20_000, metavar="N", help="boxes to search for the worst (20000)")
    add("--seed", type=_whole(0), default=0, help="for the boxes (0)")
    _take(misalign, "output")


def _add_ablate(command) -> None:
    ablate = command(
        commands.ablate,
        text="compare the paper's choices by training",
        epilog="examples:\n"
        "  minimask ablate roi-layer\n"
        "  minimask ablate mask-loss --seeds 3 --minutes 30 --output mask-loss",
    )
    add = ablate.add_argument
    add("name", type=_name, metavar="NAME", help="name of the ablation")
    add("--seeds", type=_whole(1, 1000), metavar="N", help="runs of each network (5)")
    add("--minutes", type=_minutes, metavar="M", help="stop after M minutes, with the table of what is done")
    add("--output", type=_name, metavar="DIR", help="created if it does not exist (ablate-NAME)")
    _take(ablate, "device")
