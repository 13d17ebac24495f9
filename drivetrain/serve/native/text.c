/* Numbers as JSON text. */

#include "native.h"

#include <math.h>
#include <string.h>

/* The very text of drivetrain.serve.protocols.values.float32_text, which says what it promises. */
PyObject *float32_text(PyObject *module, PyObject *value) {
    (void)module;
    double real = PyFloat_AsDouble(value);
    if (real == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    if (!isfinite(real)) {
        return PyUnicode_FromString("null");
    }
    float bits = (float)real; /* beyond float32 is infinite (IEC 60559), as `struct` has it */
    for (int digits = 7; digits <= 9; digits++) {
        char *text = PyOS_double_to_string(real, 'g', digits, 0, NULL);
        if (text == NULL) {
            return NULL;
        }
        double back = PyOS_string_to_double(text, NULL, NULL);
        if (back == -1.0 && PyErr_Occurred()) {
            PyMem_Free(text);
            return NULL;
        }
        float again = (float)back;
        if (memcmp(&again, &bits, sizeof bits) == 0) {
            PyObject *found = PyUnicode_FromString(strcmp(text, "-0") == 0 ? "-0.0" : text);
            PyMem_Free(text);
            return found;
        }
        PyMem_Free(text);
    }
    return PyObject_Repr(value);
}
