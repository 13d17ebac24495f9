/* Numbers that come out the same on every machine: exact sums, rounded once, and halving.

   Compile it without contraction: a fused multiplication rounds otherwise than two operations. */

#include "windows.h"

/* A value as an exact number of units: of 2**-POINT for a float (its bits in order), of 1 else.
   What lies below half a unit is rounded to even, as floats are. */
Wide fixed_of(int kind, int64_t value) {
    if (kind != REAL) {
        return value;
    }
    uint64_t bits = (uint64_t)in_order(value);
    int exponent = (int)(bits >> 52 & 0x7ff);
    uint64_t digits = bits & ((UINT64_C(1) << 52) - 1);
    if (exponent) {
        digits |= UINT64_C(1) << 52;
    } else {
        exponent = 1;
    }
    int shift = exponent - 1075 + POINT;
    UWide found;
    if (shift >= 0) {
        found = (UWide)digits << shift; /* a value is at most 2**62, so this is at most 2**126 */
    } else if (shift < -54) {
        found = 0;
    } else {
        uint64_t kept = digits >> -shift, rest = digits & ((UINT64_C(1) << -shift) - 1);
        uint64_t half = UINT64_C(1) << (-shift - 1);
        found = kept + (rest > half || (rest == half && (kept & 1)));
    }
    return bits >> 63 ? -(Wide)found : (Wide)found;
}

/* 2**power, for powers of normal numbers. */
static double two_to(int power) { return double_of((int64_t)(power + 1023) << 52); }

static int leading_zeros(UWide value) {
    uint64_t high = (uint64_t)(value >> 64), low = (uint64_t)value;
    return high ? __builtin_clzll(high) : low ? 64 + __builtin_clzll(low) : 128;
}

/* The quotient of magnitude * 2**power and `count`, rounded once to the nearest, ties to even.
   `more` says that the magnitude has further digits, which are not all zeros. */
static double quotient(UWide magnitude, int more, int power, uint64_t count) {
    if (magnitude == 0) {
        return 0.0;
    }
    if (count != 1) {
        /* With its first bit at the top the quotient has at least 64 bits: enough to round, where
           the lowest one says whether there are others. */
        int shift = leading_zeros(magnitude);
        magnitude <<= shift;
        power -= shift;
        more |= magnitude % count != 0;
        magnitude /= count;
    }
    return (double)(magnitude | (more != 0)) * two_to(power);
}

/* A sum of values of a kind, over `count`. */
double real_of(Sum sum, int kind, uint64_t count) {
    int negative = sum.top < 0;
    sum = negative ? minus((Sum){0, 0}, sum) : sum;
    UWide low = sum.low;
    uint64_t top = (uint64_t)sum.top;
    int more = 0, power = kind == REAL ? -POINT : 0;
    if (top) {
        int shift = 64 - __builtin_clzll(top);
        more = (low & (((UWide)1 << shift) - 1)) != 0;
        low = low >> shift | (UWide)top << (128 - shift);
        power += shift;
    }
    if (low >> 64 == 0 && count == 1 && !more) { /* most sums: one conversion does */
        double found = (double)(uint64_t)low * two_to(power);
        return negative ? -found : found;
    }
    double found = quotient(low, more, power, count);
    return negative ? -found : found;
}

/* value * 2**(-age / half_life), by operations that are alike everywhere: the power of a half that
   is left is a polynomial (Taylor's, to the 13th), good to about a unit in the last place. */
double halved(double value, uint64_t age, int64_t half_life) {
    uint64_t whole = age / (uint64_t)half_life;
    double part = (double)(age % (uint64_t)half_life) / (double)half_life;
    if (part > 0.5) {
        part -= 1.0;
        whole += 1;
    }
    static const double over_factorial[] = {
        0x1p0, 0x1p0, 0x1p-1, 0x1.5555555555555p-3, 0x1.5555555555555p-5, 0x1.1111111111111p-7,
        0x1.6c16c16c16c17p-10, 0x1.a01a01a01a01ap-13, 0x1.a01a01a01a01ap-16,
        0x1.71de3a556c734p-19, 0x1.27e4fb7789f5cp-22, 0x1.ae64567f544e4p-26,
        0x1.1eed8eff8d898p-29, 0x1.6124613a86d09p-33,
    };
    double x = -part * 0x1.62e42fefa39efp-1, power = over_factorial[13];
    for (int i = 12; i >= 0; i--) {
        power = power * x + over_factorial[i];
    }
    return value * power * two_to(-(int)whole);
}
