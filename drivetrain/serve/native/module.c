/* drivetrain.serve.native.compiled: the parts of the hot path that are worth a compiler. */

#include "native.h"

static PyMethodDef methods[] = {
    {"float32_text", float32_text, METH_O,
     "A float32 as JSON: the shortest number that reads back to its bits."},
    {"float32_rows", float32_rows, METH_VARARGS,
     "The rows of a float32 matrix, given its memory and its width, each as a JSON list."},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module) {
    PyObject *type = PyType_FromSpec(&reader_spec);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddObjectRef(module, "Reader", type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "compiled", "The hot path's compiled part.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_compiled(void) { return PyModuleDef_Init(&definition); }
