/* HTTP/1.1 as clients repeat it: a head that is known by its bytes, and the bytes of an answer. */

#include "native.h"

#include <string.h>

#define MOST_DIGITS 9 /* of a Content-Length that is read here */

typedef struct {
    PyObject_HEAD
    PyObject *before, *behind; /* bytes */
} Head;

static void head_dealloc(PyObject *object) {
    Head *self = (Head *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->before);
    Py_XDECREF(self->behind);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *head_new(PyTypeObject *type, PyObject *args, PyObject *options) {
    PyObject *before, *behind;
    (void)options;
    if (!PyArg_ParseTuple(args, "SS", &before, &behind)) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Head *self = (Head *)allocate(type, 0);
    if (self != NULL) {
        Py_INCREF(before);
        Py_INCREF(behind);
        self->before = before;
        self->behind = behind;
    }
    return (PyObject *)self;
}

/* Take bytes that must come next. */
static int take_bytes(Text *text, PyObject *expected) {
    Py_ssize_t size = PyBytes_Size(expected);
    if (text->end - text->at < size ||
        memcmp(text->at, PyBytes_AsString(expected), (size_t)size) != 0) {
        return 0;
    }
    text->at += size;
    return 1;
}

/* Where the content begins if all of `text` is one request with this head, else -1. */
static Py_ssize_t end_of(const Head *self, Text text) {
    const char *start = text.at;
    Py_ssize_t length = 0;
    if (!take_bytes(&text, self->before)) {
        return -1;
    }
    const char *digits = text.at;
    while (text.at < text.end && *text.at >= '0' && *text.at <= '9' &&
           text.at - digits < MOST_DIGITS) {
        length = 10 * length + (*text.at++ - '0');
    }
    if (text.at == digits || (*digits == '0' && text.at - digits > 1)) {
        return -1; /* none, or not the one way to write it */
    }
    if (!take_bytes(&text, self->behind) || text.end - text.at != length) {
        return -1;
    }
    return text.at - start;
}

static PyObject *head_end(PyObject *object, PyObject *data) {
    char *start;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(data, &start, &size) < 0) {
        return NULL;
    }
    Text text = {start, start + size};
    return PyLong_FromSsize_t(end_of((Head *)object, text));
}

static PyMethodDef head_methods[] = {
    {"end", head_end, METH_O,
     "end(data): where the content begins if the data is one whole request with this head and the "
     "length that it announces, else -1."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot head_slots[] = {
    {Py_tp_new, head_new},
    {Py_tp_dealloc, head_dealloc},
    {Py_tp_methods, head_methods},
    {Py_tp_doc, "Head(before, behind): what lies before and behind the digits of Content-Length."},
    {0, NULL},
};

PyType_Spec head_spec = {
    "drivetrain.serve.native.compiled.Head", sizeof(Head), 0, Py_TPFLAGS_DEFAULT, head_slots,
};

static char *put_text(char *to, const char *text, size_t size) {
    memcpy(to, text, size);
    return to + size;
}

#define PUT(to, literal) put_text(to, literal, sizeof(literal) - 1)
#define KIND "Content-Type: "
#define LENGTH "\r\nContent-Length: "
#define LONGEST 20 /* digits of any length */

static char *put_number(char *to, Py_ssize_t number) {
    char reversed[LONGEST];
    int count = 0;
    do {
        reversed[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    while (count > 0) {
        *to++ = reversed[--count];
    }
    return to;
}

/* The very bytes of drivetrain.serve.transport.http1_answer.wire_in_python. */
PyObject *wire(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    enum { STATUS, DATE, TYPE, EXTRA, BODY, PARTS };
    char *part[PARTS];
    Py_ssize_t size[PARTS], length;
    (void)module;
    if (count != PARTS + 1) {
        PyErr_SetString(PyExc_TypeError, "wire: takes the parts and the length of the content");
        return NULL;
    }
    for (int i = 0; i < PARTS; i++) {
        if (PyBytes_AsStringAndSize(given[i], &part[i], &size[i]) < 0) {
            return NULL;
        }
    }
    length = PyLong_AsSsize_t(given[PARTS]);
    if (length < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "length: found less than 0.");
        }
        return NULL;
    }
    char number[LONGEST];
    size_t digits = (size_t)(put_number(number, length) - number);
    Py_ssize_t room = (Py_ssize_t)(sizeof(KIND) - 1 + sizeof(LENGTH) - 1 + digits + 4);
    for (int i = 0; i < PARTS; i++) {
        room += size[i]; /* all of them are in memory: so is their sum */
    }
    PyObject *found = PyBytes_FromStringAndSize(NULL, room);
    if (found == NULL) {
        return NULL;
    }
    char *at = PyBytes_AsString(found);
    at = put_text(at, part[STATUS], (size_t)size[STATUS]);
    at = put_text(at, part[DATE], (size_t)size[DATE]);
    at = PUT(at, KIND);
    at = put_text(at, part[TYPE], (size_t)size[TYPE]);
    at = PUT(at, LENGTH);
    at = put_text(at, number, digits);
    at = PUT(at, "\r\n");
    at = put_text(at, part[EXTRA], (size_t)size[EXTRA]);
    at = PUT(at, "\r\n");
    put_text(at, part[BODY], (size_t)size[BODY]);
    return found;
}
