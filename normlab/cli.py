"""The command line: parses, calls, prints.

Flags are the fields of Experiment, of `bench` those of `measure.Request`. Nothing here imports
torch before a command runs, so `--help` and mistakes are answered at once.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import tyro
    from rich.console import Console
except ImportError:
    sys.exit('the command line needs tyro and rich: pip install "normlab[lab]"')

from normlab import flags, housekeeping, launch, measure, operate
from normlab.lab.address import AddressError
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment, ExperimentError, Sweep
from normlab.lab.schedule import Schedule
from normlab.launch import UsageError

Runs = Annotated[tuple[Path, ...], tyro.conf.Positional]
Device = Annotated[str | None, tyro.conf.arg(help="cpu, cuda or cuda:N; None: a GPU if any.")]
Computed = Annotated[Compute, tyro.conf.OmitArgPrefixes]
Scheduled = Annotated[Schedule, tyro.conf.OmitArgPrefixes]


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for a failed run, 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    errors = Console(stderr=True)
    try:
        commands = _commands(flags.from_file(arguments), arguments[:1] == ["train"])
        return tyro.extras.subcommand_cli_from_dict(commands, prog="normlab", args=arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        errors.print("interrupted; the same command goes on from the last checkpoint")
        return 130
    except Exception as error:
        if debug:
            raise
        return _explain(error, errors)


def _commands(given: dict[str, Any], one: bool) -> dict[str, Callable[..., int]]:
    """The commands by name, in the order `--help` shows.

    Args:
        given: fields from --config.
        one: they are for a single run, so that several values of a field are a mistake.
    """
    swept = flags.swept(given)
    default = flags.one(given) if one else Experiment()

    def compare(
        fields: Annotated[swept, tyro.conf.OmitArgPrefixes] = swept(),  # type: ignore[valid-type] # noqa: B008
        out: Path = Path("runs"),
        compute: Computed = Compute(),  # noqa: B008
        schedule: Scheduled = Schedule(),  # noqa: B008
        config: Path | None = None,
    ) -> int:
        """Compare norms across batch sizes and write a report; a field with more values is swept.

        Args:
            out: Folder of the runs and the report.
            config: YAML or JSON file of fields; flags win over it.
        """
        note = launch.notes(flags.data_of(fields))
        return launch.run_sweep(flags.comparison(fields, note), out, compute, schedule)

    def train(
        experiment: Annotated[Experiment, tyro.conf.OmitArgPrefixes] = default,
        out: Path = Path("runs"),
        resume: bool = False,
        compute: Computed = Compute(),  # noqa: B008
        config: Path | None = None,
    ) -> int:
        """Train one network.

        Args:
            out: Folder the run's own folder is made in.
            resume: Go on with this run where it stopped.
            config: YAML or JSON file of fields; flags win over it.
        """
        return launch.train_one(experiment, out, resume, compute)

    commands = (
        compare, train, evaluate, predict, sweep, runs, report, convert, diagnose, bench, data,
        norms, doctor,
    )  # fmt: skip
    return {c.__name__: c for c in commands}


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    split: tuple[Literal["train", "validation", "test"], ...] = ("validation",),
    checkpoint: Literal["best", "last"] = "best",
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: Device = None,
) -> int:
    """Accuracy, error, F1 scores and confusion matrix of a run.

    Args:
        run: Folder of the run.
        split: Sets to judge it on.
        checkpoint: By validation error, or the newest.
        as_json: Print JSON instead of tables.
    """
    from normlab.lab import evaluate as judge
    from normlab.lab.report import console, listings
    from normlab.lab.runs import Run

    with Console(stderr=True).status("evaluating"):
        scores, classes = judge.evaluate(
            Run.open(run), split, checkpoint, launch.find_device(device)
        )
    if as_json:
        print(json.dumps(scores, indent=1))
        return 0
    console.print_tables(Console(), listings.scores(scores, classes))
    return 0


def predict(
    run: Annotated[Path, tyro.conf.Positional],
    input: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    format: Literal["index", "full"] | None = None,
    checkpoint: Literal["best", "last"] = "best",
    device: Device = None,
) -> int:
    """The class of every image of a CSV file or a folder.

    Args:
        run: Folder of the run.
        input: CSV without header, the pixels of one image a line, channel first, 0 to 255; or a
            folder of images.
        out: CSV to write; None: the input's name with .predictions.csv.
        format: index: one class index a line; full: image, index, class and probability, with a
            header. None: index for a CSV, full for a folder.
        checkpoint: By validation error, or the newest.
    """
    from normlab.lab import prediction
    from normlab.lab.runs import Run

    out = out or Path(f"{input.resolve().stem}.predictions.csv")
    full = format == "full" if format else input.is_dir()
    with Console(stderr=True).status("predicting") as status:
        num = prediction.predict_file(
            Run.open(run), input, out, checkpoint, full, launch.find_device(device),
            progress=lambda done: status.update(f"predicting: {done:,} images"),
        )  # fmt: skip
    Console().print(f"{num} images: {out}", markup=False)
    return 0


def sweep(
    file: Annotated[Path, tyro.conf.Positional],
    scale: Literal["small", "full"] = "small",
    out: Path | None = None,
    compute: Computed = Compute(),  # noqa: B008
    schedule: Scheduled = Schedule(),  # noqa: B008
) -> int:
    """Run the Sweep of a Python file and write its report.

    Args:
        file: Python file with a variable SWEEP, and FULL for the full scale, as in experiments/.
        scale: small: minutes on a few cores; full: as the paper has it.
        out: Folder of the runs and the report; None: runs/ and the name of the file.
    """
    from normlab.lab import sweep_file

    found = sweep_file.load(file, scale)
    suffix = "" if scale == "small" else f"_{scale}"
    out = out or Path("runs") / f"{file.stem}{suffix}"
    return launch.run_sweep(found, out, compute, schedule)


def runs(
    folders: Runs = (Path("runs"),),
    where: tuple[str, ...] = (),
    sort: str | None = None,
    compare: bool = False,
    remove: bool = False,
    yes: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """List runs, compare two, or remove some.

    Args:
        folders: Folders of runs, or folders of such folders.
        where: Conditions that all hold, as norm=group state!=finished 'error<10': fields of runs
            and what the list shows.
        sort: What to order by, as error, or -seconds for the largest first.
        compare: Show two runs side by side, and the settings that differ.
        remove: Delete the runs listed, after a question.
        yes: Delete without the question.
        as_json: Print JSON instead of a table.
    """
    if compare:
        return housekeeping.compare(folders, as_json)
    return housekeeping.show(folders, where, sort, as_json, remove, yes)


def report(
    runs: Runs = (Path("runs"),),
    out: Path | None = None,
    title: str = "",
    format: Literal["html", "md", "csv", "json", "png", "svg", "pdf"] = "html",
    by: Literal["samples", "epochs", "steps"] = "samples",
    last: int | None = None,
    watch: bool = False,
) -> int:
    """Write the report of runs that are there, finished or not.

    Args:
        runs: Folders of runs, or folders of such folders.
        out: File to write; None: report.html in the first folder, other text is printed. A folder
            for figures and for a CSV file of each table.
        title: Headline of the page.
        format: html: the page; md, csv, json: the numbers; png, svg, pdf: figures for papers.
        by: What error curves are drawn against; on the page a reader can choose.
        last: Epochs at the end whose median is a run's result; None: 3.
        watch: Show it in a browser on this machine and keep it up to date, until Ctrl-C.
    """
    from normlab.lab.analysis import LAST_EPOCHS, analyse

    last = LAST_EPOCHS if last is None else last
    if last < 1:
        raise UsageError(f"--last is a number of epochs, at least 1, not {last}")
    title = title or "Runs"
    if watch and format != "html":
        raise UsageError(f"--watch shows the page, not {format}; leave out one of them")
    if watch:
        from normlab.lab.report import serve

        say = partial(print, flush=True)
        return serve.watch(runs, title=title, out=out, say=say, by=by, last=last)
    from normlab.lab.manage import found_in

    found, damaged = found_in(runs)
    if format != "html":
        from normlab.lab.report import formats

        analysis = analyse(found, damaged, last=last)
        made = formats.export(
            analysis, format, title=title, out=out, folder=runs[0], by=by, runs=found
        )
        for file in made:
            Console().print(str(file), markup=False, soft_wrap=True)
        return 0
    sweep = Sweep(title=title, experiments=())
    launch.write_report(found, damaged, sweep, out or runs[0], by=by, last=last)
    return 0


def bench(
    request: Annotated[measure.Request, tyro.conf.OmitArgPrefixes] = measure.Request(),  # noqa: B008
    out: Path | None = None,
) -> int:
    """Time our norms against torch's, in copies of the tensor, or in a network's training step.

    Args:
        out: CSV that rows are added to, with all they depend on.
    """
    return measure.run(request, out)


def convert(
    weights: Annotated[Path, tyro.conf.Positional],
    to: str,
    out: Path,
    model: str | None = None,
    keep: Literal["function", "affine", "fresh"] = "function",
    strength: float | None = None,
) -> int:
    """Put other norms into a trained network that compute as nearly the same as they can.

    Args:
        weights: A run's folder, .safetensors, or .pt with a state_dict.
        to: Norm: group, group:8, layer, …; `normlab norms` lists them.
        out: File to write, .safetensors.
        model: Network the weights are of, as torchvision:resnet50; a run knows its own.
        keep: What the norms compute, their weight and bias, or nothing.
        strength: Shrink statistics by so much, 0 to 1, to those of the training data.
    """
    return operate.convert(weights, model, to, out, keep, strength)


def diagnose(
    weights: Annotated[Path, tyro.conf.Positional],
    model: str | None = None,
    data: str | None = None,
    split: Literal["train", "validation", "test"] = "train",
    images: int = 1024,
    batch_size: int = 32,
    device: Device = None,
) -> int:
    """Say what the norms of a trained network suffer from, and what helps.

    Args:
        weights: A run's folder, .safetensors, or .pt with a state_dict.
        model: Network the weights are of, as torchvision:resnet50; a run knows its own.
        data: Images to judge on, as folder:DIR; None: those of the run.
        split: Which of them.
        images: At most so many of them, at random.
        batch_size: Images that are normalized together.
    """
    return operate.diagnose(weights, model, data, split, images, batch_size, device)


def data(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (), root: Path | None = None
) -> int:
    """Download data sets and check them; without a name, say which there are.

    Args:
        names: mnist, fashion_mnist, svhn, cifar10 or cifar100.
        root: Folder to put them in; None: $NORMLAB_DATA, or data/.
    """
    from rich.progress import DownloadColumn, Progress

    from normlab.lab.data import download
    from normlab.lab.data.published import data_root
    from normlab.lab.report import console, listings

    if not names:
        console.print_tables(Console(), [listings.published(root or data_root())])
    for name in names:
        with Progress(*Progress.get_default_columns(), DownloadColumn(), transient=True) as bars:
            task = bars.add_task(name, total=None)
            folder = download.fetch(
                name,
                root or data_root(),
                progress=lambda file, done, total, task=task: bars.update(  # type: ignore[misc]
                    task, description=file, completed=done, total=total
                ),
            )
        Console().print(f"{name}: {folder}", markup=False)
    return 0


def norms(name: Annotated[str | None, tyro.conf.Positional] = None) -> int:
    """List the norms, or explain one: equation, arguments, paper, what it averages over.

    Args:
        name: group, group:8, ws, group+ws or one of yours, my_norms.bands; None: all.
    """
    from normlab.lab.report import catalogue

    console = Console()
    if name is None:
        catalogue.show(console)
    else:
        console.print(
            catalogue.explain(name, console.width), markup=False, highlight=False, soft_wrap=True
        )
    return 0


def doctor() -> int:
    """Say what is installed and what this machine offers."""
    from normlab.lab.environment import describe_environment
    from normlab.lab.report import console, listings

    described = describe_environment(launch.find_device(None).type)
    console.print_tables(Console(), [listings.pairs("This machine", described)])
    return 0


def _explain(error: Exception, console: Console) -> int:
    """Print an error as a sentence and return the exit code."""
    from normlab.lab.report.tables import clean

    usage = (UsageError, ExperimentError, AddressError, ImportError)
    lines = (clean(line, 4000) for line in str(error).splitlines())
    text = "\n".join(lines) or type(error).__name__
    console.print(f"normlab: {text}", markup=False, highlight=False, soft_wrap=True)
    return 2 if isinstance(error, usage) or type(error).__name__ in _USAGE else 1


# raised by modules that import torch, which this one does not, or in the fields of settings
_USAGE = {
    *("BenchError", "ComputeError", "LookupError", "ManageError", "ModelError", "PatternError"),
    *("ScheduleError", "SurgeryError", "SweepFileError"),
}


if __name__ == "__main__":
    sys.exit(main())
