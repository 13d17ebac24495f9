/* Values into the buckets of a histogram. */

#include "native.h"

#include <math.h>

#define MOST_BOUNDS 64

/* Add what was counted to a list of counts, which are Python's. */
static int add_counts(PyObject *counts, const int64_t *found, Py_ssize_t size) {
    for (Py_ssize_t place = 0; place < size; place++) {
        if (found[place] == 0) {
            continue;
        }
        long long before = PyLong_AsLongLong(PyList_GetItem(counts, place));
        if (before == -1 && PyErr_Occurred()) {
            return 0;
        }
        PyObject *now = PyLong_FromLongLong(before + found[place]);
        if (now == NULL || PyList_SetItem(counts, place, now) < 0) {
            return 0;
        }
    }
    return 1;
}

static double value_at(const char *memory, Py_ssize_t number, int wide) {
    if (wide) {
        double value;
        memcpy(&value, memory + number * (Py_ssize_t)sizeof value, sizeof value);
        return value;
    }
    float value;
    memcpy(&value, memory + number * (Py_ssize_t)sizeof value, sizeof value);
    return (double)value;
}

/* The finite values of an array of float32 or float64: each is counted in the first bucket whose
   bound it does not exceed. Gives their sum, in the order in which they lie. */
PyObject *observe(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    double bounds[MOST_BOUNDS], sum = 0.0;
    int64_t found[MOST_BOUNDS + 1] = {0};
    Py_buffer array;
    (void)module;
    if (count != 3 || !PyTuple_Check(given[1]) || !PyList_Check(given[2])) {
        PyErr_SetString(PyExc_TypeError, "observe: takes an array, a tuple and a list");
        return NULL;
    }
    Py_ssize_t size = PyTuple_Size(given[1]);
    if (size > MOST_BOUNDS || PyList_Size(given[2]) != size + 1) {
        PyErr_SetString(PyExc_ValueError, "observe: takes up to 64 bounds and one count more");
        return NULL;
    }
    for (Py_ssize_t place = 0; place < size; place++) {
        bounds[place] = PyFloat_AsDouble(PyTuple_GetItem(given[1], place));
        if (bounds[place] == -1.0 && PyErr_Occurred()) {
            return NULL;
        }
    }
    if (PyObject_GetBuffer(given[0], &array, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        return NULL;
    }
    int wide = strcmp(array.format, "d") == 0;
    if (!wide && strcmp(array.format, "f") != 0) {
        PyBuffer_Release(&array);
        PyErr_SetString(PyExc_ValueError, "observe: takes float32 or float64");
        return NULL;
    }
    for (Py_ssize_t number = 0; number < array.len / array.itemsize; number++) {
        double value = value_at(array.buf, number, wide);
        if (!isfinite(value)) { /* such a sum would be lost */
            continue;
        }
        Py_ssize_t place = 0;
        while (place < size && bounds[place] < value) {
            place++;
        }
        found[place]++;
        sum += value;
    }
    PyBuffer_Release(&array);
    return add_counts(given[2], found, size + 1) ? PyFloat_FromDouble(sum) : NULL;
}
