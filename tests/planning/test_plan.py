"""Plans made of programs written by hand, in place of compiled ones."""

import json
from types import SimpleNamespace

import jax
import pytest

from walt.planning.plan import Work, describe, make_plan, verdict
from walt.planning.topology import parse_topology

POD = parse_topology("v5e:2x4")  # 197e12 FLOPs, 1.5e9 cycles and 200e9 bytes a second
MESH = {"slice": 1, "data": 1, "fsdp": 8, "context": 1, "tensor": 1}
WORK = Work("train", rows=16, row_tokens=100, row_flops=197e9, steps=3600)
TEXT = """HloModule jit_step, is_scheduled=true

ENTRY %main (a: bf16[8]) -> bf16[8] {
  %a = bf16[8]{0} parameter(0)
  %product = bf16[8]{0} fusion(%a), kind=kOutput, calls=%f, metadata={op_name="jit(step)/mlp/dot_general"}, backend_config={"estimated_cycles":"1500000"}
  KERNEL
  ROOT %whole = bf16[64000000]{0} all-gather(%a), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}
"""
KERNEL = '%k = bf16[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/own"}'


class Lowered:
    """A program that compiles to `text`, or fails with a message."""

    def __init__(self, text="", message="", readable=True):
        self.text, self.message, self.readable = text, message, readable

    def compile(self, compiler_options=None):
        if self.message:
            raise jax.errors.JaxRuntimeError(self.message)
        if compiler_options:
            with open(f"{compiler_options['xla_dump_to']}/module.after_codegen.txt", "w") as file:
                file.write(self.text)
        return self

    def as_text(self):
        if not self.readable:
            raise jax.errors.JaxRuntimeError("INTERNAL: async-update instruction should have 1 operands but sees 3")
        return self.text

    def memory_analysis(self):
        sizes = {"argument": 6e9, "output": 6e9, "alias": 5e9, "temp": 2e9, "generated_code": 1e9}
        return SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})

    def cost_analysis(self):
        return {"flops": 5.0}


def plan_of(lowered):
    return make_plan(lowered, WORK, topology=POD, mesh=MESH, kinds={"mlp": "MLP"})


@pytest.mark.parametrize("readable", [True, False])
def test_figures_of_a_program_that_is_known(readable):
    """A millisecond of products, and 0.56 of gathering 128 MB with nothing beside it; one JAX cannot read is written down by its compiler."""
    plan = plan_of(Lowered(TEXT.replace("KERNEL", ""), readable=readable))
    step = 1e-3 + 128e6 * 7 / 8 / 200e9
    assert plan.estimated_step_seconds == pytest.approx(step)
    assert plan.estimated_mfu == pytest.approx(16 * 197e9 / step / (8 * 197e12))
    assert (plan.peak_bytes, plan.headroom_bytes, plan.model_flops) == (10e9, 6e9, 16 * 197e9)
    assert plan.rows_per_second_per_chip == pytest.approx(2 / step)
    assert plan.tokens_per_second_per_chip == pytest.approx(200 / step)
    assert plan.schedule_seconds == pytest.approx(3600 * step)
    assert plan.schedule_chip_hours == pytest.approx(8 * step)
    assert plan.cycles_by_kind == {"MLP": 1.5e6} and plan.xla_flops == 5.0
    printed = "\n".join(describe(plan))
    assert "fits by 6.0 GB: 10.0 of 16 GB a device (6.0 GB arguments, 2.0 GB temporary)" in printed
    assert "3,600 steps: 0.0 days" in printed and "compiler estimate, not a measurement" in printed


def test_a_kernel_that_does_not_say_what_it_costs_leaves_no_estimate_of_time():
    plan = plan_of(Lowered(TEXT.replace("KERNEL", KERNEL)))
    assert plan.unmodelled == plan.kernels == ("jit(step)/own",) and plan.estimated_cycles == 1.5e6
    written = json.loads(plan.to_json())
    for name in ("estimated_step_seconds", "estimated_mfu", "tokens_per_second_per_chip", "schedule_chip_hours"):
        assert written[name] is None
    assert "no estimate of time: the program holds kernels without one: jit(step)/own" in "\n".join(describe(plan))


def test_what_does_not_fit_says_how_much_is_missing_and_other_errors_stay_errors():
    plan = plan_of(Lowered(message="RESOURCE_EXHAUSTED: Ran out of memory. Used 20.00G of 15.75G hbm. Exceeded"))
    assert (plan.fits, plan.peak_bytes, plan.temp_bytes) == (False, 20 * 2**30, None)
    assert verdict(plan).startswith("does NOT fit: 5.5 GB too much: 21.5 of 16 GB")
    assert json.loads(plan.to_json())["estimated_mfu"] is None
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plan_of(Lowered(message="INTERNAL: something else"))


def test_flags_of_the_compiler_are_written_down(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    monkeypatch.delenv("XLA_FLAGS")
    plan = plan_of(Lowered(TEXT.replace("KERNEL", "")))
    assert plan.compiler_options == {"LIBTPU_INIT_ARGS": "--xla_tpu_scoped_vmem_limit_kib=65536"}
    assert "LIBTPU_INIT_ARGS=--xla_tpu_scoped_vmem_limit_kib=65536" in describe(plan)[-1]
