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

/* The candidates of a query, unordered. */
typedef struct {
    float bound;           /* the least score that still counts */
    Py_ssize_t count, k;
    Py_ssize_t room;       /* places there are for candidates */
    float *scores, *tops;  /* tops: of scores in 8 bits, what the true one is at most */
    int32_t *places;
} Best;

/* Items in 8 bits, in the order of their scales, two panels of 16 at a time. */
typedef struct {
    const uint8_t *panels; /* for each four dimensions 16 items of four bytes, 128 added */
    const float *scales;   /* what a step of each item is worth; NaN for what is not found */
    const float *limits;   /* of each two panels: one over the largest scale, the largest norm of
                              what an item lost, the largest norm of what is left of one */
    const int32_t *order;  /* the place of each item */
    const float *rows;     /* the items themselves, by place */
    const float *columns;  /* what each dimension was divided by before it was rounded */
    Py_ssize_t pairs, items, width;
} Rough;

/* Let the k that come first come to the front, and raise the bound. */
WITHIN void select_best(Best *best, Py_ssize_t k);

/* Whether this processor multiplies bytes. */
WITHIN int multiplies_bytes(void);

/* Find candidates of each query, those that it looks for among them, with their scores in 8 bits.
   A query that has more than there is room for, or cannot be rounded, ends with a count of -1.
   Answers whether there was memory for it. */
WITHIN int search_bytes(const Rough *s, const float *queries, Best *best, Py_ssize_t count);

/* The candidates of a query get their scores in float32. */
WITHIN void score_again(const Rough *s, const float *query, Best *best);

/* Find the k best of a query by its scores in float32 with every item. */
WITHIN void search_rows(const Rough *s, const float *query, Best *best);

#endif
