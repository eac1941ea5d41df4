"""What commands that operate on trained networks in files do: read, convert or diagnose, tell."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from normlab.launch import UsageError, find_device

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES = 1000  # of the network that is built to see which of its tensors depend on them


def convert(
    weights: Path, model: str | None, to: str, out: Path, keep: str, strength: float | None
) -> int:
    """Write the weights of a network with other norms, and print what was done."""
    import torch
    from safetensors.torch import save_file

    from normlab import surgery

    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out")
    network = _trained(weights, model)
    plan = surgery.plan(network, to, keep=keep, strength=strength)
    console = Console()
    console.print(str(plan), markup=False, highlight=False, soft_wrap=True)
    converted = plan.commit().model
    out.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous() for name, t in converted.state_dict().items()}
    partial = out.with_name(f"{out.name}.part")
    save_file(_unshared(tensors), partial, metadata={"format": "pt", "norm": to, "keep": keep})
    partial.replace(out)
    strength_of = "" if strength is None else f", strength={strength:g}"
    console.print(
        f"{out}: load it into normlab.convert(model, {to!r}, keep='affine'{strength_of}), "
        f"{sum(t.numel() for t in tensors.values() if t.dtype != torch.long):,} numbers",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def diagnose(
    weights: Path, model: str | None, data: str | None, split: str, images: int, batch_size: int,
    device: str | None,
) -> int:  # fmt: skip
    """Print what the norms of a network suffer from on some data."""
    from normlab import surgery

    console = Console(stderr=True)
    chosen = find_device(device)
    with console.status("reading"):
        network, batches = _with_data(weights, model, data, split, images, batch_size, chosen)
    with console.status("measuring statistics, layer by layer"):
        found = surgery.diagnose(network.to(chosen), batches, device=chosen)
    Console().print(str(found), markup=False, highlight=False, soft_wrap=True)
    return 0


def _trained(weights: Path, model: str | None) -> "nn.Module":
    """The network of a run, or of the weights in a file."""
    import torch

    if (weights / "experiment.json").exists():
        from normlab.lab import evaluate
        from normlab.lab.runs import Run

        run = Run.open(weights)
        if model not in (None, run.experiment.model):
            raise UsageError(
                f"{weights} is a run of {run.experiment.model}, and --model says {model}; "
                "leave it out"
            )
        return evaluate.load_model(run, "best", torch.device("cpu"))[0]
    if model is None:
        raise UsageError(f"{weights} is no run: say whose weights, as --model torchvision:resnet50")

    from normlab.lab import checkpoint
    from normlab.lab.address import resolve
    from normlab.lab.weights import load_weights

    module, variant = resolve("models", model)
    tensors = checkpoint.read_weights(weights)
    with torch.device("meta"):
        like = module.build(variant, CLASSES)
    network = module.build(variant, _num_classes(like.state_dict(), tensors))
    load_weights(network, tensors, str(weights))
    return network.eval()


def _num_classes(like: "Mapping[str, Tensor]", tensors: "Mapping[str, Tensor]") -> int:
    """How many classes weights are for: the size that differs from those of `like`, if any does."""
    sizes = {
        tensors[name].shape[0]
        for name, t in like.items()
        if t.dim() and t.shape[0] == CLASSES and name in tensors and tensors[name].dim()
    }
    return sizes.pop() if len(sizes) == 1 else CLASSES


def _unshared(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors of which no two share memory, as safetensors wants them."""
    seen: set[int] = set()
    own = {}
    for name, t in tensors.items():
        own[name] = t.clone() if t.data_ptr() in seen and t.numel() else t
        seen.add(t.data_ptr())
    return own


class _Batches:
    """A part of a data set as (input, labels), as often as it is asked for."""

    def __init__(self, dataset: Any, input: Any, images: int, batch_size: int, device: Any) -> None:
        import torch

        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        self.parts = order[:images].split(batch_size)
        self.dataset, self.input, self.device = dataset, input, device

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> "Iterator[tuple[Tensor, Tensor]]":
        for part in self.parts:
            part = part.sort().values
            x = self.input.prepare(self.dataset.images[part], self.device)
            yield x, self.dataset.labels[part].to(self.device)


def _with_data(
    weights: Path, model: str | None, data: str | None, split: str, images: int, batch_size: int,
    device: Any,
) -> tuple[Any, _Batches]:  # fmt: skip
    from normlab.lab import data as sources
    from normlab.lab import evaluate
    from normlab.lab.experiment import Experiment
    from normlab.lab.runs import Run
    from normlab.lab.tasks.classification import Input

    if (weights / "experiment.json").exists():
        run = Run.open(weights)
        e = run.experiment
        network, input = evaluate.load_model(run, "last", device)
    elif data is None:
        raise UsageError(f"{weights} is no run: say on which images, as --data folder:DIR")
    else:
        e, network, input = Experiment(), _trained(weights, model), None
    limits = {"train": e.num_train, "validation": e.num_validation} if data is None else {}
    dataset = sources.load(
        data or e.data, split, image_size=e.image_size, validation=e.validation,
        limit=limits.get(split),
    )  # fmt: skip
    batches = _Batches(dataset, input or Input.of(dataset), images, batch_size, device)
    if len(batches) < 2:
        raise UsageError(
            f"{min(images, len(dataset))} images are {len(batches)} batch of {batch_size}, and two "
            "are wanted; choose a smaller --batch-size or more --images"
        )
    return network, batches
