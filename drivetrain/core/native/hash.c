/* Hashes of keys: SipHash-2-4 with 128 bits (Aumasson and Bernstein, 2012), the same everywhere.

   A value's hash is that of its bytes and of a byte that tells its type; the hash of several is
   that of their hashes. A missing value, and a key that has one, has the hash (0, 0). */

#include "windows.h"

enum { OF_TEXT = 1, OF_BYTES = 2, OF_INTEGER = 3, OF_SEVERAL = 4 };

/* The key of the authors' test vectors: 00 01 02 … 0f. It is no secret. */
#define KEY_0 UINT64_C(0x0706050403020100)
#define KEY_1 UINT64_C(0x0f0e0d0c0b0a0908)

typedef struct {
    uint64_t a, b, c, d;
} State;

static inline uint64_t turned(uint64_t value, int by) { return value << by | value >> (64 - by); }

static inline void round_once(State *s) {
    s->a += s->b;
    s->b = turned(s->b, 13) ^ s->a;
    s->a = turned(s->a, 32);
    s->c += s->d;
    s->d = turned(s->d, 16) ^ s->c;
    s->a += s->d;
    s->d = turned(s->d, 21) ^ s->a;
    s->c += s->b;
    s->b = turned(s->b, 17) ^ s->c;
    s->c = turned(s->c, 32);
}

static inline void take_in(State *s, uint64_t word) {
    s->d ^= word;
    round_once(s);
    round_once(s);
    s->a ^= word;
}

static uint64_t word_of(const unsigned char *data, size_t size) {
    uint64_t word = 0;
    memcpy(&word, data, size);
    return word;
}

/* The hash of the data, and of one byte `tag` behind it unless that is negative. */
void siphash(const void *data, size_t size, int tag, uint64_t out[2]) {
    State s = {KEY_0 ^ UINT64_C(0x736f6d6570736575), KEY_1 ^ UINT64_C(0x646f72616e646f6d) ^ 0xee,
               KEY_0 ^ UINT64_C(0x6c7967656e657261), KEY_1 ^ UINT64_C(0x7465646279746573)};
    const unsigned char *at = data;
    size_t rest = size;
    for (; rest >= 8; rest -= 8, at += 8) {
        take_in(&s, word_of(at, 8));
    }
    uint64_t last = word_of(at, rest);
    if (tag >= 0) {
        last |= (uint64_t)tag << 8 * rest;
        if (++rest == 8) {
            take_in(&s, last);
            last = 0;
        }
        size++;
    }
    take_in(&s, last | (uint64_t)size << 56);
    s.c ^= 0xee;
    for (int i = 0; i < 4; i++) {
        round_once(&s);
    }
    out[0] = s.a ^ s.b ^ s.c ^ s.d;
    s.b ^= 0xdd;
    for (int i = 0; i < 4; i++) {
        round_once(&s);
    }
    out[1] = s.a ^ s.b ^ s.c ^ s.d;
}

static void hash_integer(int64_t value, uint64_t out[2]) {
    if (value == MISSING) {
        out[0] = out[1] = 0;
        return;
    }
    siphash(&value, 8, OF_INTEGER, out);
}

/* The hash of a text, of bytes, of an integer or of None. */
int hash_value(PyObject *value, uint64_t out[2]) {
    const char *data;
    Py_ssize_t size;
    int tag = OF_TEXT;
    if (PyUnicode_Check(value)) {
        data = PyUnicode_AsUTF8AndSize(value, &size);
        if (data == NULL) {
            return -1;
        }
    } else if (PyBytes_Check(value)) {
        tag = OF_BYTES;
        if (PyBytes_AsStringAndSize(value, (char **)&data, &size) < 0) {
            return -1;
        }
    } else if (PyLong_Check(value)) {
        int64_t integer = PyLong_AsLongLong(value);
        if (integer == -1 && PyErr_Occurred()) {
            return -1;
        }
        hash_integer(integer, out);
        return 0;
    } else if (value == Py_None) {
        size = 0;
        data = "";
    } else {
        PyErr_Format(PyExc_TypeError, "a key: found %R, allowed: text, bytes or an integer.", value);
        return -1;
    }
    out[0] = out[1] = 0;
    if (size) {
        siphash(data, (size_t)size, tag, out);
    }
    return 0;
}

static int take_arrays(PyObject *arguments, Py_buffer *values, Py_buffer *out, Py_ssize_t width) {
    PyObject *given, *found;
    if (!PyArg_ParseTuple(arguments, "OO", &given, &found) ||
        PyObject_GetBuffer(given, values, PyBUF_CONTIG_RO | PyBUF_FORMAT) < 0) {
        return -1;
    }
    if (PyObject_GetBuffer(found, out, PyBUF_CONTIG) < 0) {
        PyBuffer_Release(values);
        return -1;
    }
    if (values->itemsize != 8 || out->len / 16 != values->len / width || out->len % 16) {
        PyErr_SetString(PyExc_ValueError, "hashes: the arrays do not fit together.");
        PyBuffer_Release(values);
        PyBuffer_Release(out);
        return -1;
    }
    return 0;
}

/* hash_objects(values: object [n], out: uint64 [n, 2]) */
PyObject *hash_objects(PyObject *module, PyObject *arguments) {
    Py_buffer values, out;
    if (take_arrays(arguments, &values, &out, sizeof(PyObject *)) < 0) {
        return NULL;
    }
    int failed = values.format == NULL || strcmp(values.format, "O") != 0;
    if (failed) {
        PyErr_SetString(PyExc_TypeError, "hash_objects: found no array of objects.");
    }
    PyObject **items = values.buf;
    for (Py_ssize_t i = 0; !failed && i < values.len / values.itemsize; i++) {
        failed = hash_value(items[i], (uint64_t *)out.buf + 2 * i) < 0;
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return failed ? NULL : Py_NewRef(Py_None);
}

/* hash_integers(values: int64 [n], out: uint64 [n, 2]) */
PyObject *hash_integers(PyObject *module, PyObject *arguments) {
    Py_buffer values, out;
    if (take_arrays(arguments, &values, &out, 8) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < values.len / 8; i++) {
        hash_integer(((int64_t *)values.buf)[i], (uint64_t *)out.buf + 2 * i);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return Py_NewRef(Py_None);
}

/* The hash of the hashes of a key's values, of which there are `number`. */
void hash_several(const uint64_t *hashes, size_t number, uint64_t out[2]) {
    for (size_t i = 0; i < number; i++) {
        if (hashes[2 * i] == 0 && hashes[2 * i + 1] == 0) {
            out[0] = out[1] = 0;
            return;
        }
    }
    siphash(hashes, number * 16, OF_SEVERAL, out);
}

/* hash_together(hashes: uint64 [n, columns, 2], out: uint64 [n, 2]) */
PyObject *hash_together(PyObject *module, PyObject *arguments) {
    PyObject *given, *found;
    Py_ssize_t columns;
    Py_buffer values, out;
    if (!PyArg_ParseTuple(arguments, "OOn", &given, &found, &columns)) {
        return NULL;
    }
    PyObject *pair = columns > 0 && columns < 10000 ? PyTuple_Pack(2, given, found) : NULL;
    if (pair == NULL || take_arrays(pair, &values, &out, 16 * columns) < 0) {
        Py_XDECREF(pair);
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "hash_together: so many columns make no key.");
        }
        return NULL;
    }
    Py_DECREF(pair);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < out.len / 16; i++) {
        hash_several((uint64_t *)values.buf + 2 * columns * i, (size_t)columns,
                     (uint64_t *)out.buf + 2 * i);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return Py_NewRef(Py_None);
}

/* siphash(data: bytes) -> bytes: of 16, for whoever needs a digest, or the authors' vectors. */
PyObject *siphash_of(PyObject *module, PyObject *value) {
    Py_buffer data;
    uint64_t out[2];
    if (PyObject_GetBuffer(value, &data, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    siphash(data.buf, (size_t)data.len, -1, out);
    PyBuffer_Release(&data);
    return PyBytes_FromStringAndSize((char *)out, 16);
}
