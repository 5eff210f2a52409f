/*
 * The simulated machine: its state file, what goes wrong in it, and who lives. Shared by the fake NVML library and the
 * fake CUDA driver; each has its own copy of everything static in it.
 */
#ifndef MACHINE_H
#define MACHINE_H
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    FUNCTION_NOT_FOUND = 13,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999,
};

#define MAGIC 0x4e564d4cu
#define MAX_GPUS 16
#define MAX_PROCESSES 256
#define MAX_FAULTS 32
#define MAX_FUNCTIONS 96
#define UNSUPPORTED UINT32_MAX /* in a GPU's field: this GPU cannot tell */
#define NOT_AVAILABLE UINT64_MAX /* NVML's own "no value" for 64-bit numbers */

enum { ROW_CHECKED = 1, ROW_LEAKS = 2, ROW_HIDDEN = 4, ROW_GRAPHICS = 8, ROW_BOTH = 16 };
enum { LISTS_SHUFFLED = 1, LISTS_WITHOUT_V3 = 2 }; /* how a GPU's driver lists processes */
enum { FAULT_NONE = 0, FAULT_RETURN = 1, FAULT_VALUE = 2, FAULT_BLOCK = 3 };

struct gpu {
    char uuid[80], name[96];
    uint64_t total_bytes, reserved_bytes, baseline_bytes, context_bytes;
    uint64_t energy_mj, energy_since_ns, throttle_reasons;
    uint32_t temperature_c, memory_temperature_c, power_mw, utilization_percent, memory_utilization_percent;
    uint32_t energy_supported, accounting, mig, compute_mode, persistence;
    uint32_t lists, pad;
    uint32_t parent, instance; /* of a MIG instance: the index of its GPU and its number there; else UNSUPPORTED */
};

struct process {
    uint32_t gpu, pid, flags, ended;
    uint64_t start_ticks, used_bytes, peak_bytes;
};

struct fault {
    char function[56]; /* exact symbol, a prefix with a star, or a lone star */
    int32_t gpu;      /* -1: every GPU, and functions without one */
    int32_t kind, code, after, times; /* times -1: for ever */
    uint32_t pad;
    uint64_t value, block_ns;
};

struct counter {
    char function[56];
    uint64_t calls;
};

struct state {
    uint32_t magic, size, num_gpus, num_processes, num_faults, num_functions;
    uint32_t cuda_version, pad;
    char driver_version[80], nvml_version[80];
    struct gpu gpus[MAX_GPUS];
    struct process processes[MAX_PROCESSES];
    struct fault faults[MAX_FAULTS];
    struct counter functions[MAX_FUNCTIONS];
};

static struct state *state;
static char state_path[4096];
static int references;

/* --- the state file --- */

/* An earlier mapping is left in place: another thread may be reading through it. */
static inline int attach(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    if (!path || strlen(path) >= sizeof state_path) return DRIVER_NOT_LOADED;
    if (state && !strcmp(path, state_path)) return SUCCESS;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return DRIVER_NOT_LOADED;
    struct stat status;
    int whole = !fstat(file, &status) && (size_t)status.st_size >= sizeof(struct state);
    struct state *mapped =
        whole ? mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
    close(file);
    if (mapped == MAP_FAILED || mapped->magic != MAGIC || mapped->size != sizeof(struct state)) return UNKNOWN;
    strcpy(state_path, path);
    state = mapped;
    return SUCCESS;
}

static inline void count(const char *function) {
    for (unsigned i = 0; i < MAX_FUNCTIONS; i++) {
        struct counter *row = &state->functions[i];
        if (!row->function[0] && i == state->num_functions) {
            snprintf(row->function, sizeof row->function, "%s", function);
            state->num_functions = i + 1;
        }
        if (strcmp(row->function, function)) continue;
        __atomic_fetch_add(&row->calls, 1, __ATOMIC_RELAXED);
        return;
    }
}

/* --- faults --- */

static inline int matches(const char *pattern, const char *function) {
    size_t length = strlen(pattern);
    if (length && pattern[length - 1] == '*') return !strncmp(pattern, function, length - 1);
    return !strcmp(pattern, function);
}

static inline int due(struct fault *fault, const char *function, int gpu) {
    if (fault->kind == FAULT_NONE || (fault->gpu >= 0 && fault->gpu != gpu)) return 0;
    if (!matches(fault->function, function)) return 0;
    if (__atomic_load_n(&fault->after, __ATOMIC_RELAXED) > 0) {
        __atomic_fetch_sub(&fault->after, 1, __ATOMIC_RELAXED);
        return 0;
    }
    int left = __atomic_load_n(&fault->times, __ATOMIC_RELAXED);
    if (left > 0) __atomic_fetch_sub(&fault->times, 1, __ATOMIC_RELAXED);
    return left != 0;
}

static inline void sleep_ns(uint64_t duration_ns) {
    struct timespec left = {duration_ns / 1000000000u, duration_ns % 1000000000u};
    while (nanosleep(&left, &left) && errno == EINTR) continue;
}

/* What every function does first. Blocking happens before a return code or a value of the same call. */
static inline int enter(const char *function, const struct gpu *gpu, uint64_t *value, int *has_value) {
    if (!references || !state) return UNINITIALIZED;
    count(function);
    int code = SUCCESS, index = gpu ? (int)(gpu - state->gpus) : -1;
    for (unsigned i = 0; i < state->num_faults && i < MAX_FAULTS; i++) {
        struct fault *fault = &state->faults[i];
        if (!due(fault, function, index)) continue;
        if (fault->kind == FAULT_BLOCK) sleep_ns(fault->block_ns);
        if (fault->kind == FAULT_RETURN && !code) code = fault->code;
        if (fault->kind == FAULT_VALUE) *value = fault->value, *has_value = 1;
    }
    return code;
}

/* --- processes --- */

/* A zombie holds no memory on a GPU; a reused pid is another process, told by its start time. */
static inline int runs(const struct process *row) {
    if (!row->pid || row->ended) return 0;
    if (!(row->flags & ROW_CHECKED)) return 1;
    char path[32], line[512];
    snprintf(path, sizeof path, "/proc/%u/stat", row->pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = read(file, line, sizeof line - 1);
    close(file);
    if (length <= 0) return 0;
    line[length] = 0;
    const char *rest = strrchr(line, ')'); /* the command may hold spaces and parentheses */
    char status = 0;
    unsigned long long start = 0;
    /* fields 3 (state) and 22 (starttime) of proc(5) */
    if (!rest || sscanf(rest + 1,
                        " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
                        &status, &start) != 2)
        return 0;
    return status != 'Z' && status != 'X' && (!row->start_ticks || row->start_ticks == start);
}

/* A GPU that is cut into instances holds what they hold. */
static inline int is_on(const struct process *row, const struct gpu *gpu) {
    uint32_t index = gpu - state->gpus;
    return row->gpu == index || (row->gpu < MAX_GPUS && state->gpus[row->gpu].parent == index);
}

static inline uint64_t used_bytes(const struct gpu *gpu) {
    uint64_t sum = gpu->baseline_bytes;
    for (unsigned i = 0; i < state->num_processes && i < MAX_PROCESSES; i++) {
        const struct process *row = &state->processes[i];
        if (is_on(row, gpu) && row->pid && ((row->flags & ROW_LEAKS) || runs(row))) sum += row->used_bytes;
    }
    uint64_t room = gpu->total_bytes - gpu->reserved_bytes;
    return sum < room ? sum : room;
}

#endif
