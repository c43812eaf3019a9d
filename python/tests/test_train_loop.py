"""What a step does with a batch: formats, accumulation, clipping, averages, and own parts of the loop."""

# ruff: noqa: E402  (importorskip comes before the imports that need what it looks for)
from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="fuelrail.train needs torch")

from fuelrail.train import Recipe, Stopped, Trainer, checkpoint, evaluate, precision
from fuelrail.train.activations import checkpoint_activations
from fuelrail.train.checkpoint import Checkpoints
from fuelrail.train.metrics import read_metrics
from fuelrail.train.models import SmallCNN, build_model
from fuelrail.train.optim import default_lr
from fuelrail.train.schedule import build_schedule
from torch import nn
from train_fakes import FakeBatch, FakeLoader

CPU = torch.device("cpu")


def plain_model(seed: int = 0) -> nn.Module:
    """Without batch norm: its gradient is a mean over rows, however these come."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 6),
    )


def trainer(loader: Any, out: Path | None = None, val: Any = None, **given: Any) -> Trainer:
    names = ("resume", "optimizer", "evaluate", "batch_transform", "trackers", "stream")
    own = {name: given.pop(name) for name in names if name in given}
    model = given.pop("model", None) or plain_model()
    recipe = Recipe(**{"epochs": 1, "precision": "fp32", "log_every": 1, **given})
    return Trainer(
        model, loader, val, recipe, **{"out": out, "device": "cpu", "stream": io.StringIO(), **own}
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def step_lines(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out / "metrics.jsonl") if line["event"] == "step"]


# ---- formats


def test_fp16_is_refused_on_a_cpu_without_it_and_tf32_on_any(monkeypatch: pytest.MonkeyPatch):
    assert precision.cpu_has("fp16", "flags : fpu avx512_fp16")
    assert not precision.cpu_has("fp16", "flags : fpu avx512f f16c")
    monkeypatch.setattr(precision, "cpu_has", lambda name: False)
    with pytest.raises(ValueError, match=r"this CPU has no fp16 instructions; use 'auto'"):
        trainer(FakeLoader(16, 8), precision="fp16")
    with pytest.raises(ValueError, match=r"tf32' is a GPU's, and the device is cpu"):
        trainer(FakeLoader(16, 8), precision="tf32")


def test_fp16_scales_the_loss_and_skips_a_step_that_overflows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "cpu_has", lambda name: True)
    run = trainer(FakeLoader(32, 8), tmp_path, precision="fp16", clip_norm=1.0, lr=0.1)
    scaler = run._updater.scaler
    assert scaler is not None
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60})
    before = weights(run.module)
    seen = []
    for step in run.steps():
        step.train()
        seen.append(bool((weights(run.module) == before).all()))
        if step.number == 2:
            # From here on it fits.
            scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0})
    assert seen == [True, True, False, False], "an overflow leaves the weights alone"
    lines = step_lines(tmp_path)
    assert lines[0]["loss_scale"] == 2.0**59 and lines[-1]["loss_scale"] == 1024.0
    assert all(math.isfinite(line["loss"]) for line in lines)

    saved = checkpoint.load(Checkpoints(tmp_path).paths()[0])
    assert saved["scaler"]["scale"] == 1024.0
    resumed = trainer(FakeLoader(32, 8), tmp_path, precision="fp16", epochs=2, resume=True)
    assert resumed._updater.scaler and resumed._updater.scaler.get_scale() == 1024.0


def test_gradients_are_clipped_after_the_scale_is_taken_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "cpu_has", lambda name: True)
    steps = {}
    for name in ("fp32", "fp16"):
        run = trainer(
            FakeLoader(8, 8), precision=name, clip_norm=1e-3, lr=1.0, momentum=0.0, weight_decay=0.0
        )
        run.schedule = build_schedule("constant", 1, 0)
        before = weights(run.module)
        run.fit()
        steps[name] = float((weights(run.module) - before).norm())
    assert steps["fp32"] == pytest.approx(1e-3, rel=1e-3), "lr 1: the step is as long as the clipped gradient"
    assert steps["fp16"] == pytest.approx(1e-3, rel=1e-2)


# ---- accumulation


@pytest.mark.parametrize("count", [64, 52], ids=["whole", "a tail of 4 rows in 2 batches"])
def test_accumulated_batches_are_the_larger_batch(tmp_path: Path, count: int):
    """52 = 3 x 16 + 4: of the last step's batches one has 4 rows and the other does not exist."""
    settings = {"epochs": 2, "lr": 0.1, "clip_norm": 0.5}
    large = trainer(FakeLoader(count, 16), tmp_path / "large", **settings)
    small = trainer(FakeLoader(count, 8), tmp_path / "small", accumulate=2, **settings)
    large.fit(), small.fit()
    assert small.step == large.step == 8 and small.steps_per_epoch == 4
    assert torch.allclose(weights(small.module), weights(large.module), atol=1e-6)
    lines = [step_lines(tmp_path / name) for name in ("large", "small")]
    assert [line["ids"] for line in lines[0]] == [line["ids"] for line in lines[1]]
    for name in ("loss", "lr", "gradient_norm"):
        assert [line[name] for line in lines[1]] == pytest.approx([line[name] for line in lines[0]], rel=1e-4)


def test_rows_count_alike_in_steps_of_uneven_batches():
    """5 and 8 rows are 13 rows, not two halves."""

    class Uneven(FakeLoader):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                rows = 5 if self._position % 2 else 8
                yield FakeBatch({name: value[:rows] for name, value in batch.fields.items()})

    run = trainer(Uneven(16, 8, shuffle=False), accumulate=2, lr=0.1, momentum=0.0, weight_decay=0.0)
    expected = plain_model()
    images, labels = zip(*(tuple(batch) for batch in Uneven(16, 8, shuffle=False)), strict=True)
    assert [len(each) for each in labels] == [5, 8]
    loss = nn.functional.cross_entropy(expected(torch.cat(images)), torch.cat(labels), label_smoothing=0.1)
    loss.backward()
    (rate,) = {step.lr for step in _trained(run)}
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= rate * parameter.grad
    assert torch.allclose(weights(run.module), weights(expected), atol=1e-6)


def test_a_stop_inside_an_accumulated_step_saves_the_boundary_before_it(tmp_path: Path):
    """Batch norm and dropout have moved on by then; the resumed run must not notice."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(SmallCNN(6, width=4), nn.Dropout(0.2))

    class Dies(FakeLoader):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                if self.dies and self._position == 6:
                    raise OSError("the fake daemon died")
                yield batch

    settings = {"accumulate": 3, "epochs": 2, "lr": 0.05}
    whole = trainer(FakeLoader(72, 8), tmp_path / "whole", model=model(), **settings)
    whole.fit()
    loader = Dies(72, 8)
    loader.dies = True
    torch.manual_seed(0)
    with pytest.raises(OSError, match="died"):
        trainer(loader, tmp_path / "parts", model=model(), **settings).fit()
    found = Checkpoints(tmp_path / "parts").newest()
    assert found is not None and found[1]["step"] == 1 and found[1]["loader"]["position"] == 3
    torch.rand(7)
    trainer(FakeLoader(72, 8), tmp_path / "parts", model=model(), resume=True, **settings).fit()
    ends = [
        (tmp_path / name / "checkpoints" / "step-00000006.pt").read_bytes() for name in ("whole", "parts")
    ]
    assert ends[0] == ends[1]


# ---- memory


def kept_bytes(model: nn.Module, images: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """The most that autograd keeps for the backward pass of the loss, and the gradients."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).square().mean()
    after_forward = sum(kept.values())
    loss.backward()
    return after_forward, [parameter.grad for parameter in model.parameters()]


def test_checkpointed_activations_take_less_memory_and_give_the_same_gradients():
    def model() -> nn.Module:
        torch.manual_seed(0)
        blocks = [
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.1))
            for _ in range(16)
        ]
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*blocks), nn.Flatten())

    plain, saving = nn.Sequential(model()), nn.Sequential(model())
    names = list(saving.state_dict())
    assert checkpoint_activations(saving) == 2, "three outermost blocks: one and two"
    saving = nn.ModuleList([model()])[0]
    plain = model()
    inner = nn.Module()
    inner.blocks, inner.forward = saving[1], saving.forward
    assert checkpoint_activations(inner) == 4, "16 blocks are four segments of four"
    images = torch.randn(4, 3, 16, 16)
    torch.manual_seed(1)
    usual, expected = kept_bytes(plain, images)
    torch.manual_seed(1)
    less, found = kept_bytes(saving, images)
    assert less < usual / 3, (less, usual)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert torch.equal(weights(plain), weights(saving)), "running statistics see each batch once"
    assert names and list(saving.state_dict()) == list(plain.state_dict())
    with pytest.raises(ValueError, match=r"no nn\.Sequential"):
        checkpoint_activations(nn.Linear(3, 3))


def test_a_checkpointed_run_ends_with_the_weights_of_a_plain_one():
    pytest.importorskip("torchvision", reason="a ResNet's stages are its blocks")
    ends = []
    for saving in (False, True):
        torch.manual_seed(0)
        run = trainer(
            FakeLoader(16, 8, size=32),
            model=build_model("resnet18", 6),
            activation_checkpointing=saving,
            ema_decay=0.9,
        )
        run.fit()
        ends.append((weights(run.module), weights(run.averaged)))
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])


# ---- averages, schedules, optimizers


def test_the_average_of_the_weights_is_evaluated_saved_and_resumed(tmp_path: Path):
    val = FakeLoader(18, 6, shuffle=False)
    settings = {"epochs": 3, "ema_decay": 0.9, "lr": 0.1, "model": SmallCNN(6, width=4)}
    run = trainer(FakeLoader(48, 8), tmp_path, val, **settings)
    mine: dict[str, torch.Tensor] = {}
    for step in run.steps():
        step.train()
        decay = min(0.9, (1 + step.number) / (10 + step.number))
        for name, value in run.module.state_dict().items():
            moving = value.is_floating_point() and name in mine
            mine[name] = mine[name].lerp(value, 1 - decay) if moving else value.clone()
    averaged = run.averaged.state_dict()
    for name, value in mine.items():
        assert torch.allclose(averaged[name], value, atol=1e-6), name
    assert not torch.equal(weights(run.averaged), weights(run.module))
    fp32 = precision.choose("fp32", CPU)
    measured = evaluate(run.averaged, FakeLoader(18, 6, shuffle=False), precision=fp32, device=CPU)
    assert run.history[-1]["val_loss"] == pytest.approx(measured.loss)
    saved = checkpoint.load(Checkpoints(tmp_path).paths()[0])
    assert torch.equal(saved["ema"]["classifier.weight"], averaged["classifier.weight"])
    again = trainer(
        FakeLoader(48, 8), tmp_path, val, resume=True, **{**settings, "model": SmallCNN(6, width=4)}
    )
    assert torch.equal(weights(again.averaged), weights(run.averaged))


def test_the_step_schedule_falls_at_its_epochs_after_the_warm_up():
    schedule = build_schedule("step", 9, 1, step_epochs=3, step_factor=0.1)
    factors = [schedule.factor(progress) for progress in (0.5, 1, 2.9, 3, 5.9, 6, 8.9)]
    assert factors == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert build_schedule("constant", 9, 0).factor(8) == 1
    rates = {step.number: step.lr for step in _trained(trainer(FakeLoader(16, 8), epochs=6, lr=1.0,
        schedule="step", step_epochs=2, warmup_epochs=0))}  # fmt: skip
    assert [rates[number] for number in (1, 4, 5, 9)] == pytest.approx([1, 1, 0.1, 0.01])


def _trained(run: Trainer) -> Any:
    for step in run.steps():
        step.train()
        yield step


def test_any_optimizer_of_torch_trains_as_an_object_or_a_callable():
    model = plain_model()
    run = trainer(FakeLoader(16, 8), model=model, optimizer=torch.optim.RMSprop(model.parameters(), lr=1e-3))
    run.fit()
    made = trainer(FakeLoader(16, 8), optimizer=torch.optim.Adagrad, lr=0.02, weight_decay=0.1)
    assert isinstance(made.optimizer, torch.optim.Adagrad)
    assert [group["weight_decay"] for group in made.optimizer.param_groups] == [0.1, 0.0], "no decay of norms"
    assert made.optimizer.param_groups[0]["lr"] == 0.02
    assert made.fit()
    with pytest.raises(ValueError, match="not the model's"):
        trainer(FakeLoader(16, 8), optimizer=torch.optim.SGD(plain_model().parameters(), lr=0.1))
    with pytest.raises(TypeError, match="it made a dict"):
        trainer(FakeLoader(16, 8), optimizer=lambda groups: {})


def test_the_default_rate_grows_no_more_beyond_what_is_known_to_work():
    assert default_lr("sgd", 100_000) == default_lr("sgd", 8192) == pytest.approx(3.2)


def test_a_compiled_model_trains_and_is_saved_under_its_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled = []
    real = torch.compile
    # The loop's part of it; what the compiler makes of a model is torch's.
    monkeypatch.setattr(
        torch, "compile", lambda model: compiled.append(model) or real(model, backend="eager")
    )
    trainer(FakeLoader(16, 8), tmp_path, compile=True).fit()
    assert len(compiled) == 1
    saved = checkpoint.load(Checkpoints(tmp_path).paths()[0])["model"]
    assert list(saved) == list(plain_model().state_dict())


# ---- labels and figures


def test_soft_labels_are_trained_on_and_measured():
    labels = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.0, 0.9]])

    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 1.0]])

    batch = FakeBatch(
        {"image": torch.zeros(2, 3, 2, 2), "label": labels, "substituted": torch.zeros(2, dtype=torch.bool)}
    )
    found = evaluate(Fixed(), [batch], precision=precision.choose("fp32", CPU), device=CPU)
    expected = -(labels * Fixed()(None).log_softmax(1)).sum(1).mean()
    assert found.loss == pytest.approx(float(expected)) and found.top1 == 0.5 and found.rows == 2


def test_a_batch_transform_makes_the_batch_that_is_trained_on(tmp_path: Path):
    def mixed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hot = nn.functional.one_hot(labels, 6).float()
        return 0.75 * images + 0.25 * images.flip(0), 0.75 * hot + 0.25 * hot.flip(0)

    run = trainer(FakeLoader(16, 8), tmp_path, batch_transform=mixed, label_smoothing=0.0)
    for step in run.steps():
        assert step.labels.shape == (8, 6) and step.batch["label"].shape == (8,)
        with torch.no_grad():
            expected = nn.functional.cross_entropy(run.model(step.images), step.labels)
        assert step.train().item() == pytest.approx(float(expected), rel=1e-5)
    assert step_lines(tmp_path)[-1]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_fuelrails_mixing_draws_by_the_place_in_the_run(tmp_path: Path):
    """So a run that was stopped and resumed is trained on the batches of an unbroken one."""
    from fuelrail.torch import Mixup

    class Placed(FakeLoader):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                batch.fields["position"] = torch.arange(8) + 8 * (self._position - 1)
                yield batch

    def run(out: Path, stop: int, resume: bool = False) -> None:
        mixing = Mixup(0.4, 1.0, num_classes=6, label_smoothing=0.0, seed=3)
        found = trainer(Placed(32, 8), out, batch_transform=mixing, epochs=2, resume=resume, lr=0.1)
        for step in found.steps():
            assert step.labels.shape == (8, 6) and float(step.labels.sum()) == pytest.approx(8)
            step.train()
            if step.number == stop:
                os.kill(os.getpid(), signal.SIGTERM)

    run(tmp_path / "whole", 99)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", 3)
    run(tmp_path / "parts", 99, resume=True)
    last = Path("checkpoints", "step-00000008.pt")
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "parts" / last).read_bytes()


def test_own_figures_are_logged_evaluated_and_choose_the_best(tmp_path: Path):
    seen: list[bool] = []
    scores = iter([0.5, 0.2, 0.4])

    def measure(model: nn.Module) -> dict[str, float]:
        seen.append(model.training or torch.is_grad_enabled())
        return {"error": next(scores)}

    run = trainer(FakeLoader(16, 8), tmp_path, evaluate=measure, epochs=3, best_by="-error", log_every=2)
    for step in run.steps():
        assert step.batch["index"].shape == (8,), "all of the loader's fields are there"
        assert run.module.training
        step.log(number=step.number, mean=step.images.mean())
        step.train()
    assert seen == [False] * 3, "in evaluation mode, without gradients"
    assert [record["val_error"] for record in run.history] == [0.5, 0.2, 0.4]
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 4 and run.best == 0.2
    assert [line["number"] for line in step_lines(tmp_path)] == [1.5, 3.5, 5.5]
    said = io.StringIO()
    trainer(FakeLoader(16, 8), evaluate=lambda model: {"recall": 1.0}, stream=said).fit()
    assert "no figure 'top1' (it has recall)" in said.getvalue()
    with pytest.raises(TypeError, match="figures by name"):
        trainer(FakeLoader(16, 8), evaluate=lambda model: 0.5).fit()


def test_a_body_of_ones_own_needs_no_labels():
    class Unlabelled(FakeBatch):
        def keys(self) -> list[str]:
            return ["image", "index"]

        def __getitem__(self, name: Any) -> torch.Tensor:
            return self.fields["image" if name == 0 else name]

    class Images(FakeLoader):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                yield Unlabelled(batch.fields)

    run = trainer(Images(16, 8), model=plain_model())
    for step in run.steps():
        assert step.images.shape[0] == step.rows == 8 and step.labels.numel() == 0
        step.update(run.model(step.images).square().mean())


def test_every_line_of_metrics_says_how_the_loop_was_fed(tmp_path: Path):
    class OnDevice(FakeLoader):
        waited = 0.0

        def stats(self) -> dict[str, Any]:
            OnDevice.waited += 0.001
            return {"copy_wait_s": self.waited}

    run = trainer(OnDevice(32, 8, delay=0.02), tmp_path, epochs=1)
    run.fit()
    line = step_lines(tmp_path)[-1]
    assert {"loss", "lr", "gradient_norm", "images_per_s", "data_wait", "copy", "fed"} <= line.keys()
    waited = line["data_wait"] * 8 / line["images_per_s"]
    assert waited > 0.018 and line["data_wait"] <= 1 and 0 < line["copy"] < 0.5
    assert line["fed"] == pytest.approx(max(0, 1 - line["data_wait"] - line["copy"]), abs=1e-3)
    assert line["gradient_norm"] > 0


# ---- who else is told


def test_tensorboard_has_every_figure(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(FakeLoader(16, 8), tmp_path, FakeLoader(12, 6), trackers=["tensorboard"])
    run.fit()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in step_lines(tmp_path)]
    assert events.Scalars("epoch_val_top1")[-1].value == pytest.approx(run.history[-1]["val_top1"])


class Told(types.SimpleNamespace):
    """Stands for what mlflow and wandb are told."""

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: self.said.append((name, given, named)) or self


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_mlflow_and_wandb_are_told_each_step_and_stay_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    told = Told(said=[], run_id="7", info=types.SimpleNamespace(run_id="7"))
    module = types.ModuleType(name)
    module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(name, None)
    for door in ("MlflowClient", "init", "Settings"):
        setattr(module, door, getattr(told, door))
    monkeypatch.setitem(sys.modules, name, module)
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    trainer(FakeLoader(16, 8), tmp_path, trackers=name).fit()
    steps = [named["step"] for what, given, named in told.said if what == "log" or "loss" in given]
    assert steps[:2] == [1, 2]
    opened = next(each for each in told.said if each[0] in ("MlflowClient", "init"))
    if name == "mlflow":
        assert opened[2]["tracking_uri"] == (tmp_path / "mlruns").as_uri()
    else:
        assert opened[2]["mode"] == "offline" and opened[2]["dir"] == str(tmp_path)
    assert told.said[-1][0] in ("set_terminated", "finish")


def test_a_tracker_that_fails_is_left_out_and_an_unknown_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    broken = types.ModuleType("wandb")
    broken.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", broken)
    assert trainer(FakeLoader(16, 8), tmp_path, trackers="wandb").fit()
    assert "wandb is left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there are tensorboard, mlflow, wandb"):
        trainer(FakeLoader(16, 8), tmp_path / "other", trackers=["tensorflow"])


# ---- stops and resumes


def test_slurms_warning_saves_and_ends_with_its_own_code(tmp_path: Path):
    run = trainer(FakeLoader(64, 8), tmp_path)
    with pytest.raises(Stopped) as caught:
        for step in run.steps():
            step.train()
            if step.number == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
                # What follows the warning does not hurt a step in hand.
                assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert caught.value.code == 138 and caught.value.step == 3 and caught.value.saved is not None
    assert "SIGUSR1" in str(caught.value)


def test_a_resume_with_other_settings_says_which(tmp_path: Path):
    settings = {"epochs": 2, "lr": 0.1, "save_every": 5}
    with pytest.raises(Stopped):
        for step in (run := trainer(FakeLoader(64, 8), tmp_path, **settings)).steps():
            step.train()
            os.kill(os.getpid(), signal.SIGTERM)
    del run
    said = io.StringIO()
    resumed = trainer(
        FakeLoader(64, 8), tmp_path, resume=True, stream=said, **{**settings, "lr": 0.5, "save_every": 9}
    )
    assert "settings differ from the run's: lr 0.1 -> 0.5\n" in said.getvalue()
    line = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert line["event"] == "resume" and line["changed"] == {"lr": [0.1, 0.5]}
    assert next(resumed.steps()).lr == pytest.approx(0.5 * resumed.schedule.factor(1.5 / 8))


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(tmp_path: Path):
    trainer(FakeLoader(16, 8), tmp_path, model=SmallCNN(6, width=4)).fit()
    with pytest.raises(
        ValueError, match=r"of another model: features\.0\.0\.weight is 4 x 3 x 3 x 3 there and 8 x 3"
    ):
        trainer(FakeLoader(16, 8), tmp_path, model=SmallCNN(6, width=8), resume=True)
    with pytest.raises(ValueError, match=r"not in it: 0\.weight.*only in it: features"):
        trainer(FakeLoader(16, 8), tmp_path, model=plain_model(), resume=True)


def test_a_run_folder_takes_one_training_at_a_time(tmp_path: Path):
    first = trainer(FakeLoader(16, 8), tmp_path)
    with pytest.raises(ValueError, match=rf"another training is writing .*process {os.getpid()} on"):
        trainer(FakeLoader(16, 8), tmp_path, resume=True)
    first.fit()
    assert trainer(FakeLoader(16, 8), tmp_path, resume=True, epochs=2).fit()[-1]["epoch"] == 1


def test_the_clock_is_in_the_metrics_and_not_in_the_checkpoint(tmp_path: Path):
    run = trainer(FakeLoader(64, 8), tmp_path, FakeLoader(12, 6), epochs=2, save_every=3)
    run.fit()
    again = trainer(FakeLoader(64, 8), tmp_path, FakeLoader(12, 6), epochs=2, resume=True)
    assert [record["seconds"] for record in again.history] == [record["seconds"] for record in run.history]
    saved = json.dumps(checkpoint.load(Checkpoints(tmp_path).paths()[0]), default=str)
    assert "seconds" not in saved and "images_per_s" not in saved


def test_frozen_norms_keep_their_statistics():
    model = SmallCNN(6, width=4)
    for parameter in model.features.parameters():
        parameter.requires_grad_(False)
    before = model.features[0][1].running_mean.clone()
    run = trainer(FakeLoader(16, 8), None, FakeLoader(12, 6), model=model, epochs=2)
    run.fit()
    assert torch.equal(model.features[0][1].running_mean, before)
    assert model.training and not model.features[0][1].training


def test_a_signal_that_a_launcher_repeats_is_one_wish():
    """torchrun sends its ranks the ctrl-C that the terminal has sent them already."""
    from fuelrail.train.trainer import _Signals

    signals = _Signals(patient=True)
    with signals.noted():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.pending == signal.SIGINT, "and this process lives"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_message_of_a_stop_has_a_line_of_its_own():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    run = trainer(FakeLoader(64, 8), stream=terminal)
    run.progress.REDRAW_EVERY = 0.0
    with pytest.raises(Stopped):
        for step in run.steps():
            step.train()
            if step.number == 3:
                os.kill(os.getpid(), signal.SIGINT)
    assert "epoch 1/1" in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[K")
