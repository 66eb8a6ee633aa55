"""A small module in the style of the TPU compiler that has most of the syntax in it."""

from __future__ import annotations

SAMPLE = """\
HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias), {1, 0}: (2, {0}, must-alias) }, entry_computation_layout={(f32[8,128]{1,0:T(8,128)}, bf16[16]{0})->f32[]}, frontend_attributes={k="v"}

FileNames
1 "zoo.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=17 end_line=17 column=3 end_column=18}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%region_0.1 (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[]{:T(128)} parameter(0)
  %b.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.2 = f32[]{:T(128)} add(%a.1, %b.1), metadata={op_name="a {strange, name=" source_line=3}
}

%fused_computation.4 (param_0.1: f32[8,128], param_1.2: bf16[16]) -> (f32[8,128], f32[]) {
  %param_0.1 = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %param_1.2 = bf16[16]{0:T(128)(2,1)} parameter(1)
  %constant.3 = f32[]{:T(128)} constant(-1.5e-05)
  %constant.4 = s32[2,2]{1,0} constant({ { 1, 2 }, { 3, 4 } })
  %reduce.1 = f32[]{:T(128)} reduce(%param_0.1, %constant.3), dimensions={0,1}, to_apply=%region_0.1
  ROOT %tuple.9 = (f32[8,128]{1,0:T(8,128)}, f32[]{:T(128)}) tuple(%param_0.1, /*index=1*/%reduce.1)
}

%body.1 (arg.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %gte.0 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %gte.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%arg.1), index=1
  %copy.1 = f32[8,128]{1,0:T(8,128)S(1)} copy(%gte.1)
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%gte.0, %copy.1)
}

%cond.1 (arg.2: (s32[], f32[8,128])) -> pred[] {
  %arg.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %gte.2 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  %constant.5 = s32[]{:T(128)} constant(12)
  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.2, %constant.5), direction=LT
}

%async_computation.1 (p.7: f32[8,128]) -> f32[4,128] {
  %p.7 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %slice.1 = f32[4,128]{1,0:T(8,128)S(1)} slice(%p.7), slice={[0:4], [0:128]}
}, execution_thread="parallel"

ENTRY %main.1 (x.1: f32[8,128], y.1: bf16[16], z.1: (f32[8,128])) -> (f32[], (f32[8,128])) {
  %x.1 = f32[8,128]{1,0:T(8,128)} parameter(0), sharding={replicated}, metadata={op_name="x"}
  %y.1 = bf16[16]{0:T(128)(2,1)} parameter(1)
  %z.1 = (f32[8,128]{1,0:T(8,128)}) parameter(2)
  %copy-start.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x.1), cross_program_prefetch_index=0
  %slice-start.1 = ((f32[8,128]{1,0:T(8,128)}), f32[4,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) async-start(%x.1), calls=%async_computation.1
  %slice-start.2 = ((f32[8,128]{1,0:T(8,128)}), f32[4,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x.1), slice={[4:8], [0:128]}, metadata={op_name="s"}
  %constant.6 = s32[]{:T(128)} constant(0)
  %slice-done.1 = f32[4,128]{1,0:T(8,128)S(1)} async-done(%slice-start.1)
  %slice-done.2 = f32[4,128]{1,0:T(8,128)S(1)} slice-done(%slice-start.2)
  %concat.1 = f32[8,128]{1,0:T(8,128)S(1)} custom-call(%slice-done.1, %slice-done.2), custom_call_target="ConcatBitcast", backend_config={"flag_configs":[],"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"2985984"}],"note":"a } \\" brace"}
  %copy-done.1 = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %fusion.4 = (f32[8,128]{1,0:T(8,128)}, f32[]{:T(128)}) fusion(%copy-done.1, %y.1), kind=kLoop, calls=%fused_computation.4, backend_config="opaque, text={"
  %gte.4 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%fusion.4), index=0
  %tuple.3 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(s32[]{:T(128)} %constant.6, f32[8,128]{1,0:T(8,128)} %gte.4)
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%tuple.3), condition=%cond.1, body=%body.1
  %gte.5 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
  %gte.6 = f32[]{:T(128)} get-tuple-element(%fusion.4), index=1, control-predecessors={%while.1}
  %tuple.4 = (f32[8,128]{1,0:T(8,128)}) tuple(%gte.5)
  ROOT %tuple.5 = (f32[]{:T(128)}, (f32[8,128]{1,0:T(8,128)})) tuple(%gte.6, %tuple.4)
}
"""  # noqa: E501
