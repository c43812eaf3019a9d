"""A hyper-parameter search with Optuna: all trials train on the batches of one shared feed, and bad ones are pruned.

    .venv/bin/python examples/tune_optuna.py build/demo/digits/train build/study.log 4

Each trial is a process. `share=` has each image read, decoded and augmented once for all of them, and
every trial gets the same batches, so trials differ in their hyper-parameters alone. A pruned trial closes its
Loader, and the others continue. The journal file keeps the study: run the script again to add trials to it.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import optuna
import torch
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

EPOCHS = 4
optuna.logging.set_verbosity(optuna.logging.WARNING)


def study(journal: str) -> optuna.Study:
    """The study in the journal file, which all processes open for themselves."""
    # Successive halving compares trials that run at the same time; MedianPruner waits for complete ones.
    return optuna.create_study(
        study_name="digits",
        storage=JournalStorage(JournalFileBackend(journal)),
        sampler=optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        load_if_exists=True,
    )


def run_trial(folder: str, journal: str, trials: int) -> None:
    """One trial, in a process of its own."""

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-5, 0.1, log=True)
        momentum = trial.suggest_float("momentum", 0.0, 0.95)
        chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]
        # The first batch waits until all trials have joined, so that none misses the first epoch.
        feed = {"name": "optuna", "clients": trials}
        with Loader(folder, transforms=chain, batch_size=16, shuffle=True, seed=1, share=feed) as loader:
            trial.set_user_attr("daemon", loader.daemon_pid)
            torch.manual_seed(1)
            model = build_model("small_cnn", len(loader.classes))
            optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
            for epoch in range(1, EPOCHS + 1):
                total = 0.0
                for images, labels in loader:
                    loss = torch.nn.functional.cross_entropy(model(images), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(labels)
                # The loss in training keeps this short; a search of yours would measure on held-out images.
                trial.report(total / loader.num_samples, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned  # leaves the `with`, which closes the Loader
        return total / loader.num_samples

    study(journal).optimize(objective, n_trials=1)


if __name__ == "__main__":
    folder, journal, trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
    study(journal)
    with ProcessPoolExecutor(trials, get_context("spawn")) as pool:
        running = [pool.submit(run_trial, folder, journal, trials) for _ in range(trials)]
        for each in running:
            each.result()
    done = study(journal)
    for trial in done.trials:
        chosen = ", ".join(f"{name} {value:.3g}" for name, value in trial.params.items())
        losses = ", ".join(f"{loss:.3f}" for loss in trial.intermediate_values.values())
        state, daemon = trial.state.name.lower(), trial.user_attrs["daemon"]
        print(f"trial {trial.number}: {state}, {chosen}; fed by daemon {daemon}; loss by epoch {losses}")
    print(f"best: trial {done.best_trial.number}, loss {done.best_value:.3f}, {done.best_params}")
