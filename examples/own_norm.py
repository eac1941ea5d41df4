"""A norm of your own: ten lines, then it is compared with batch norm like any other.

python examples/own_norm.py            a minute; the report is runs/report.html
python examples/own_norm.py --seed 0   further flags are those of `normlab compare`
"""

import sys
from typing import Any

import normlab
from normlab import cli


class BandNorm(normlab.Norm, name="bands"):
    """One mean and variance per sample and horizontal band of the image.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c (b h) ... -> n b"

    Args:
        num_bands: b, bands of equal height; must divide the height.
    """

    pattern = "n c (b h) ... -> n b"
    spec_options = {"": "num_bands"}  # so that "bands:4" is read

    def __init__(self, num_channels: int, *, num_bands: int = 2, **options: Any) -> None:
        super().__init__(num_channels, b=num_bands, **options)


if __name__ == "__main__":
    sys.exit(
        cli.main(
            ["compare", "--data", "digits", "--norm", "batch", "own_norm.bands", *sys.argv[1:]]
        )
    )
