# SPDX-License-Identifier: Apache-2.0
"""What the frameworks print when memory is full, and how much such a line proves.

The only place that knows these words. `judge` says of one line whether it is an out-of-memory and how sure that is:

- ``raised``: the line is the message itself, such as the last line of a traceback;
- ``reported``: the words stand in a line of the program's own, such as "batch skipped: CUDA out of memory";
- ``possible``: an error that a full GPU is a usual cause of, and not the only one;
- ``mentioned``: the words are there and nothing ran out: a help text, a source line, a file name, Java's heap.

What follows from that is for `colocate.verdict` to say, which knows what else was seen. Standard library only, because
the supervisor imports it.
"""

import re
from typing import Literal, NamedTuple

Certainty = Literal["raised", "reported", "possible", "mentioned"]
Memory = Literal["gpu", "host"]

PREFIX = "out of memory, "
"""With it begins the name under which the supervisor reports such a line; the certainty and the framework follow."""

HINTS = (
    *("memory", "alloc", "oom", "exhausted", "bus error", "no space left", "dst tensor", "pool size", "rmm"),
    *("not_initialized", "out_of_resources", "cudnn algorithm", "find an engine", "nvml_success"),
)
"""One of these is in every such message, in lower case; that a line has none costs little to find out."""


class Words(NamedTuple):
    """What one framework prints: a pattern, a real message that it fits, and where that is from."""

    framework: str
    pattern: str
    example: str
    source: str
    memory: Memory = "gpu"
    at_most: Certainty = "raised"


class Judgement(NamedTuple):
    """A line that has such words: whose they are, how sure it is, and where in the line they begin."""

    framework: str
    certainty: Certainty
    memory: Memory
    start: int

    @property
    def name(self) -> str:
        """What the supervisor calls such a match."""
        return f"{PREFIX}{self.certainty}: {self.framework} ({self.memory})"


WORDS = (
    Words(
        "PyTorch",
        r"(?:CUDA|HIP|XPU|MPS backend) out of memory(?:\.|$|\. Tried)",
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 124.00 MiB. GPU 0 has a total capacity of 19 GiB",
        "c10/cuda/CUDACachingAllocator.cpp; pytorch/pytorch#138002; a RuntimeError before 1.13",
    ),
    Words(
        "cuPy",
        r"[\w.]{0,60}OutOfMemoryError: Out of memory allocating|out of memory to allocate \d+ bytes",
        "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 8,000,000,000 bytes (allocated so far: 0 bytes).",
        "cupy/cuda/memory.pyx; cupy/cupy#314",
    ),
    Words(
        "PyTorch",
        r"[\w.:]{0,60}OutOfMemoryError(?=:|\s*$)",
        "torch.cuda.OutOfMemoryError",
        "torch/cuda/__init__.py: torch.OutOfMemoryError since 2.5, torch.cuda.OutOfMemoryError since 1.13",
    ),
    Words(
        "CUDA",
        r"(?:CUDA|HIP) (?:driver |runtime )?[Ee]rror\s*(?:\(?\d+\)?)?\s*:? ?\(?(?:out of memory|hipErrorOutOfMemory)"
        r"|\bCUDA: out of memory|cuda runtime error \(2\)|error=2 : out of memory",
        "RuntimeError: cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/THCStorage.cu:58",
        "c10/cuda/CUDAException.cpp; THC of releases before 1.5; a context or a workspace that got no memory",
    ),
    Words(
        "NCCL",
        r"Cuda failure (?:2 )?'out of memory'",
        "ncclUnhandledCudaError: Call to CUDA function failed. Last error: Cuda failure 2 'out of memory'",
        "nccl: src/include/checks.h",
    ),
    Words(
        "XLA",
        r"(?:RESOURCE_EXHAUSTED|Resource exhausted): (?:Out of memory|Failed to allocate|Ran out of memory"
        r"|Allocation \(size=|CUDA_ERROR_OUT_OF_MEMORY|OOM|.*out of memory)"
        r"|Failed to allocate request for [\d.]+\s?[KMGT]?i?B"
        r"|INTERNAL: Failed to allocate \d+ bytes|Out of memory while trying to allocate \d+ bytes",
        "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB"
        " (3206250496B) on device ordinal 0",
        "jax-ml/jax#13428, google-deepmind/jax_privacy#10, jax-ml/jax#788; JAX, Flax and PJRT plugins",
    ),
    Words(
        "Paddle",
        r"Out of memory error on GPU \d+|Cannot allocate [\d.]+\s?[KMGT]?B memory on GPU",
        "Out of memory error on GPU 0. Cannot allocate 98.000244MB memory on GPU 0, 6.0GB memory has been allocated",
        "paddle/fluid/memory/allocation/cuda_allocator.cc; PaddlePaddle/Paddle#42228",
    ),
    Words(
        "TensorFlow",
        r"OOM when allocating tensor|failed to allocate memory \[Op:|ResourceExhaustedError\b(?! as\b)"
        r"|Allocator \(GPU_\d+_bfc\) ran out of memory|Dst tensor is not initialized",
        "ResourceExhaustedError: OOM when allocating tensor with shape[128,3,8,128] and type float on"
        " /job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc",
        "tensorflow/core/framework/op_kernel.h; tensorflow/tensorflow#136",
    ),
    Words(
        "CUDA libraries",
        r"CU(?:BLAS|FFT|SOLVER|SPARSE|DNN|RAND|TENSOR)_(?:STATUS_)?(?:ALLOC_FAILED|ALLOCATION_FAILED"
        r"|INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)\b",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cublas_api.h, cufft.h, cusolver_common.h, cusparse.h, cudnn.h, curand.h",
    ),
    Words(
        "RMM",
        r"RMM failure at|out_of_memory: RMM|RMM_ERROR_OUT_OF_MEMORY|rmm::out_of_memory"
        r"|bad_alloc: out_of_memory|Maximum pool size exceeded",
        "MemoryError: std::bad_alloc: out_of_memory: RMM failure at:/rmm/mr/device/pool_memory_resource.hpp:257:"
        " Maximum pool size exceeded",
        "rapidsai/rmm#201, neka-nat/cupoch#98; cuDF, cuML and whatever else allocates by RMM",
    ),
    Words(
        "MXNet or ggml",
        r"cudaMalloc (?:retry )?failed: out of memory",
        "mxnet.base.MXNetError: [11:18:15] src/storage/./pooled_storage_manager.h:157:"
        " cudaMalloc failed: out of memory",
        "apache/mxnet#675; the same words in ggml-cuda.cu: ggml-org/llama.cpp#20431",
    ),
    Words(
        "ggml",
        r"(?:failed to|unable to) allocate (?:CUDA|ROCm)\d+ buffer",
        "alloc_tensor_range: failed to allocate CUDA0 buffer of size 151851674624",
        "ggml-org/llama.cpp#20431",
    ),
    Words(
        "ONNX Runtime",
        r"BFCArena::AllocateRawInternal.*Failed to allocate memory for requested buffer"
        r"|Failed to allocate memory for requested buffer of size \d+|CUDA failure 2: out of memory",
        "onnxruntime::BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 939524096",
        "onnxruntime/core/framework/bfc_arena.cc; microsoft/onnxruntime#16307",
    ),
    Words(
        "TensorRT",
        r"Error Code \d+: (?:Cuda (?:Runtime|Driver) \(out of memory\)|OutOfMemory)|(?:in \w+)?: 2 \(out of memory\)"
        r"|Requested amount of GPU memory \(\d+ bytes\) could not be allocated",
        "defaultAllocator.cpp::allocate::63] Error Code 1: Cuda Runtime (out of memory)",
        "NVIDIA/TensorRT#2198, #840; marcoslucianops/DeepStream-Yolo#366",
    ),
    Words(
        "DALI",
        r"[\w:]{0,60}CUDABadAlloc|CUDA allocation failed",
        "dali::CUDABadAlloc: CUDA allocation failed: Can't allocate 2147483648 bytes on device 0",
        "dali/core/cuda_error.h; NVIDIA/DALI#2836",
    ),
    Words(
        "MindSpore",
        r"ret\[2\], out of memory|Out of memory\. Memory malloc failed|Memory not enough[,:.]"
        r"|Malloc (?:for )?kernel (?:input|output|workspace)s?.*failed.*memory|alloc device memory failed",
        "The cudaStreamCreateWithFlags failed, ret[2], out of memory",
        "mindspore-ai/mindspore#253, #172",
    ),
    Words(
        "Triton",
        r"Triton Error \[CUDA\]: out of memory",
        "RuntimeError: Triton Error [CUDA]: out of memory",
        "triton: third_party/nvidia/backend/driver.c",
    ),
    Words(
        "bitsandbytes",
        r"Error out of memory at line \d+ in file",
        "Error out of memory at line 380 in file /mmfs1/bitsandbytes/csrc/pythonInterface.c",
        "bitsandbytes: csrc/ops.cuh, CUDA_CHECK_RETURN",
    ),
    Words(
        "LightGBM",
        r"\[(?:CUDA|GPU)\] out of memory",
        "[LightGBM] [Fatal] [CUDA] out of memory /src/treelearner/cuda/cuda_histogram.cu 117",
        "LightGBM: include/LightGBM/cuda/cuda_utils.hu",
    ),
    Words(
        "vLLM", r"No available memory for the cache", "ValueError: No available memory for the cache blocks.", "v1/core"
    ),
    Words(
        "CatBoost",
        r"Error: Out of memory\. Requested [\d.]+; Free",
        "_catboost.CatBoostError: Error: Out of memory. Requested 1250.3; Free 800.2",
        "catboost/cuda/cuda_lib/memory_pool/stack_like_memory_pool.h",
    ),
    Words("Julia", r"Out of GPU memory(?: trying|$)", "ERROR: Out of GPU memory trying to allocate 3.8 GiB", "CUDA.jl"),
    Words(
        "Warp",
        r"Failed to allocate \d+ bytes on device '?cuda|[Ff]ail(?:ed)? to allocate memory \d+ bytes",
        "RuntimeError: Failed to allocate 4000000000 bytes on device 'cuda:0'",
        "warp/context.py; PhysX, which Isaac Gym uses: PxgCudaDeviceMemoryAllocator",
    ),
    Words(
        "graphics and OpenCL",
        r"VK_ERROR_OUT_OF_DEVICE_MEMORY|ErrorOutOfDeviceMemory|\bGL_OUT_OF_MEMORY|MEM_OBJECT_ALLOCATION_FAILURE",
        "pyopencl._cl.MemoryError: create_buffer failed: MEM_OBJECT_ALLOCATION_FAILURE",
        "vulkan_core.h, gl.h, cl.h",
    ),
    Words(
        "CUDA",
        r"cudaErrorMemoryAllocation\b|CUDA_ERROR_OUT_OF_MEMORY\b|hipErrorOutOfMemory\b|HIP_ERROR_OutOfMemory\b",
        "numba.cuda.cudadrv.driver.CudaAPIError: [2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
        "driver_types.h, cuda.h; rapidsai/dask-cuda#225; thrust, XGBoost and whatever prints the name of the error",
    ),
    # What follows is the host's memory: the trainings meet there too, but no GPU is full.
    Words(
        "kernel",
        r"Out of memory: Kill(?:ed)? process|oom-kill:|oom_reaper:|oom-kill event|OOMKilled|oom_kill event",
        "slurmstepd: error: Detected 1 oom-kill event(s) in step 3955284.0 cgroup.",
        "linux: mm/oom_kill.c; slurm",
        "host",
    ),
    Words(
        "shared memory",
        r"killed by signal: Bus error|out of shared memory|</?torch_[\w-]+>.*(?:No space left|Cannot allocate)"
        r"|Bus error \(core dumped\)|/dev/shm.*No space left on device",
        "RuntimeError: DataLoader worker (pid 123) is killed by signal: Bus error. It is possible that dataloader's"
        " workers are out of shared memory.",
        "torch/utils/data/_utils/signal_handling.py",
        "host",
    ),
    Words(
        "host",
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|[\w.]{0,60}ArrayMemoryError\b"
        r"|(?<![\w.])MemoryError(?=:|\s*$)|std::bad_alloc|Cannot allocate memory",
        "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 1.50 GiB for an array with shape (200000000,)",
        "c10/core/impl/alloc_cpu.cpp; numpy/core/_exceptions.py; errno 12",
        "host",
    ),
    # Errors that a full GPU causes often, and that have other causes too.
    Words(
        "CUDA libraries",
        r"CUBLAS_STATUS_NOT_INITIALIZED|(?:cuDNN|CUDNN).{0,40}CUDNN_STATUS_NOT_INITIALIZED|CL_OUT_OF_RESOURCES"
        r"|Unable to find a valid cuDNN algorithm|unable to find an engine to execute this computation"
        r"|NVML_SUCCESS == \w+ INTERNAL ASSERT FAILED|INTERNAL ASSERT FAILED.{0,80}NVML_SUCCESS",
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "pytorch: aten/src/ATen/cuda/CublasHandlePool.cpp, aten/src/ATen/native/cudnn",
        at_most="possible",
    ),
    # Last, the words of programs that tell it in their own way.
    Words(
        "own words",
        r"\b(?:ran|run|runs|running) out of (?:GPU |CUDA |device |video )?memory\b|\bOOM in (?:all|some|any|forward)\b"
        r"|\b(?:recover(?:ing)? from|caught|hit|got|after|due to|because of|detected|encountered) (?:an? |the )?"
        r"(?:CUDA |GPU )?(?:OOM|out[ -]of[ -]memory)\b"
        r"|\bOOM (?:error |exception )?(?:detected|caught|encountered|occurred|happened|on |at |while|during|in batch)"
        r"|\b(?:GPU|CUDA|CUDA error|device|VRAM)\b:? ?(?:is |was |has run )?(?:OOM\b|out of memory\b)"
        r"|(?:error|exception|failed|failure)\b.{0,80}\bout of (?:GPU |device |video )?memory\b"
        r"|\b[Oo]ut of (?:memory on (?:the )?(?:device|GPU)|(?:GPU|device|video) memory)\b",
        "| WARNING: OOM in all workers, skipping update",
        "fairseq/trainer.py and many others",
        at_most="reported",
    ),
)

# In front of a message, not part of it: a progress bar, the rank or host, time, level and place of a logger.
_HEADER = re.compile(
    r"(?:.{0,80}?\d+%\|.{0,200}?\|[^|\]]*\]\s*)?"
    r"(?:\[?(?:rank|Rank|RANK|GPU|worker)[ :]?\d+\]?:?\s+|\(\w+(?:\s\w+)? pid=\d+(?:, ip=[\d.]+)?\)\s*|\d{1,4}: )?"
    r"(?:\[?[EWFC]?\d{2,4}[-/:]?\d{2}[-/:]?\d{0,4}[T ]?[\d:.,+Z]*\]?\s*[|:-]?\s*)*"
    r"(?:\[?(?:ERROR|Error|FATAL|Fatal|CRITICAL|WARNING|WARN|[EFW])\]?\s*(?:\|[^|]*\|)?\s*[:|-]?\s*)*"
    r"(?:[\w./-]+\.(?:cc|cpp|cu|py|h|hpp):\d+\]?:?\s*)?"
)
# A line that begins with an exception, or as a runtime begins its own messages, is the message.
_EXCEPTION = re.compile(
    r"\s*(?:Uncaught exception: |Exception: |error: )?(?:[A-Za-z_][\w.:]*(?:Error|Exception|BadAlloc|bad_alloc|Failure)"
    r"\b|terminate called after throwing|what\(\):|[A-Za-z_]\w*(?:Error|error): |cuda runtime error|THCudaCheck"
    r"|CUDA error|\w+ error:|(?:ggml|alloc|llama)_\w+:|ERROR: |\[E\]|\[TRT\]|\[LightGBM\] \[Fatal\]|slurmstepd: error"
    r"|Error Code|The cuda\w+ failed|defaultAllocator|onnxruntime::|Non-zero status code|Triton Error)",
)
# PyTorch's whole message, which a program repeats that caught it; not that of another run.
_WHOLE = re.compile(r"\.?\s*(?:Tried )?to allocate [\d.]+ [KMGT]iB\.? \(?GPU \d+(?: has a total capacity|;)")
_QUOTED_BEFORE = re.compile(r"\b(?:last|previous|earlier|former|other|old|ended with|history|past)\b", re.IGNORECASE)
# A line of a source file, shown by a traceback or printed as it is.
_SOURCE = re.compile(
    r"\s*(?:\d+\s+|[>|-]+\s*(?:\d+\s+)?)?(?:except|raise|if|elif|else|while|for|return|assert|def|class|import|from|try"
    r"|with|print|log(?:ger|ging)?\.\w+|warnings\.warn|catch|throw|case|#|//|/\*|\*|>>>|\.\.\.|@)(?![\w-])(?!:\s*\w+Error)"
    r"|\s*[\w.\[\]'\"]+\s*(?::\s*[\w.\[\], ]+)?\s*(?:=|\+=|==|in)\s*(?:[\[({\"']|[frb]['\"])"
)
_OPTION = re.compile(r"\s*(?:usage:|\[?-{1,2}[A-Za-z][\w-]*)")
# Somebody speaks of it: in advice, in a condition, as something that may come or is to be avoided.
_ADVICE = re.compile(
    r"\b(?:tips?|hints?|notes?:|faq|see also|todo|fixme|e\.g|i\.e|known issue|recommend\w*|suggest\w*|consider|if"
    r"|when(?:ever)?|unless|in case|otherwise|should|might|may|will|would|could|can (?:cause|lead|run|result|happen|be)"
    r"|likely|possibly|to (?:avoid|prevent|reduce|handle|catch|fix|debug)|avoid\w*|prevent\w*|guard\w*|protect\w*"
    r"|against|how to|what to do|in the hope)\b",
    re.IGNORECASE,
)
# The same outside the message of an exception, where such nouns are part of what failed.
_TOPIC = re.compile(
    r"\b(?:help|advice|see|docs?|documentation|example|try|handl(?:e|es|ing|er)|safe(?:ty|ly)?|catch(?:es|ing)?"
    r"|watch(?:es|ing)? for|check(?:s|ing)? for|tests?|testing|simulat\w+|ignor\w+|policy|strategy|mode|option|flag"
    r"|config\w*|settings?|handler|detector|counter|number of|Namespace|Args|Arguments|Options)\b",
    re.IGNORECASE,
)
_NONE_BEFORE = re.compile(
    r"(?:\b(?:no|zero|none|without|never|not)|(?:^|[\s:(,=])0)\s+"
    r"(?:(?:an?|any|of|more|the|CUDA|GPU)\s+){0,2}$",
    re.IGNORECASE,
)
_KEY_BEFORE = re.compile(r"\s*[-*]?\s*['\"]?[A-Za-z]\w*[_-][\w.-]*['\"]?\s*[:=]\s*['\"\[{(]*\s*")
# Advice is what the line says, not what failed: "could not" and "would exceed" are failures.
_FAILED = re.compile(r"\b(?:could|would|can|will|may) ?n(?:o|')t\b|\bwould exceed\b|\bnot enough\b", re.IGNORECASE)
_AFTER = re.compile(
    r"[\w-]*\.(?:md|txt|rst|html?|py|ipynb|log|json|ya?ml|cc|cpp|cu|h|so|sh|csv|pdf)\b|[\w ]{0,20}[:=]\s*(?:0|none|null"
    r"|no|off|false|true|yes|on|skip\w*|raise|ignore|retry|\d+)\s*[,;}\])]?\s*$|s?\s+(?:handling|handler|protection|guard"
    r"|detection|recovery|policy|safe\w*|budget|threshold|test\w*|retries|callback|hook|enabled|disabled|occurs|happens"
    r"|(?:error|exception)s? (?:will|can|may|is|are)\b)|\s*(?:can|may|might|will|would|should) ",
    re.IGNORECASE,
)
_NOT_OURS = re.compile(
    r"java\.lang\.|ray\.exceptions\.|Java heap|GC overhead|JavaScript heap|heap out of memory"
    r"|OOM command not allowed|Allowed memory size|The caller indicates that this is not a failure|Skipping tactic"
    r"|out of resource: shared memory|autotun\w+",
    re.IGNORECASE,
)
_PATH_BEFORE = re.compile(r"[/\\][\w.-]*$|[\w-]+=$|\w$")
_SUREST_FIRST: tuple[Certainty, ...] = ("raised", "reported", "possible", "mentioned")
_PATTERNS = tuple((words, re.compile(words.pattern)) for words in WORDS)
_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_FRAME = " \t|\u2502\u2503\u2551\u250a\u2590\u258c\u2500\u2501\u2570\u256f\u256d\u256e"
_LINE_CHARS = 4096


def uncoloured(block: bytes) -> bytes:
    """The same without the sequences by which terminals are told colours and titles."""
    return _ANSI.sub(b"", block) if b"\x1b" in block else block


def plain(line: bytes) -> str:
    """A line as text, without colours and the frames that consoles draw; of a very long one the beginning."""
    line = uncoloured(line)
    return line[: 4 * _LINE_CHARS].decode(errors="replace").rstrip(_FRAME)[:_LINE_CHARS]


def joined(earlier: str, later: str) -> str:
    """Two lines as the one that a console may have made them of."""
    return f"{earlier.rstrip(_FRAME)} {later.lstrip(_FRAME)}"


def judge(line: str, *, below_place: bool = False) -> Judgement | None:
    """Whether a line says that memory ran out, and how sure that is; None where it has no such words.

    ``below_place``: the line above names a place in a source file, so that this one is source.
    """
    text = line.strip(_FRAME)
    low = text.lower()
    if not any(hint in low for hint in HINTS):
        return None
    for words, pattern in _PATTERNS:
        match = pattern.search(text)
        if match is not None:
            found: Certainty = "mentioned" if below_place else _certainty(text, match)
            certainty = max(found, words.at_most, key=_SUREST_FIRST.index)
            return Judgement(words.framework, certainty, words.memory, match.start())
    return None


def _certainty(text: str, match: "re.Match[str]") -> Certainty:
    header = _HEADER.match(text)
    begin = min(match.start(), header.end() if header else 0)
    before, after = text[begin : match.start()], text[match.end() :]
    if _NOT_OURS.search(text) or _SOURCE.match(text[begin:]) or _OPTION.match(text[begin:]):
        return "mentioned"
    if _PATH_BEFORE.search(before) or _AFTER.match(after):
        return "mentioned"
    is_message = not before.strip(" :([") or _EXCEPTION.match(before) is not None
    spoken = _FAILED.sub("", before)
    if _ADVICE.search(spoken) or _NONE_BEFORE.search(before) or (not is_message and _TOPIC.search(spoken)):
        return "mentioned"
    if not is_message and _KEY_BEFORE.fullmatch(before) and not re.search("err|exc|fail", before, re.IGNORECASE):
        return "mentioned"
    whole = _WHOLE.match(after) is not None and not _QUOTED_BEFORE.search(before)
    return "raised" if is_message or whole else "reported"


def parsed(name: str) -> Judgement | None:
    """What the supervisor said by the name of a match; None for a match of something else."""
    if not name.startswith(PREFIX):
        return None
    certainty, _, rest = name.removeprefix(PREFIX).partition(": ")
    framework, _, memory = rest.removesuffix(")").rpartition(" (")
    return Judgement(framework, certainty, memory, 0)  # type: ignore[arg-type]
