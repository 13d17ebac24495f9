/* drivetrain.core.native.windows: what a row knows of earlier rows, for batches and streams. */

#include "windows.h"

static PyMethodDef methods[] = {
    {"hash_objects", hash_objects, METH_VARARGS, "Hashes of texts, bytes and integers."},
    {"hash_integers", hash_integers, METH_VARARGS, "Hashes of integers."},
    {"hash_together", hash_together, METH_VARARGS, "Hashes of keys of several columns."},
    {"siphash", siphash_of, METH_O, "The SipHash-2-4 of bytes, in 16 bytes."},
    {NULL, NULL, 0, NULL},
};

/* Where keys lie is drawn like Python's own hashes; nothing that is given out depends on it. */
static int draw_secret(void) {
    PyObject *text = PyUnicode_FromString("where keys lie");
    if (text == NULL) {
        return -1;
    }
    Py_hash_t hash = PyObject_Hash(text);
    Py_DECREF(text);
    secret = (uint64_t)hash;
    return hash == -1 ? -1 : 0;
}

static int add_type(PyObject *module, const char *name, PyType_Spec *spec) {
    PyObject *type = PyType_FromSpec(spec);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddObjectRef(module, name, type);
    Py_DECREF(type);
    return failed;
}

static int fill_module(PyObject *module) {
    if (draw_secret() < 0) {
        return -1;
    }
    return add_type(module, "Track", &track_spec) < 0 ? -1 : add_type(module, "Row", &row_spec);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "windows", "What rows know of earlier rows.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_windows(void) { return PyModuleDef_Init(&definition); }
