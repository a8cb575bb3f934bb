/* A stand-in for the driver's libcuda.so.1: streams are threads that do their work later, in order, and slowly.

   Memory of the device is kept apart by address; it begins as bytes of ones, NaN in any format. Each copy begins late, so
   that whoever does not wait for it reads what was there before. A copy that crosses in the wrong direction, leaves its
   block, or is of memory that is gone ends the use of the device, as an illegal address does: from then on every call
   answers that. What a test wants to know or to change begins with stub_. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, ILLEGAL_ADDRESS = 700, INVALID_CONTEXT = 201, NOT_PERMITTED = 800, NOT_READY = 600,
       ALREADY_PINNED = 712, NOT_PINNED = 713 };
enum { UP, DOWN, RECORD, AFTER, HOST };
enum { MOST_BLOCKS = 4096, MOST_PINNED = 4096, MOST_COPIES = 1 << 20, LATE_US = 600 };

struct event { pthread_mutex_t lock; pthread_cond_t turned; uint64_t wanted, passed; double at; };
struct work { int kind; void *to; const void *from; size_t size; struct event *event; uint64_t which;
              void (*call)(void *); void *data; struct work *next; };
struct stream { pthread_mutex_t lock; pthread_cond_t turned; struct work *first, **last; int busy; };
struct range { char *begin; size_t size; };
struct copy { uint64_t device, host, size; int down, pinned; };

static pthread_mutex_t all = PTHREAD_MUTEX_INITIALIZER;
static struct range blocks[MOST_BLOCKS], pinned[MOST_PINNED];
static struct copy copies[MOST_COPIES];
static int copy_count, broken, copies_up = 1, pins = 1, primary;
static __thread void *context;
static size_t held, most_held, capacity = (size_t)-1;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int within(const struct range *ranges, int count, const char *begin, size_t size) {
    for (int i = 0; i < count; i++)
        if (ranges[i].begin && ranges[i].begin <= begin && begin + size <= ranges[i].begin + ranges[i].size) return 1;
    return 0;
}

/* Only the beginning of it, the end, or parts of two of them: as seen with a driver of the 580 series, no copy may. */
static int partly(const struct range *ranges, int count, const char *begin, size_t size) {
    for (int i = 0; i < count; i++)
        if (ranges[i].begin && ranges[i].begin < begin + size && begin < ranges[i].begin + ranges[i].size)
            return !within(&ranges[i], 1, begin, size);
    return 0;
}

/* What a test asks. */
int stub_owns(uint64_t address, size_t size) {
    pthread_mutex_lock(&all);
    int found = within(blocks, MOST_BLOCKS, (const char *)address, size);
    pthread_mutex_unlock(&all);
    return found;
}
int stub_copies(void) { return copy_count; }
struct copy stub_copy(int i) { return copies[i]; }
void stub_forget_copies(void) { copy_count = 0; }
int stub_pinned(void) {
    int count = 0;
    for (int i = 0; i < MOST_PINNED; i++) count += pinned[i].begin != NULL;
    return count;
}
size_t stub_held(void) { return held; }
size_t stub_most_held(void) { return most_held; }
void stub_break(void) { broken = ILLEGAL_ADDRESS; }
/* What a test changes. */
void stub_let_copies_up(int yes) { copies_up = yes; }
void stub_let_pin(int yes) { pins = yes; }
void stub_limit(size_t bytes) { capacity = bytes; }

/* Bytes that somebody else takes of the device: ONNX Runtime's weights. */
int stub_take(size_t size) {
    pthread_mutex_lock(&all);
    int room = held + size <= capacity;
    if (room) held += size;
    if (held > most_held) most_held = held;
    pthread_mutex_unlock(&all);
    return room;
}
void stub_give(size_t size) {
    pthread_mutex_lock(&all);
    held -= size;
    pthread_mutex_unlock(&all);
}

static void copied(const struct work *work) {
    char *device = work->kind == UP ? work->to : (char *)work->from;
    const char *host = work->kind == UP ? work->from : work->to;
    pthread_mutex_lock(&all);
    int legal = within(blocks, MOST_BLOCKS, device, work->size) && !within(blocks, MOST_BLOCKS, host, work->size);
    if (!legal) broken = ILLEGAL_ADDRESS;
    if (legal && copy_count < MOST_COPIES)
        copies[copy_count++] = (struct copy){(uint64_t)device, (uint64_t)host, work->size, work->kind == DOWN,
                                             within(pinned, MOST_PINNED, host, work->size)};
    pthread_mutex_unlock(&all);
    if (legal && (work->kind == DOWN || copies_up)) memcpy(work->to, work->from, work->size);
}

static void done(struct work *work) {
    struct event *event = work->event;
    switch (work->kind) {
    case UP: case DOWN:
        usleep(LATE_US);
        copied(work);
        break;
    case RECORD:
        pthread_mutex_lock(&event->lock);
        event->passed = work->which;
        event->at = now();
        pthread_cond_broadcast(&event->turned);
        pthread_mutex_unlock(&event->lock);
        break;
    case AFTER:
        pthread_mutex_lock(&event->lock);
        while (event->passed < work->which) pthread_cond_wait(&event->turned, &event->lock);
        pthread_mutex_unlock(&event->lock);
        break;
    case HOST:
        work->call(work->data);
    }
}

static void *at_work(void *given) {
    struct stream *stream = given;
    for (;;) {
        pthread_mutex_lock(&stream->lock);
        while (!stream->first) pthread_cond_wait(&stream->turned, &stream->lock);
        struct work *work = stream->first;
        if (!(stream->first = work->next)) stream->last = &stream->first;
        stream->busy = 1;
        pthread_mutex_unlock(&stream->lock);
        done(work);
        free(work);
        pthread_mutex_lock(&stream->lock);
        stream->busy = 0;
        pthread_cond_broadcast(&stream->turned);
        pthread_mutex_unlock(&stream->lock);
    }
    return NULL;
}

static int queued(struct stream *stream, struct work work) {
    if (context != &primary) return INVALID_CONTEXT;
    struct work *kept = malloc(sizeof *kept);
    *kept = work;
    kept->next = NULL;
    pthread_mutex_lock(&stream->lock);
    *stream->last = kept;
    stream->last = &kept->next;
    pthread_cond_broadcast(&stream->turned);
    pthread_mutex_unlock(&stream->lock);
    return broken;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? INVALID_VALUE : SUCCESS; }
int cuDevicePrimaryCtxRetain(void **found, int device) { *found = &primary; return device ? INVALID_VALUE : SUCCESS; }
int cuCtxSetCurrent(void *given) { context = given; return given == &primary ? broken : INVALID_VALUE; }
int cuGetErrorName(int error, const char **name) {
    *name = error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : error == NOT_PERMITTED ? "CUDA_ERROR_NOT_PERMITTED" : NULL;
    return *name ? SUCCESS : INVALID_VALUE;
}

int cuStreamCreate(void **found, unsigned flags) {
    struct stream *stream = calloc(1, sizeof *stream);
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->turned, NULL);
    stream->last = &stream->first;
    pthread_t thread;
    *found = stream;
    return flags == 1 && !pthread_create(&thread, NULL, at_work, stream) ? broken : INVALID_VALUE;
}
int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    return flags ? INVALID_VALUE : queued(stream, (struct work){.kind = AFTER, .event = event, .which = event->wanted});
}
int cuStreamSynchronize(struct stream *stream) {
    pthread_mutex_lock(&stream->lock);
    while (stream->first || stream->busy) pthread_cond_wait(&stream->turned, &stream->lock);
    pthread_mutex_unlock(&stream->lock);
    return broken;
}
int cuLaunchHostFunc(struct stream *stream, void (*call)(void *), void *data) {
    return queued(stream, (struct work){.kind = HOST, .call = call, .data = data});
}
static int may_cross(const void *host, size_t size) {
    pthread_mutex_lock(&all);
    int found = !partly(pinned, MOST_PINNED, host, size);
    pthread_mutex_unlock(&all);
    return found;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, struct stream *stream) {
    if (!may_cross(from, size)) return INVALID_VALUE;
    return queued(stream, (struct work){.kind = UP, .to = (void *)to, .from = from, .size = size});
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, struct stream *stream) {
    if (!may_cross(to, size)) return INVALID_VALUE;
    return queued(stream, (struct work){.kind = DOWN, .to = to, .from = (void *)from, .size = size});
}

int cuEventCreate(void **found, unsigned flags) {
    struct event *event = calloc(1, sizeof *event);
    pthread_mutex_init(&event->lock, NULL);
    pthread_cond_init(&event->turned, NULL);
    *found = event;
    return flags == 0 || flags == 2 ? broken : INVALID_VALUE;
}
int cuEventDestroy_v2(struct event *event) { (void)event; return SUCCESS; } /* some stream may still come to it */
int cuEventRecord(struct event *event, struct stream *stream) {
    return queued(stream, (struct work){.kind = RECORD, .event = event, .which = ++event->wanted});
}
int cuEventQuery(struct event *event) { return broken ? broken : event->passed == event->wanted ? SUCCESS : NOT_READY; }
int cuEventSynchronize(struct event *event) {
    pthread_mutex_lock(&event->lock);
    while (event->passed < event->wanted) pthread_cond_wait(&event->turned, &event->lock);
    pthread_mutex_unlock(&event->lock);
    return broken;
}
int cuEventElapsedTime(float *milliseconds, const struct event *from, const struct event *to) {
    *milliseconds = (float)(1000 * (to->at - from->at));
    return broken;
}

static int kept(struct range *ranges, int count, char *begin, size_t size) {
    for (int i = 0; i < count; i++)
        if (!ranges[i].begin) { ranges[i] = (struct range){begin, size}; return 1; }
    return 0;
}
static size_t dropped(struct range *ranges, int count, const char *begin) {
    for (int i = 0; i < count; i++)
        if (ranges[i].begin == begin) { ranges[i].begin = NULL; return ranges[i].size; }
    return 0;
}

int cuMemAlloc_v2(uint64_t *found, size_t size) {
    void *block;
    if (context != &primary) return INVALID_CONTEXT;
    if (!size) return INVALID_VALUE;
    if (!stub_take(size)) return OUT_OF_MEMORY;
    if (posix_memalign(&block, 256, size)) return OUT_OF_MEMORY;
    memset(block, 0xFF, size);
    pthread_mutex_lock(&all);
    int room = kept(blocks, MOST_BLOCKS, block, size);
    pthread_mutex_unlock(&all);
    *found = (uint64_t)block;
    return room ? broken : OUT_OF_MEMORY;
}
int cuMemFree_v2(uint64_t address) {
    if (context != &primary) return INVALID_CONTEXT;
    pthread_mutex_lock(&all);
    size_t size = dropped(blocks, MOST_BLOCKS, (const char *)address);
    pthread_mutex_unlock(&all);
    if (!size) return INVALID_VALUE;
    stub_give(size);
    free((void *)address);
    return broken;
}

int cuMemHostRegister_v2(char *begin, size_t size, unsigned flags) {
    if (context != &primary) return INVALID_CONTEXT;
    if (!pins) return NOT_PERMITTED;
    if (flags != 1 || (uintptr_t)begin % 4096 || size % 4096) return INVALID_VALUE;
    pthread_mutex_lock(&all);
    int result = SUCCESS;
    for (int i = 0; i < MOST_PINNED; i++)
        if (pinned[i].begin && pinned[i].begin < begin + size && begin < pinned[i].begin + pinned[i].size)
            result = ALREADY_PINNED;
    if (!result && !kept(pinned, MOST_PINNED, begin, size)) result = OUT_OF_MEMORY;
    pthread_mutex_unlock(&all);
    return result;
}
int cuMemHostUnregister(const char *begin) {
    pthread_mutex_lock(&all);
    size_t size = dropped(pinned, MOST_PINNED, begin);
    pthread_mutex_unlock(&all);
    return size ? SUCCESS : NOT_PINNED;
}
