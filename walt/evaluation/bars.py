"""The figures that the small Atari model is held to, as data: the report draws them and a test run can fail on them."""

from __future__ import annotations

from dataclasses import dataclass

from walt.evaluation.result import EvaluationResult

HELDOUT_PSNR = 27.0
MOVING_GAIN = 2.0
PROMPT_ACCURACY = 0.80
PROMPT_ACCURACY_SHUFFLED = 0.25
MOTION_SHARE = 6 / 8
DIVERSITY = 0.25


@dataclass(frozen=True)
class Bar:
    """One figure beside what it must reach. `passed` is `None` where the figure is not defined."""

    metric: str
    title: str
    value: float | None
    shown: str
    required: str
    passed: bool | None
    note: str = ""


def atari_mini_bars(result: EvaluationResult) -> tuple[Bar, ...]:
    """The bars of the parts that `result` has, in reading order."""
    bars: list[Bar] = []
    if result.reconstruction is not None:
        bars += _reconstruction_bars(result)
    if result.prompts is not None:
        prompts = result.prompts
        bars.append(
            _bar(
                "prompt_accuracy",
                "Prompt accuracy",
                prompts.prompt_accuracy,
                at_least=PROMPT_ACCURACY,
                form=".0%",
                note=f"the classifier names {prompts.classifier_real_accuracy:.1%} of {prompts.classifier_clips_unseen} unseen real clips",
            )
        )
        bars.append(
            _bar(
                "prompt_accuracy_shuffled",
                "… with shuffled prompts",
                prompts.prompt_accuracy_shuffled,
                at_most=PROMPT_ACCURACY_SHUFFLED,
                form=".0%",
                note=f"chance {prompts.prompt_accuracy_chance:.1%} if prompts were ignored, 0 if all were followed",
            )
        )
    if result.motion is not None:
        motion = result.motion
        bars.append(
            Bar(
                metric="motion_ratio",
                title="Motion like real footage",
                value=motion.within / motion.labels,
                shown=f"{motion.within} of {motion.labels}",
                required=f"0.5–2 for ≥ {_ceil(MOTION_SHARE * motion.labels)} of {motion.labels}",
                passed=motion.within >= _ceil(MOTION_SHARE * motion.labels),
                note=""
                if motion.motion_ratio is None
                else f"overall {motion.motion_ratio:.2f} of the real frame difference",
            )
        )
    if result.diversity is not None:
        bars.append(
            _bar(
                "diversity_ratio",
                "Diversity within a prompt",
                result.diversity.diversity_ratio,
                at_least=DIVERSITY,
                form=".0%",
                unit=" of real",
            )
        )
    return tuple(bars)


def _reconstruction_bars(result: EvaluationResult) -> list[Bar]:
    figures = result.reconstruction
    assert figures is not None
    bars = [
        _bar(
            "heldout_psnr",
            "Reconstruction, held-out clips",
            figures.heldout_psnr,
            at_least=HELDOUT_PSNR,
            form=".1f",
            unit=" dB",
        )
    ]
    if figures.psnr_moving is not None and figures.psnr_first_frame_repeated is not None:
        mean_frame = "" if figures.psnr_mean_frame is None else f"mean frame {figures.psnr_mean_frame:.1f} dB, "
        bars.append(
            _bar(
                "psnr_moving_gain",
                "Moving pixels, above both baselines",
                figures.psnr_moving_gain if figures.psnr_mean_frame is not None else None,
                at_least=MOVING_GAIN,
                form="+.1f",
                unit=" dB",
                note=f"{figures.psnr_moving:.1f} dB against {mean_frame}first frame repeated {figures.psnr_first_frame_repeated:.1f} dB",
            )
        )
    return bars


def _bar(
    metric: str,
    title: str,
    value: float | None,
    *,
    form: str,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "",
    note: str = "",
) -> Bar:
    limit = at_least if at_least is not None else at_most
    assert limit is not None
    passed = None if value is None else (value >= limit if at_least is not None else value <= limit)
    sign = "≥" if at_least is not None else "≤"
    shown = "not defined" if value is None else f"{value:{form}}{unit}"
    return Bar(metric, title, value, shown, f"{sign} {limit:{form}}{unit}", passed, note)


def _ceil(share: float) -> int:
    return int(-(-share // 1))
