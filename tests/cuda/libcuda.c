/* A CUDA driver for machines without a GPU: "device memory" is the host's, and a copy happens some time after it was asked
 * for, in the order of its stream, on a thread. What a program does too early shows as wrong bytes.
 *
 * Stream 0 is the host itself: a wait of stream 0 for an event waits at once. A copy from memory that is not page-locked
 * is done when the call returns, as the real driver's staging does.
 *
 *   FAKE_CUDA_DELAY_US   how late a copy is (default 1000)
 *   FAKE_CUDA_NO_PIN     memory cannot be page-locked
 *   FAKE_CUDA_NO_WAIT    cuEventSynchronize returns at once: as a program without its wait would behave
 *   FAKE_CUDA_FAIL       the copy of this number fails, counted from 1
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int CUresult;
enum { SUCCESS = 0, NOT_SUPPORTED = 801, NOT_READY = 600, INVALID_DEVICE = 101, ILLEGAL_ADDRESS = 700 };

typedef struct Event {
    int pending; /* records that were asked for and have not happened */
    int holders; /* the caller, and each record on its way */
} Event;

typedef struct Op {
    struct Op *next;
    Event *event; /* a record, if there is one; else a copy */
    void *to;
    const void *from;
    size_t bytes;
} Op;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Op *first, *last;
static int running, depth;
static long copies;
static struct { char *base; size_t bytes; } locked[64];

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static void die(const char *what) {
    fprintf(stderr, "fake libcuda: %s\n", what);
    abort();
}

static void let_go(Event *event) {
    if (--event->holders == 0) free(event);
}

static void *work(void *unused) {
    (void)unused;
    long delay = setting("FAKE_CUDA_DELAY_US", 1000);
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!first) pthread_cond_wait(&changed, &lock);
        Op *op = first;
        pthread_mutex_unlock(&lock);
        if (!op->event) {
            usleep((useconds_t)delay);
            memcpy(op->to, op->from, op->bytes);
        }
        pthread_mutex_lock(&lock);
        if (op->event) {
            op->event->pending--;
            let_go(op->event);
        }
        first = op->next;
        if (!first) last = NULL;
        free(op);
        pthread_cond_broadcast(&changed);
    }
    return NULL;
}

/* With the lock. */
static void queue(Op op) {
    if (!running) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, NULL)) die("no thread");
        pthread_detach(thread);
        running = 1;
    }
    Op *kept = malloc(sizeof *kept);
    *kept = op;
    kept->next = NULL;
    if (last) last->next = kept; else first = kept;
    last = kept;
    pthread_cond_broadcast(&changed);
}

static int is_locked(const char *from, size_t bytes) {
    for (int at = 0; at < 64; at++)
        if (locked[at].base && from >= locked[at].base && from + bytes <= locked[at].base + locked[at].bytes) return 1;
    return 0;
}

CUresult cuInit(unsigned flags) { (void)flags; return SUCCESS; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < 2 ? SUCCESS : INVALID_DEVICE; }
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 1); return SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return SUCCESS; }
CUresult cuCtxPushCurrent_v2(void *context) { (void)context; __sync_add_and_fetch(&depth, 1); return SUCCESS; }
CUresult cuCtxPopCurrent_v2(void **context) {
    (void)context;
    if (__sync_sub_and_fetch(&depth, 1) < 0) die("a context was popped that nobody pushed");
    return SUCCESS;
}

CUresult cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    Event *made = calloc(1, sizeof *made);
    made->holders = 1;
    *event = made;
    return SUCCESS;
}

CUresult cuEventDestroy_v2(void *event) {
    pthread_mutex_lock(&lock);
    let_go(event);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuEventRecord(void *handle, void *stream) {
    (void)stream;
    Event *event = handle;
    pthread_mutex_lock(&lock);
    event->pending++;
    event->holders++;
    queue((Op){.event = event});
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

static CUresult wait_for(Event *event) {
    pthread_mutex_lock(&lock);
    while (event->pending) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuEventSynchronize(void *event) { return getenv("FAKE_CUDA_NO_WAIT") ? SUCCESS : wait_for(event); }

CUresult cuEventQuery(void *handle) {
    pthread_mutex_lock(&lock);
    int pending = ((Event *)handle)->pending;
    pthread_mutex_unlock(&lock);
    return pending ? NOT_READY : SUCCESS;
}

CUresult cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)flags;
    if (stream) die("only the host's stream can wait here");
    return wait_for(event);
}

CUresult cuStreamSynchronize(void *stream) {
    (void)stream;
    pthread_mutex_lock(&lock);
    while (first) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    pthread_mutex_lock(&lock);
    if (++copies == setting("FAKE_CUDA_FAIL", -1)) {
        pthread_mutex_unlock(&lock);
        return ILLEGAL_ADDRESS;
    }
    if (is_locked(from, bytes)) {
        queue((Op){.to = (void *)to, .from = from, .bytes = bytes});
    } else {
        while (first) pthread_cond_wait(&changed, &lock);
        memcpy((void *)to, from, bytes);
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuMemHostRegister_v2(void *base, size_t bytes, unsigned flags) {
    (void)flags;
    if (getenv("FAKE_CUDA_NO_PIN")) return NOT_SUPPORTED;
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < 64 && locked[at].base) at++;
    if (at == 64) die("too many regions");
    locked[at].base = base;
    locked[at].bytes = bytes;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuMemHostUnregister(void *base) {
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < 64 && locked[at].base != base) at++;
    if (at == 64) die("unlocked what is not locked");
    for (Op *op = first; op; op = op->next)
        if (!op->event && (char *)op->from >= locked[at].base && (char *)op->from < locked[at].base + locked[at].bytes)
            die("memory was unlocked while a copy reads it");
    locked[at].base = NULL;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == NOT_SUPPORTED ? "operation not supported" : error == ILLEGAL_ADDRESS ? "an illegal memory access" : "an error";
    return SUCCESS;
}
