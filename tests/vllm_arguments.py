"""The arguments that we may give vLLM, read from the wheel of 0.29.0: Ray raises for any other name."""

ENGINE_ARGUMENTS = (
    "convert",
    "enable_lora",
    "enforce_eager",
    "generation_config",
    "language_model_only",
    "load_format",
    "max_cpu_loras",
    "max_lora_rank",
    "max_loras",
    "max_num_queued_reqs",
    "pooler_config",
    "runner",
    "tensor_parallel_size",
    "trust_remote_code",
)
"""Fields of AsyncEngineArgs (vllm/engine/arg_utils.py)."""

FRONTEND_ARGUMENTS = ("enable_auto_tool_choice", "tool_call_parser")
"""Fields of FrontendArgs (vllm/entrypoints/launchers/cli_args.py)."""
