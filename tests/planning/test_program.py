"""Reading compiled programs: loops, fusions, collectives and their groups, on texts written by hand and on programs compiled here."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.planning.plan import exposed, kernel_cycles
from walt.planning.program import Collective, Kernel, Transfer, axes_of, group, parse_program, traffic
from walt.planning.topology import GENERATIONS, parse_topology

TEXT = """HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0: f32[8]) -> f32[8] {
  %param_0 = f32[8]{0} parameter(0)
  ROOT %exp.1 = f32[8]{0} exponential(%param_0), CYCLES999
}

%all-reduce-scatter.1 (input: f32[8]) -> f32[2] {
  %input = f32[8]{0} parameter(0)
  %all-reduce.9 = f32[8]{0} all-reduce(%input), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %slice.9 = f32[2]{0} dynamic-slice(%all-reduce.9)
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(step)/while/body/attention/exp"}, CYCLES100
  %all-gather.1 = bf16[64,32]{1,0} all-gather(%fusion.1), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %t = (s32[], f32[8]{0}) tuple(%x, %fusion.1)
}

%condition.1 (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %bound = s32[]{:T(128)} constant(26)
  %i = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main.1 (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %copy.1 = f32[8]{0} copy(%a), CYCLES7
  %while.1 = (s32[], f32[8]{0}) while(%copy.1), condition=%condition.1, body=%body.1
  %all-reduce-start.1 = (f32[4]{0}, f32[6]{0}) all-reduce-start(%a), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %all-reduce-done.1 = f32[10]{0} all-reduce-done(%all-reduce-start.1)
  %scattered.1 = f32[2]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %dot.1 = f32[8]{0} fusion(%a), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(transpose(jvp(mlp))/dot_general"}, CYCLES50
  ROOT %r = f32[8]{0} get-tuple-element(%while.1), index=1
}
"""
TEXT = re.sub(r"CYCLES(\d+)", r'backend_config={"window_config":{"estimated_cycles":"\1"}}', TEXT)
KINDS = {"attention": "attention", "mlp": "MLP"}


def test_cycles_count_loops_as_often_as_they_run_and_fusions_once():
    program = parse_program(TEXT)
    assert program.entry == "main.1" and program.runs() == {"main.1": 1, "body.1": 26, "condition.1": 26}
    assert program.cycles(KINDS) == {"attention": 2600, "MLP": 50, "data movement": 7}
    assert program.kernels() == []


def test_collectives_have_their_axes_and_bytes():
    mesh = {"data": 4, "fsdp": 2}
    assert parse_program(TEXT).collectives(mesh) == [
        Collective("all-gather", "data", 26 * 64 * 32 * 2 * 3 / 4, 26),
        Collective("all-reduce", "data+fsdp", 2 * 40 * 7 / 8, 1),
        Collective("reduce-scatter", "data", 32 * 3 / 4, 1),
    ]


def test_kernels_say_what_they_cost_or_have_no_cost():
    call = (
        '%k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/attention/k"}'
    )
    cost = ', backend_config={"custom_call_config":{"cost_estimate":{"bytes_accessed":"9","flops":"70","transcendentals":"1"}}}'
    text = TEXT.replace("  ROOT %t = (", f"  {call}{cost}\n  ROOT %t = (").replace(
        "  ROOT %r = ", f"  {call}\n  ROOT %r = "
    )
    inside, outside = parse_program(text).kernels()[::-1]
    assert inside == Kernel("jit(f)/attention/k", 26, 70, 9) and outside == Kernel("jit(f)/attention/k", 1, None, None)
    generation = GENERATIONS["v5p"]
    assert kernel_cycles(outside, generation) is None
    # By its products, at the efficiency that is assumed, and by its bytes.
    assert kernel_cycles(replace(inside, bytes=0.0), generation) == pytest.approx(26 * 70 / (0.18 * 459e12) * 1.75e9)
    assert kernel_cycles(replace(inside, bytes=9e9), generation) == pytest.approx(26 * 9e9 / 2765e9 * 1.75e9)


def test_loops_that_count_in_twos_run_half_as_often():
    """As products do that are computed while their operands go around a ring, in both directions."""
    counted = TEXT.replace("s32[]{:T(128)} constant(26)", "u32[]{:T(128)} constant(26)").replace(
        "  ROOT %t = (s32[], f32[8]{0}) tuple(%x, %fusion.1)",
        '  %two = u32[] constant(2)\n  %i.2 = u32[] add(%x, %two), metadata={op_name="%not"}\n  ROOT %t = (u32[], f32[8]{0}) tuple(%i.2, %fusion.1)',
    )
    assert parse_program(counted).runs()["body.1"] == 13
    assert parse_program(counted.replace("constant(26)", "constant(25)")).runs()["body.1"] == 13


def test_of_branches_the_dearest_runs_with_the_loops_in_it():
    """26 runs of 100 cycles are dearer than one of 999."""
    branches = """%plain (p: f32[8]) -> f32[8] {
  ROOT %copy.2 = f32[8]{0} copy(%p), backend_config={"estimated_cycles":"999"}
}

%looped (p: f32[8]) -> f32[8] {
  ROOT %while.2 = (s32[], f32[8]{0}) while(%p), condition=%condition.1, body=%body.1
}

ENTRY"""
    call = "  %either = f32[8]{0} conditional(%i, %a, %a), branch_computations={%plain, %looped}"
    text = TEXT.replace("ENTRY", branches).replace("  ROOT %r = ", f"{call}\n  ROOT %r = ")
    assert parse_program(text).cycles(KINDS) == {"attention": 2 * 2600, "MLP": 50, "data movement": 7}
    cheaper = parse_program(text.replace("constant(26)", "constant(9)"))
    assert cheaper.cycles(KINDS) == {"attention": 900, "MLP": 50, "data movement": 7 + 999}


def test_loops_within_loops_run_as_often_as_both_say():
    """Programs of this compiler, which unlike TPUs' estimates no cycles: how often a scan, and a scan in a scan, runs."""

    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=5)[0], None

    def run(x, stack):
        x = jax.lax.scan(inner, x, stack)[0]
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, stack)[0]

    text = jax.jit(run).lower(jnp.ones((8, 8)), jnp.ones((7, 8, 8))).compile().as_text()
    program = parse_program(text)
    runs = program.runs()
    products = [
        runs[name] for name in runs for line in program.computations[name] if line.op_name.endswith("dot_general")
    ]
    assert set(products) == {35.0, 7.0}


def test_the_compilers_own_softmax_costs_what_its_shapes_say():
    """Two of 4 heads: 128 queries, 256 keys, head width 32."""
    call = (
        '  %online-softmax.1 = f32[2,4,128,32]{3,2,1,0:T(8,128)S(1)} custom-call(%a, %b), custom_call_target="tpu_custom_call", '
        'operand_layout_constraints={bf16[2,4,128,256]{3,2,1,0}, f32[2,4,256,32]{3,2,1,0}}, metadata={op_name="online-softmax"}'
    )
    (kernel,) = parse_program(TEXT.replace("  ROOT %r = ", f"{call}\n  ROOT %r = ")).kernels()
    moved = 8 * (2 * 128 * 256 + 4 * 256 * 32 + 4 * 128 * 32)
    assert kernel == Kernel("online-softmax", 1, 2 * 8 * 128 * 256 * 32, moved)


def test_a_loop_of_unknown_length_is_said_so():
    with pytest.raises(ValueError, match=r"cannot tell how often the loop while.1 runs"):
        parse_program(TEXT.replace("constant(26)", "parameter(3)")).runs()
    known = TEXT.replace("body=%body.1", 'body=%body.1, backend_config={"known_trip_count":{"n":"5"}}')
    assert parse_program(known).runs()["body.1"] == 5


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [0, 2]),
        ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}, x", [0, 1, 2, 3]),
        ("source_target_pairs={{0,1},{1,0}}", [0, 1]),
    ],
)
def test_the_first_group_of_every_notation(text, members):
    assert group(text, 8) == members


def test_axes_are_those_along_which_a_group_differs():
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    assert axes_of([0, 1], mesh) == "tensor"
    assert axes_of([0, 2, 4, 6], mesh) == "data+fsdp"
    assert axes_of([3], mesh) == "none"


@pytest.mark.parametrize(
    ("kind", "expected"), [("all-gather", 75), ("all-reduce", 150), ("reduce-scatter", 300), ("all-to-all", 75)]
)
def test_traffic_of_a_ring_of_four(kind, expected):
    assert traffic(kind, 100.0, 4) == expected


CHAIN = """HloModule jit_step, is_scheduled=true

%begin.1 (p.0: bf16[8]) -> (bf16[8], bf16[64]) {
  %p.0 = bf16[8]{0} parameter(0)
  %all-gather.1 = bf16[64]{0} all-gather(%p.0), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %custom-call.1 = (bf16[8]{0}, bf16[64]{0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.1: bf16[8]) -> (bf16[8], bf16[64]) {
  %p.1 = bf16[8]{0} parameter(0)
  %all-gather.2 = bf16[64]{0} all-gather(%p.1), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %custom-call.2 = (bf16[8]{0}, bf16[64]{0}) custom-call(%all-gather.2), custom_call_target="AsyncCollective"
}

%end.1 (p.2: bf16[8]) -> bf16[64] {
  %p.2 = bf16[8]{0} parameter(0)
  %all-gather.3 = bf16[64]{0} all-gather(%p.2), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %custom-call.3 = bf16[64]{0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main.1 (a: bf16[8]) -> bf16[64] {
  %a = bf16[8]{0} parameter(0)
  %early = bf16[8]{0} copy(%a), CYCLES1000
  %start.1 = (bf16[8]{0}, bf16[64]{0}) fusion(%a), kind=kCustom, calls=%begin.1
  %between = bf16[8]{0} copy(%a), CYCLES1000
  %carrier = (bf16[8]{0}, bf16[64]{0}) fusion(%start.1), kind=kOutput, calls=%async_collective_fusion.1, CYCLES30
  %done.1 = bf16[64]{0} fusion(%carrier), kind=kCustom, calls=%end.1
  %permute-start.1 = (bf16[8]{0}, bf16[8]{0}) collective-permute-start(%a), channel_id=8, source_target_pairs={{0,1},{1,0}}
  %all-reduce-start.1 = bf16[8]{0} all-reduce-start(%a), channel_id=9, replica_groups=[1,8]<=[8], to_apply=%add
  %beside = bf16[8]{0} copy(%a), CYCLES200
  %permute-done.1 = bf16[8]{0} collective-permute-done((bf16[8]{0}, bf16[8]{0}) %permute-start.1)
  %all-reduce-done.1 = bf16[8]{0} all-reduce-done(%all-reduce-start.1)
  ROOT %alone = bf16[64]{0} all-gather(%a), channel_id=10, replica_groups=[1,8]<=[8], dimensions={0}
}
"""
CHAIN = re.sub(r"CYCLES(\d+)", r'backend_config={"estimated_cycles":"\1"}', CHAIN)


def test_a_collective_spread_over_fusions_is_one_and_is_hidden_by_what_carries_it():
    """What merely stands between the start and the end of a spread one need not carry it on. A cycle hides one collective, the first."""
    transfers = parse_program(CHAIN).transfers({"fsdp": 8})
    assert [(each.kind, each.bytes, each.hidden_cycles) for each in transfers] == [
        ("all-gather", 64 * 2 * 7 / 8, 30),
        ("collective-permute", 16, 200),
        ("all-reduce", 2 * 16 * 7 / 8, 0),
        ("all-gather", 64 * 2 * 7 / 8, 0),
    ]
    assert [each.count for each in parse_program(CHAIN).collectives({"fsdp": 8})] == [2, 1, 1]


ON_SPARSE_CORES = """HloModule example

%gather.1 (p.0: bf16[8]) -> bf16[64] {
  %p.0 = bf16[8]{0} parameter(0)
  ROOT %all-gather.1 = bf16[64]{0} all-gather(%p.0), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}, execution_thread="sparsecore"

%async.1 (p.1: bf16[8]) -> bf16[64] {
  %p.1 = bf16[8]{0} parameter(0)
  ROOT %call.1 = bf16[64]{0} custom-call(%p.1), custom_call_target="any", called_computations={%gather.1}
}, execution_thread="sparsecore"

ENTRY %main.1 (a: bf16[8]) -> bf16[64] {
  %a = bf16[8]{0} parameter(0)
  %gather-start = ((), (), (s32[64]{0})) async-start(), async_execution_thread="sparsecore", calls=%async.1
  %early = bf16[8]{0} copy(%a), CYCLES1000
  %gather-update = ((bf16[8]{0}), bf16[64]{0}, (s32[64]{0})) async-update(%gather-start, %a)
  %beside = bf16[8]{0} copy(%a), CYCLES300
  %gather-done = bf16[64]{0} async-done(%gather-update)
  ROOT %late = bf16[64]{0} copy(%gather-done), CYCLES1000
}
"""
ON_SPARSE_CORES = re.sub(r"CYCLES(\d+)", r'backend_config={"estimated_cycles":"\1"}', ON_SPARSE_CORES)


def test_a_collective_on_sparse_cores_goes_on_from_its_update_which_has_the_operands():
    (transfer,) = parse_program(ON_SPARSE_CORES).transfers({"fsdp": 8})
    assert (transfer.kind, transfer.axis, transfer.bytes) == ("all-gather", "fsdp", 64 * 2 * 7 / 8)
    assert (transfer.runs, transfer.hidden_cycles) == (1, 300)


def test_time_that_is_hidden_adds_nothing_to_a_step():
    pod = parse_topology("v5e:2x4")  # 200 GB/s and 1.5e9 cycles a second
    transfer = Transfer("all-gather", "fsdp", 200e3, 10, 0)
    assert exposed(transfer, pod) == pytest.approx(10 * 1e-6)
    assert exposed(replace(transfer, hidden_cycles=500), pod) == pytest.approx(10 * (1e-6 - 500 / 1.5e9))
    assert exposed(replace(transfer, hidden_cycles=5000), pod) == 0


def test_a_compiled_program_of_known_collectives():
    """A scan of 3 products with weights that lie on all devices: each is gathered in each of its runs."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    weights = NamedSharding(mesh, PartitionSpec(None, "fsdp"))

    def run(x, w):
        def layer(x, w):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(layer, x, w)[0]

    x = jax.ShapeDtypeStruct((16, 64), np.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((3, 64, 64), np.float32, sharding=weights)
    text = jax.jit(run, out_shardings=rows).lower(x, w).compile().as_text()
    (gathers,) = parse_program(text).collectives(dict(mesh.shape))
    assert (gathers.kind, gathers.axis, gathers.count) == ("all-gather", "fsdp", 3)
    assert gathers.bytes == 3 * 64 * 64 * 4 * 3 / 4
