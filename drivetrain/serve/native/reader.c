/* Reader: JSON to the memory that a graph reads, its columns one behind the other. */

#include "reader.h"

#include <string.h>

static size_t hash_of(const char *text, Py_ssize_t size) { /* FNV-1a */
    uint64_t found = 14695981039346656037u;
    for (Py_ssize_t i = 0; i < size; i++) {
        found = (found ^ (unsigned char)text[i]) * 1099511628211u;
    }
    return (size_t)(found ^ (found >> 32));
}

static int is_name(const Reader *self, Py_ssize_t column, const char *text, Py_ssize_t size) {
    return self->size[column] == size && memcmp(self->name[column], text, (size_t)size) == 0;
}

Py_ssize_t column_of(const Reader *self, const char *text, Py_ssize_t size) {
    for (size_t at = hash_of(text, size) & self->mask;; at = (at + 1) & self->mask) {
        Py_ssize_t column = self->slot[at] - 1;
        if (column < 0 || is_name(self, column, text, size)) {
            return column;
        }
    }
}

/* Take a column's name and its colon, if they come next with no space before them: most clients
   write columns in one order, and often in that of the schema. */
static int take_guess(const Reader *self, Text *text, Py_ssize_t column) {
    Py_ssize_t size = self->size[column];
    const char *at = text->at;
    if (text->end - at < size + 3 || at[0] != '"' || at[size + 1] != '"' || at[size + 2] != ':' ||
        memcmp(at + 1, self->name[column], (size_t)size) != 0) {
        return 0;
    }
    text->at = at + size + 3;
    return 1;
}

static int make_table(Reader *self) {
    size_t slots = 8;
    while (slots < 2 * (size_t)self->columns) {
        slots *= 2;
    }
    self->mask = slots - 1;
    self->slot = PyMem_Calloc(slots, sizeof *self->slot);
    if (self->slot == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (Py_ssize_t i = 0; i < self->columns; i++) {
        if (column_of(self, self->name[i], self->size[i]) >= 0) {
            PyErr_SetString(PyExc_ValueError, "names: found one twice, allowed: once.");
            return 0;
        }
        size_t at = hash_of(self->name[i], self->size[i]) & self->mask;
        while (self->slot[at]) {
            at = (at + 1) & self->mask;
        }
        self->slot[at] = i + 1;
    }
    return 1;
}

static void reader_dealloc(PyObject *object) {
    Reader *self = (Reader *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyMem_Free(self->name);
    PyMem_Free(self->size);
    PyMem_Free(self->before);
    PyMem_Free(self->code);
    PyMem_Free(self->slot);
    Py_XDECREF(self->names);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Fill the arrays of a reader whose numbers of columns and bytes are checked here. */
static int fill(Reader *self, const char *codes, PyObject *before) {
    self->row = 0;
    for (Py_ssize_t i = 0; i < self->columns; i++) {
        PyObject *number = PyTuple_GetItem(before, i);
        char *text = NULL;
        if (number == NULL ||
            PyBytes_AsStringAndSize(PyTuple_GetItem(self->names, i), &text, &self->size[i]) < 0) {
            return 0;
        }
        for (Py_ssize_t at = 0; at < self->size[i]; at++) {
            if (text[at] == '"' || text[at] == '\\' || (unsigned char)text[at] < 0x20) {
                PyErr_SetString(PyExc_ValueError, "names: found one that JSON escapes.");
                return 0;
            }
        }
        self->name[i] = text;
        self->code[i] = codes[i];
        self->before[i] = PyLong_AsSsize_t(number);
        if (strchr("qdf", codes[i]) == NULL) {
            PyErr_SetString(PyExc_ValueError, "codes: allowed are q, d and f.");
            return 0;
        }
        self->row += size_of(codes[i]);
    }
    for (Py_ssize_t i = 0; i < self->columns; i++) {
        if (self->before[i] < 0 || self->before[i] > self->row - size_of(self->code[i])) {
            PyErr_SetString(PyExc_ValueError, "before: found a column outside of its row.");
            return 0;
        }
    }
    return make_table(self);
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *options) {
    PyObject *names, *before;
    const char *codes;
    Py_ssize_t count;
    (void)options;
    if (!PyArg_ParseTuple(args, "O!s#O!", &PyTuple_Type, &names, &codes, &count, &PyTuple_Type,
                          &before)) {
        return NULL;
    }
    if (count == 0 || PyTuple_Size(names) != count || PyTuple_Size(before) != count) {
        PyErr_SetString(PyExc_ValueError, "found not as many codes as names and places.");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Reader *self = (Reader *)allocate(type, 0);
    if (self == NULL) {
        return NULL;
    }
    size_t columns = (size_t)count;
    self->columns = count;
    self->names = names;
    Py_INCREF(names);
    self->name = PyMem_Calloc(columns, sizeof *self->name);
    self->size = PyMem_Calloc(columns, sizeof *self->size);
    self->before = PyMem_Calloc(columns, sizeof *self->before);
    self->code = PyMem_Calloc(columns, 1);
    if (!self->name || !self->size || !self->before || !self->code) {
        PyErr_NoMemory();
        Py_DECREF(self);
        return NULL;
    }
    if (!fill(self, codes, before)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Take an object that names each column once; `seen` says which were seen in row `stamp`. */
static int take_row(const Reader *self, Text *text, Cell *cells, size_t *seen, size_t stamp) {
    for (Py_ssize_t i = 0; i < self->columns; i++) {
        Py_ssize_t column = i;
        if (i && !take(text, ',')) {
            return 0;
        }
        if (!take_guess(self, text, i)) {
            const char *name;
            Py_ssize_t size;
            if (!take_string(text, &name, &size) || !take(text, ':')) {
                return 0;
            }
            column = column_of(self, name, size);
        }
        if (column < 0 || seen[column] == stamp) {
            return 0;
        }
        seen[column] = stamp;
        if (!take_value(text, self->code[column], &cells[column])) {
            return 0;
        }
    }
    return take(text, '}');
}

/* Rows of cells as bytes, column behind column. */
static PyObject *packed(const Reader *self, const Cell *cells, Py_ssize_t rows) {
    PyObject *found = PyBytes_FromStringAndSize(NULL, self->row * rows);
    if (found == NULL) {
        return NULL;
    }
    char *memory = PyBytes_AsString(found);
    for (Py_ssize_t i = 0; i < self->columns; i++) {
        char *at = memory + self->before[i] * rows, code = self->code[i];
        if (rows == 1) {
            put(at, code, cells[i]);
            continue;
        }
        for (Py_ssize_t row = 0; row < rows; row++, at += size_of(code)) {
            put(at, code, cells[row * self->columns + i]);
        }
    }
    return found;
}

static PyObject *finished(const Reader *self, Text *text, const Cell *cells, Py_ssize_t rows) {
    skip_space(text);
    if (rows == 0 || text->at != text->end) {
        Py_RETURN_NONE;
    }
    PyObject *data = packed(self, cells, rows);
    return data == NULL ? NULL : Py_BuildValue("(Nn)", data, rows);
}

/* Rows until the end of their list; `cells` grows with them. */
static PyObject *read_list(const Reader *self, Text *text, size_t *seen, Py_ssize_t most) {
    Py_ssize_t rows = 0, room = 1;
    size_t columns = (size_t)self->columns;
    PyObject *found = NULL;
    Cell *cells = PyMem_Malloc(columns * sizeof *cells);
    while (cells != NULL) {
        if (rows == room) {
            room *= 2;
            if (columns > PY_SSIZE_T_MAX / sizeof *cells / (size_t)room) {
                break;
            }
            Cell *more = PyMem_Realloc(cells, columns * (size_t)room * sizeof *cells);
            if (more == NULL) {
                break;
            }
            cells = more;
        }
        if (rows == most || !take(text, '{') ||
            !take_row(self, text, cells + columns * (size_t)rows, seen, (size_t)rows + 1)) {
            PyMem_Free(cells);
            Py_RETURN_NONE;
        }
        rows++;
        if (take(text, ']')) {
            if (take(text, '}')) {
                found = finished(self, text, cells, rows);
            } else {
                found = Py_None;
                Py_INCREF(found);
            }
            PyMem_Free(cells);
            return found;
        }
        if (!take(text, ',')) {
            PyMem_Free(cells);
            Py_RETURN_NONE;
        }
    }
    PyMem_Free(cells);
    return PyErr_NoMemory();
}

static PyObject *read_body(const Reader *self, Text text, const char *key, Py_ssize_t size,
                           Py_ssize_t most) {
    PyObject *found;
    const char *name;
    Py_ssize_t length;
    if (!take(&text, '{')) {
        Py_RETURN_NONE;
    }
    size_t *seen = PyMem_Calloc((size_t)self->columns, sizeof *seen);
    if (seen == NULL) {
        return PyErr_NoMemory();
    }
    Text list = text;
    if (take_string(&list, &name, &length) && length == size &&
        memcmp(name, key, (size_t)size) == 0 && take(&list, ':') && take(&list, '[')) {
        found = read_list(self, &list, seen, most);
    } else {
        Cell *cells = PyMem_Malloc((size_t)self->columns * sizeof *cells);
        if (cells == NULL) {
            found = PyErr_NoMemory();
        } else if (take_row(self, &text, cells, seen, 1)) {
            found = finished(self, &text, cells, 1);
        } else {
            found = Py_None;
            Py_INCREF(found);
        }
        PyMem_Free(cells);
    }
    PyMem_Free(seen);
    return found;
}

static PyObject *reader_rows(PyObject *object, PyObject *args) {
    Py_buffer body;
    const char *key;
    Py_ssize_t size, most;
    if (!PyArg_ParseTuple(args, "y*y#n", &body, &key, &size, &most)) {
        return NULL;
    }
    Text text = {body.buf, (const char *)body.buf + body.len};
    PyObject *found = read_body((Reader *)object, text, key, size, most);
    PyBuffer_Release(&body);
    return found;
}

/* Copy one request's columns to their places among those of its batch. */
static void copy_columns(const Reader *self, const char *from, Py_ssize_t rows, char *to,
                         Py_ssize_t start, Py_ssize_t all) {
    for (Py_ssize_t i = 0; i < self->columns; i++) {
        Py_ssize_t size = size_of(self->code[i]), before = self->before[i];
        const char *source = from + before * rows;
        char *place = to + before * all + size * start;
        if (rows == 1) {
            size == 8 ? memcpy(place, source, 8) : memcpy(place, source, 4);
        } else {
            memcpy(place, source, (size_t)(size * rows));
        }
    }
}

static PyObject *reader_gather(PyObject *object, PyObject *args) {
    const Reader *self = (Reader *)object;
    PyObject *parts;
    Py_buffer memory;
    Py_ssize_t rows, start = 0;
    if (!PyArg_ParseTuple(args, "O!w*n", &PyList_Type, &parts, &memory, &rows)) {
        return NULL;
    }
    int fits = rows >= 0 && rows <= memory.len / self->row;
    for (Py_ssize_t i = 0; fits && i < PyList_Size(parts); i++) {
        Py_buffer part;
        if (PyObject_GetBuffer(PyList_GetItem(parts, i), &part, PyBUF_SIMPLE) < 0) {
            PyBuffer_Release(&memory);
            return NULL;
        }
        Py_ssize_t count = part.len / self->row;
        fits = part.len % self->row == 0 && count <= rows - start;
        if (fits) {
            copy_columns(self, part.buf, count, memory.buf, start, rows);
            start += count;
        }
        PyBuffer_Release(&part);
    }
    PyBuffer_Release(&memory);
    if (!fits || start != rows) {
        PyErr_SetString(PyExc_ValueError, "parts: found not so many rows as the memory is for.");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef reader_methods[] = {
    {"rows", reader_rows, METH_VARARGS,
     "rows(body, key, most): the packed rows of an object, or of the list under a key, and how "
     "many they are; None for all that is unusual."},
    {"tensors", reader_tensors, METH_VARARGS,
     "tensors(body, most): the packed rows of V2's inputs, how many they are, and where the list of "
     "inputs begins and ends; None for all that is unusual."},
    {"gather", reader_gather, METH_VARARGS,
     "gather(parts, memory, rows): write packed requests one behind the other."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_doc, "Reader(names, codes, before): columns as drivetrain.serve.execution.packed.Form "
                "lays them."},
    {0, NULL},
};

PyType_Spec reader_spec = {
    "drivetrain.serve.native.compiled.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT,
    reader_slots,
};
