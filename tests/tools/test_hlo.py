"""What is read from the text of compiled programs: of this CPU's eight devices, and as libtpu writes it."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from resnet_jax.parallel.sharding import batch_sharding, data_mesh, replicated
from resnet_jax.tools.hlo import Collective, collectives, kernels, memory_traffic


def compiled(function, *shapes, rows=False):
    """A function of the rows on each device, compiled for eight of them."""
    mesh = data_mesh(8)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=P("data"), out_specs=P("data") if rows else P(), check_vma=False
    )
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(mesh)) for shape in shapes]
    return jax.jit(mapped).lower(*arrays).compile()


def test_every_kind_is_counted_with_what_it_returns():
    def all_kinds(x):
        gathered = lax.all_gather(x, "data")  # (8, 64, 32)
        scattered = lax.psum_scatter(2 * gathered.sum(0), "data", tiled=True)  # (8, 32)
        moved = lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)])
        swapped = lax.all_to_all(x, "data", 0, 0, tiled=True)
        return lax.psum(jnp.tanh(moved) + jnp.tanh(swapped) + scattered.sum(), "data")

    image = 64 * 32 * 4
    assert collectives(compiled(all_kinds, (512, 32)).as_text()) == {
        "all-gather": Collective(1, 8 * image, 0),
        "reduce-scatter": Collective(1, image // 8, 0),
        "collective-permute": Collective(1, image, 0),
        "all-to-all": Collective(1, image, 0),
        "all-reduce": Collective(1, image, 0),
    }


def test_a_loop_counts_as_often_as_it_runs():
    def summed(x, inside):
        def add(total, rows):
            total = total + jnp.tanh(rows).T @ rows
            return (lax.psum(total, "data") if inside else total), None

        total, _ = lax.scan(add, jnp.zeros((32, 32)), x.reshape(4, -1, 32))
        return total if inside else lax.psum(total, "data")

    once, often = (compiled(partial(summed, inside=inside), (512, 32)).as_text() for inside in (False, True))
    assert collectives(once) == {"all-reduce": Collective(1, 32 * 32 * 4, 0)}
    assert collectives(often) == {"all-reduce": Collective(4, 4 * 32 * 32 * 4, 0)}


def test_devices_that_do_not_meet():
    assert collectives(compiled(jnp.tanh, (16, 4), rows=True).as_text()) == {}
    assert collectives("") == {}


def test_traffic_is_what_xla_counts_where_nothing_is_on_the_chip():
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 128), (128, 32)))
    program = jax.jit(jnp.matmul).lower(a, b).compile()
    assert memory_traffic(program.as_text()) == (64 * 128 + 128 * 32 + 64 * 32) * 4
    assert memory_traffic(program.as_text()) == program.cost_analysis()["bytes accessed"]


def test_traffic_of_a_loop_grows_with_its_length():
    def powers(x, length):
        return lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=length)[0]

    x = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=replicated(data_mesh(1)))
    ten, twenty, fifty = (
        memory_traffic(jax.jit(partial(powers, length=n)).lower(x).compile().as_text()) for n in (10, 20, 50)
    )
    assert fifty - twenty == 3 * (twenty - ten)
    assert twenty - ten > 10 * 3 * 128 * 128 * 4  # two operands read and a result written, ten times


# Lines of libtpu 0.0.42.1 for a v5e:2x4, with fewer attributes. S(1) is memory on the chip.
TPU = """
%fused_computation.4 (param_0.7: f32[1024,1024]) -> f32[8192,1024] {
  %param_0.7 = f32[1024,1024]{1,0:T(8,128)S(1)} parameter(0)
  %all-gather.6 = f32[8192,1024]{1,0:T(8,128)} all-gather(%param_0.7), channel_id=2, replica_groups=\
{{0,1,2,3,4,5,6,7}}, backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %custom-call.1 = (f32[1024,1024]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) custom-call(%all-gather.6), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.7 (param_0.10: f32[1024,1024]) -> f32[8192,1024] {
  %param_0.10 = f32[1024,1024]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %all-gather.8 = f32[8192,1024]{1,0:T(8,128)S(1)} all-gather(%param_0.10), channel_id=2, \
replica_groups={{0,1,2,3,4,5,6,7}}, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

%body (wide.param.6: (s32[], f32[64])) -> (s32[], f32[64]) {
  %wide.param.6 = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  %get-tuple-element.1 = f32[64]{0:T(128)} get-tuple-element(%wide.param.6), index=1
  %all-reduce.3 = (f32[64]{0:T(128)}, /*index=1*/f32[64]{0:T(128)S(1)}) all-reduce(%get-tuple-element.1, \
%get-tuple-element.1), channel_id=1, replica_groups=mesh['data'=8] {'data'}, to_apply=%region_2.3
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%wide.param.6, %all-reduce.3)
}

%condition (wide.param.7: (s32[], f32[64])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(4), metadata={op_name="jit(f)/shard_map" stack_frame_id=5}
  %wide.param.7 = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  %get-tuple-element.51 = s32[]{:T(128)} get-tuple-element(%wide.param.7), index=0
  ROOT %lt.4 = pred[]{:T(512)} compare(%get-tuple-element.51, %constant.3), direction=LT
}

ENTRY %main.5_spmd (param.4: f32[1024,1024], param.5: u8[128,224,224,3]) -> f32[64] {
  %param.4 = f32[1024,1024]{1,0:T(8,128)} parameter(0), sharding={replicated}, metadata={op_name="w"}
  %param.5 = u8[128,224,224,3]{0,2,3,1:T(32,128)(4,1)} parameter(1)
  %copy-start = (f32[1024,1024]{1,0:T(8,128)S(1)}, f32[1024,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%param.4)
  %copy-done = f32[1024,1024]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start.204 = ((u8[128,224,224,3]{0,2,3,1:T(32,128)(4,1)}), u8[128,56,224,3]{0,2,3,1:T(32,128)(4,1)S(1)}, \
s32[]{:S(2)}) slice-start(%param.5), slice={[0:128], [0:56], [0:224], [0:3]}
  %slice-done.204 = u8[128,56,224,3]{0,2,3,1:T(32,128)(4,1)S(1)} slice-done(%slice-start.204)
  %async-collective-start = (f32[1024,1024]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) fusion(%copy-done), kind=kCustom, \
calls=%fused_computation.4
  %fusion.7 = f32[8192,1024]{1,0:T(8,128)S(1)} fusion(%copy-done), kind=kOutput, calls=%async_collective_fusion.7
  %collective-permute-start = (bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}, \
u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%copy-done), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%collective-permute-start)
  %tuple.18 = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%param.4, %param.4)
  %while.11 = (s32[]{:T(128)}, f32[64]{0:T(128)}) while(%tuple.18), condition=%condition, body=%body
  ROOT %get-tuple-element.23 = f32[64]{0:T(128)} get-tuple-element(%while.11), index=1
}
"""


def test_text_for_tpus():
    assert collectives(TPU) == {
        "all-gather": Collective(1, 8192 * 1024 * 4, 1),  # begun, gone on with and ended in three fusions
        "collective-permute": Collective(1, 1024 * 1024 * 2, 1),
        "all-reduce": Collective(4, 4 * 2 * 64 * 4, 0),
    }


def test_traffic_on_tpus_leaves_out_the_memory_on_the_chip():
    copied, sliced = 1024 * 1024 * 4, 128 * 56 * 224 * 3  # read from HBM, and written to the chip
    reduced, compared = 3 * 64 * 4, 2 * 4 + 1  # two operands read, and of two results the one in HBM; counter and limit
    assert memory_traffic(TPU) == copied + sliced + 4 * (reduced + compared)


def test_other_ways_to_write_the_start_of_a_pair():
    text = """
%wrapped (param: f32[16]) -> f32[2] {
  %param = f32[16]{0} parameter(0)
  ROOT %reduce-scatter.1 = f32[2]{0} reduce-scatter(%param), channel_id=1, dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[16]) -> f32[2] {
  %x = f32[16]{0} parameter(0)
  %all-reduce-start = f32[16]{0} all-reduce-start(%x), channel_id=2, to_apply=%add
  %all-reduce-done = f32[16]{0} all-reduce-done(%all-reduce-start)
  %all-gather-start = (f32[16]{0}, f32[128]{0}) all-gather-start(%all-reduce-done), channel_id=3, dimensions={0}
  %all-gather-done = f32[128]{0} all-gather-done(%all-gather-start)
  %async-start = ((f32[16]{0}), f32[2]{0}, u32[]) async-start(%all-reduce-done), calls=%wrapped
  ROOT %async-done = f32[2]{0} async-done(%async-start)
}
"""
    assert collectives(text) == {
        "all-reduce": Collective(1, 64, 1),
        "all-gather": Collective(1, 512, 1),
        "reduce-scatter": Collective(1, 8, 1),
    }


GPU = """
%fused_sum (param_0.1: bf16[128,56,56,64]) -> f32[4,64] {
  %param_0.1 = bf16[128,56,56,64]{3,2,1,0} parameter(0)
  %convert.1 = f32[128,56,56,64]{3,2,1,0} convert(%param_0.1)
  %slice.1 = f32[4,56,56,64]{3,2,1,0} slice(%convert.1), slice={[0:128:32], [0:56], [0:56], [0:64]}
  ROOT %reduce.1 = f32[4,64]{1,0} reduce(%slice.1, %constant.1), dimensions={1,2}, to_apply=%add
}

%fused_whole (param_0.2: bf16[128,56,56,64]) -> (f32[4,64], bf16[4,56,56,64]) {
  %param_0.2 = bf16[128,56,56,64]{3,2,1,0} parameter(0)
  %slice.2 = bf16[4,56,56,64]{3,2,1,0} slice(%param_0.2), slice={[0:4], [0:56], [0:56], [0:64]}
  %reduce.2 = f32[4,64]{1,0} reduce(%param_0.2, %constant.1), dimensions={1,2}, to_apply=%add
  ROOT %tuple.1 = (f32[4,64]{1,0}, bf16[4,56,56,64]{3,2,1,0}) tuple(%reduce.2, %slice.2)
}

%fused_transpose (param_0.3: f32[64,9]) -> f32[9,64] {
  %param_0.3 = f32[64,9]{1,0} parameter(0)
  ROOT %transpose.1 = f32[9,64]{1,0} transpose(%param_0.3), dimensions={1,0}
}

ENTRY %main (x: bf16[128,56,56,64], k: f32[64,9]) -> f32[4,64] {
  %x = bf16[128,56,56,64]{3,2,1,0} parameter(0)
  %k = f32[64,9]{1,0} parameter(1)
  %sum = f32[4,64]{1,0} fusion(%x), kind=kInput, calls=%fused_sum
  %whole = (f32[4,64]{1,0}, bf16[4,56,56,64]{3,2,1,0}) fusion(%x), kind=kInput, calls=%fused_whole
  %turned = f32[9,64]{1,0} fusion(%k), kind=kInput, calls=%fused_transpose
  %conv = (bf16[128,56,56,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %turned), custom_call_target="__cudnn$convForward"
  %copy = f32[64,9]{0,1} copy(%k)
  ROOT %result = f32[4,64]{1,0} all-reduce(%sum), replica_groups={{0,1}}, to_apply=%add
}
"""


def test_a_fusion_that_takes_slices_reads_no_more():
    x, kernel, sums, part = 2 * 128 * 56 * 56 * 64, 4 * 64 * 9, 4 * 4 * 64, 2 * 4 * 56 * 56 * 64
    sliced, whole, turned = x // 32 + sums, x + sums + part, 2 * kernel
    assert memory_traffic(GPU) == sliced + whole + turned + (x + kernel + x) + 2 * kernel + 2 * sums


def test_kernels_of_a_gpu_by_kind():
    assert kernels(GPU) == {"fusions": 2, "copies": 2, "cuDNN": 1, "collectives": 1}
