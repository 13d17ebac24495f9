/* Numbers as JSON text. */

#include "native.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define FEWEST 7 /* digits of a float32 in decimal: it may read back from these */
#define MOST 9   /* and does from these (IEEE 754-2008 5.12.2) */
#define LONGEST 32
#define LEAST 1e-4 /* from here on and below a million C's %g has no exponent */
#define BEYOND 1e6

static const uint64_t powers[] = {1ULL,         10ULL,         100ULL,         1000ULL,
                                  10000ULL,     100000ULL,     1000000ULL,     10000000ULL,
                                  100000000ULL, 1000000000ULL, 10000000000ULL, 100000000000ULL,
                                  1000000000000ULL};

/* Digits with a point before the last `after` of them, without zeros behind it; gives the end. */
static char *put_digits(char *to, uint64_t digits, int after) {
    char reversed[LONGEST];
    int count = 0;
    while (after > 0 && digits % 10 == 0) {
        digits /= 10;
        after--;
    }
    for (int place = 0; place <= after || digits > 0; place++) {
        if (place == after && after > 0) {
            reversed[count++] = '.';
        }
        reversed[count++] = (char)('0' + digits % 10);
        digits /= 10;
    }
    while (count > 0) {
        *to++ = reversed[--count];
    }
    return to;
}

/* The shortest of %.7g to %.9g that reads back, in exact integers: a float32 from a ten-thousandth
   to a million is m 2^-s with m < 2^24 and 4 <= s <= 37, and needs at most 12 decimals, so
   m 10^12 < 2^64. Gives the end, NULL where that does not hold. */
static char *put_quickly(char *to, double real) {
    double size = fabs(real);
    if (!(size >= LEAST && size < BEYOND) || (double)(float)size != size) {
        return NULL;
    }
#if FLT_EVAL_METHOD != 0
    return NULL;
#endif
    int exponent, place = -4;
    uint64_t whole = (uint64_t)ldexp(frexp(size, &exponent), 24);
    int shift = 24 - exponent;
    static const double bounds[] = {1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5};
    for (int at = 0; at < 9 && size >= bounds[at]; at++) {
        place++;
    }
    for (int wanted = FEWEST; wanted <= MOST; wanted++) {
        int after = wanted - 1 - place;
        uint64_t scaled = whole * powers[after];
        uint64_t digits = scaled >> shift, rest = scaled & ((1ULL << shift) - 1);
        uint64_t half = 1ULL << (shift - 1);
        digits += rest > half || (rest == half && (digits & 1)); /* as dtoa: ties to even */
        /* Clinger 1990: two doubles that are exact, and one rounding. */
        if ((float)((double)digits / (double)powers[after]) == (float)size) {
            if (real < 0) {
                *to++ = '-';
            }
            return put_digits(to, digits, after);
        }
    }
    return NULL;
}

/* Any double as it is read by the C library that Python has; NULL where there is no memory. */
static char *put_slowly(char *to, double real) {
    float bits = (float)real; /* beyond float32 is infinite (IEC 60559), as `struct` has it */
    for (int digits = FEWEST; digits <= MOST + 1; digits++) {
        int all = digits > MOST;
        char *text = PyOS_double_to_string(real, all ? 'r' : 'g', all ? 0 : digits,
                                           all ? Py_DTSF_ADD_DOT_0 : 0, NULL);
        if (text == NULL) {
            return NULL;
        }
        double back = PyOS_string_to_double(text, NULL, NULL);
        if (back == -1.0 && PyErr_Occurred()) {
            PyMem_Free(text);
            return NULL;
        }
        float again = (float)back;
        if (all || memcmp(&again, &bits, sizeof bits) == 0) {
            const char *found = strcmp(text, "-0") == 0 ? "-0.0" : text;
            size_t size = strlen(found);
            memcpy(to, found, size);
            PyMem_Free(text);
            return to + size;
        }
        PyMem_Free(text);
    }
    return to;
}

static char *put_float(char *to, double real) {
    if (!isfinite(real)) {
        memcpy(to, "null", 4);
        return to + 4;
    }
    char *end = put_quickly(to, real);
    return end != NULL ? end : put_slowly(to, real);
}

/* The very text of drivetrain.serve.protocols.values.float32_text, which says what it promises. */
PyObject *float32_text(PyObject *module, PyObject *value) {
    (void)module;
    double real = PyFloat_AsDouble(value);
    if (real == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    char text[LONGEST];
    char *end = put_float(text, real);
    return end == NULL ? NULL : PyUnicode_FromStringAndSize(text, end - text);
}

/* `before`, a float32 and `behind`, one behind the other. */
static PyObject *one_between(const char *value, Text before, Text behind) {
    char text[LONGEST];
    float real;
    memcpy(&real, value, sizeof real);
    char *end = put_float(text, (double)real);
    if (end == NULL) {
        return NULL;
    }
    Py_ssize_t size = end - text, first = before.end - before.at, last = behind.end - behind.at;
    PyObject *found = PyBytes_FromStringAndSize(NULL, first + size + last);
    if (found != NULL) {
        char *to = PyBytes_AsString(found);
        memcpy(to, before.at, (size_t)first);
        memcpy(to + first, text, (size_t)size);
        memcpy(to + first + size, behind.at, (size_t)last);
    }
    return found;
}

/* The text of a bytes object. */
static int text_of(PyObject *bytes, Text *text) {
    char *start;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes, &start, &size) < 0) {
        return 0;
    }
    *text = (Text){start, start + size};
    return 1;
}

/* Each float32 of an array between two texts. */
PyObject *floats_between(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    Text before, behind;
    Py_buffer array;
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "floats_between: takes an array and two texts");
        return NULL;
    }
    if (!text_of(given[1], &before) || !text_of(given[2], &behind) ||
        PyObject_GetBuffer(given[0], &array, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    const Py_ssize_t size = (Py_ssize_t)sizeof(float);
    PyObject *found = NULL;
    if (array.len % size != 0) {
        PyErr_SetString(PyExc_ValueError, "floats_between: takes float32");
    } else {
        found = PyList_New(array.len / size);
    }
    for (Py_ssize_t number = 0; found != NULL && number < array.len / size; number++) {
        const char *value = (const char *)array.buf + number * size;
        PyObject *each = one_between(value, before, behind);
        if (each == NULL || PyList_SetItem(found, number, each) < 0) {
            Py_CLEAR(found);
        }
    }
    PyBuffer_Release(&array);
    return found;
}

static PyObject *row_of(const char *values, Py_ssize_t width, char *text) {
    char *at = text;
    *at++ = '[';
    for (Py_ssize_t number = 0; number < width; number++) {
        float value;
        memcpy(&value, values + number * (Py_ssize_t)sizeof value, sizeof value);
        if (number > 0) {
            *at++ = ',';
        }
        at = put_float(at, (double)value);
        if (at == NULL) {
            return NULL;
        }
    }
    *at++ = ']';
    return PyUnicode_FromStringAndSize(text, at - text);
}

/* Each row of a float32 matrix in one piece of memory, as a JSON list of such texts. */
PyObject *float32_rows(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer matrix;
    Py_ssize_t width;
    if (!PyArg_ParseTuple(arguments, "y*n", &matrix, &width)) {
        return NULL;
    }
    PyObject *found = NULL;
    Py_ssize_t size = width * (Py_ssize_t)sizeof(float);
    if (width < 1 || width > PY_SSIZE_T_MAX / LONGEST - 1 || matrix.len % size != 0) {
        PyErr_SetString(PyExc_ValueError, "rows of so many float32 do not fill the memory");
    } else {
        char *text = PyMem_Malloc((size_t)(width + 1) * LONGEST);
        found = text == NULL ? PyErr_NoMemory() : PyList_New(matrix.len / size);
        for (Py_ssize_t row = 0; found != NULL && row < matrix.len / size; row++) {
            PyObject *each = row_of((const char *)matrix.buf + row * size, width, text);
            if (each == NULL || PyList_SetItem(found, row, each) < 0) {
                Py_CLEAR(found);
            }
        }
        PyMem_Free(text);
    }
    PyBuffer_Release(&matrix);
    return found;
}
