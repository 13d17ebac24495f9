/* The inputs of a request of V2 in JSON (Open Inference Protocol, rest/inference_rest.yaml) to the
   memory that a graph reads, its columns one behind the other. */

#include "reader.h"

#include <string.h>

#define MOST_DIGITS 9 /* of a dimension */

static int is(const char *text, Py_ssize_t size, const char *literal) {
    return (size_t)size == strlen(literal) && memcmp(text, literal, (size_t)size) == 0;
}

/* Take a name and its colon. */
static int take_key(Text *text, const char **key, Py_ssize_t *size) {
    return take_string(text, key, size) && take(text, ':');
}

/* Take a dimension, which is 1 or more. */
static int take_count(Text *text, Py_ssize_t *count) {
    skip_space(text);
    const char *start = text->at;
    *count = 0;
    while (text->at < text->end && *text->at >= '0' && *text->at <= '9' &&
           text->at - start < MOST_DIGITS) {
        *count = 10 * *count + (*text->at++ - '0');
    }
    return text->at > start && *start != '0';
}

/* Take [rows] or [rows, 1]. */
static int take_shape(Text *text, Py_ssize_t *rows) {
    Py_ssize_t one;
    if (!take(text, '[') || !take_count(text, rows)) {
        return 0;
    }
    return take(text, ']') ||
           (take(text, ',') && take_count(text, &one) && one == 1 && take(text, ']'));
}

static const char *datatype_of(char code) {
    return code == 'q' ? "INT64" : code == 'f' ? "FP32" : "FP64";
}

/* Take a tensor up to its values: name, datatype and shape in any order, and then "data". */
static int take_head(const Reader *self, Text *text, Py_ssize_t *column, Py_ssize_t *rows) {
    const char *key, *name = NULL, *type = NULL;
    Py_ssize_t size, name_size = 0, type_size = 0;
    *rows = 0;
    if (!take(text, '{')) {
        return 0;
    }
    for (;;) {
        if (!take_key(text, &key, &size)) {
            return 0;
        }
        if (is(key, size, "data")) {
            break;
        }
        int taken = is(key, size, "name") && name == NULL ? take_string(text, &name, &name_size)
                    : is(key, size, "datatype") && type == NULL
                        ? take_string(text, &type, &type_size)
                        : is(key, size, "shape") && *rows == 0 && take_shape(text, rows);
        if (!taken || !take(text, ',')) {
            return 0;
        }
    }
    if (name == NULL || type == NULL || *rows == 0) {
        return 0;
    }
    *column = column_of(self, name, name_size);
    return *column >= 0 && is(type, type_size, datatype_of(self->code[*column]));
}

/* Take so many values and write them one behind the other. */
static int take_values(Text *text, char code, char *to, Py_ssize_t rows) {
    for (Py_ssize_t row = 0; row < rows; row++, to += size_of(code)) {
        Cell cell;
        if (!take(text, row ? ',' : '[') || !take_value(text, code, &cell)) {
            return 0;
        }
        put(to, code, cell);
    }
    return take(text, ']');
}

/* Take a list that has each column once, all with as many rows; gives their memory, or NULL with an
   error set if there is none, without one if it is unusual. */
static PyObject *take_inputs(const Reader *self, Text *text, char *seen, Py_ssize_t most,
                             Py_ssize_t *rows) {
    PyObject *data = NULL;
    for (Py_ssize_t i = 0; i < self->columns; i++) {
        Py_ssize_t column, found;
        if (!take(text, i ? ',' : '[') || !take_head(self, text, &column, &found) || seen[column]) {
            break;
        }
        if (data == NULL) {
            if (found > most || found > text->end - text->at) { /* a value takes a byte or more */
                return NULL;
            }
            *rows = found;
            data = PyBytes_FromStringAndSize(NULL, self->row * found);
            if (data == NULL) {
                return NULL;
            }
        }
        char *to = PyBytes_AsString(data) + self->before[column] * *rows;
        if (found != *rows || !take_values(text, self->code[column], to, found) ||
            !take(text, '}')) {
            break;
        }
        seen[column] = 1;
        if (i + 1 == self->columns && take(text, ']')) {
            return data;
        }
    }
    Py_XDECREF(data);
    return NULL;
}

/* Take what comes before the inputs, which may be texts under other names. */
static int take_start(Text *text) {
    const char *key;
    Py_ssize_t size;
    if (!take(text, '{')) {
        return 0;
    }
    while (take_key(text, &key, &size)) {
        if (is(key, size, "inputs")) {
            return 1;
        }
        if (!take_string(text, &key, &size) || !take(text, ',')) {
            return 0;
        }
    }
    return 0;
}

PyObject *reader_tensors(PyObject *object, PyObject *args) {
    const Reader *self = (Reader *)object;
    Py_buffer body;
    Py_ssize_t most, rows = 0, start = 0;
    PyObject *data = NULL;
    if (!PyArg_ParseTuple(args, "y*n", &body, &most)) {
        return NULL;
    }
    const char *first = body.buf;
    Text text = {first, first + body.len};
    if (take_start(&text)) {
        char *seen = PyMem_Calloc((size_t)self->columns, 1);
        start = text.at - first;
        data = seen == NULL ? PyErr_NoMemory() : take_inputs(self, &text, seen, most, &rows);
        PyMem_Free(seen);
    }
    Py_ssize_t end = text.at - first;
    PyBuffer_Release(&body);
    if (data == NULL) {
        if (PyErr_Occurred()) {
            return NULL;
        }
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(Nnnn)", data, rows, start, end);
}
