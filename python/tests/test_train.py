"""The training loop, piece by piece and against a loader without a daemon."""

# ruff: noqa: E402  (importorskip comes before the imports that need what it looks for)
from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="fuelrail.train needs torch")

import numpy
from fuelrail.train import (
    Recipe,
    Stopped,
    Trainer,
    build_model,
    checkpoint,
    evaluate,
    model_names,
    parameter_groups,
    precision,
)
from fuelrail.train.checkpoint import Checkpoints
from fuelrail.train.metrics import IdChain, Mean, MetricsLog, read_metrics
from fuelrail.train.models import SmallCNN
from fuelrail.train.optim import build_optimizer, default_lr
from fuelrail.train.progress import Pace, Progress
from fuelrail.train.schedule import CosineSchedule
from torch import nn
from train_fakes import FakeLoader

HERE = Path(__file__).parent
CPU = torch.device("cpu")
FP32 = precision.Precision("fp32", "cpu", "a test")


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SmallCNN(6, width=8)


def train(loader: Any, out: Path | None = None, val: Any = None, **settings: Any) -> Trainer:
    resume = settings.pop("resume", False)
    recipe = Recipe(**{"epochs": 2, "precision": "fp32", "log_every": 1, **settings})
    return Trainer(
        small_model(), loader, val, recipe, out=out, resume=resume, device="cpu", stream=io.StringIO()
    )


# ---- schedule


def test_the_rate_rises_linearly_then_falls_as_a_cosine_to_the_floor():
    schedule = CosineSchedule(epochs=10, warmup_epochs=2, floor=0.1)
    assert schedule.factor(0) == 0
    assert schedule.factor(1) == pytest.approx(0.5)
    assert schedule.factor(2) == pytest.approx(1.0)
    assert schedule.factor(6) == pytest.approx(0.55)
    assert schedule.factor(10) == schedule.factor(99) == pytest.approx(0.1)
    rates = [schedule.factor(2 + step / 100) for step in range(800)]
    assert rates == sorted(rates, reverse=True)


def test_no_step_of_a_run_has_a_rate_of_zero():
    schedule = CosineSchedule(epochs=3, warmup_epochs=1)
    rates = [
        schedule.factor(CosineSchedule.middle(epoch, step, 5)) for epoch in range(3) for step in range(5)
    ]
    assert min(rates) > 0 and max(rates) <= 1


def test_a_schedule_sets_each_group_from_its_own_peak():
    model = small_model()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": 0.2}], lr=0.5)
    schedule = CosineSchedule(epochs=4, warmup_epochs=2)
    assert schedule.apply(optimizer, 1.0) == pytest.approx(0.1)
    assert schedule.apply(optimizer, 2.0) == pytest.approx(0.2), "the peak is remembered, not compounded"


# ---- optimizer


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm((2, 2))
    )
    decayed, exempt = parameter_groups(model, 0.05)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert decayed["weight_decay"] == 0.05 and exempt["weight_decay"] == 0.0
    assert len(exempt["params"]) == 6, (
        "two biases, and scale and shift of two norms, also of the matrix-shaped one"
    )


def test_frozen_and_shared_parameters_are_counted_right():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    found = [parameter for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert len(found) == 2
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer("sgd", model, lr=0.1)


def test_optimizers_by_name():
    assert build_optimizer("sgd", small_model(), lr=0.1).defaults["nesterov"] is True
    assert isinstance(build_optimizer("adamw", small_model(), lr=0.1), torch.optim.AdamW)
    with pytest.raises(ValueError, match="sgd, adamw"):
        build_optimizer("lion", small_model(), lr=0.1)
    assert default_lr("sgd", 512) == pytest.approx(0.2)
    assert default_lr("adamw", 64) == pytest.approx(0.0005)


# ---- precision


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_tile amx_bf16\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("Features\t: fp asimd\n", False),
        ("model name : bf16 amx_bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_processor_flags(cpuinfo: str, expected: bool):
    assert precision.cpu_has("bf16", cpuinfo) is expected


def test_automatic_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "cpu_has", lambda name: True)
    assert precision.choose("auto", CPU).name == "bf16"
    monkeypatch.setattr(precision, "cpu_has", lambda name: False)
    assert precision.choose("auto", CPU).name == "fp32"
    assert precision.choose("bf16", CPU).name == "bf16", "an explicit wish is followed"
    with pytest.raises(ValueError, match="fp8"):
        precision.choose("fp8", CPU)


def test_bf16_computes_in_bf16_and_keeps_weights_and_gradients_in_fp32():
    model = small_model()
    with precision.choose("bf16", CPU).autocast():
        logits = model(torch.randn(2, 3, 16, 16))
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


# ---- models


def test_every_model_name_is_known_and_an_unknown_one_suggests_its_neighbours():
    assert "small_cnn" in model_names()
    assert build_model("small_cnn", 7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="unknown model"):
        build_model("no-such-thing-at-all", 2)
    pytest.importorskip("torchvision", reason="the other names are torchvision's")
    with pytest.raises(ValueError, match=r"did you mean .*resnet18"):
        build_model("resnet-18", 2)
    assert build_model("resnet18", 7)(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    assert isinstance(build_model("googlenet", 3).train()(torch.randn(2, 3, 64, 64)), torch.Tensor)


# ---- evaluation


class Oracle(nn.Module):
    """Puts class (label + offset) first; the label is written into the first pixel of the image."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset = offset
        self.trained_while_measured = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.trained_while_measured |= self.training
        labels = (images[:, 0, 0, 0].long() + self.offset) % 10
        # Scores fall with the distance from the winner, so the true label's rank is its distance.
        return -((torch.arange(10)[None] - labels[:, None]) % 10).float()


def written(labels: list[int], substituted: list[bool] | None = None) -> dict[str, torch.Tensor]:
    images = torch.zeros(len(labels), 3, 2, 2)
    images[:, 0, 0, 0] = torch.tensor(labels, dtype=torch.float32)
    flags = substituted or [False] * len(labels)
    return {
        "image": images,
        "label": torch.tensor(labels, dtype=torch.int64),
        "substituted": torch.tensor(flags),
    }


def measure(model: nn.Module, *batches: dict[str, torch.Tensor]) -> Any:
    from train_fakes import FakeBatch

    return evaluate(model, [FakeBatch(batch) for batch in batches], precision=FP32, device=CPU)


def test_accuracy_is_weighted_by_rows_and_not_by_batches():
    class FirstIsRight(Oracle):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.offset = 0 if len(images) == 1 else 7
            return super().forward(images)

    found = measure(FirstIsRight(0).train(), written([3]), written([1, 2, 3]))
    assert (found.rows, found.top1) == (4, pytest.approx(0.25))
    assert found.top5 == pytest.approx(1.0), "seven below the winner wraps to rank 3"


def test_top5_counts_ranks_up_to_four_places_behind():
    assert measure(Oracle(6), written([0, 1])).top5 == 1.0
    assert measure(Oracle(5), written([0, 1])).top5 == 0.0, "rank 5 is the sixth place"


def test_batches_without_rows_and_substituted_rows_do_not_count():
    model = Oracle(0).train()
    found = measure(model, written([]), written([1, 2], [True, False]), written([]), written([5], [True]))
    assert (found.rows, found.left_out, found.top1) == (1, 2, 1.0)
    assert model.training and not model.trained_while_measured, "measured in eval mode, mode put back"
    assert measure(model, written([])).rows == 0


# ---- metrics


def test_the_id_chain_depends_on_every_id_and_on_nothing_else():
    def chain(*steps: list[int]) -> str:
        ids = IdChain()
        for step in steps:
            ids.add(step)
        return ids.state

    assert chain([1, 2], [3]) == chain([1, 2], [3])
    states = {
        chain([1, 2], [3]),
        chain([2, 1], [3]),
        chain([1], [2, 3]),
        chain([1, 2]),
        chain([1, 2], [4]),
        chain(),
    }
    assert len(states) == 6
    halfway = IdChain(chain([1, 2]))
    halfway.add([3])
    assert halfway.state == chain([1, 2], [3]), "the state is all there is"


def test_the_mean_is_weighted_by_rows():
    mean = Mean()
    assert mean.rows == 0 and str(mean.value) == "nan"
    mean.add(torch.tensor(1.0), 3)
    mean.add(torch.tensor(5.0), 1)
    assert mean.value == pytest.approx(2.0)


def test_rewinding_drops_later_steps_and_torn_lines(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.write("step", step, loss=float("nan") if step == 2 else 1.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.rewind(3) == 3
    log.write("resume", 3)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 3]
    assert records[1]["loss"] is None, "JSON has no NaN"


# ---- checkpoints


def test_the_newest_k_and_the_best_stay(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30, 40):
        checkpoints.save({"step": step}, step, best=step == 20)
    assert [path.name for path in checkpoints.paths()] == ["step-00000040.pt", "step-00000030.pt"]
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 20


def test_an_unreadable_checkpoint_is_named_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    for step in (1, 2, 3):
        checkpoints.save({"step": step}, step)
    newest = checkpoints.paths()[0]
    newest.write_bytes(newest.read_bytes()[:-200])
    torch.save({"format": 99}, checkpoints.paths()[1])
    found = checkpoints.newest()
    assert found is not None and found[1]["step"] == 1
    named = capsys.readouterr().err
    assert (
        "step-00000003.pt" in named and "step-00000002.pt" in named and f"format {checkpoint.FORMAT}" in named
    )
    checkpoints.paths()[2].write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read"):
        checkpoints.newest()


def test_a_checkpoint_runs_no_code(tmp_path: Path):
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"format": 1, "bomb": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(Exception, match=r"(?i)weights"):
        checkpoint.load(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save({"weights": torch.ones(10)}, 7)

    def half(file: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        checkpoint.write_atomically(path, half)
    assert checkpoint.load(path)["weights"].sum() == 10
    assert [each.name for each in checkpoints.folder.iterdir()] == [path.name]


def test_a_writer_killed_at_any_moment_leaves_whole_checkpoints(tmp_path: Path):
    """SIGKILL at random moments of a process that does nothing but save: every file there can be read."""
    script = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from fuelrail.train.checkpoint import Checkpoints
        checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
        print("ready", flush=True)
        for step in range(10**6):
            state = {"step": step, "weights": torch.full((200_000,), float(step))}
            checkpoints.save(state, step, best=step % 3 == 0)
        """
    )
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for round in range(4 if not os.environ.get("FUELRAIL_GATE") else 40):
        run = tmp_path / str(round)
        writer = subprocess.Popen([sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE)
        assert writer.stdout and writer.stdout.readline() == b"ready\n"
        time.sleep(0.05 + 0.3 * moments.random())
        writer.kill()
        writer.wait()
        writer.stdout.close()
        checkpoints = Checkpoints(run)
        files = [*checkpoints.paths(), *([checkpoints.best] if checkpoints.best.exists() else [])]
        for path in files:
            state = checkpoint.load(path)
            assert (state["weights"] == state["step"]).all()
        checkpoints.newest()
        assert not list(checkpoints.folder.glob(".*")), "what the dead writer left is swept"


def test_random_states_come_back(tmp_path: Path):
    def draw() -> tuple[float, float, float, float]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(1)), float(numpy.random.randn())

    numpy.random.randn()  # so that NumPy holds a second normal number back
    Checkpoints(tmp_path).save({"random": checkpoint.random_states()}, 1)
    expected = draw()
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    checkpoint.restore_random_states(found[1]["random"])
    assert draw() == expected


# ---- recipe and trainer


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"momentum": 1.0}, "momentum"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"optimizer": "adam"}, "sgd, adamw"),
        ({"precision": "fp8"}, "auto, bf16, fp16, tf32, fp32"),
        ({"keep": 0}, "keep"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named):
        Recipe(**settings)
    with pytest.raises(TypeError, match="epoch_count"):
        Recipe(epoch_count=3)  # type: ignore[call-arg]


def test_training_learns_and_writes_down_what_happened(tmp_path: Path):
    trainer = train(FakeLoader(96, 16), tmp_path, FakeLoader(36, 8, shuffle=False), epochs=6, lr=0.1)
    history = trainer.fit()
    assert len(history) == 6 and history[-1]["val_top1"] > 0.9
    records = read_metrics(tmp_path / "metrics.jsonl")
    steps = [record for record in records if record["event"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, 37))
    assert {"loss", "lr", "images_per_s", "data_wait", "ids"} <= steps[0].keys()
    assert steps[-1]["loss"] < steps[0]["loss"]
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["best"] == max(record["val_top1"] for record in history)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_a_body_of_ones_own_trains_too():
    trainer = train(FakeLoader(32, 8))
    seen = []
    for step in trainer.steps():
        with trainer.autocast():
            loss = nn.functional.cross_entropy(trainer.model(step.images), step.labels)
        step.update(loss)
        seen.append((step.number, step.epoch, step.rows))
        with pytest.raises(RuntimeError, match="twice"):
            step.update(loss)
    assert seen == [(number, (number - 1) // 4, 8) for number in range(1, 9)]
    assert not hasattr(step, "images"), "the batch's memory is let go when the body is done"


def test_a_body_that_forgets_to_train_is_told():
    with pytest.raises(RuntimeError, match=r"step\.train\(\) or step\.update"):
        for _ in train(FakeLoader()).steps():
            pass


def test_batches_without_rows_count_as_steps_and_are_not_handed_out(tmp_path: Path):
    trainer = train(FakeLoader(24, 8, tail_rows=0), tmp_path, log_ids=True)
    assert [step.rows for step in trainer.steps() if step.train() is not None] == [8, 8, 8, 8]
    assert trainer.step == 6
    ids = [record["ids"] for record in read_metrics(tmp_path / "metrics.jsonl") if record["event"] == "ids"]
    assert [len(each) for each in ids] == [8, 8, 0, 8, 8, 0]


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoints(tmp_path: Path):
    trainer = train(FakeLoader(64, 8), tmp_path, log_every=50, save_every=2)
    with pytest.raises(FloatingPointError, match="lower lr"):
        for step in trainer.steps():
            step.train() if step.number < 4 else step.update(trainer.model(step.images).sum() * float("nan"))
    found = Checkpoints(tmp_path).newest()
    assert found is not None and found[1]["step"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in found[1]["model"].values())


def test_a_run_folder_is_not_overwritten(tmp_path: Path):
    train(FakeLoader(16, 8), tmp_path).fit()
    with pytest.raises(ValueError, match="already holds a run"):
        train(FakeLoader(16, 8), tmp_path)
    assert train(FakeLoader(16, 8), tmp_path, resume=True).fit()[-1]["epoch"] == 1, (
        "a finished run stays finished"
    )


def test_an_error_of_the_loader_saves_the_boundary_before_it(tmp_path: Path):
    with pytest.raises(OSError, match="died"):
        train(FakeLoader(64, 8, fail_at=5), tmp_path).fit()
    found = Checkpoints(tmp_path).newest()
    assert found is not None and found[1]["step"] == 5 and found[1]["loader"]["position"] == 5


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path: Path):
    train(FakeLoader(16, 8), tmp_path).fit()
    with pytest.raises(ValueError, match=r"step-00000004\.pt does not fit this run: the token is of seed 0"):
        train(FakeLoader(16, 8, seed=1), tmp_path, resume=True)
    other = FakeLoader(16, 8)
    other.classes = ["top", "cat", *other.classes[2:]]
    with pytest.raises(ValueError, match="missing now: bottom; new: cat"):
        train(other, tmp_path, resume=True)
    with pytest.raises(ValueError, match="does not fit"):
        Trainer(SmallCNN(6, width=4), FakeLoader(16, 8), out=tmp_path, resume=True, device="cpu")


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in trainer.model.state_dict().values()])


def id_lines(out: Path) -> list[tuple[int, list[int]]]:
    return [
        (record["step"], record["ids"])
        for record in read_metrics(out / "metrics.jsonl")
        if record["event"] == "ids"
    ]


@pytest.mark.parametrize("stop_after", [1, 7, 8, 11, 16])
def test_a_stopped_run_resumes_to_the_same_weights_and_figures(tmp_path: Path, stop_after: int):
    """Stopped by SIGTERM in a body, at the start, inside an epoch, at its last step, and after that."""
    loaders: dict[str, Any] = {"val": FakeLoader(20, 8, shuffle=False)}
    settings = {"epochs": 3, "log_ids": True, "log_every": 3}
    whole = train(FakeLoader(64, 8), tmp_path / "whole", **loaders, **settings)
    whole.fit()

    stopped = train(FakeLoader(64, 8), tmp_path / "parts", **loaders, **settings)
    with pytest.raises(Stopped) as caught:
        for step in stopped.steps():
            step.train()
            if step.number == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143 and caught.value.step == stop_after
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "handlers are put back"

    numpy.random.rand(3), torch.rand(3), random.random()  # disturbs what a new process would not have
    resumed = train(FakeLoader(64, 8), tmp_path / "parts", resume=True, **loaders, **settings)
    assert resumed.step == stop_after
    resumed.fit()
    assert torch.equal(weights(whole), weights(resumed))
    assert id_lines(tmp_path / "whole") == id_lines(tmp_path / "parts")
    same = ("epoch", "train_loss", "val_loss", "val_top1", "val_rows")
    figures = [[record[name] for name in same] for record in whole.history]
    assert [[record[name] for name in same] for record in resumed.history] == figures
    losses = [
        [
            (record["step"], record["loss"], record["ids"])
            for record in read_metrics(tmp_path / run / "metrics.jsonl")
            if record["event"] == "step"
        ]
        for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_resuming_with_another_batch_size_keeps_the_place_on_the_curve(tmp_path: Path):
    class Rebatched(FakeLoader):
        def load_state_dict(self, token: dict[str, Any]) -> None:
            super().load_state_dict({**token, "position": token["position"] * 8 // self.batch_size})

    trainer = train(FakeLoader(64, 8), tmp_path, epochs=4)
    with pytest.raises(Stopped):
        for step in trainer.steps():
            step.train()
            if step.number == 12:
                os.kill(os.getpid(), signal.SIGTERM)
    resumed = train(Rebatched(64, 16), tmp_path, epochs=4, resume=True, lr=0.1)
    step = next(resumed.steps())
    assert step.lr == pytest.approx(0.1 * CosineSchedule(4, 1).factor(1 + 2.5 / 4))


def run_script(tmp_path: Path, body: str, **popen: Any) -> subprocess.Popen[str]:
    script = textwrap.dedent(
        """
        import io, numpy, random, sys, torch
        from train_fakes import FakeLoader
        from fuelrail.train import Recipe, Trainer
        from fuelrail.train.models import SmallCNN
        torch.set_num_threads(1)
        # What a checkpoint holds of a process that has drawn nothing is where its generators began.
        random.seed(0), numpy.random.seed(0)
        def trainer(loader, val=None, **settings):
            torch.manual_seed(0)
            usual = {"epochs": 3, "precision": "fp32", "log_ids": True, "save_every": 3}
            recipe = Recipe(**{**usual, **settings})
            out = sys.argv[1]
            return Trainer(SmallCNN(6, width=8), loader, val, recipe, out=out, resume=True, device="cpu")
        """
    ) + textwrap.dedent(body)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        text=True,
        env=environment,
        stderr=subprocess.PIPE,
        **popen,
    )


def wait_for_step(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """Until the metrics file has a line of that step; fails when the process ends first."""
    for _ in range(3000):
        if metrics.exists() and any(record["step"] >= step for record in read_metrics(metrics)):
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within a minute")


def test_a_run_killed_again_and_again_reads_the_samples_of_an_unbroken_one(tmp_path: Path):
    body = "trainer(FakeLoader(64, 8, delay=0.03), FakeLoader(16, 8)).fit()"
    whole = run_script(tmp_path / "whole", body)
    assert whole.wait(120) == 0, whole.stderr and whole.stderr.read()
    for step in (5, 11, 17):
        killed = run_script(tmp_path / "killed", body)
        wait_for_step(killed, tmp_path / "killed" / "metrics.jsonl", step)
        killed.kill()
        killed.communicate()
    last = run_script(tmp_path / "killed", body)
    assert last.wait(120) == 0, last.stderr and last.stderr.read()
    expected = id_lines(tmp_path / "whole")
    assert len(expected) == 24 and id_lines(tmp_path / "killed") == expected
    ends = [read_metrics(tmp_path / run / "metrics.jsonl")[-1]["ids"] for run in ("whole", "killed")]
    assert ends[0] == ends[1]
    final = [
        (tmp_path / run / "checkpoints" / "step-00000024.pt").read_bytes() for run in ("whole", "killed")
    ]
    assert final[0] == final[1], "its last checkpoint is that of the unbroken run, bit for bit"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_with_the_shells_code(tmp_path: Path, signum: int, code: int):
    body = "trainer(FakeLoader(6400, 8, delay=0.05), save_every=1000).fit()"
    process = run_script(tmp_path, body)
    wait_for_step(process, tmp_path / "metrics.jsonl", 4)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    found = Checkpoints(tmp_path).newest()
    assert found is not None and found[1]["step"] >= 4
    assert found[1]["loader"]["position"] == found[1]["step"]


@pytest.mark.parametrize("where", ["data", "evaluation"])
def test_a_signal_ends_a_wait_for_data_or_an_evaluation(tmp_path: Path, where: str):
    """The loader hangs; the stop does not wait for it."""
    slow = {
        "data": "FakeLoader(64, 8, delay=300)",
        "evaluation": "FakeLoader(8, 8), FakeLoader(64, 8, delay=300)",
    }
    process = run_script(tmp_path, f"trainer({slow[where]}, log_every=1).fit()")
    wait_for_step(process, tmp_path / "metrics.jsonl", 0 if where == "data" else 1)
    time.sleep(0.5)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143, errors
    saved = Checkpoints(tmp_path).newest()
    assert (saved is None) == (where == "data"), "before the first step there is nothing to save"


def test_a_second_signal_ends_a_body_that_does_not_come_back(tmp_path: Path):
    body = """
    import time
    for step in trainer(FakeLoader()).steps():
        print("inside", flush=True)
        while True:
            time.sleep(0.1)
    """
    process = run_script(tmp_path, body, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None, "the first waits for the step boundary"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT


# ---- progress and pictures


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_moving_line_and_a_file_gets_plain_ones():
    pace = Pace(800, 1.0, 0.03)
    terminal = Terminal()
    progress = Progress(3, terminal)
    progress.step(0, 24, 48, 1.234, 0.1, pace)
    progress.line("epoch 1 done")
    shown = terminal.getvalue()
    assert "epoch 1/3" in shown and "800 img/s" in shown and "data wait 3%" in shown and "█" in shown
    assert shown.endswith("\r\x1b[Kepoch 1 done\n")

    plain = io.StringIO()
    progress = Progress(3, plain)
    for step in range(1, 49):
        progress.step(0, step, 48, 1.234, 0.1, pace)
    progress.line("epoch 1 done")
    assert plain.getvalue() == "epoch 1 done\n", "less than PLAIN_EVERY seconds: only the epoch's line"


def test_the_pictures_are_drawn_from_the_metrics_file(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="draws with it")
    from fuelrail.train.pictures import MEAN, STD, draw_contact_sheet, draw_curves

    for name, val in (("held-out", FakeLoader(20, 8, shuffle=False)), ("alone", None)):
        train(FakeLoader(64, 8), tmp_path / name, val, epochs=3).fit()
        draw_curves(tmp_path / name / "metrics.jsonl", tmp_path / f"{name}.png", "a title")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    gray = (torch.full((3, 3, 16, 16), 0.5) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    draw_contact_sheet(
        gray, ["cats", "a name much too long for its picture", "two\nlines"], tmp_path / "s.png", "sheet"
    )
    from PIL import Image

    with Image.open(tmp_path / "s.png") as sheet:
        colours = sheet.convert("RGB").getcolors(2**20) or []
    assert any(colour in ((127,) * 3, (128,) * 3) and count > 1000 for count, colour in colours), (
        "un-normalised"
    )


# ---- folders


def test_the_held_out_folder_is_found_or_split_off(tmp_path: Path):
    from fuelrail.train.data import find_folders

    for name in ("a/train", "a/validation", "b/cats", "b/dogs"):
        (tmp_path / name).mkdir(parents=True)
    a, b = tmp_path / "a", tmp_path / "b"
    assert find_folders(b, a, None).val == a
    for data in (a, a / "train"):
        found = find_folders(data, None, None)
        assert (found.train, found.val, found.train_split) == (a / "train", a / "validation", None)
    split = find_folders(b, None, 0.15)
    assert (split.train_split, split.val_split) == ("train[:85%]", "train[85%:]")
    assert split.train == split.val == b
    with pytest.raises(ValueError, match="--val-fraction"):
        find_folders(b, None, 1.0)


def test_any_address_is_split_and_a_stream_is_not(tmp_path: Path):
    from fuelrail.train.data import find_data

    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    assert find_data(str(tmp_path), None, None).val == tmp_path / "val"
    shards = find_data("s3://bucket/{000..009}.tar", None, 0.2)
    assert (shards.train, shards.val) == ("s3://bucket/{000..009}.tar",) * 2
    assert (shards.train_split, shards.val_split) == ("train[:80%]", "train[80%:]")
    named = find_data("a.parquet", str(tmp_path), None)
    assert (named.val, named.train_split) == (str(tmp_path), None)
    stream = find_data("kafka://broker:9092/photos", None, None)
    assert (stream.val, stream.train_split) == (None, None)


def test_options_of_a_source_are_json_or_text():
    from fuelrail.train.cli import _parser
    from fuelrail.train.options import option

    assert option("image=jpg") == ("image", "jpg")
    assert option('classes=["a", "b"]') == ("classes", ["a", "b"])
    arguments = [
        "--data",
        "x",
        "--out",
        "y",
        "--source-option",
        "label=cls",
        "--source-option",
        "window_records=9",
    ]
    assert _parser().parse_args(arguments).source_option == [("label", "cls"), ("window_records", 9)]
    with pytest.raises(SystemExit):
        _parser().parse_args(["--data", "x", "--out", "y", "--source-option", "label"])


# ---- command line


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuelrail.train.cli", *arguments], text=True, capture_output=True, timeout=120
    )


def test_help_answers_without_loading_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fuelrail.train.cli", "--help"],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and "--resume" in done.stdout
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "x"], "--data"),
        (["--data", "x"], "--out"),
        (["--data", "x", "--out", "y", "--epoch", "3"], "--epoch"),
        (["--data", "x", "--out", "y", "--batch-size", "0"], "must be at least 1"),
        (["--data", "x", "--out", "y", "--optimizer", "adam"], "adamw"),
        (["--data", "x", "--out", "y", "--size", "big"], "--size"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments: list[str], named: str):
    done = command(*arguments)
    assert done.returncode == 2
    assert named in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_defaults_of_the_command_are_the_recipes():
    from dataclasses import asdict

    from fuelrail.train.cli import _parser, _recipe

    arguments = _parser().parse_args(["--data", "x", "--out", "y"])
    assert asdict(_recipe(arguments)) == asdict(Recipe())


def test_metrics_lines_are_json(tmp_path: Path):
    train(FakeLoader(16, 8), tmp_path).fit()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert {"event", "step", "time"} <= json.loads(line).keys()


# ---- what a trainer needs of a loader


def test_a_loader_that_lacks_a_part_is_refused_at_once_with_the_parts_name(tmp_path: Path):
    class Bare:
        epoch, batch_size, classes = 0, 8, ()

        def __len__(self) -> int:
            return 1

    with pytest.raises(
        TypeError, match=r"a Bare, has no endless, state_dict, load_state_dict, checkpoint_saved"
    ):
        train(Bare(), tmp_path)


def test_the_torch_loader_is_a_source_of_batches():
    from fuelrail.torch import Loader
    from fuelrail.train.batches import lacking

    assert lacking(Loader) == [] and lacking(FakeLoader(8, 8)) == []
