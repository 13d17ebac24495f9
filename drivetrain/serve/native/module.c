/* drivetrain.serve.native.compiled: the parts of the hot path that are worth a compiler. */

#include "native.h"

static PyMethodDef methods[] = {
    {"float32_text", float32_text, METH_O,
     "A float32 as JSON: the shortest number that reads back to its bits."},
    {"floats_between", (PyCFunction)(void (*)(void))floats_between, METH_FASTCALL,
     "floats_between(array, before, behind): each of its values as such a JSON between two texts."},
    {"float32_rows", float32_rows, METH_VARARGS,
     "The rows of a float32 matrix, given its memory and its width, each as a JSON list."},
    {"observe", (PyCFunction)(void (*)(void))observe, METH_FASTCALL,
     "observe(array, bounds, counts): count the finite values of an array; gives their sum."},
    {"wire", (PyCFunction)(void (*)(void))wire, METH_FASTCALL,
     "wire(status, date, kind, extra, body, length): an answer of HTTP/1.1 as it goes out."},
    {NULL, NULL, 0, NULL},
};

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
    return add_type(module, "Head", &head_spec) < 0 ||
                   add_type(module, "Reader", &reader_spec) < 0
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "compiled", "The hot path's compiled part.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_compiled(void) { return PyModuleDef_Init(&definition); }
