"""An emulated CUDA card: torch's questions get the answers of an RTX 3090 or 4090, and all work is the CPU's.

    FAKECARD=4090 PYTHONPATH=tests/card/site python ...      every process that imports torch finds the card

Unsloth's own Python runs over it as it stands: its import, its loader, its layers and its gradient checkpointing.
It cannot show what a card computes with: Triton's kernels (replaced by Unsloth with plain code or run by Triton's
interpreter), torch.compile (off), memory (every count is 0), speed, streams, and the rounding of bfloat16 on a card.
"""

import contextlib
import os
import types
from collections.abc import Callable
from typing import Any

# Name, compute capability, multiprocessors.
CARDS = {"3090": ("NVIDIA GeForce RTX 3090", (8, 6), 82), "4090": ("NVIDIA GeForce RTX 4090", (8, 9), 128)}
MEMORY = 25_394_348_032  # bytes, as a card of 24 GB says
ENVIRONMENT = {
    "TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1", "HF_DEACTIVATE_ASYNC_LOAD": "1", "HF_HUB_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
NOTHING = (
    "empty_cache", "synchronize", "set_device", "reset_peak_memory_stats", "ipc_collect", "init", "manual_seed",
    "manual_seed_all", "reset_max_memory_allocated", "set_per_process_memory_fraction", "set_rng_state",
    "set_rng_state_all", "_lazy_init",
)  # fmt: skip
ZERO = (
    "memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved", "current_device",
    "_get_device_index",
)  # fmt: skip
AUTOCAST = ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype")


class Idle:
    """A stream, an event or a device guard: there is never anything to wait for."""

    device_index = cuda_stream = priority = idx = prev_idx = 0

    def __init__(self, *args: Any, **named: Any):
        import torch

        self.device = torch.device("cuda", 0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **named: {"query": True, "elapsed_time": 0.0}.get(name)

    def __enter__(self) -> "Idle":
        return self

    def __exit__(self, *error: Any) -> None:
        return None


def make_graphs() -> tuple[type, type]:
    """What torch.cuda.CUDAGraph and torch.cuda.graph become: operations run once are kept and run again, on the same
    tensors, without Python. What waits for the card or copies from Python is refused, as a card does.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten
    waiting = {aten._local_scalar_dense.default, aten.nonzero.default, aten.lift_fresh.default, aten.equal.default}

    class Graph:
        def __init__(self) -> None:
            self.operations: list[Any] = []

        def pool(self) -> "Graph":
            return self

        def replay(self) -> None:
            for function, args, named, made in self.operations:
                for old, new in zip(tree_leaves(made), tree_leaves(function(*args, **named)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    class Capture(TorchDispatchMode):
        def __init__(self, graph: Graph, **_: Any):
            super().__init__()
            self.graph = graph

        def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), named: Any = None) -> Any:
            if function in waiting:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            made = function(*args, **(named or {}))
            self.graph.operations.append((function, args, named or {}, made))
            return made

    return Graph, Capture


def always(answer: Any) -> Callable[..., Any]:
    return lambda *args, **named: answer


def answers(card: str) -> dict[str, Any]:
    """What torch.cuda's functions and classes become, by name."""
    import torch

    name, (major, minor), processors = CARDS[card]
    graph, capture = make_graphs()
    properties = types.SimpleNamespace(
        name=name, major=major, minor=minor, total_memory=MEMORY, multi_processor_count=processors, warp_size=32,
        max_threads_per_multi_processor=1536, max_threads_per_block=1024, regs_per_multiprocessor=65536,
        shared_memory_per_block=49152, shared_memory_per_block_optin=101376, shared_memory_per_multiprocessor=102400,
        L2_cache_size=75497472, is_integrated=0, is_multi_gpu_board=0, gcnArchName="", uuid="GPU-0", pci_bus_id=1,
        pci_device_id=0, pci_domain_id=0,
    )  # fmt: skip
    return {
        "is_available": always(True), "is_initialized": always(True), "_is_compiled": always(True),
        "is_bf16_supported": always(True), "is_current_stream_capturing": always(False),
        "can_device_access_peer": always(False), "device_count": always(1), "get_device_name": always(name),
        "get_device_capability": always((major, minor)), "get_device_properties": always(properties),
        "get_arch_list": always([f"sm_{major}{minor}"]), "mem_get_info": always((MEMORY - 2**30, MEMORY)),
        "memory_stats": always({}), "host_memory_stats": always({"allocated_bytes.current": 0}),
        "get_rng_state": lambda *args, **named: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "current_stream": lambda device=None: Idle(), "default_stream": lambda device=None: Idle(),
        "stream": always(contextlib.nullcontext()), "Stream": Idle, "Event": Idle, "ExternalStream": Idle,
        "CUDAGraph": graph, "graph": capture, "device": Idle, "device_of": Idle, "_DeviceGuard": Idle,
        **{name: always(None) for name in NOTHING}, **{name: always(0) for name in ZERO},
    }  # fmt: skip


def to_cpu(value: Any) -> Any:
    """The CPU where a value names a card; every other value as it is."""
    import torch

    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value


def make_mode() -> Any:
    """The mode under which every torch function that is to work on a card works on the CPU."""
    import torch
    from torch.overrides import TorchFunctionMode

    class OnTheCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, kinds: Any, args: Any = (), named: Any = None) -> Any:
            named, name = dict(named or {}), getattr(func, "__name__", "")
            if name in ("cuda", "pin_memory") and args and isinstance(args[0], torch.Tensor):
                return args[0]
            if name == "is_pinned":
                return False
            if name == "record_stream":
                return None
            named.pop("pin_memory", None)
            if "device" in named:  # a number is a card's
                named["device"] = "cpu" if type(named["device"]) is int else to_cpu(named["device"])
            if name == "to" and len(args) > 1 and type(args[1]) is int:
                args = (args[0], "cpu", *args[2:])
            return func(*map(to_cpu, args), **named)

    return OnTheCpu()


def redirect_autocast() -> None:
    """Let the card's autocast be the CPU's."""
    import torch

    begin = torch.amp.autocast_mode.autocast.__init__

    def __init__(self: Any, device_type: str = "cuda", *args: Any, **named: Any) -> None:
        begin(self, to_cpu(device_type), *args, **named)

    torch.amp.autocast_mode.autocast.__init__ = __init__

    def on_cpu(function: Any) -> Any:  # it takes the kind of device first, or leaves it out and means a card
        return lambda *args: function(*map(to_cpu, args if args and isinstance(args[0], str) else ("cpu", *args)))

    for name in AUTOCAST:
        setattr(torch, name, on_cpu(getattr(torch, name)))
    torch.get_autocast_gpu_dtype = lambda: torch.get_autocast_dtype("cpu")

    def decorator(function: Any) -> Any:
        return lambda method=None, *, device_type="cuda", **named: (
            function(device_type="cpu", **named) if method is None else function(method, device_type="cpu", **named)
        )

    for name in ("custom_fwd", "custom_bwd"):
        setattr(torch.amp, name, decorator(getattr(torch.amp, name)))


def install(card: str = "4090") -> None:
    """Put the card in its place; before Unsloth, transformers and bitsandbytes are imported. Once is enough."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    if hasattr(torch.cuda, "_emulated"):
        return
    torch.cuda._emulated = card
    for name, answer in answers(card).items():
        for module in (torch.cuda, torch.cuda.random, torch.cuda.memory):
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, answer)
    torch.version.cuda = torch.version.cuda or "13.0"
    torch._C._cuda_getCurrentRawStream = always(0)
    torch.accelerator.is_available = always(True)
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    torch.accelerator.current_device_index = always(0)
    torch.accelerator.device_count = always(1)
    torch.accelerator.synchronize = torch.accelerator.empty_cache = always(None)
    torch.Tensor.pin_memory = lambda self, *args, **named: self
    torch.Tensor.record_stream = always(None)
    redirect_autocast()
    torch.cuda._emulated_mode = make_mode()  # kept: a mode that is collected ends
    torch.cuda._emulated_mode.__enter__()
    os.geteuid = lambda: 1000  # as root, Unsloth would run ldconfig where it finds CUDA not linked
