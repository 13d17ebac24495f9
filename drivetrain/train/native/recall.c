/* drivetrain.train.native.recall: the inner loops of recall methods over interactions in rows.

   A row of a compressed sparse matrix is what one user had: `starts` int64 [rows + 1], `columns`
   int32 [entries], `weights` float32 [entries]. Every function works on the rows or columns from
   `first` to below `last` alone, so that threads share the work and the answer does not depend on
   how many there are. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif
#define INSIDE static inline __attribute__((always_inline))

enum { LANES = 16, PIECE = 1024, TOGETHER = 4, IN_REGISTERS = 8, AHEAD = 8, LINE = 64 };
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));

/* -- least squares by conjugate gradients ------------------------------------------------------ */

typedef struct {
    const int64_t *starts;
    const int32_t *columns;
    const float *weights, *others;
    float *solutions;
    Py_ssize_t first, last;
    int64_t end; /* of the last row's entries */
    int vectors, steps;
    float relaxation; /* how far a step goes, of what it takes to solve */
} System;

/* What one row needs: its others side by side, their weights, and the vectors of the method. */
typedef struct {
    float *others, *weights, *residual, *direction, *product;
} Desk;

INSIDE v4 quarter(const v16 *x) {
    v8 half = __builtin_shufflevector(*x, *x, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(*x, *x, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector(half, half, 0, 1, 2, 3) +
           __builtin_shufflevector(half, half, 4, 5, 6, 7);
}

/* The sums of four vectors: one shuffle does for two what each would need for itself. */
INSIDE v4 sums(const v16 *of) {
    v4 a = quarter(of), b = quarter(of + 1), c = quarter(of + 2), d = quarter(of + 3);
    v4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    v4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) +
           __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

INSIDE float dot(const float *a, const float *b, int vectors) {
    v16 sum[TOGETHER] = {{0}};
    for (int v = 0; v < vectors; v++) {
        sum[0] += ((const v16 *)a)[v] * ((const v16 *)b)[v];
    }
    return sums(sum)[0];
}

/* Add sum over i of (base (1 + w_i) + slope w_i (y_i . x)) y_i to `into`; count is of whole fours.
   Up to IN_REGISTERS vectors, what is multiplied and what is summed never leave the registers. */
INSIDE void add_products(const float *others, const float *weights, Py_ssize_t count,
                         const float *x, float base, float slope, float *into, int vectors) {
    v16 at[IN_REGISTERS], all[IN_REGISTERS];
    const int inside = vectors <= IN_REGISTERS;
    for (int v = 0; inside && v < vectors; v++) {
        at[v] = ((const v16 *)x)[v];
        all[v] = ((const v16 *)into)[v];
    }
    for (Py_ssize_t i = 0; i < count; i += TOGETHER) {
        const v16 *y = (const v16 *)(others + i * vectors * LANES);
        v16 sum[TOGETHER] = {{0}};
        for (int v = 0; v < vectors; v++) {
            const v16 one = inside ? at[v] : ((const v16 *)x)[v];
            for (int k = 0; k < TOGETHER; k++) {
                sum[k] += y[k * vectors + v] * one;
            }
        }
        v4 w;
        memcpy(&w, weights + i, sizeof(w));
        const v4 factor = base * (1.0f + w) + slope * w * sums(sum);
        for (int v = 0; v < vectors; v++) {
            v16 one = inside ? all[v] : ((v16 *)into)[v];
            for (int k = 0; k < TOGETHER; k++) {
                one += factor[k] * y[k * vectors + v];
            }
            *(inside ? &all[v] : &((v16 *)into)[v]) = one;
        }
    }
    for (int v = 0; inside && v < vectors; v++) {
        ((v16 *)into)[v] = all[v];
    }
}

/* Lay some of a row's others side by side; what fills up the last four counts for nothing. */
INSIDE Py_ssize_t lay(const System *s, const Desk *desk, int64_t from, int64_t to, int vectors) {
    const Py_ssize_t width = (Py_ssize_t)vectors * LANES, count = to - from;
    const float *others = s->others; /* by name: what is written might else be any of them */
    const int32_t *columns = s->columns;
    const int64_t end = s->end;
    float *laid = desk->others;
    Py_ssize_t i = 0;
    for (; i < count; i++) {
        const v16 *y = (const v16 *)(others + columns[from + i] * width);
        const int64_t next = from + i + AHEAD; /* of the next row too, which comes next */
        const v16 *then = (const v16 *)(others + columns[next < end ? next : from] * width);
        for (int v = 0; v < vectors; v++) {
            __builtin_prefetch(then + v);
            ((v16 *)(laid + i * width))[v] = y[v];
        }
    }
    memcpy(desk->weights, s->weights + from, count * sizeof(float));
    for (; i % TOGETHER; i++) {
        memset(laid + i * width, 0, width * sizeof(float));
        desk->weights[i] = 0;
    }
    return i;
}

/* `into` += what the whole row adds: a row that is longer than the desk is laid piece by piece. */
INSIDE void add_row(const System *s, const Desk *desk, int64_t from, int64_t to, Py_ssize_t laid,
                    const float *x, float base, float slope, float *into, int vectors) {
    if (laid) {
        add_products(desk->others, desk->weights, laid, x, base, slope, into, vectors);
        return;
    }
    for (; from < to; from += PIECE) {
        const int64_t end = to - from < PIECE ? to : from + PIECE;
        const Py_ssize_t count = lay(s, desk, from, end, vectors);
        add_products(desk->others, desk->weights, count, x, base, slope, into, vectors);
    }
}

/* (I + sum of w y y') z = sum of (1 + w) y, from the z that is there, or beyond it. */
INSIDE void solve_row(const System *s, const Desk *desk, Py_ssize_t row, int vectors) {
    const Py_ssize_t width = (Py_ssize_t)vectors * LANES;
    const int64_t from = s->starts[row], to = s->starts[row + 1];
    float *z = s->solutions + row * width, *r = desk->residual, *p = desk->direction;
    float *q = desk->product;
    const Py_ssize_t laid = to - from > PIECE ? 0 : lay(s, desk, from, to, vectors);
    for (Py_ssize_t i = 0; i < width; i++) {
        r[i] = -z[i];
    }
    add_row(s, desk, from, to, laid, z, 1.0f, -1.0f, r, vectors);
    memcpy(p, r, width * sizeof(float));
    float left = dot(r, r, vectors);
    for (int step = 0; step < s->steps && left > 1e-20f; step++) {
        memcpy(q, p, width * sizeof(float));
        add_row(s, desk, from, to, laid, p, 0.0f, 1.0f, q, vectors);
        const float far = left / dot(p, q, vectors), beyond = s->relaxation * far;
        for (Py_ssize_t i = 0; i < width; i++) {
            z[i] += beyond * p[i];
            r[i] -= far * q[i];
        }
        const float now = dot(r, r, vectors), turn = now / left;
        for (Py_ssize_t i = 0; i < width; i++) {
            p[i] = r[i] + turn * p[i];
        }
        left = now;
    }
}

WIDEST static void solve_rows(const System *s, const Desk *desk) {
    for (Py_ssize_t row = s->first; row < s->last; row++) {
        switch (s->vectors) { /* a number that is known is a loop that is unrolled */
        case 1: solve_row(s, desk, row, 1); break;
        case 2: solve_row(s, desk, row, 2); break;
        case 4: solve_row(s, desk, row, 4); break;
        case 8: solve_row(s, desk, row, 8); break;
        default: solve_row(s, desk, row, s->vectors);
        }
    }
}

/* -- what was had together --------------------------------------------------------------------- */

typedef struct {
    const int64_t *starts, *turned_starts;
    const int32_t *columns, *turned_columns;
    const float *weights, *turned_weights;
    Py_ssize_t first, last, wide;
} Together;

/* The sums over rows of the products of one column's weight with every other's. Gives how many
   columns were met, whose numbers go to `met`. */
static Py_ssize_t meet(const Together *t, Py_ssize_t column, double *sums, int32_t *met,
                       uint8_t *seen) {
    Py_ssize_t count = 0;
    for (int64_t at = t->turned_starts[column]; at < t->turned_starts[column + 1]; at++) {
        const int32_t row = t->turned_columns[at];
        const double weight = t->turned_weights[at];
        for (int64_t to = t->starts[row]; to < t->starts[row + 1]; to++) {
            const int32_t other = t->columns[to];
            sums[other] += weight * t->weights[to];
            if (!seen[other]) {
                seen[other] = 1;
                met[count++] = other;
            }
        }
    }
    return count;
}

/* Whether one neighbour comes after another: less alike, or as much alike and later in order. */
INSIDE int after(float value, int32_t number, float other, int32_t other_number) {
    return value < other || (value == other && number > other_number);
}

/* Let the last of `count` neighbours in a heap sink or rise to its place; the root comes last. */
static void sink(float *values, int32_t *numbers, Py_ssize_t count, Py_ssize_t at) {
    const float value = values[at];
    const int32_t number = numbers[at];
    for (;;) {
        Py_ssize_t child = 2 * at + 1;
        if (child >= count) {
            break;
        }
        if (child + 1 < count &&
            after(values[child + 1], numbers[child + 1], values[child], numbers[child])) {
            child++;
        }
        if (!after(values[child], numbers[child], value, number)) {
            break;
        }
        values[at] = values[child];
        numbers[at] = numbers[child];
        at = child;
    }
    values[at] = value;
    numbers[at] = number;
}

static void nearest(const double *norms, double shrink, Py_ssize_t column, const double *sums,
                    const int32_t *met, Py_ssize_t found, Py_ssize_t most, float *values,
                    int32_t *numbers) {
    Py_ssize_t count = 0;
    for (Py_ssize_t i = 0; i < found; i++) {
        const int32_t other = met[i];
        const float alike = (float)(sums[other] / (norms[column] * norms[other] + shrink));
        if (other == column || !(alike > 0)) { /* nor is 0 / 0 like anything */
            continue;
        }
        if (count < most) {
            values[count] = alike;
            numbers[count++] = other;
            if (count == most) {
                for (Py_ssize_t at = most / 2; at-- > 0;) {
                    sink(values, numbers, most, at);
                }
            }
        } else if (after(values[0], numbers[0], alike, other)) {
            values[0] = alike;
            numbers[0] = other;
            sink(values, numbers, most, 0);
        }
    }
    if (count < most) {
        for (Py_ssize_t at = count / 2; at-- > 0;) {
            sink(values, numbers, count, at);
        }
    }
    for (Py_ssize_t left = count; left-- > 1;) { /* the last of those that are left to the end */
        const float value = values[left];
        const int32_t number = numbers[left];
        values[left] = values[0];
        numbers[left] = numbers[0];
        values[0] = value;
        numbers[0] = number;
        sink(values, numbers, left, 0);
    }
}

/* -- Python ------------------------------------------------------------------------------------ */

enum { BUFFERS = 9 };
typedef struct {
    Py_buffer of[BUFFERS];
    int held;
} Buffers;

/* The memory of an array of at least so many bytes; NULL with an error set. */
static void *take(Buffers *all, PyObject *array, const char *name, Py_ssize_t bytes, int writes) {
    Py_buffer *buffer = &all->of[all->held];
    const int flags = writes ? PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE : PyBUF_C_CONTIGUOUS;
    if (PyErr_Occurred() || PyObject_GetBuffer(array, buffer, flags)) {
        return NULL;
    }
    all->held++;
    if (buffer->len < bytes) {
        PyErr_Format(PyExc_ValueError, "%s: found %zd bytes, allowed: %zd or more", name,
                     buffer->len, bytes);
        return NULL;
    }
    return buffer->buf;
}

static void release(Buffers *all) {
    while (all->held) {
        PyBuffer_Release(&all->of[--all->held]);
    }
}

/* Check a compressed matrix: its starts ascend to the number of its entries, its columns are there. */
static int sound(const int64_t *starts, Py_ssize_t rows, const int32_t *columns, Py_ssize_t entries,
                 Py_ssize_t wide) {
    int good = starts[0] >= 0 && starts[rows] <= entries;
    for (Py_ssize_t row = 0; row < rows; row++) {
        good &= starts[row] <= starts[row + 1];
    }
    for (int64_t at = good ? starts[0] : 0; good && at < starts[rows]; at++) {
        good &= columns[at] >= 0 && columns[at] < wide;
    }
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "no compressed sparse matrix");
    }
    return good;
}

/* How many elements of `size` bytes an array has; -1 with an error set. */
static Py_ssize_t length_of(PyObject *array, Py_ssize_t size) {
    Py_buffer buffer;
    if (PyErr_Occurred() || PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS)) {
        return -1;
    }
    const Py_ssize_t bytes = buffer.len;
    PyBuffer_Release(&buffer);
    return bytes / size;
}

static PyObject *solve(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *starts, *columns, *weights, *others, *solutions;
    Py_ssize_t width, first, last;
    int steps;
    float relaxation;
    if (!PyArg_ParseTuple(arguments, "OOOOOnnnif", &starts, &columns, &weights, &others, &solutions,
                          &width, &first, &last, &steps, &relaxation)) {
        return NULL;
    }
    if (width < LANES || width % LANES || width > 4096 || first < 0 || last < first) {
        PyErr_SetString(PyExc_ValueError, "a width of whole sixteens, and rows that are there");
        return NULL;
    }
    Buffers all = {.held = 0};
    const Py_ssize_t number = sizeof(float), row = width * number;
    const Py_ssize_t entries = length_of(columns, 4), there = length_of(others, row);
    System s = {.first = first, .last = last, .vectors = (int)(width / LANES), .steps = steps};
    s.relaxation = relaxation;
    s.starts = take(&all, starts, "starts", (last + 1) * 8, 0);
    s.columns = take(&all, columns, "columns", 0, 0);
    s.weights = take(&all, weights, "weights", entries * number, 0);
    s.others = take(&all, others, "others", 0, 0);
    s.solutions = take(&all, solutions, "solutions", last * row, 1);
    float *memory = NULL;
    s.end = PyErr_Occurred() ? 0 : s.starts[last];
    if (!PyErr_Occurred() && sound(s.starts + first, last - first, s.columns, entries, there)) {
        /* A vector that crosses a line of the cache is two reads: all of them begin with one. */
        memory = aligned_alloc(LINE, (size_t)(PIECE + TOGETHER + 3) * (size_t)row +
                                         PIECE * sizeof(float) + row);
        if (memory == NULL) {
            PyErr_NoMemory();
        }
    }
    if (memory != NULL) {
        Desk desk = {.others = memory, .residual = memory + (PIECE + TOGETHER) * width};
        desk.direction = desk.residual + width;
        desk.product = desk.direction + width;
        desk.weights = desk.product + width;
        Py_BEGIN_ALLOW_THREADS;
        solve_rows(&s, &desk);
        Py_END_ALLOW_THREADS;
        free(memory);
    }
    release(&all);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Both functions over what was had together: `dense` writes sums, else the nearest are kept. */
static PyObject *meeting(PyObject *arguments, int dense) {
    PyObject *starts, *columns, *weights, *turned_starts, *turned_columns, *turned_weights;
    PyObject *norms = NULL, *values, *numbers = NULL;
    double shrink = 0;
    Py_ssize_t rows, wide, first, last, most = 1;
    if (!(dense ? PyArg_ParseTuple(arguments, "OOOOOOnnnnO", &starts, &columns, &weights,
                                   &turned_starts, &turned_columns, &turned_weights, &rows, &wide,
                                   &first, &last, &values)
                : PyArg_ParseTuple(arguments, "OOOOOOnnnnOdnOO", &starts, &columns, &weights,
                                   &turned_starts, &turned_columns, &turned_weights, &rows, &wide,
                                   &first, &last, &norms, &shrink, &most, &values, &numbers))) {
        return NULL;
    }
    if (first < 0 || last < first || wide < last || rows < 0 || most < 1) {
        PyErr_SetString(PyExc_ValueError, "columns that are there, and at least one neighbour");
        return NULL;
    }
    Buffers all = {.held = 0};
    const Py_ssize_t entries = length_of(columns, 4), turned = length_of(turned_columns, 4);
    const Py_ssize_t each = dense ? wide : most;
    Together t = {.first = first, .last = last, .wide = wide};
    t.starts = take(&all, starts, "starts", (rows + 1) * 8, 0);
    t.columns = take(&all, columns, "columns", 0, 0);
    t.weights = take(&all, weights, "weights", entries * 4, 0);
    t.turned_starts = take(&all, turned_starts, "turned starts", (wide + 1) * 8, 0);
    t.turned_columns = take(&all, turned_columns, "turned columns", 0, 0);
    t.turned_weights = take(&all, turned_weights, "turned weights", turned * 4, 0);
    float *near = take(&all, values, "values", last * each * 4, 1);
    const double *lengths = dense ? NULL : take(&all, norms, "norms", wide * 8, 0);
    int32_t *found = dense ? NULL : take(&all, numbers, "numbers", last * each * 4, 1);
    char *memory = NULL;
    if (!PyErr_Occurred() && sound(t.starts, rows, t.columns, entries, wide) &&
        sound(t.turned_starts, wide, t.turned_columns, turned, rows)) {
        memory = calloc((size_t)wide + 1, sizeof(double) + sizeof(int32_t) + 1);
        if (memory == NULL) {
            PyErr_NoMemory();
        }
    }
    if (memory != NULL) {
        double *sums = (double *)memory;
        int32_t *met = (int32_t *)(sums + wide);
        uint8_t *seen = (uint8_t *)(met + wide);
        Py_BEGIN_ALLOW_THREADS;
        for (Py_ssize_t column = first; column < last; column++) {
            const Py_ssize_t count = meet(&t, column, sums, met, seen);
            if (!dense) {
                nearest(lengths, shrink, column, sums, met, count, most, near + column * most,
                        found + column * most);
            }
            for (Py_ssize_t i = 0; i < count; i++) {
                if (dense) {
                    near[column * wide + met[i]] = (float)sums[met[i]];
                }
                sums[met[i]] = 0;
                seen[met[i]] = 0;
            }
        }
        Py_END_ALLOW_THREADS;
        free(memory);
    }
    release(&all);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *gram(PyObject *module, PyObject *arguments) {
    (void)module;
    return meeting(arguments, 1);
}

static PyObject *neighbours(PyObject *module, PyObject *arguments) {
    (void)module;
    return meeting(arguments, 0);
}

static PyMethodDef methods[] = {
    {"solve", solve, METH_VARARGS,
     "solve(starts, columns, weights, others, solutions, width, first, last, steps)"},
    {"gram", gram, METH_VARARGS,
     "gram(starts, columns, weights, turned starts, columns, weights, rows, wide, first, last, "
     "into)"},
    {"neighbours", neighbours, METH_VARARGS,
     "neighbours(starts, columns, weights, turned starts, columns, weights, rows, wide, first, "
     "last, norms, shrink, most, values, numbers)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "recall", "Loops over interactions.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_recall(void) { return PyModuleDef_Init(&definition); }
