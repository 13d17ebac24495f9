/* Many rows at once as Python calls it: arrays in, arrays out. */

#include "run.h"

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
        free(run->deeds);
        free(run->given);
        free(run->places);
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
