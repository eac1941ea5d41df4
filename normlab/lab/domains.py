"""Images of several domains in networks whose norms have statistics for each of them."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from normlab.lab.data.dataset import DataError
from normlab.norms import DomainBatchNorm, domain, set_domain


def of(classes: tuple[int, ...] | None, labels: Tensor) -> Tensor | None:
    """The domain of each image by its label, int64 (N,), where that of each class is known."""
    return None if classes is None else torch.tensor(classes)[labels.cpu()]


def begin(model: nn.Module) -> None:
    """Take images of which it is not said for those of the first domain.

    What a step costs is found out with them; the lab says of all others where they belong.
    """
    if has_domains(model):
        set_domain(model, 0)


def forward(
    model: nn.Module,
    x: Tensor,
    domains: Tensor | None,
    call: Callable[[Tensor], Tensor] | None = None,
    present: Iterable[int] | None = None,
) -> Tensor:
    """The output for each image, with the statistics of its domain.

    Images of one domain go through together, those of each domain by themselves; a network without
    `DomainBatchNorm` is just called.

    Args:
        domains: of each image, (N,); None: not known, or there are none.
        call: how the model is called, as compiled or wrapped; None: as it is.
        present: domains whose norms are called, even with no image; None: those of the images.

    Raises:
        DataError: there are statistics for several domains, and that of the images is not known.
        LookupError: an image is of a domain that the norms do not have.

    >>> model = nn.Sequential(DomainBatchNorm(3, domains=2)).eval()
    >>> _ = model[0].domain1.running_mean.fill_(1.0)
    >>> forward(model, torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]))[:, 0, 0, 0].round()
    tensor([ 0., -1.], grad_fn=<RoundBackward0>)
    """
    call = call or model
    if not has_domains(model):
        return call(x)
    if domains is None:
        raise DataError(
            "norm domain_batch has statistics for each of several domains, and of these images it "
            'is not known where they belong; use data "joined:…", or norm batch'
        )
    y: Tensor | None = None
    for which in domains.unique().tolist() if present is None else present:
        at = (domains == which).nonzero()[:, 0].to(x.device)
        with domain(model, which):
            part = call(x[at])
        y = part.new_zeros(len(x), *part.shape[1:]) if y is None else y
        y = y.index_copy(0, at, part)
    return call(x) if y is None else y


def has_domains(model: nn.Module) -> bool:
    """Whether a network has norms that have to be told the domain."""
    return any(isinstance(m, DomainBatchNorm) and len(m.domains) > 1 for m in model.modules())
