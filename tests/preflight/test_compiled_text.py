"""Cycles and collectives are read from the compiler's own text of a program."""

import pytest

from pod_job.preflight import compiled_text

PROGRAM = """HloModule step
%cond (p: (s32[], bf16[8,16])) -> pred[] {
  %bound = s32[] constant(23)
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}
%started (q: bf16[8,2]) -> (bf16[8,2], bf16[8,16]) {
  %q = bf16[8,2]{1,0} parameter(0)
  %gathered = bf16[8,16]{1,0} all-gather(%q), dimensions={1}
  ROOT %start = (bf16[8,2], bf16[8,16]) custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}
%all-reduce-scatter.1 (q: f32[8,16]) -> f32[8,2] {
  %q = f32[8,16]{1,0} parameter(0)
  %summed = f32[8,16]{1,0} all-reduce(%q), to_apply=%add
  ROOT %part = f32[8,2]{1,0} dynamic-slice(%summed), dynamic_slice_sizes={8,2}
}
%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %collect = (bf16[8,2], bf16[8,16]) fusion(%x), kind=kCustom, calls=%started
  %y = bf16[8,16]{1,0} fusion(%x), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"1000","a":[]}
  ROOT %r = (s32[], bf16[8,16]) tuple(%p, %y)
}
%product (q: bf16[8,16]) -> bf16[8,16] {
  %q = bf16[8,16]{1,0} parameter(0)
  %again = bf16[8,16]{1,0} all-gather(%q), dimensions={1}
  ROOT %neg = bf16[8,16]{1,0} negate(%again), backend_config={"estimated_cycles":"7"}
}
%begun_once (q: bf16[8,2]) -> (bf16[8,2], bf16[8,16]) {
  %q = bf16[8,2]{1,0} parameter(0)
  %whole = bf16[8,16]{1,0} all-gather(%q), channel_id=5, dimensions={1}
  ROOT %start = (bf16[8,2], bf16[8,16]) custom-call(%whole), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion.1 (q: bf16[8,2]) -> bf16[8,8] {
  %q = bf16[8,2]{1,0} parameter(0)
  %still = bf16[8,16]{1,0} all-gather(%q), channel_id=5, dimensions={1}
  ROOT %dot = bf16[8,8]{1,0} convolution(%q, %q)
}
ENTRY %main (a: bf16[8,16]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %three = s32[] constant(3)
  %from = s32[] copy(%three)
  %t = (s32[], bf16[8,16]{1,0}) tuple(%from, %a)
  %loop = (s32[], bf16[8,16]{1,0}) while(%t), condition=%cond, body=%body
  %flag = s32[] all-reduce(%from), to_apply=%max
  %begun = (bf16[8,2], bf16[8,16]) fusion(%a), kind=kCustom, calls=%begun_once
  %first = bf16[8,8] fusion(%a), kind=kOutput, calls=%async_collective_fusion.1, backend_config={BESIDE}
  %second = bf16[8,8] fusion(%a), kind=kOutput, calls=%async_collective_fusion.1, backend_config={BESIDE}
  %parts = f32[8,2]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = bf16[8,16]{1,0} copy(%a), backend_config={"estimated_cycles":"50"}
}
""".replace("BESIDE", '"estimated_cycles":"4"')


def test_a_loop_counts_as_often_as_it_turns() -> None:
    """20 turns of 1000 cycles; nothing inside a fusion counts a second time."""
    assert compiled_text.total_cycles(compiled_text.read_program(PROGRAM)) == 20 * 1000 + 50 + 2 * 4


def test_a_collective_counts_once_where_it_starts() -> None:
    collectives = compiled_text.collectives(compiled_text.read_program(PROGRAM))
    assert collectives == [
        compiled_text.Collective("all-gather", 21, 8 * 16 * 2),
        compiled_text.Collective("all-reduce", 1, 8 * 16 * 4),
        compiled_text.Collective("all-reduce", 1, 4),
    ]


def test_a_loop_that_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="turns of loop loop"):
        compiled_text.read_program(PROGRAM.replace("%bound = s32[] constant(23)", "%bound = s32[] parameter(1)"))


CHOICE = """HloModule step
%none (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}
%few (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} negate(%p), metadata={op_name="jit(step)/few"}, backend_config={"estimated_cycles":"20"}
}
%many (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %named_by_the_compiler = f32[8]{0} divide(%p, %p), metadata={op_name="divide.1"}
  ROOT %y = f32[8]{0} negate(%p), metadata={op_name="jit(step)/SCOPE"}, backend_config={"estimated_cycles":"900"}
}
ENTRY %main (i: s32[], a: f32[8]) -> f32[8] {
  %i = s32[] parameter(0)
  %a = f32[8]{0} parameter(1)
  ROOT %out = f32[8]{0} conditional(%i, %a, %a, %a), branch_computations={%none, %few, %many}
}
"""


@pytest.mark.parametrize(("scope", "cycles"), [("seldom/negate", 20), ("often/negate", 900)])
def test_a_choice_costs_its_longest_branch_but_for_those_seldom_taken(scope: str, cycles: int) -> None:
    program = compiled_text.read_program(CHOICE.replace("SCOPE", scope))
    assert compiled_text.total_cycles(program) == cycles


SCOPES = [("often/while", 20), ("seldom/while", 0), ("seldom/while/body/while", 20)]


@pytest.mark.parametrize(("scope", "turns"), SCOPES)
def test_a_loop_seldom_entered_costs_nothing_but_what_the_compiler_has_moved_out_of_it(scope: str, turns: int) -> None:
    named = PROGRAM.replace("condition=%cond", f'metadata={{op_name="jit(step)/{scope}"}}, condition=%cond')
    assert compiled_text.total_cycles(compiled_text.read_program(named)) == turns * 1000 + 50 + 2 * 4


@pytest.mark.parametrize(("bytes_per_cycle", "hidden"), [(10.0, 80), (32.0, 256), (1000.0, 256)])
def test_what_moves_beside_operations_is_hidden_as_far_as_they_take(bytes_per_cycle: float, hidden: float) -> None:
    """Eight cycles beside one collective of 256 bytes."""
    assert compiled_text.hidden_bytes(compiled_text.read_program(PROGRAM), bytes_per_cycle) == hidden
