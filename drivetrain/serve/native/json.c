/* JSON (RFC 8259) as clients write numbers. All that is unusual is left to the Python path: a
   function gives 0 then, and nothing that it wrote counts. */

#include "native.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define MOST_DIGITS 18      /* so many always fit into 64 bits */
#define MOST_CHARACTERS 60
#define EXACT (1LL << 53)   /* integers up to here, and powers of ten up to 10^22, are doubles */

static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

int take_string(Text *text, const char **start, Py_ssize_t *size) {
    if (!take(text, '"')) {
        return 0;
    }
    *start = text->at;
    const char *at = text->at;
    while (at < text->end && *at != '"') {
        if (*at == '\\' || (unsigned char)*at < 0x20) {
            return 0;
        }
        at++;
    }
    if (at == text->end) {
        return 0;
    }
    *size = at - *start;
    text->at = at + 1;
    return 1;
}

static int is_digit(const char *at, const char *end) {
    return at < end && *at >= '0' && *at <= '9';
}

/* A decimal by the C library that Python has: rounded to the nearest, whatever the locale. */
static int slowly(const char *start, const char *end, double *real) {
    char copy[MOST_CHARACTERS + 1];
    Py_ssize_t size = end - start;
    char *stopped = NULL;
    if (size > MOST_CHARACTERS) {
        return 0;
    }
    memcpy(copy, start, (size_t)size);
    copy[size] = '\0';
    *real = PyOS_string_to_double(copy, &stopped, NULL);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return stopped == copy + size;
}

static int rounded(const char *start, const char *end, int negative, int64_t digits, long power,
                   double *real) {
#if FLT_EVAL_METHOD == 0
    if (digits <= EXACT && power >= -22 && power <= 22) { /* Clinger 1990: one rounding */
        double found = (double)digits;
        found = power < 0 ? found / powers[-power] : found * powers[power];
        *real = negative ? -found : found;
        return 1;
    }
#else
    (void)powers;
#endif
    if (!slowly(start, end, real) || !isfinite(*real)) {
        return 0;
    }
    return *real != 0.0 || digits == 0; /* one that is too small for a double */
}

static int take_number(Text *text, char code, Cell *cell) {
    const char *start = text->at, *at = start, *end = text->end;
    int negative = at < end && *at == '-';
    at += negative;
    const char *first = at;
    int64_t digits = 0;
    if (!is_digit(at, end)) {
        return 0;
    }
    while (is_digit(at, end)) {
        if (at - first == MOST_DIGITS) {
            return 0;
        }
        digits = 10 * digits + (*at++ - '0');
    }
    Py_ssize_t count = at - first;
    if (count > 1 && *first == '0') {
        return 0;
    }
    int is_whole = at == end || (*at != '.' && *at != 'e' && *at != 'E');
    if (is_whole) {
        text->at = at;
        if (code == 'q') {
            cell->whole = negative ? -digits : digits;
            return 1;
        }
        if (negative && digits == 0) {
            return 0;
        }
        cell->real = (double)(negative ? -digits : digits);
        return 1;
    }
    if (code == 'q') {
        return 0;
    }
    long power = 0;
    if (*at == '.') {
        at++;
        if (!is_digit(at, end)) {
            return 0;
        }
        while (is_digit(at, end)) {
            if (++count > MOST_DIGITS) {
                return 0;
            }
            digits = 10 * digits + (*at++ - '0');
            power--;
        }
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        int below = at < end && *at == '-';
        at += at < end && (*at == '-' || *at == '+');
        if (!is_digit(at, end)) {
            return 0;
        }
        long exponent = 0;
        while (is_digit(at, end)) {
            exponent = 10 * exponent + (*at++ - '0');
            if (exponent > 400) {
                return 0;
            }
        }
        power += below ? -exponent : exponent;
    }
    text->at = at;
    return rounded(start, at, negative, digits, power, &cell->real);
}

int take_value(Text *text, char code, Cell *cell) {
    if (is_digit(text->at, text->end)) { /* most of them, with no space before */
        return take_number(text, code, cell);
    }
    if (take(text, 'n')) {
        if (text->end - text->at < 3 || memcmp(text->at, "ull", 3) != 0) {
            return 0;
        }
        text->at += 3;
        if (code == 'q') {
            cell->whole = INT64_MIN;
        } else {
            cell->real = (double)NAN;
        }
        return 1;
    }
    return take_number(text, code, cell);
}
