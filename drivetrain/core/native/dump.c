/* Whole tracks as bytes, and back; and single keys, for a store that holds each under its own name.

   A track: how many keys (8 bytes), the watermark (8), then each key in the order of their hashes:
   the hash (16), how many bytes (8), and these. Whoever keeps it adds a check of it all. */

#include "windows.h"

typedef struct {
    Key **keys;
    uint64_t number;
    size_t bytes;
} Sorted;

static int by_hash(const void *one, const void *other) {
    const uint64_t *a = (*(Key *const *)one)->hash, *b = (*(Key *const *)other)->hash;
    if (a[0] != b[0]) {
        return a[0] < b[0] ? -1 : 1;
    }
    return (a[1] > b[1]) - (a[1] < b[1]);
}

static int sort_keys(Track *track, Sorted *sorted) {
    uint64_t all = 0;
    for (int i = 0; i < SHARDS; i++) {
        all += track->shards[i].used;
    }
    sorted->keys = malloc((all ? all : 1) * sizeof *sorted->keys);
    if (sorted->keys == NULL) {
        return -1;
    }
    sorted->number = 0;
    sorted->bytes = 16;
    for (int i = 0; i < SHARDS; i++) {
        const Shard *shard = &track->shards[i];
        for (uint64_t at = 0; at < shard->size; at++) {
            Key *key = shard->slots[at].key;
            if (key) {
                sorted->keys[sorted->number++] = key;
                sorted->bytes += 24 + size_of_key(&track->layout, key);
            }
        }
    }
    qsort(sorted->keys, all, sizeof *sorted->keys, by_hash);
    return 0;
}

static char *written(Track *track, size_t *bytes) {
    Sorted sorted = {NULL, 0, 0};
    char *data = sort_keys(track, &sorted) < 0 ? NULL : malloc(sorted.bytes);
    *bytes = sorted.bytes;
    if (data) {
        memcpy(data, &sorted.number, 8);
        memcpy(data + 8, &track->watermark, 8);
    }
    char *at = data + 16;
    for (uint64_t i = 0; data && i < sorted.number; i++) {
        uint64_t size = size_of_key(&track->layout, sorted.keys[i]);
        memcpy(at, sorted.keys[i]->hash, 16);
        memcpy(at + 16, &size, 8);
        if (write_key(track, sorted.keys[i], at + 24) < 0) {
            free(data);
            data = NULL;
        }
        at += 24 + size;
    }
    free(sorted.keys);
    return data;
}

PyObject *dump(PyObject *self, PyObject *nothing) {
    size_t bytes;
    char *data;
    Py_BEGIN_ALLOW_THREADS
    lock((Track *)self);
    data = written((Track *)self, &bytes);
    unlock((Track *)self);
    Py_END_ALLOW_THREADS
    if (data == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *found = PyBytes_FromStringAndSize(data, (Py_ssize_t)bytes);
    free(data);
    return found;
}

/* Put in a key that was read, which is given up where that fails; `wrong` NULL: no memory. */
static int put_read(Track *track, const uint64_t hash[2], const char *data, size_t size,
                    const char **wrong) {
    Shard *shard = &track->shards[SHARD_OF(hash)];
    Key *key = read_key(track, hash, data, size, wrong);
    if (key == NULL) {
        return -1;
    }
    if (put_key(&track->layout, shard, key) < 0) {
        free_key(key);
        *wrong = NULL;
        return -1;
    }
    return 0;
}

static int load_all(Track *track, const char *data, size_t size, const char **wrong) {
    const char *at = data + 16, *end = data + size;
    uint64_t number, bytes, hash[2], last[2] = {0, 0};
    int64_t watermark;
    *wrong = "found other bytes than were written";
    if (size < 16) {
        return -1;
    }
    memcpy(&number, data, 8);
    memcpy(&watermark, data + 8, 8);
    for (uint64_t i = 0; i < number; i++) {
        if (end - at < 24) {
            return -1;
        }
        memcpy(hash, at, 16);
        memcpy(&bytes, at + 16, 8);
        at += 24;
        int rises = hash[0] > last[0] || (hash[0] == last[0] && hash[1] > last[1]);
        if (!rises || bytes > (uint64_t)(end - at)) {
            return -1;
        }
        if (put_read(track, hash, at, bytes, wrong) < 0) {
            return -1;
        }
        *wrong = "found other bytes than were written";
        at += bytes;
        memcpy(last, hash, 16);
    }
    track->watermark = watermark;
    return at == end ? 0 : -1;
}

static PyObject *refused(const char *wrong) {
    if (wrong == NULL) {
        return PyErr_NoMemory();
    }
    PyErr_SetString(PyExc_ValueError, wrong);
    return NULL;
}

PyObject *load(PyObject *self, PyObject *data) {
    Track *track = (Track *)self;
    Py_buffer buffer;
    const char *wrong = NULL;
    if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    int failed;
    Py_BEGIN_ALLOW_THREADS
    lock(track);
    for (int i = 0; i < SHARDS; i++) {
        clear(&track->shards[i]);
    }
    failed = load_all(track, buffer.buf, (size_t)buffer.len, &wrong);
    for (int i = 0; failed && i < SHARDS; i++) {
        clear(&track->shards[i]);
    }
    unlock(track);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&buffer);
    return failed ? refused(wrong) : Py_NewRef(Py_None);
}

/* dump_key(hash, hash) -> bytes; b"" where there is no such key. */
PyObject *dump_key(PyObject *self, PyObject *arguments) {
    Track *track = (Track *)self;
    unsigned long long first, second;
    if (!PyArg_ParseTuple(arguments, "KK", &first, &second)) {
        return NULL;
    }
    uint64_t hash[2] = {first, second};
    char *data = NULL;
    size_t bytes = 0;
    int failed = 0;
    lock(track);
    Key **key = find(&track->shards[SHARD_OF(hash)], hash);
    if (key) {
        bytes = size_of_key(&track->layout, *key);
        data = malloc(bytes);
        failed = data == NULL || write_key(track, *key, data) < 0;
    }
    unlock(track);
    PyObject *found = failed ? PyErr_NoMemory() : PyBytes_FromStringAndSize(data, (Py_ssize_t)bytes);
    free(data);
    return found;
}

/* load_key(hash, hash, data): an empty blob is a key that has observed nothing. */
PyObject *load_key(PyObject *self, PyObject *arguments) {
    Track *track = (Track *)self;
    unsigned long long first, second;
    const char *data, *wrong = NULL;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "KKy#", &first, &second, &data, &size)) {
        return NULL;
    }
    uint64_t hash[2] = {first, second};
    int failed = 0;
    lock(track);
    Shard *shard = &track->shards[SHARD_OF(hash)];
    Key *key = size ? read_key(track, hash, data, (size_t)size, &wrong) : NULL;
    failed = size && key == NULL;
    if (!failed && find(shard, hash)) {
        remove_at(&track->layout, shard, slot_of(shard, hash));
    }
    if (key) {
        int64_t resolution = track->layout.resolution;
        int64_t told = less(TIMES(&track->layout, key)[key->end - 1], resolution ? resolution - 1 : 0);
        if (put_key(&track->layout, shard, key) < 0) {
            free_key(key);
            failed = 1;
            wrong = NULL;
        } else if (track->watermark == MISSING || told > track->watermark) {
            track->watermark = told;
        }
    }
    unlock(track);
    return failed ? refused(wrong) : Py_NewRef(Py_None);
}
