/* What the parts of drivetrain.core.native.search share: the candidates of a query, and 8 bits. */

#ifndef DRIVETRAIN_SEARCH_H
#define DRIVETRAIN_SEARCH_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif
#define INSIDE static inline __attribute__((always_inline))
#define WITHIN __attribute__((visibility("hidden")))

enum { LANES = 16, GROUP = 12, BLOCK_BYTES = 1 << 18, AHEAD = 8 };
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t m16 __attribute__((vector_size(64)));

/* The candidates of a query: the k best so far and room for as many again, unordered but for the
   bound, which is the least score that still counts. */
typedef struct {
    float bound;
    Py_ssize_t count;
    float *scores;
    int32_t *places;
} Best;

/* Items in 8 bits, in the order of their scales, two panels of 16 at a time. */
typedef struct {
    const uint8_t *panels; /* for each four dimensions 16 items of four bytes, 128 added */
    const float *scales;   /* what a step of each item is worth; NaN for what fills up */
    const float *steps;    /* one over the largest scale of each two panels */
    const int32_t *order;  /* the place of each item */
    const int32_t *queries, *sums; /* four signed bytes each, in groups; 128 times a query's sum */
    const float *rows;     /* the items themselves, by place */
    Py_ssize_t items, width, k, room;
} Rough;

/* Let the k that come first come to the front, and raise the bound. */
WITHIN void select_best(Best *best, Py_ssize_t k);

/* Whether this processor multiplies bytes. */
WITHIN int multiplies_bytes(void);

/* Find at least k candidates of each query, if there are so many, with their scores in 8 bits. */
WITHIN void search_bytes(const Rough *s, Best *best, Py_ssize_t queries);

/* The candidates of a query get their scores in float32. */
WITHIN void score_again(const Rough *s, const float *query, Best *best);

#endif
