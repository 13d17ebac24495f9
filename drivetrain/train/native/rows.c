/* drivetrain.train.native.rows: one step of an optimizer for the rows of a table that a batch took.

   Gradients of a row that was taken several times are summed in their order, in float32, and the row
   is updated once. What a row's place among those is stands in a scratch of one number for each row of
   the table, so that nothing is sorted. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { SGD, ADAGRAD, ROWWISE, ADAM, KINDS };
enum { AHEAD = 16 };

typedef struct {
    int kind;
    Py_ssize_t dim;
    float lr, one, two;
} Rule;

static void update_row(const Rule *rule, float *value, const float *gradient, float *first,
                       float *second) {
    Py_ssize_t dim = rule->dim;
    const float lr = rule->lr;
    switch (rule->kind) {
    case SGD:
        for (Py_ssize_t i = 0; i < dim; i++) {
            value[i] -= lr * gradient[i];
        }
        break;
    case ADAGRAD:
        for (Py_ssize_t i = 0; i < dim; i++) {
            first[i] += gradient[i] * gradient[i];
            value[i] -= lr * (gradient[i] / (sqrtf(first[i]) + 1e-10f));
        }
        break;
    case ROWWISE: {
        float squares = 0;
        for (Py_ssize_t i = 0; i < dim; i++) {
            squares += gradient[i] * gradient[i];
        }
        first[0] += squares / (float)dim;
        const float scale = lr / (sqrtf(first[0]) + 1e-10f);
        for (Py_ssize_t i = 0; i < dim; i++) {
            value[i] -= scale * gradient[i];
        }
        break;
    }
    default:
        for (Py_ssize_t i = 0; i < dim; i++) {
            first[i] += (gradient[i] - first[i]) * rule->one;
            second[i] += (gradient[i] * gradient[i] - second[i]) * rule->two;
            value[i] -= lr * (first[i] / (sqrtf(second[i]) + 1e-8f));
        }
    }
}

/* Sums the gradients of each row; gives how many rows there are, or -1 at an id beyond them. */
static Py_ssize_t sum_rows(const int64_t *ids, Py_ssize_t count, const float *gradients,
                           Py_ssize_t dim, int64_t rows, int32_t *places, int64_t *taken,
                           float *sums) {
    Py_ssize_t found = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (i + AHEAD < count && (uint64_t)ids[i + AHEAD] < (uint64_t)rows) {
            __builtin_prefetch(&places[ids[i + AHEAD]], 1);
        }
        const int64_t row = ids[i];
        if ((uint64_t)row >= (uint64_t)rows) {
            for (Py_ssize_t j = 0; j < found; j++) {
                places[taken[j]] = -1;
            }
            return -1;
        }
        const float *gradient = gradients + i * dim;
        int32_t place = places[row];
        if (place < 0) {
            places[row] = (int32_t)found;
            memcpy(sums + found * dim, gradient, (size_t)dim * sizeof(float));
            taken[found++] = row;
            continue;
        }
        float *sum = sums + (Py_ssize_t)place * dim;
        for (Py_ssize_t j = 0; j < dim; j++) {
            sum[j] += gradient[j];
        }
    }
    return found;
}

typedef struct {
    Py_buffer table, first, second, ids, gradients, places, taken, sums;
} Buffers;

static void release(Buffers *all) {
    Py_buffer *each = (Py_buffer *)all;
    for (size_t i = 0; i < sizeof *all / sizeof *each; i++) {
        PyBuffer_Release(&each[i]);
    }
}

static int fits(const Py_buffer *buffer, const char *name, Py_ssize_t size) {
    if (buffer->len >= size) {
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "%s: found %zd bytes, allowed: at least %zd", name, buffer->len,
                 size);
    return 0;
}

static PyObject *update(PyObject *module, PyObject *arguments) {
    Buffers all;
    Rule rule;
    float scale;
    memset(&all, 0, sizeof all);
    if (!PyArg_ParseTuple(arguments, "inw*w*w*y*y*w*w*w*ffff", &rule.kind, &rule.dim, &all.table,
                          &all.first, &all.second, &all.ids, &all.gradients, &all.places,
                          &all.taken, &all.sums, &rule.lr, &rule.one, &rule.two, &scale)) {
        release(&all);
        return NULL;
    }
    const Py_ssize_t dim = rule.dim, count = all.ids.len / (Py_ssize_t)sizeof(int64_t);
    const Py_ssize_t row = dim * (Py_ssize_t)sizeof(float);
    const Py_ssize_t rows = dim > 0 ? all.table.len / row : 0;
    const Py_ssize_t widths[KINDS][2] = {{0, 0}, {row, 0}, {sizeof(float), 0}, {row, row}};
    if (dim < 1 || rule.kind < 0 || rule.kind >= KINDS || count > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "no such rule, no columns, or too many ids");
    }
    if (PyErr_Occurred() || !fits(&all.first, "first", rows * widths[rule.kind][0]) ||
        !fits(&all.second, "second", rows * widths[rule.kind][1]) ||
        !fits(&all.gradients, "gradients", count * row) ||
        !fits(&all.places, "places", rows * (Py_ssize_t)sizeof(int32_t)) ||
        !fits(&all.taken, "taken", count * (Py_ssize_t)sizeof(int64_t)) ||
        !fits(&all.sums, "sums", count * row)) {
        release(&all);
        return NULL;
    }
    Py_ssize_t found;
    Py_BEGIN_ALLOW_THREADS;
    int64_t *taken = all.taken.buf;
    int32_t *places = all.places.buf;
    float *sums = all.sums.buf, *table = all.table.buf;
    float *first = all.first.buf, *second = all.second.buf;
    const Py_ssize_t one = widths[rule.kind][0] / (Py_ssize_t)sizeof(float);
    const Py_ssize_t two = widths[rule.kind][1] / (Py_ssize_t)sizeof(float);
    found = sum_rows(all.ids.buf, count, all.gradients.buf, dim, rows, places, taken, sums);
    for (Py_ssize_t i = 0; i < found; i++) {
        if (i + AHEAD < found) {
            __builtin_prefetch(&table[taken[i + AHEAD] * dim], 1);
            __builtin_prefetch(&first[taken[i + AHEAD] * one], 1);
        }
        float *gradient = sums + i * dim;
        if (scale != 1.0f) {
            for (Py_ssize_t j = 0; j < dim; j++) {
                gradient[j] *= scale;
            }
        }
        update_row(&rule, table + taken[i] * dim, gradient, first + taken[i] * one,
                   second + taken[i] * two);
        places[taken[i]] = -1;
    }
    Py_END_ALLOW_THREADS;
    release(&all);
    if (found < 0) {
        PyErr_SetString(PyExc_IndexError, "an id lies beyond the table");
        return NULL;
    }
    return PyLong_FromSsize_t(found);
}

static PyMethodDef methods[] = {
    {"update", update, METH_VARARGS,
     "update(kind, dim, table, first, second, ids, gradients, places, taken, sums, lr, one, two, "
     "scale): how many rows were updated."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "rows", "Updates of the rows that a batch took.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_rows(void) { return PyModuleDef_Init(&definition); }
