/* A run of many rows: what they bring, and what is at work on them. */

#ifndef DRIVETRAIN_RUN_H
#define DRIVETRAIN_RUN_H

#include <stdatomic.h>

#include "windows.h"

/* What a row does. */
typedef struct {
    uint64_t hash[2];
    int64_t asked; /* MISSING: it asks nothing, so it is given nothing */
    int64_t told;  /* MISSING: it tells nothing */
    int64_t value; /* as it is kept */
} Deed;

/* Rows are dealt out in so many stretches at most, each by one thread. */
#define STRETCHES 8

/* Rows that follow one another, as they are dealt out. */
typedef struct {
    uint32_t begin, end;
    uint32_t next[SHARDS]; /* first how many rows each part has here, then the place of the next */
    int64_t watermark;     /* first the latest time that is told here, then that of all before */
    int64_t late, missing;
} Stretch;

typedef struct {
    Track *track;
    const uint64_t *keys;
    const int64_t *asked, *told, *values;
    const uint8_t *kinds;
    int64_t **outs;
    size_t rows;
    int threads;
    int alone; /* only what a key itself was told says what is late */
    int64_t late, missing;
    /* Of the rows that are dealt out: what they do and are given, in the order of the parts that
       their keys are in, and the place of each in that order. */
    size_t from;
    uint32_t number;
    Deed *deeds;
    int64_t *given;
    uint32_t *places, starts[SHARDS + 1];
    int stretches;
    Stretch stretch[STRETCHES];
    atomic_int next, failed;
} Run;

/* All rows, in order; -1: no memory. Whoever calls it holds the lock, and frees what the run made. */
int run_all(Run *run);

#endif
