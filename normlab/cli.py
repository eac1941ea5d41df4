"""The command line: parses, calls, prints.

Flags are the fields of Experiment. Nothing here imports torch before a command runs, so `--help`
and mistakes are answered at once.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import tyro
    from rich.console import Console
except ImportError:
    sys.exit('the command line needs tyro and rich: pip install "normlab[lab]"')

from normlab import flags
from normlab.lab.address import AddressError
from normlab.lab.experiment import Experiment, ExperimentError, Sweep

Runs = Annotated[tuple[Path, ...], tyro.conf.Positional]
Device = Annotated[str | None, tyro.conf.arg(help="cpu, cuda or cuda:N; None: a GPU if any.")]
Jobs = Annotated[int | None, tyro.conf.arg(help="Runs side by side; None: one per core or GPU.")]


class UsageError(ValueError):
    """A command that makes no sense as written."""


class RunsFailed(Exception):
    """Runs that failed, listed with their causes."""


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
        jobs: Jobs = None,
        device: Device = None,
        config: Path | None = None,
    ) -> int:
        """Compare norms across batch sizes and write a report; a field with more values is swept.

        Args:
            out: Folder of the runs and the report.
            config: YAML or JSON file of fields; flags win over it.
        """
        return _run_sweep(
            flags.comparison(fields, _notes(flags.data_of(fields))), out, jobs, device
        )

    def train(
        experiment: Annotated[Experiment, tyro.conf.OmitArgPrefixes] = default,
        out: Path = Path("runs"),
        resume: bool = False,
        device: Device = None,
        config: Path | None = None,
    ) -> int:
        """Train one network.

        Args:
            out: Folder the run's own folder is made in.
            resume: Go on with this run where it stopped.
            config: YAML or JSON file of fields; flags win over it.
        """
        return _train(experiment, out, resume, device)

    commands = (compare, train, evaluate, predict, sweep, report, data, norms, doctor)
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
        scores, classes = judge.evaluate(Run.open(run), split, checkpoint, _device(device))
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
            Run.open(run), input, out, checkpoint, full, _device(device),
            progress=lambda done: status.update(f"predicting: {done:,} images"),
        )  # fmt: skip
    Console().print(f"{num} images: {out}", markup=False)
    return 0


def sweep(
    file: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    jobs: Jobs = None,
    device: Device = None,
) -> int:
    """Run the Sweep of a Python file and write its report.

    Args:
        file: Python file with a variable SWEEP, as in experiments/.
        out: Folder of the runs and the report; None: runs/ and the name of the file.
    """
    return _run_sweep(_sweep_in(file), out or Path("runs") / file.stem, jobs, device)


def report(runs: Runs = (Path("runs"),), out: Path | None = None, title: str = "") -> int:
    """Write the report of runs that are there, finished or not.

    Args:
        runs: Folders of runs, or folders of such folders.
        out: HTML file to write; None: report.html in the first folder.
        title: Headline of the page.
    """
    from normlab.lab.runs import Run, find

    found, damaged = [], []
    for path in runs:
        if (path / "experiment.json").exists():
            found.append(Run.open(path))
            continue
        inside, broken = find(path)
        found += inside
        damaged += broken
    _report(found, damaged, Sweep(title=title or "Runs", experiments=()), out or runs[0])
    return 0


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


def norms() -> int:
    """List the norms: name, what is averaged, where it comes from."""
    from normlab.lab.report import console, listings

    console.print_tables(Console(), [listings.catalogue()])
    return 0


def doctor() -> int:
    """Say what is installed and what this machine offers."""
    from normlab.lab.environment import describe_environment
    from normlab.lab.report import console, listings

    described = describe_environment(_device(None).type)
    console.print_tables(Console(), [listings.pairs("This machine", described)])
    return 0


def _train(experiment: Experiment, out: Path, resume: bool, device: str | None) -> int:
    from normlab.lab.report import live
    from normlab.lab.runs import Run
    from normlab.lab.sweep import canonical
    from normlab.lab.train import train

    (experiment,) = canonical([experiment])
    _check_networks([experiment])
    chosen = _device(device)
    run = Run.create(out, experiment)
    console = Console()
    before = run.status["state"]
    if before not in ("new", "finished") and not resume:
        raise UsageError(
            f"{run.path} holds this run, {before}; add --resume to go on with it, "
            "or choose another --out"
        )
    with live.watching_one(console, run.experiment.name) as watch:
        state = train(run, device=chosen, report=watch)
    return _tell(run, state, console)


def _tell(run: Any, state: str, console: Console) -> int:
    status = run.status
    if state == "finished":
        best = status["best_error"]
        console.print(f"{run.path}: best validation error {best:.2f} %", markup=False)
        return 0
    if state == "interrupted":
        console.print(f"{run.path}: interrupted; go on with --resume", markup=False)
        return 128 + status["signal"]
    raise RunsFailed(f"{run.path}: {status['cause']}")


def _run_sweep(sweep: Sweep, out: Path, jobs: int | None, device: str | None) -> int:
    from normlab.lab.report import live
    from normlab.lab.sweep import canonical, run_all

    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}")
    experiments = canonical(sweep.experiments)
    _check_networks(experiments)
    chosen = None if device is None else str(_device(device))
    console = Console()
    with live.watching(console) as watch:
        runs, signal = run_all(experiments, out, jobs=jobs, device=chosen, watch=watch)
    _report(runs, [], sweep, out)
    states = [run.status["state"] for run in runs]
    if signal is not None:
        done = states.count("finished")
        console.print(
            f"interrupted with {done} of {len(runs)} runs finished; the same command goes on"
        )
        return 128 + signal
    causes: dict[str, list[str]] = {}
    for run, state in zip(runs, states):
        if state == "failed":
            causes.setdefault(run.status.get("cause", "unknown"), []).append(run.experiment.name)
    if causes:
        told = (f"{len(n)} of {len(runs)} runs failed ({n[0]}, …): {c}" for c, n in causes.items())
        raise RunsFailed("\n".join(told))
    return 0


def _report(runs: list[Any], damaged: list[Any], sweep: Sweep, out: Path) -> None:
    from normlab.lab import report
    from normlab.lab.analysis import analyse
    from normlab.lab.report import console, sentences, tables

    shown = Console()
    found = analyse(runs, damaged)
    console.print_tables(shown, tables.results(found))
    for sentence in (*sentences.headline(found), *sentences.about_batch_norm(found)):
        shown.print(tables.clean(sentence, 5000), markup=False, highlight=False)
    file = out if out.suffix == ".html" else out / "report.html"
    page = report.build(runs, damaged, title=sweep.title, note=sweep.note, out=file)
    shown.print(f"\nreport: {page}", markup=False, soft_wrap=True)


def _notes(sources: Iterable[str]) -> str:
    """What the data's own modules say a reader has to know."""
    from normlab.lab.address import resolve

    notes = (getattr(resolve("data", source)[0], "NOTE", "") for source in sources)
    return " ".join(filter(None, notes))


def _check_networks(experiments: Iterable[Experiment]) -> None:
    """Build every network without memory: what does not fit is said before anything runs."""
    import torch

    from normlab.lab import models
    from normlab.lab.address import resolve

    seen = set()
    for e in experiments:
        key = (e.data, e.model, e.norm, e.norm_batch_size, e.zero_init)
        if key in seen:
            continue
        seen.add(key)
        resolve("data", e.data)
        with torch.device("meta"):
            models.build(
                e.model, 10, norm=e.norm, norm_batch_size=e.norm_batch_size, zero_init=e.zero_init
            )


def _sweep_in(file: Path) -> Sweep:
    import runpy

    if not file.is_file() or file.suffix != ".py":
        raise UsageError(f"{file} is not a Python file; see experiments/ for examples")
    found = runpy.run_path(str(file)).get("SWEEP")
    if not isinstance(found, Sweep):
        raise UsageError(f"{file} has no SWEEP = Sweep(...); see experiments/ for examples")
    return found


def _device(text: str | None) -> Any:
    import torch

    if text is None:
        from normlab.lab.train import default_device

        return default_device()
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if text not in there:
        raise UsageError(f"device {text!r} is not there; this machine has {', '.join(there)}")
    return torch.device(text)


def _explain(error: Exception, console: Console) -> int:
    """Print an error as a sentence and return the exit code."""
    from normlab.lab.report.tables import clean

    usage = (UsageError, ExperimentError, AddressError, ImportError)
    lines = (clean(line, 4000) for line in str(error).splitlines())
    text = "\n".join(lines) or type(error).__name__
    console.print(f"normlab: {text}", markup=False, highlight=False, soft_wrap=True)
    return 2 if isinstance(error, usage) or type(error).__name__ in _USAGE else 1


# raised by modules that import torch, which this one does not
_USAGE = {"LookupError", "ModelError", "PatternError", "SurgeryError"}


if __name__ == "__main__":
    sys.exit(main())
