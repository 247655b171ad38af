"""Settings of diffusion training and of sampling."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.config import ConfigError
from walt.diffusion import parameterisation, process

LossWeight = Literal["uniform", "snr", "p2", "edm"]
TimeDistribution = Literal["uniform", "logit_normal", "log_normal"]
Solver = Literal["ddim", "ddpm", "dpmpp_2m", "heun", "flow_euler", "flow_heun"]
Spacing = Literal["trailing", "linspace", "leading", "karras"]
CanvasPattern = Literal["first", "last", "ends", "frames", "gap", "box"]


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """How the denoiser is trained; part of the model, since sampling must use the same process and prediction.

    Attributes:
      schedule: `linear` (beta 1e-4 to 0.02), `cosine` or `sigmoid`, variance-preserving; `flow` (flow matching); `edm`.
      zero_terminal_snr: rescale so that t = 1 is pure noise (W.A.L.T: FVD 60.7 with, 91.0 without). Of the
        variance-preserving schedules; flow matching has it anyway, and EDM never.
      flow_shift: of `flow`: above 1, more times at high noise.
      flow_shift_positions: latent positions (frames x height x width) of a video for which `flow_shift` is meant; others
        get it times the root of their number over this one (Esser et al. 2024). None: one shift for all.
      prediction: what the network outputs: `v`, `noise`, `x0`, `flow` or `edm`.
      times: how training draws t. `uniform`; `logit_normal` (Esser et al. 2024): the logistic of a normal;
        `log_normal` (EDM): ln(sigma / alpha) is normal.
      times_mean, times_std: of the normal.
      loss_weight: `uniform` is the squared error of the prediction at every time alike (W.A.L.T). The others are squared
        errors of x0 times a weight made of SNR = alpha²/sigma²: `snr` the SNR within `snr_bounds`; `p2`
        SNR / (k + SNR)^gamma (Choi et al. 2022); `edm` 1 + SNR, which for `v` and `edm` is `uniform`.
      snr_bounds: (0, 5) is min-SNR (Hang et al. 2023); (1, 1e9), above every ratio of these schedules, is truncated SNR
        (Salimans & Ho 2022).
      p2: (k, gamma).
      self_conditioning_rate: probability, per batch row, that the network sees its own first estimate of x0. 0 costs
        nothing; any other value costs one extra forward pass of the whole batch per step.
      text_dropout: probability, per caption, of training with the learned null text, which guidance needs (0.1 is our
        choice).
      class_dropout: the same of class labels, per label.
      scalar_dropout: the same of each number the model is told.
      known_rate: probability, per video, of training with a part of it known; of a model with a canvas.
      known_patterns: what that part is, each as often: its `first` latent frames; the `last`; both `ends`; any `frames`; all but a `gap`; or what
        lies inside, or outside, of a `box` in space over all frames or some of them.
      known_frames: how many frames the first, and the last, are, each as often: 1 is image to video, 2 is prediction.
      unequal_rate: probability, per video, of a time of its own for every latent frame, in place of one for all.
      low_resolution_dropout: probability, per video and still, of training without low resolution: zeros, at time 1.
      low_resolution_max_time: noise on low-resolution latents is drawn at times up to this one.
      class_names: what the classes are called, in the order of their labels; filled in from the data when training starts.
      caption_length: tokens per caption, padded or cut, in training and in sampling.
    """

    schedule: process.ScheduleName = "linear"
    zero_terminal_snr: bool = True
    flow_shift: float = 1.0
    flow_shift_positions: int | None = None
    prediction: parameterisation.Prediction = "v"
    times: TimeDistribution = "uniform"
    times_mean: float = 0.0
    times_std: float = 1.0
    loss_weight: LossWeight = "uniform"
    snr_bounds: tuple[float, float] = (1.0, 5.0)
    p2: tuple[float, float] = (1.0, 1.0)
    self_conditioning_rate: float = 0.9
    text_dropout: float = 0.1
    class_dropout: float = 0.1
    scalar_dropout: float = 0.1
    known_rate: float = 0.25
    known_patterns: tuple[CanvasPattern, ...] = ("first",)
    known_frames: tuple[int, ...] = (1, 2)
    unequal_rate: float = 0.0
    low_resolution_dropout: float = 0.0
    low_resolution_max_time: float = 0.3
    class_names: tuple[str, ...] = ()
    caption_length: int = 24

    def __post_init__(self):
        for name in ("flow_shift", "times_std", "flow_shift_positions"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must be positive")
        schedule = self.make_schedule((1, 1, 1))
        parameterisation.check_pair(self.prediction, schedule)
        _check_choice("times", self.times, TimeDistribution)
        if self.flow_shift != 1 and self.schedule != "flow":
            raise ConfigError(
                f"flow_shift: {self.flow_shift} is of the schedule 'flow' alone, and the schedule is {self.schedule!r}"
            )
        if self.times != "uniform" and schedule.discrete and schedule.has_zero_terminal_snr:
            raise ConfigError(
                f"times: {self.times!r} never draws t = 1, where this schedule is pure noise and sampling starts; use 'uniform', "
                "zero_terminal_snr=False, or the schedule 'flow'"
            )
        self._check_loss_weight(schedule)
        rates = (
            "self_conditioning_rate",
            "text_dropout",
            "class_dropout",
            "scalar_dropout",
            "known_rate",
            "unequal_rate",
            "low_resolution_dropout",
        )
        for name in (*rates, "low_resolution_max_time"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not a probability, expected 0 to 1")
        if not self.known_frames or min(self.known_frames) < 1:
            raise ConfigError(
                f"known_frames: {self.known_frames} must be numbers of frames, at least one, each at least 1"
            )
        if not self.known_patterns:
            raise ConfigError(
                f"known_patterns is empty, expected any of {', '.join(get_args(CanvasPattern))}; set known_rate=0 for none"
            )
        for pattern in self.known_patterns:
            _check_choice("known_patterns", pattern, CanvasPattern)
        if self.caption_length < 1:
            raise ConfigError(f"caption_length: {self.caption_length} is too short, expected at least 1 token")

    def _check_loss_weight(self, schedule: process.Schedule) -> None:
        _check_choice("loss_weight", self.loss_weight, LossWeight)
        low, high = self.snr_bounds
        if not 0 <= low <= high or high == 0 or math.isinf(high):
            raise ConfigError(
                f"snr_bounds: {self.snr_bounds} are no bounds, expected 0 <= low <= high, and high above 0 and finite"
            )
        if min(self.p2) < 0:
            raise ConfigError(f"p2: {self.p2} must not be negative")
        if schedule.has_zero_terminal_snr and self.loss_weight == "snr" and low == 0:
            raise ConfigError(
                "snr_bounds: where t = 1 is pure noise, a lower bound of 0 gives no weight to it, and sampling starts there; "
                "use a positive one, such as 1"
            )
        if schedule.has_zero_terminal_snr and self.loss_weight == "p2":
            raise ConfigError(
                "loss_weight: 'p2' gives no weight to t = 1 where that is pure noise, and sampling starts there; use "
                "zero_terminal_snr=False with it, or 'snr' with a positive lower bound"
            )

    def make_schedule(self, latent_shape: tuple[int, ...]) -> process.Schedule:
        """The schedule for videos of (frames, height, width, ...) latent positions."""
        if self.schedule == "edm":
            return process.EDM()
        if self.schedule == "flow":
            shift = self.flow_shift
            if self.flow_shift_positions is not None:
                shift *= math.sqrt(math.prod(latent_shape[:3]) / self.flow_shift_positions)
            return process.FlowMatching(shift)
        return process.make_tables(self.schedule, self.zero_terminal_snr)

    def draw_times(
        self, schedule: process.Schedule, key: jax.Array, frames: int, is_image: Array
    ) -> Float[Array, " f"]:
        """Training times of one batch row in (0, 1]: one draw for a video, one per frame for a stack of images, and for some videos."""
        if self.unequal_rate > 0:
            is_image = is_image | jax.random.bernoulli(jax.random.fold_in(key, 1), self.unequal_rate)
        if self.times == "uniform" and schedule.discrete:
            index = jax.random.randint(key, (frames,), 1, process.NUM_TIMESTEPS + 1)
            return jnp.where(is_image, index, index[0]) / process.NUM_TIMESTEPS
        if self.times == "uniform":
            t = 1 - jax.random.uniform(key, (frames,))
        else:
            normal = self.times_mean + self.times_std * jax.random.normal(key, (frames,))
            t = jax.nn.sigmoid(normal) if self.times == "logit_normal" else schedule.time_of(jnp.exp(normal))
        if schedule.discrete:
            t = jnp.ceil(t * process.NUM_TIMESTEPS) / process.NUM_TIMESTEPS
        return jnp.clip(jnp.where(is_image, t, t[0]), schedule.first, 1.0)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How latents are drawn from a trained denoiser.

    Attributes:
      steps: steps from noise to data, 1 to 1000; each is one network evaluation (two rows at once with guidance), two with
        `heun` and `flow_heun` except for the last step.
      solver: `ddim` (Song et al. 2021, with `eta`), `ddpm` (Ho et al. 2020: ddim with eta = 1), `dpmpp_2m`
        (DPM-Solver++ 2M, Lu et al. 2022), `heun` (EDM's, with `churn`), `flow_euler` and `flow_heun` (along
        x / (alpha + sigma), the coordinates of flow matching; they take any schedule).
      spacing: `trailing` (t = 1 first, then equal strides down to 0), `linspace` (t = 1 to the smallest trained t in
        equal strides, then 0), `leading` (equal strides that end at the smallest trained t and begin below 1) or `karras`
        (even in (sigma / alpha)^(1/7)).
      eta: of `ddim`: 0 is deterministic, 1 adds as much noise as ancestral sampling.
      churn: of `heun` on the edm schedule: S_churn of Karras et al. 2022; 0 is deterministic.
      churn_range: their (S_tmin, S_tmax), between which noise is added.
      churn_noise: their S_noise.
      visits: how often each step is taken, with fresh noise to go back by in between (RePaint, Lugmayr et al. 2022): more of them make what is generated
        agree better with what is known, for a model that was not trained with a canvas.
      reuse: 0 computes every pass in full. Above, what all units of the transformer but the first have added is added again in the next step, as long as what
        the first one adds has changed by no more than this since, relative to its size: 0.1 is cautious, 0.3 bold. A video's own error decides for it.
      guidance: classifier-free guidance scale; 1 is none, 0 ignores the prompt.
      known_guidance: the same for known latents, beside that for the prompt; 1 costs nothing, another value a third branch.
      low_resolution_time: time to which the low resolution that a super-resolution model is given is noised, which hides that
        it was generated; 0 for none, at most the `DiffusionConfig.low_resolution_max_time` of its training.
      guidance_schedule: `constant`, or `power_cosine`: 1 at t = 1 rising to `guidance` at t = 0.
      guidance_power: exponent s of the power cosine.
      guidance_interval: (low, high): outside these times guidance is 1 (Kynkäänniemi et al. 2024).
      guidance_rescale: 0 to 1: how far the spread of the guided prediction is brought back to that of the conditional one
        (Lin et al. 2023, equations 15 and 16).
    """

    steps: int = 50
    solver: Solver = "ddim"
    spacing: Spacing = "trailing"
    eta: float = 0.0
    churn: float = 0.0
    churn_range: tuple[float, float] = (0.0, 1e9)
    churn_noise: float = 1.0
    visits: int = 1
    reuse: float = 0.0
    guidance: float = 1.0
    known_guidance: float = 1.0
    low_resolution_time: float = 0.1
    guidance_schedule: Literal["constant", "power_cosine"] = "constant"
    guidance_power: float = 4.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0

    def __post_init__(self):
        if not 1 <= self.steps <= process.NUM_TIMESTEPS:
            raise ConfigError(f"steps: {self.steps} is out of range, expected 1 to {process.NUM_TIMESTEPS}")
        if not 1 <= self.visits <= 100:
            raise ConfigError(f"visits: {self.visits} is out of range, expected 1 to 100")
        _check_choice("solver", self.solver, Solver)
        _check_choice("spacing", self.spacing, Spacing)
        for name in ("eta", "reuse", "guidance_rescale", "low_resolution_time"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is out of range, expected 0 to 1")
        if self.eta and self.solver != "ddim":
            raise ConfigError(f"eta: {self.eta} is of the solver 'ddim' alone, and the solver is {self.solver!r}")
        if self.churn and self.solver != "heun":
            raise ConfigError(f"churn: {self.churn} is of the solver 'heun' alone, and the solver is {self.solver!r}")
        for name in ("churn", "churn_noise", "guidance", "known_guidance"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ConfigError(f"{name}: {getattr(self, name)} is out of range, expected a finite number, 0 or more")
        least, most = self.churn_range
        if not 0 <= least < most:
            raise ConfigError(f"churn_range: {self.churn_range} is not low < high from 0 on")
        if self.guidance_schedule not in ("constant", "power_cosine"):
            raise ConfigError(
                f"guidance_schedule: unknown {self.guidance_schedule!r}, expected 'constant' or 'power_cosine'"
            )
        if self.guidance_power <= 0:
            raise ConfigError(f"guidance_power: {self.guidance_power} must be positive")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ConfigError(f"guidance_interval: {self.guidance_interval} is not low < high within 0 to 1")

    @property
    def turns(self) -> int:
        """Steps that are taken, those that are taken again included."""
        return self.steps * self.visits

    def check_low_resolution(self, diffusion: DiffusionConfig) -> None:
        """Refuses, for a super-resolution model, noise on the low resolution that it has never seen.

        Raises:
          ConfigError: naming the setting and what would do.
        """
        if self.low_resolution_time > diffusion.low_resolution_max_time:
            raise ConfigError(
                f"low_resolution_time: {self.low_resolution_time} is more noise than diffusion.low_resolution_max_time, "
                f"{diffusion.low_resolution_max_time}, up to which the model is trained"
            )

    def check_schedule(self, schedule: process.Schedule) -> None:
        """Refuses a schedule along which these steps cannot be taken.

        Raises:
          ConfigError: naming the setting and what would do.
        """
        if schedule.has_zero_terminal_snr and self.solver == "heun":
            raise ConfigError(
                "solver: 'heun' divides by alpha, which is 0 at t = 1 of this schedule; use 'flow_heun', or zero_terminal_snr=False"
            )
        if schedule.has_zero_terminal_snr and self.spacing == "karras":
            raise ConfigError(
                "spacing: 'karras' needs a finite sigma / alpha at t = 1, which this schedule has not; use 'trailing'"
            )
        if self.churn and not isinstance(schedule, process.EDM):
            raise ConfigError("churn: only the edm schedule has times of any amount of noise; set it to 0")


def _check_choice(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ConfigError(
            f"{name}: unknown {name.replace('_', ' ')} {value!r}, expected one of {', '.join(get_args(allowed))}"
        )
