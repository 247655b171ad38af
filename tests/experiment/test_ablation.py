"""The study of single changes: its variants, what it skips, and its table. A run, trained and measured, is in test_path.py."""

import json
from pathlib import Path

import numpy as np
import pytest

import walt.config
from walt.config import ConfigError
from walt.experiment import ablation
from walt.experiment.config import DiffusionExperiment, parse
from walt.experiment.stage2 import diffusion_task


def run(frechet, loss=0.2):
    return {"samples": 32, "frechet": frechet, "loss": loss, "prompt_accuracy": 0.5, "motion_ratio": 1.0}


def test_every_variant_is_one_valid_change_of_the_baseline():
    base = walt.config.load(ablation.CONFIG)
    for name, variant in ablation.VARIANTS.items():
        changed = walt.config.apply_overrides(walt.config.load(ablation.CONFIG), variant.overrides)
        experiment = parse(changed)
        assert isinstance(experiment, DiffusionExperiment)
        assert diffusion_task(experiment).denoiser.abstract_params  # it can be built
        assert len(walt.config.diff(base, changed)) == len(variant.overrides)
        assert bool(variant.overrides or variant.latents != "normalised") == (name != ablation.BASELINE)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A study whose runs are not trained: (folder, what it ran)."""
    ran = []

    def run_and_measure(experiment, workdir, measure):
        ran.append((workdir.name, experiment.training.seed, experiment.training.num_steps, experiment.data.path))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run(10.0 + len(ran))

    monkeypatch.setattr(ablation, "run_and_measure", run_and_measure)
    monkeypatch.setattr(ablation, "Measure", lambda footage, samples: type("M", (), {"floor": lambda self: run(1.0)})())
    return tmp_path, ran


def test_a_study_goes_on_where_it_stopped(prepared):
    folder, ran = prepared
    latents = {"normalised": (Path("norm"), Path("mini")), "raw": (Path("raw"), Path("raw_mini"))}
    arguments = (folder, Path("footage"), latents, 2, 70, 4)
    with pytest.raises(KeyboardInterrupt):
        ablation.study(*arguments)
    stored = json.loads((folder / "results.json").read_text())
    assert set(stored) == {"budget", "floor", "baseline-0", "no_self_conditioning-0"}
    with pytest.raises(ConfigError, match="runs of 70 steps and 4 samples of each label, and now 80 steps"):
        ablation.study(*arguments[:4], 80, 4)
    results = ablation.study(*arguments)
    assert len(ran) == 1 + 2 * len(ablation.VARIANTS)  # one of them twice: the one that was stopped
    assert len(results) == 2 + 2 * len(ablation.VARIANTS)
    assert all(steps == 70 for _, _, steps, _ in ran)
    assert ("raw_latents-1", 1, 70, "raw") in ran and ("baseline-1", 1, 70, "norm") in ran


def test_the_table_says_what_two_seeds_can_tell():
    results = {
        "budget": {"steps": 70.0, "samples_per_label": 4.0},
        "floor": run(1.0),
        **{f"baseline-{seed}": run(value) for seed, value in enumerate((10.0, 11.0))},
        **{f"no_zero_snr-{seed}": run(value) for seed, value in enumerate((20.0, 22.0))},
        **{f"no_qk_norm-{seed}": run(value) for seed, value in enumerate((30.0, 33.0))},
        **{f"lora_64-{seed}": run(value) for seed, value in enumerate((15.0, 16.5))},
        "lora_16-0": run(9.0),
    }
    # Every pair is 1 : 1.1. With one run, a mean is less certain: 9.0 is 14 % below the baseline, two errors are 17 %.
    assert ablation.seed_spread(results) == pytest.approx(np.log(1.1) / np.sqrt(2))
    lines = [line for line in ablation.table(results).splitlines() if line.startswith("|")]
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert rows["baseline"][:4] == ["10.5 ± 0.5", "", "", ""]
    assert rows["without zero terminal SNR"][:4] == ["21.0 ± 1.0", "+10.5", "+30.3", "same"]
    assert rows["without zero terminal SNR"][4].startswith("(")  # a loss of another thing
    assert rows["without QK-norm"][3] == "none published"
    assert rows["LoRA rank 64 in place of 2"][3] == "opposite"
    assert rows["LoRA rank 16 in place of 2"][3] == "undecided"
    assert rows["real held-out clips"][0] == "1.0"
    assert len({len(row) for row in rows.values()}) == 1
    once = {name: value for name, value in results.items() if not name.endswith("-1")}
    assert "| one seed |" in ablation.table(once) and "70 steps of 16 clips" in ablation.table(once)
