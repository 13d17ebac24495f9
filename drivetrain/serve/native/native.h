/* What the files of drivetrain.serve.native.compiled share. */

#ifndef DRIVETRAIN_NATIVE_H
#define DRIVETRAIN_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* What is read of a text: from `at` on, never at or behind `end`. */
typedef struct {
    const char *at, *end;
} Text;

/* A cell holds one value until its column's type is written. */
typedef union {
    int64_t whole;
    double real;
} Cell;

/* Skip white space as JSON has it. */
static inline void skip_space(Text *text) {
    const char *at = text->at;
    while (at < text->end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) {
        at++;
    }
    text->at = at;
}

/* Skip it, and say whether `expected` comes next, which is then taken. */
static inline int take(Text *text, char expected) {
    if (text->at == text->end || *text->at != expected) {
        skip_space(text);
        if (text->at == text->end || *text->at != expected) {
            return 0;
        }
    }
    text->at++;
    return 1;
}

/* Take the string that comes next, if it has no escapes; gives where it lies. */
int take_string(Text *text, const char **start, Py_ssize_t *size);

/* Take the value of a column of type `code` (q, d or f): a number or null. */
int take_value(Text *text, char code, Cell *cell);

/* The bytes of a value of a column of type `code`. */
static inline Py_ssize_t size_of(char code) { return code == 'f' ? 4 : 8; }

/* Write a value in the type of its column. */
static inline void put(char *memory, char code, Cell cell) {
    if (code == 'f') {
        float real = (float)cell.real; /* beyond float32 is infinite (IEC 60559), as in numpy */
        memcpy(memory, &real, sizeof real);
    } else {
        memcpy(memory, &cell, sizeof cell);
    }
}

extern PyType_Spec head_spec, reader_spec;
PyObject *floats_between(PyObject *module, PyObject *const *given, Py_ssize_t count);
PyObject *float32_text(PyObject *module, PyObject *value);
PyObject *float32_rows(PyObject *module, PyObject *arguments);
PyObject *observe(PyObject *module, PyObject *const *given, Py_ssize_t count);
PyObject *wire(PyObject *module, PyObject *const *given, Py_ssize_t count);

#endif
