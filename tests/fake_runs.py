"""Runs that were never trained, and names an attacker would give them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run

PAYLOADS = {
    "script": "</script><script>alert(1)</script>",
    "image": '"><img src=x onerror=alert(1)>',
    "single quote": "' onmouseover='alert(1)",
    "template": "{{7*7}}{% for x in y %}",
    "address": "javascript:alert(1)",
    "direction": "\u202egnp.exe",
    "style": "</style></title></svg><svg onload=alert(1)>",
    "comment": "--><!-- ]]><![CDATA[",
    "entity": "&lt;b&gt;&#60;b&#62;",
    "control": "\x1b[31m\x00\x07\x85\u2028",
    "surrogate": "caf\udce9",
    "prototype": "__proto__/../constructor",
    "long": "<" * 5000,
}


@dataclass
class FakeRun:
    experiment: Experiment
    errors: list[Any] = field(default_factory=lambda: [60.0, 20.0, 12.0, 10.0])
    status: dict[str, Any] = field(default_factory=lambda: {"state": "finished"})
    path: Path = Path("runs/one")

    def events(self) -> list[dict[str, Any]]:
        epochs = [
            {
                "event": "epoch",
                "samples": 4096 * i,
                "train_error": error,
                "validation_error": error,
                "seconds_train": 1.5,
            }
            for i, error in enumerate(self.errors, 1)
        ]
        return [{"event": "start", "num_parameters": 77_000, "bytes_saved": 10**6}, *epochs]


def thirty_runs() -> list[FakeRun]:
    found = []
    for seed in range(3):
        for i, size in enumerate((2, 4, 8, 16, 32)):
            e = Experiment(norm="batch", norm_batch_size=size, seed=seed)
            found.append(FakeRun(e, [60.0, 20.0, 25.0 / (i + 1) + seed]))
        for i, norm in enumerate(("group", "group:1", "layer", "instance", "none")):
            found.append(
                FakeRun(Experiment(norm=norm, seed=seed), [60.0, 20.0, 9.0 + i + seed / 4])
            )
    return found


def folder_of_runs(root: Path, num_seeds: int, num_epochs: int = 8) -> Path:
    """Ten real run folders for every seed, finished, with a checkpoint's manifest."""
    for fake in (f for f in thirty_runs() if f.experiment.seed == 0):
        for seed in range(num_seeds):
            run = Run.create(root, fake.experiment.replace(seed=seed, epochs=num_epochs))
            lines = [{"event": "start", "num_parameters": 77_000, "bytes_saved": 10**6}]
            for epoch in range(1, num_epochs + 1):
                error = sorted(fake.errors)[1] + seed / 8 + 60 / epoch**2
                lines.append(
                    {"event": "epoch", "epoch": epoch, "samples": 4096 * epoch,
                     "train_error": 0.8 * error, "validation_error": error, "seconds_train": 1.5}
                )  # fmt: skip
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (run.path / "metrics.jsonl").write_text(text)
            (run.path / "environment.json").write_text('{"python": "3.12", "host": "desk"}')
            checkpoint = run.path / "checkpoints" / "best" / "000000001000"
            checkpoint.mkdir(parents=True)
            files = {"tensors.safetensors": {"size": 8, "sha256": f"{seed:064x}"}}
            (checkpoint / "manifest.json").write_text(json.dumps({"files": files}))
            run.set_status("finished")
    return root
