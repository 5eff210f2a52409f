/*
 * A fake libcuda.so.1: the few functions of CUDA's driver that colocate's balloon needs, on the simulated machine of the
 * fake NVML library. Memory that a program takes here is booked for its process in the same state file, so that NVML
 * shows it, and it is gone when the process is.
 *
 * As on a GPU a context costs memory, memory comes in pieces of 2 MiB, and a full GPU answers CUDA_ERROR_OUT_OF_MEMORY.
 * CUDA_VISIBLE_DEVICES is read as the driver reads it, but only indices and UUIDs.
 */
#define _GNU_SOURCE
#include "machine.h"
#include <sys/file.h>

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_DEVICE_UNAVAILABLE = 46,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_UNKNOWN = 999,
};

#define GRANULE (2ull << 20)
#define MAX_PIECES 4096

static int visible[MAX_GPUS], num_visible;
static int current = -1; /* the GPU of the context */
static struct piece {
    uint64_t address, size;
} pieces[MAX_PIECES];
static uint64_t next_address = 1ull << 40;

static const char *fake_cuda_name(int code) {
    switch (code) {
        case CUDA_ERROR_INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case CUDA_ERROR_OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case CUDA_ERROR_NOT_INITIALIZED: return "CUDA_ERROR_NOT_INITIALIZED";
        case CUDA_ERROR_DEVICE_UNAVAILABLE: return "CUDA_ERROR_DEVICE_UNAVAILABLE";
        case CUDA_ERROR_NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
        case CUDA_ERROR_INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case CUDA_ERROR_INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        default: return "CUDA_ERROR_UNKNOWN";
    }
}

int cuGetErrorName(int code, const char **out) {
    *out = fake_cuda_name(code);
    return CUDA_SUCCESS;
}

#define FAULTY(gpu)                                                       \
    uint64_t forced = 0;                                                   \
    int is_forced = 0, fault = enter(__func__, gpu, &forced, &is_forced); \
    (void)forced, (void)is_forced;                                         \
    if (fault) return fault == UNINITIALIZED ? CUDA_ERROR_NOT_INITIALIZED : fault

/* --- GPUs --- */

static int index_of(const char *entry, size_t length) {
    if (length && entry[0] >= '0' && entry[0] <= '9') return atoi(entry);
    for (unsigned i = 0; i < state->num_gpus; i++)
        if (length && !strncmp(entry, state->gpus[i].uuid, length)) return (int)i;
    return -1;
}

static void look_at_environment(void) {
    const char *entry = getenv("CUDA_VISIBLE_DEVICES");
    num_visible = 0;
    if (!entry)
        for (unsigned i = 0; i < state->num_gpus; i++) visible[num_visible++] = i;
    while (entry && *entry && num_visible < MAX_GPUS) {
        size_t length = strcspn(entry, ",");
        int index = index_of(entry, length);
        if (index < 0 || (unsigned)index >= state->num_gpus) return;
        visible[num_visible++] = index;
        entry += length + (entry[length] == ',');
    }
}

int cuInit(unsigned flags) {
    (void)flags;
    if (attach()) return CUDA_ERROR_NO_DEVICE;
    references = 1;
    FAULTY(NULL);
    look_at_environment();
    return num_visible ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

int cuDriverGetVersion(int *out) {
    if (attach()) return CUDA_ERROR_NO_DEVICE;
    *out = state->cuda_version;
    return CUDA_SUCCESS;
}

int cuDeviceGetCount(int *out) {
    FAULTY(NULL);
    *out = num_visible;
    return CUDA_SUCCESS;
}

int cuDeviceGet(int *out, int ordinal) {
    FAULTY(NULL);
    if (ordinal < 0 || ordinal >= num_visible) return CUDA_ERROR_INVALID_DEVICE;
    *out = ordinal;
    return CUDA_SUCCESS;
}

static unsigned digit(char c) { return c <= '9' ? c - '0' : (c | 32) - 'a' + 10; }

int cuDeviceGetUuid(unsigned char out[16], int device) {
    FAULTY(NULL);
    if (device < 0 || device >= num_visible) return CUDA_ERROR_INVALID_DEVICE;
    const char *text = state->gpus[visible[device]].uuid + 4; /* behind GPU- */
    for (int i = 0; i < 16; i++, text += 2) {
        if (*text == '-') text++;
        out[i] = digit(text[0]) << 4 | digit(text[1]);
    }
    return CUDA_SUCCESS;
}

/* --- memory: one row of the state file for this process --- */

static uint64_t start_ticks(void) {
    char line[1024];
    int file = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? 0 : read(file, line, sizeof line - 1);
    if (file >= 0) close(file);
    if (length <= 0) return 0;
    line[length] = 0;
    const char *rest = strrchr(line, ')');
    unsigned long long start = 0;
    if (rest) sscanf(rest + 1, " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &start);
    return start;
}

static struct process *row(int create) {
    for (unsigned i = 0; i < state->num_processes && i < MAX_PROCESSES; i++) {
        struct process *found = &state->processes[i];
        if (found->pid == (uint32_t)getpid() && found->gpu == (uint32_t)current && runs(found)) return found;
    }
    if (!create || state->num_processes >= MAX_PROCESSES) return NULL;
    struct process *made = &state->processes[state->num_processes];
    memset(made, 0, sizeof *made);
    made->gpu = current, made->pid = getpid(), made->flags = ROW_CHECKED, made->start_ticks = start_ticks();
    state->num_processes++;
    return made;
}

static uint64_t room(void) {
    struct gpu *gpu = &state->gpus[current];
    return gpu->total_bytes - gpu->reserved_bytes - used_bytes(gpu);
}

/* Adds to what this process holds, or takes from it; the file is locked as state.py locks it. */
static int book(int64_t change) {
    int file = open(state_path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return CUDA_ERROR_UNKNOWN;
    flock(file, LOCK_EX);
    int result = CUDA_ERROR_OUT_OF_MEMORY;
    struct process *mine = change > 0 && (uint64_t)change > room() ? NULL : row(1);
    if (mine) {
        mine->used_bytes += change;
        if (mine->used_bytes > mine->peak_bytes) mine->peak_bytes = mine->used_bytes;
        result = CUDA_SUCCESS;
    }
    close(file);
    return result;
}

int cuDevicePrimaryCtxRetain(void **out, int device) {
    FAULTY(NULL);
    if (device < 0 || device >= num_visible) return CUDA_ERROR_INVALID_DEVICE;
    struct gpu *gpu = &state->gpus[visible[device]];
    if (gpu->compute_mode == 2) return CUDA_ERROR_DEVICE_UNAVAILABLE; /* prohibited */
    current = visible[device];
    int code = book(gpu->context_bytes);
    if (code) return code;
    *out = gpu;
    return CUDA_SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    FAULTY(NULL);
    return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static uint64_t rounded(uint64_t size) { return (size + GRANULE - 1) / GRANULE * GRANULE; }

int cuMemAlloc_v2(uint64_t *out, size_t size) {
    FAULTY(current < 0 ? NULL : &state->gpus[current]);
    if (current < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < MAX_PIECES; i++) {
        if (pieces[i].size) continue;
        int code = book(rounded(size));
        if (code) return code;
        pieces[i] = (struct piece){next_address, rounded(size)};
        *out = next_address;
        next_address += rounded(size);
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}

int cuMemFree_v2(uint64_t address) {
    FAULTY(current < 0 ? NULL : &state->gpus[current]);
    for (int i = 0; i < MAX_PIECES; i++) {
        if (!pieces[i].size || pieces[i].address != address) continue;
        int code = book(-(int64_t)pieces[i].size);
        pieces[i].size = 0;
        return code;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

int cuMemGetInfo_v2(size_t *free_out, size_t *total_out) {
    FAULTY(NULL);
    if (current < 0) return CUDA_ERROR_INVALID_CONTEXT;
    *free_out = room();
    *total_out = state->gpus[current].total_bytes;
    return CUDA_SUCCESS;
}
