/* The type Row: one row asks or tells all tracks at once, in plain Python values. A server's path:
   what it costs is the looking up of keys, not the calls. */

#include "windows.h"

typedef struct {
    Track *track;
    PyObject *held;
    int asked_key, told_key;     /* which of the keys it goes by */
    Py_ssize_t known, value;     /* where they are among what is observed; value -1: none */
    int64_t *given;              /* where its windows are written, in `scratch` */
} Part;

/* The columns of a key, by where they are in a row. */
typedef struct {
    Py_ssize_t *columns;
    Py_ssize_t number;
} Columns;

typedef struct {
    PyObject_HEAD
    Py_ssize_t parts, asked, observed, time;
    Part *part;
    Columns *asked_keys, *told_keys; /* one for each part; the first of equal ones is used */
    Py_ssize_t windows;
    int *owner, *place; /* of each column that is given: its part, and its window there */
    int64_t *scratch;
} Row;

static int read_columns(PyObject *given, Py_ssize_t most, Columns *columns) {
    Py_ssize_t number = PySequence_Size(given);
    if (number < 0) {
        return -1;
    }
    columns->columns = PyMem_Calloc(number ? number : 1, sizeof(Py_ssize_t));
    columns->number = number;
    for (Py_ssize_t i = 0; columns->columns && i < number; i++) {
        PyObject *item = PySequence_GetItem(given, i);
        columns->columns[i] = item ? PyLong_AsSsize_t(item) : -1;
        Py_XDECREF(item);
        if (columns->columns[i] < 0 || columns->columns[i] >= most) {
            PyErr_SetString(PyExc_ValueError, "a row: found a position that it does not have.");
            return -1;
        }
    }
    return columns->columns ? 0 : (PyErr_NoMemory(), -1);
}

/* The first of the keys that is the same as the last one. */
static int same_as(const Columns *keys, int last) {
    for (int i = 0; i < last; i++) {
        if (keys[i].number == keys[last].number &&
            memcmp(keys[i].columns, keys[last].columns,
                   (size_t)keys[i].number * sizeof(Py_ssize_t)) == 0) {
            return i;
        }
    }
    return last;
}

/* (track, asked key, told key, known, value) */
static int read_part(Row *row, PyObject *given, int number, PyTypeObject *tracks) {
    Part *part = &row->part[number];
    PyObject *asked, *told;
    if (!PyArg_ParseTuple(given, "O!OOnn", tracks, &part->held, &asked, &told, &part->known,
                          &part->value)) {
        part->held = NULL;
        return -1;
    }
    Py_INCREF(part->held);
    part->track = (Track *)part->held;
    if (read_columns(asked, row->asked, &row->asked_keys[number]) < 0 ||
        read_columns(told, row->observed, &row->told_keys[number]) < 0) {
        return -1;
    }
    if (part->known < 0 || part->known >= row->observed || part->value >= row->observed ||
        (part->value < 0 && part->track->layout.kind != NONE)) {
        PyErr_SetString(PyExc_ValueError, "a row: found a position that it does not have.");
        return -1;
    }
    part->asked_key = same_as(row->asked_keys, number);
    part->told_key = same_as(row->told_keys, number);
    return 0;
}

/* Say where the windows of all parts are written. */
static int share_scratch(Row *row) {
    size_t all = 0;
    for (int i = 0; i < row->parts; i++) {
        all += row->part[i].track->layout.given;
    }
    row->scratch = all > PY_SSIZE_T_MAX / 8 ? NULL : PyMem_Calloc(all ? all : 1, 8);
    int64_t *at = row->scratch;
    for (int i = 0; row->scratch && i < row->parts; i++) {
        row->part[i].given = at;
        at += row->part[i].track->layout.given;
    }
    return row->scratch ? 0 : (PyErr_NoMemory(), -1);
}

/* Each given column's part and its window there. */
static int read_order(Row *row, PyObject *order) {
    row->windows = PySequence_Size(order);
    Py_ssize_t most = row->windows > 0 ? row->windows : 1;
    row->owner = PyMem_Calloc(most, sizeof(int));
    row->place = PyMem_Calloc(most, sizeof(int));
    if (row->windows < 0 || row->owner == NULL || row->place == NULL) {
        return PyErr_Occurred() ? -1 : (PyErr_NoMemory(), -1);
    }
    for (Py_ssize_t i = 0; i < row->windows; i++) {
        PyObject *pair = PySequence_GetItem(order, i);
        int read = pair && PyArg_ParseTuple(pair, "ii", &row->owner[i], &row->place[i]);
        Py_XDECREF(pair);
        if (!read) {
            return -1;
        }
        if (row->owner[i] < 0 || row->owner[i] >= row->parts || row->place[i] < 0 ||
            row->place[i] >= row->part[row->owner[i]].track->layout.windows) {
            PyErr_SetString(PyExc_ValueError, "a row: found a window that it does not have.");
            return -1;
        }
    }
    return 0;
}

static int fill_row(Row *row, PyObject *parts, PyObject *order, PyTypeObject *tracks) {
    row->parts = PySequence_Size(parts);
    if (row->parts < 0 || row->parts > MOST_WINDOWS) {
        PyErr_SetString(PyExc_ValueError, "a row: found too many tracks.");
        return -1;
    }
    size_t most = row->parts ? (size_t)row->parts : 1;
    row->part = PyMem_Calloc(most, sizeof(Part));
    row->asked_keys = PyMem_Calloc(most, sizeof(Columns));
    row->told_keys = PyMem_Calloc(most, sizeof(Columns));
    if (!row->part || !row->asked_keys || !row->told_keys) {
        return PyErr_NoMemory(), -1;
    }
    for (int i = 0; i < row->parts; i++) {
        PyObject *item = PySequence_GetItem(parts, i);
        int failed = item == NULL || read_part(row, item, i, tracks) < 0;
        Py_XDECREF(item);
        if (failed) {
            return -1;
        }
    }
    return share_scratch(row) < 0 ? -1 : read_order(row, order);
}

/* Row(Track, asked: int, observed: int, time: int, parts, order) */
static PyObject *make_row(PyTypeObject *type, PyObject *arguments, PyObject *words) {
    PyObject *parts, *order, *tracks;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Row *row = (Row *)allocate(type, 0); /* all zeros */
    if (row && PyArg_ParseTuple(arguments, "O!nnnOO", &PyType_Type, &tracks, &row->asked,
                                &row->observed, &row->time, &parts, &order)) {
        if (row->time < 0 || row->time >= row->asked) {
            PyErr_SetString(PyExc_ValueError, "a row: found no place for its time.");
        } else if (fill_row(row, parts, order, (PyTypeObject *)tracks) == 0) {
            return (PyObject *)row;
        }
    }
    Py_XDECREF((PyObject *)row);
    return NULL;
}

static void free_row(PyObject *self) {
    Row *row = (Row *)self;
    PyTypeObject *type = Py_TYPE(self);
    for (Py_ssize_t i = 0; row->part && i < row->parts; i++) {
        Py_XDECREF(row->part[i].held);
    }
    for (Py_ssize_t i = 0; i < row->parts; i++) {
        PyMem_Free(row->asked_keys ? row->asked_keys[i].columns : NULL);
        PyMem_Free(row->told_keys ? row->told_keys[i].columns : NULL);
    }
    PyMem_Free(row->part);
    PyMem_Free(row->asked_keys);
    PyMem_Free(row->told_keys);
    PyMem_Free(row->owner);
    PyMem_Free(row->place);
    PyMem_Free(row->scratch);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* -- values ------------------------------------------------------------------------------------- */

static int read_integer(PyObject *value, int64_t *out) {
    *out = MISSING;
    if (value != Py_None) {
        *out = PyLong_AsLongLong(value);
    }
    return *out == -1 && PyErr_Occurred() ? -1 : 0;
}

static int read_value(int kind, PyObject *value, int64_t *out) {
    uint64_t hash[2];
    double real;
    switch (kind) {
    case WHOLE:
        return read_integer(value, out);
    case NAMED:
        if (hash_value(value, hash) < 0) {
            return -1;
        }
        *out = (int64_t)hash[0];
        return 0;
    default:
        real = value == Py_None ? NAN : PyFloat_AsDouble(value);
        *out = bits_of(real);
        return real == -1.0 && PyErr_Occurred() ? -1 : 0;
    }
}

static int hash_key(const Columns *key, PyObject *values, uint64_t out[2]) {
    uint64_t hashes[2 * 16];
    if (key->number > 16) {
        PyErr_SetString(PyExc_ValueError, "a key: found more than 16 columns.");
        return -1;
    }
    for (Py_ssize_t i = 0; i < key->number; i++) {
        PyObject *value = PyTuple_GetItem(values, key->columns[i]); /* borrowed */
        if (value == NULL || hash_value(value, hashes + 2 * i) < 0) {
            return -1;
        }
    }
    if (key->number == 1) {
        memcpy(out, hashes, 16);
    } else {
        hash_several(hashes, (size_t)key->number, out);
    }
    return 0;
}

static int check_row(PyObject *values, Py_ssize_t allowed) {
    if (!PyTuple_Check(values)) {
        PyErr_Format(PyExc_TypeError, "a row: found %R, allowed: a tuple of values.", values);
        return -1;
    }
    Py_ssize_t found = PyTuple_Size(values);
    if (found >= 0 && found != allowed) {
        PyErr_Format(PyExc_ValueError, "a row: found %zd values, allowed: %zd.", found, allowed);
    }
    return found == allowed ? 0 : -1;
}

static PyObject *value_of(const Layout *layout, const Window *window, int64_t bits) {
    int whole = window->stat == DISTINCT || (window->stat == COUNT && window->count_at < 0) ||
                (window->stat != SUM && window->stat != MEAN && window->stat != SINCE &&
                 window->stat != COUNT && layout->kind == WHOLE);
    return whole ? PyLong_FromLongLong(bits) : PyFloat_FromDouble(double_of(bits));
}

static PyObject *values_of(const Layout *layout, const Window *window, const int64_t *out) {
    if (window->stat != RECENT) {
        return value_of(layout, window, *out);
    }
    PyObject *found = PyTuple_New(window->width);
    for (uint32_t i = 0; found && i < window->width; i++) {
        PyObject *value = value_of(layout, window, out[i]);
        if (value == NULL) {
            Py_DECREF(found);
            return NULL;
        }
        PyTuple_SetItem(found, i, value);
    }
    return found;
}

/* -- asking and telling ------------------------------------------------------------------------- */

/* ask(values: tuple) -> tuple: the values of the columns asked, in order; what they are given. */
static PyObject *row_ask(PyObject *self, PyObject *values) {
    Row *row = (Row *)self;
    uint64_t hashes[2 * MOST_WINDOWS];
    int64_t time;
    if (check_row(values, row->asked) < 0 ||
        read_integer(PyTuple_GetItem(values, row->time), &time) < 0) {
        return NULL;
    }
    for (int i = 0; i < row->parts; i++) {
        if (row->part[i].asked_key == i &&
            hash_key(&row->asked_keys[i], values, hashes + 2 * i) < 0) {
            return NULL;
        }
    }
    for (int i = 0; i < row->parts; i++) {
        Part *part = &row->part[i];
        lock(part->track);
        ask_one(part->track, hashes + 2 * part->asked_key, time, part->given);
        unlock(part->track);
    }
    PyObject *found = PyTuple_New(row->windows);
    for (Py_ssize_t i = 0; found && i < row->windows; i++) {
        const Part *part = &row->part[row->owner[i]];
        const Layout *layout = &part->track->layout;
        const Window *window = &layout->window[row->place[i]];
        PyObject *value = values_of(layout, window, part->given + window->at);
        if (value == NULL) {
            Py_DECREF(found);
            return NULL;
        }
        PyTuple_SetItem(found, i, value);
    }
    return found;
}

/* tell(values: tuple) -> (kept, late, missing): the values of the columns observed, in order. */
static PyObject *row_tell(PyObject *self, PyObject *values) {
    Row *row = (Row *)self;
    uint64_t hashes[2 * MOST_WINDOWS];
    int64_t times[MOST_WINDOWS], told[MOST_WINDOWS];
    if (check_row(values, row->observed) < 0) {
        return NULL;
    }
    for (int i = 0; i < row->parts; i++) { /* nothing is taken of a row that has a mistake */
        const Part *part = &row->part[i];
        told[i] = 0;
        if ((part->told_key == i && hash_key(&row->told_keys[i], values, hashes + 2 * i) < 0) ||
            read_integer(PyTuple_GetItem(values, part->known), &times[i]) < 0 ||
            (part->value >= 0 && read_value(part->track->layout.kind,
                                            PyTuple_GetItem(values, part->value), &told[i]) < 0)) {
            return NULL;
        }
    }
    int counts[3] = {0, 0, 0}; /* late, kept, missing */
    for (int i = 0; i < row->parts; i++) {
        Part *part = &row->part[i];
        lock(part->track);
        int taken = tell_one(part->track, hashes + 2 * part->told_key, times[i], told[i]);
        unlock(part->track);
        if (taken < 0) {
            return PyErr_NoMemory();
        }
        counts[taken]++;
    }
    return Py_BuildValue("iii", counts[1], counts[0], counts[2]);
}

static PyMethodDef methods[] = {
    {"ask", row_ask, METH_O, "What a row is given, in the order of the columns given."},
    {"tell", row_tell, METH_O, "Take in what a row observes: (kept, late, missing)."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make_row}, {Py_tp_dealloc, free_row}, {Py_tp_methods, methods}, {0, NULL},
};

PyType_Spec row_spec = {
    "drivetrain.core.native.windows.Row", sizeof(Row), 0, Py_TPFLAGS_DEFAULT, slots,
};
