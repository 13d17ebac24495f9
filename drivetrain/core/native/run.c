/* Many rows at once: each asks, tells or does both, in order; keys are dealt out to threads. */

#include <stdatomic.h>

#include "windows.h"

/* So many rows are dealt out at a time: what they read and write stays near the processor. */
#define AT_ONCE (UINT32_C(1) << 18)
/* Fewer are not worth dealing out. */
#define FEW (UINT32_C(1) << 13)

typedef struct {
    Track *track;
    const uint64_t *keys;
    const int64_t *asked, *told, *values;
    const uint8_t *kinds;
    int64_t **outs;
    size_t rows;
    int threads;
    int alone; /* only what a key itself was told says what is late */
    int64_t kept, late, missing;
    /* Of the rows that are dealt out: what is left for each to do, and their order by part. */
    size_t from;
    uint8_t *deeds;
    uint32_t *order, starts[SHARDS + 1];
    atomic_int next, failed;
} Run;

int64_t rounded_up(int64_t time, int64_t resolution) {
    if (resolution == 0) {
        return time;
    }
    int64_t rest = time % resolution, found;
    if (rest == 0) {
        return time;
    }
    int64_t down = rest > 0 ? resolution - rest : -rest;
    return __builtin_add_overflow(time, down, &found) ? INT64_MAX : found;
}

/* A value as it is kept. Gives 0 for one that is missing: too large a float is one, too. */
int encoded(int kind, int64_t given, int64_t *value) {
    *value = given;
    if (kind == REAL) {
        double real = double_of(given);
        if (!(real >= -0x1p62 && real <= 0x1p62)) {
            return 0;
        }
        *value = in_order(bits_of(real + 0.0)); /* there is one zero */
        return 1;
    }
    return kind == NONE || given != (kind == NAMED ? 0 : MISSING);
}

static int is_missing(const uint64_t hash[2]) { return hash[0] == 0 && hash[1] == 0; }

/* Whether what became known at `time` is in time; moves the watermark. */
static int in_time(Track *track, int64_t time) {
    if (track->watermark == MISSING || time > track->watermark) {
        track->watermark = time;
        return 1;
    }
    return time >= less(track->watermark, track->layout.lateness);
}

/* Put an observation that is in time into its key. */
static int take_in(Track *track, const uint64_t hash[2], int64_t time, int64_t value) {
    const Layout *layout = &track->layout;
    Shard *shard = &track->shards[SHARD_OF(hash)];
    Key **key = find_or_make(layout, shard, hash);
    if (key == NULL) {
        return -1;
    }
    uint32_t room = (*key)->room;
    int taken = tell(layout, key, rounded_up(time, layout->resolution), value);
    if ((*key)->room != room) {
        shard->bytes += bytes_of(layout, (*key)->room) - bytes_of(layout, room);
    }
    return taken;
}

int tell_one(Track *track, const uint64_t hash[2], int64_t time, int64_t value) {
    int64_t kept;
    if (is_missing(hash) || time == MISSING || !encoded(track->layout.kind, value, &kept)) {
        return 2;
    }
    return in_time(track, time) ? take_in(track, hash, time, kept) : 0;
}

/* NULL: nothing is known of it. */
Key *key_of(Track *track, const uint64_t hash[2]) {
    Key **found = is_missing(hash) ? NULL : find(&track->shards[SHARD_OF(hash)], hash);
    return found ? *found : NULL;
}

/* What there is left to do for a row, once it is known whether what it tells is taken. */
static int deed_of(Run *run, size_t row) {
    int deed = run->kinds ? run->kinds[row] & (ASK | TELL) : ASK;
    if (deed & TELL) {
        int64_t time = run->told[row], value;
        if (is_missing(run->keys + 2 * row) || time == MISSING ||
            !encoded(run->track->layout.kind, run->values ? run->values[row] : 0, &value)) {
            run->missing++;
            deed &= ~TELL;
        } else if (!run->alone && !in_time(run->track, time)) {
            run->late++;
            deed &= ~TELL;
        }
    }
    return deed;
}

static int do_row(Run *run, size_t row, int deed, int64_t *late) {
    Track *track = run->track;
    const Layout *layout = &track->layout;
    const uint64_t *hash = run->keys + 2 * row;
    if (run->outs && deed & ASK) {
        ask(layout, key_of(track, hash), run->asked[row], run->outs, row);
    } else if (run->outs) {
        ask(layout, NULL, MISSING, run->outs, row);
    }
    if (deed & TELL) {
        int64_t value = 0;
        encoded(layout->kind, run->values ? run->values[row] : 0, &value);
        int taken = take_in(track, hash, run->told[row], value);
        *late += taken == 0;
        return taken < 0 ? -1 : 0;
    }
    return 0;
}

static void *work(void *argument) {
    Run *run = argument;
    int64_t late = 0;
    for (int part; !run->failed && (part = run->next++) < SHARDS;) {
        for (uint32_t i = run->starts[part]; i < run->starts[part + 1]; i++) {
            uint32_t row = run->order[i];
            if (do_row(run, run->from + row, run->deeds[row], &late) < 0) {
                run->failed = 1;
                break;
            }
        }
    }
    return (void *)(intptr_t)late;
}

/* Let the threads, of which the caller is one, do the rows that are dealt out. */
static void work_together(Run *run) {
    pthread_t threads[64];
    int started = 0;
    run->next = 0;
    while (started < run->threads - 1 && started < 64 &&
           pthread_create(&threads[started], NULL, work, run) == 0) {
        started++; /* one that cannot be started is done without */
    }
    run->late += (intptr_t)work(run);
    while (started) {
        void *late = NULL;
        pthread_join(threads[--started], &late);
        run->late += (intptr_t)late;
    }
}

/* Deal out rows [from, from + number) by the part that their key is in, in their order. */
static void deal(Run *run, size_t from, uint32_t number) {
    uint32_t *starts = run->starts;
    memset(starts, 0, sizeof run->starts);
    run->from = from;
    for (uint32_t i = 0; i < number; i++) {
        run->deeds[i] = (uint8_t)deed_of(run, from + i);
        starts[SHARD_OF(run->keys + 2 * (from + i)) + 1]++;
    }
    for (int part = 0; part < SHARDS; part++) {
        starts[part + 1] += starts[part];
    }
    uint32_t places[SHARDS];
    memcpy(places, starts, sizeof places);
    for (uint32_t i = 0; i < number; i++) {
        run->order[places[SHARD_OF(run->keys + 2 * (from + i))]++] = i;
    }
}

static int run_few(Run *run) {
    for (size_t row = 0; row < run->rows; row++) {
        if (do_row(run, row, deed_of(run, row), &run->late) < 0) {
            return -1;
        }
    }
    return 0;
}

static int run_all(Run *run) {
    if (run->rows < FEW) {
        return run_few(run);
    }
    run->deeds = malloc(AT_ONCE);
    run->order = malloc(AT_ONCE * sizeof *run->order);
    run->failed = run->deeds == NULL || run->order == NULL;
    for (size_t from = 0; from < run->rows && !run->failed; from += AT_ONCE) {
        size_t rest = run->rows - from;
        deal(run, from, rest < AT_ONCE ? (uint32_t)rest : AT_ONCE);
        work_together(run);
    }
    free(run->deeds);
    free(run->order);
    return run->failed ? -1 : 0;
}

/* -- as Python calls it ------------------------------------------------------------------------- */

enum { KEYS, ASKED, TOLD, GIVEN, DEEDS, INPUTS };

static int take_buffer(PyObject *given, Py_buffer *buffer, Py_ssize_t bytes, int writable) {
    if (PyObject_GetBuffer(given, buffer, writable ? PyBUF_CONTIG : PyBUF_CONTIG_RO) < 0) {
        return -1;
    }
    if (buffer->len != bytes) {
        PyErr_Format(PyExc_ValueError, "an array: found %zd bytes, allowed: %zd.", buffer->len,
                     bytes);
        PyBuffer_Release(buffer);
        return -1;
    }
    return 0;
}

/* Fill in where the outputs of a run lie; gives how many buffers are held. */
static int take_outs(Run *run, PyObject *outs, Py_buffer *buffers) {
    const Layout *layout = &run->track->layout;
    if (PySequence_Size(outs) != layout->windows) {
        PyErr_SetString(PyExc_ValueError, "outputs: allowed: one array for each window.");
        return 0;
    }
    for (int i = 0; i < layout->windows; i++) {
        PyObject *out = PySequence_GetItem(outs, i);
        Py_ssize_t bytes = (Py_ssize_t)run->rows * 8 * layout->window[i].width;
        int failed = out == NULL || take_buffer(out, &buffers[i], bytes, 1) < 0;
        Py_XDECREF(out);
        if (failed) {
            return i;
        }
        run->outs[i] = buffers[i].buf;
    }
    return layout->windows;
}

static int run_held(Run *run, PyObject *outs) {
    int windows = run->track->layout.windows, held = 0, failed = 0;
    Py_buffer *buffers = PyMem_Calloc(windows ? windows : 1, sizeof *buffers);
    int64_t **found = PyMem_Calloc(windows ? windows : 1, sizeof *found);
    if (buffers == NULL || found == NULL) {
        PyErr_NoMemory();
        failed = -1;
    } else if (outs != Py_None) {
        run->outs = found;
        held = take_outs(run, outs, buffers);
        failed = PyErr_Occurred() ? -1 : 0;
    }
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        lock(run->track);
        failed = run_all(run);
        unlock(run->track);
        Py_END_ALLOW_THREADS
        if (failed) {
            PyErr_NoMemory();
        }
    }
    while (held) {
        PyBuffer_Release(&buffers[--held]);
    }
    PyMem_Free(buffers);
    PyMem_Free(found);
    return failed;
}

/* run(keys, asked, told, values, kinds, outs, threads, alone) -> (late, missing, tells)
   keys: uint64 [n, 2]; asked, told: int64 [n] or None; values: 8 bytes [n] or None;
   kinds: uint8 [n] or None: all ask; outs: arrays of 8 bytes [n, width], or None. */
PyObject *run(PyObject *self, PyObject *arguments) {
    PyObject *given[INPUTS], *outs;
    Run run = {.track = (Track *)self};
    if (!PyArg_ParseTuple(arguments, "OOOOOOi|i", &given[KEYS], &given[ASKED], &given[TOLD],
                          &given[GIVEN], &given[DEEDS], &outs, &run.threads, &run.alone)) {
        return NULL;
    }
    Py_ssize_t rows = PyObject_Size(given[KEYS]);
    static const Py_ssize_t sizes[INPUTS] = {16, 8, 8, 8, 1};
    Py_buffer buffers[INPUTS];
    const void *arrays[INPUTS] = {NULL};
    int held = 0, failed = rows < 0;
    for (; !failed && held < INPUTS; held++) {
        if (given[held] == Py_None && held != KEYS) {
            buffers[held] = (Py_buffer){NULL};
            continue;
        }
        failed = take_buffer(given[held], &buffers[held], rows * sizes[held], 0) < 0;
        if (failed) {
            break;
        }
        arrays[held] = buffers[held].buf;
    }
    run.rows = (size_t)rows;
    run.keys = arrays[KEYS];
    run.asked = arrays[ASKED];
    run.told = arrays[TOLD];
    run.values = arrays[GIVEN];
    run.kinds = arrays[DEEDS];
    if (!failed && ((run.kinds && run.told == NULL) || (outs != Py_None && run.asked == NULL) ||
                    (run.values == NULL && run.kinds && run.track->layout.kind != NONE))) {
        PyErr_SetString(PyExc_ValueError, "run: found None, allowed: times and values.");
        failed = 1;
    }
    failed = failed || run_held(&run, outs) < 0;
    while (held) {
        if (arrays[--held]) {
            PyBuffer_Release(&buffers[held]);
        }
    }
    return failed ? NULL : Py_BuildValue("LL", (long long)run.late, (long long)run.missing);
}
