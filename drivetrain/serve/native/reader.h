/* What the files that read JSON to the memory of a graph share. */

#ifndef DRIVETRAIN_READER_H
#define DRIVETRAIN_READER_H

#include "native.h"

typedef struct {
    PyObject_HEAD
    Py_ssize_t columns;
    Py_ssize_t row;     /* bytes of one row */
    PyObject *names;    /* tuple of bytes; owns what `name` points into */
    const char **name;
    Py_ssize_t *size;   /* of each name */
    Py_ssize_t *before; /* bytes of one row that lie before each column */
    char *code;
    Py_ssize_t *slot;   /* hash table of columns + 1, 0 for none */
    size_t mask;
} Reader;

/* The column of a name, -1 if there is none. */
Py_ssize_t column_of(const Reader *self, const char *text, Py_ssize_t size);

PyObject *reader_tensors(PyObject *object, PyObject *args);

#endif
