/* The type Track: all keys of a track, its watermark, and what is asked of it as a whole. */

#include "windows.h"

/* Nobody waits for Python's lock while holding this one. */
void lock(Track *track) { pthread_mutex_lock(&track->lock); }

void unlock(Track *track) { pthread_mutex_unlock(&track->lock); }

static int check(const Layout *layout) {
    int wrong = layout->kind < NONE || layout->kind >= KINDS || layout->resolution < 0 ||
                layout->lateness < 0 || layout->forgotten < 1 || layout->forgotten > 1000;
    for (int i = 0; i < layout->windows; i++) {
        const Window *window = &layout->window[i];
        wrong |= window->stat < 0 || window->stat >= STATS || window->over < 0;
        wrong |= window->stat == RECENT && window->rows == 0;
        wrong |= layout->kind == NONE && window->stat != COUNT && window->stat != SINCE;
    }
    for (int i = 0; i < layout->decays; i++) {
        wrong |= layout->decay[i].half_life < 1;
    }
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, "a track: found what no window can ask for.");
    }
    return wrong ? -1 : 0;
}

/* Track(kind, resolution, lateness, forgotten, digest, windows) */
static PyObject *make_track(PyTypeObject *type, PyObject *arguments, PyObject *words) {
    long long resolution, lateness, forgotten;
    int kind;
    const char *digest;
    Py_ssize_t size;
    PyObject *windows;
    if (!PyArg_ParseTuple(arguments, "iLLLy#O", &kind, &resolution, &lateness, &forgotten, &digest,
                          &size, &windows)) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Track *track = (Track *)allocate(type, 0); /* all zeros */
    if (track == NULL) {
        return NULL;
    }
    track->layout.kind = kind;
    track->layout.resolution = resolution;
    track->layout.lateness = lateness;
    track->layout.forgotten = forgotten;
    track->watermark = MISSING;
    track->locked = pthread_mutex_init(&track->lock, NULL) == 0;
    if (size != sizeof track->digest) {
        PyErr_SetString(PyExc_ValueError, "a track's digest has 16 bytes.");
    } else if (!track->locked) {
        PyErr_NoMemory();
    } else {
        memcpy(track->digest, digest, sizeof track->digest);
        if (lay_out(&track->layout, windows) == 0 && check(&track->layout) == 0) {
            return (PyObject *)track;
        }
    }
    Py_DECREF(track);
    return NULL;
}

static void free_track(PyObject *self) {
    Track *track = (Track *)self;
    PyTypeObject *type = Py_TYPE(self);
    for (int i = 0; i < SHARDS; i++) {
        clear(&track->shards[i]);
    }
    lay_down(&track->layout);
    if (track->locked) {
        pthread_mutex_destroy(&track->lock);
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* Forget the keys of a part that have had no news since before `oldest`. */
static uint64_t expire_part(const Layout *layout, Shard *shard, int64_t oldest) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < shard->size;) {
        const Key *key = shard->slots[i].key;
        if (key && TIMES(layout, key)[key->end - 1] < oldest) {
            remove_at(layout, shard, i); /* another one may come into its place */
            found++;
        } else {
            i++;
        }
    }
    if (found) {
        shrink(shard);
    }
    return found;
}

static PyObject *expire(PyObject *self, PyObject *now) {
    Track *track = (Track *)self;
    long long time = PyLong_AsLongLong(now);
    if (time == -1 && PyErr_Occurred()) {
        return NULL;
    }
    uint64_t found = 0;
    if (track->layout.longest) {
        Py_BEGIN_ALLOW_THREADS
        lock(track);
        for (int i = 0; i < SHARDS; i++) {
            found += expire_part(&track->layout, &track->shards[i],
                                 less(time, track->layout.longest));
        }
        unlock(track);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromUnsignedLongLong(found);
}

static PyObject *drop_key(PyObject *self, PyObject *arguments) {
    Track *track = (Track *)self;
    unsigned long long first, second;
    if (!PyArg_ParseTuple(arguments, "KK", &first, &second)) {
        return NULL;
    }
    uint64_t hash[2] = {first, second};
    lock(track);
    Shard *shard = &track->shards[SHARD_OF(hash)];
    int there = find(shard, hash) != NULL;
    if (there) {
        remove_at(&track->layout, shard, slot_of(shard, hash));
        shrink(shard);
    }
    unlock(track);
    return PyBool_FromLong(there);
}

static PyObject *keys(PyObject *self, void *nothing) {
    Track *track = (Track *)self;
    uint64_t found = 0;
    lock(track);
    for (int i = 0; i < SHARDS; i++) {
        found += track->shards[i].used;
    }
    unlock(track);
    return PyLong_FromUnsignedLongLong(found);
}

static PyObject *bytes(PyObject *self, void *nothing) {
    Track *track = (Track *)self;
    uint64_t found = sizeof *track;
    lock(track);
    for (int i = 0; i < SHARDS; i++) {
        found += track->shards[i].bytes + track->shards[i].size * sizeof(Slot);
    }
    unlock(track);
    return PyLong_FromUnsignedLongLong(found);
}

static PyObject *watermark(PyObject *self, void *nothing) {
    int64_t found = ((Track *)self)->watermark;
    return found == MISSING ? Py_NewRef(Py_None) : PyLong_FromLongLong(found);
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS, "Rows ask and tell in order."},
    {"expire", expire, METH_O, "Forget keys all of whose windows are empty."},
    {"drop_key", drop_key, METH_VARARGS, "Forget one key; whether it was there."},
    {"dump", dump, METH_NOARGS, "All keys, as bytes."},
    {"load", load, METH_O, "Take what dump gave into a track that has no keys."},
    {"dump_key", dump_key, METH_VARARGS, "One key, as bytes; none are empty."},
    {"load_key", load_key, METH_VARARGS, "Put one key in, or in place of the one that is there."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"keys", keys, NULL, "How many keys are kept.", NULL},
    {"bytes", bytes, NULL, "The memory that they take.", NULL},
    {"watermark", watermark, NULL, "The latest time that was told, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make_track}, {Py_tp_dealloc, free_track},
    {Py_tp_methods, methods}, {Py_tp_getset, getters}, {0, NULL},
};

PyType_Spec track_spec = {
    "drivetrain.core.native.windows.Track", sizeof(Track), 0,
    Py_TPFLAGS_DEFAULT, slots,
};
