/* What the files of drivetrain.core.native.windows share.

   A track keeps, for each key, its observations in order of the times at which they became known.
   Whatever a window gives is a function of the observations that were taken, never of the order in
   which they came, of reads, or of what was tidied up meanwhile. */

#ifndef DRIVETRAIN_WINDOWS_H
#define DRIVETRAIN_WINDOWS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "hashes and what is written to a file are those of a machine that begins with the low byte"
#endif

typedef __int128 Wide;
typedef unsigned __int128 UWide;

/* A missing integer, time or end of a search; never an observed one. */
#define MISSING INT64_MIN

enum { COUNT, SUM, MEAN, MIN, MAX, DISTINCT, LAST, SINCE, RECENT, STATS };
enum { NONE, REAL, WHOLE, NAMED, KINDS }; /* what is observed: rows, floats, integers, hashes */
enum { ASK = 1, TELL = 2 };

/* A column that is read off a track. */
typedef struct {
    int stat;
    int64_t over;       /* 0: however long ago */
    uint32_t rows;      /* 0: however many */
    int over_at;        /* which of Layout.over it is, -1: none */
    int sum_at, count_at; /* which decayed values it reads, -1: none */
    int run_at;         /* which running number of different values, -1: none */
    uint32_t width;     /* how many values it gives */
    size_t at;          /* where they lie in what a row is given */
} Window;

/* What some window may still look at: observations within `over` (0: any), among the last `rows`
   (0: any) of what the oldest question allowed can see. */
typedef struct {
    int64_t over;
    uint32_t rows;
} Need;

/* A sum or a count of which half is forgotten after each `half_life`. */
typedef struct {
    int64_t half_life;
    int sums;
} Decay;

/* What a track keeps, and where it lies in the memory of a key. */
typedef struct {
    int kind;
    int64_t resolution, lateness, forgotten;
    int windows, overs, needs, decays, runs;
    Window *window;
    int64_t *over;
    Need *need;
    Decay *decay;
    int64_t longest; /* after so long without news every window is empty; 0: never */
    size_t given;    /* how many values a row is given */
    int ordered;     /* observations of one time are kept in the order of their values */
    int prefixes, values, panes, tops, lows, highs, links;
    size_t cursors_at, runs_at, decays_at, start; /* bytes from the key's beginning */
    /* Bytes for each entry before an array's beginning. */
    size_t times_at, values_at, least_at, greatest_at, counts_at, tops_at, decayed_at;
    size_t before_at, after_at;
    size_t entry;
} Layout;

/* All that is kept of a key; what varies lies behind it (`start` and on: the arrays). */
typedef struct {
    uint64_t hash[2];
    uint32_t room, end, head, fresh; /* visible: [head, end); late ones come at `fresh` or later */
    uint64_t count;                  /* observations before position 0 */
    int64_t time;                    /* of the newest before position 0; MISSING: none */
    int64_t high;                    /* what of `prefix` goes beyond it, where `wide` */
    uint64_t wide;                   /* some value is so large that a sum may not fit a prefix */
    Wide prefix;                     /* the exact sum of the observations before position 0 */
} Key;

/* How many different values [low, high) holds: where a read began from, moved to where it asks. */
typedef struct {
    uint32_t low, high, count;
} Running;

typedef struct {
    uint64_t tag;
    Key *key;
} Slot;

/* A part of a track's keys, by their hash; one thread at a time works on it. */
typedef struct {
    Slot *slots;
    uint64_t size, used, bytes;
} Shard;

/* Of a track: what is worked out of each on the way is held on the stack. */
#define MOST_WINDOWS 1000

#define SHARDS 256
#define SHARD_OF(hash) ((hash)[1] >> 56)

typedef struct {
    PyObject_HEAD
    Layout layout;
    pthread_mutex_t lock;
    int locked; /* the lock was made */
    int64_t watermark;
    unsigned char digest[16];
    Shard shards[SHARDS];
} Track;

/* -- layout.c -- */
int lay_out(Layout *layout, PyObject *windows);
void lay_down(Layout *layout);
/* The bytes of a key with room for so many entries; 0: too many. */
size_t bytes_of(const Layout *layout, uint32_t room);
size_t tree_size(uint32_t room);
size_t table_size(uint32_t room);

#define BEGIN(layout, key) ((char *)(key) + (layout)->start)
#define ARRAY(type, layout, key, at) \
    ((type *)(BEGIN(layout, key) + (size_t)(key)->room * (layout)->at))
#define PREFIX(layout, key) ((Wide *)BEGIN(layout, key))
#define TIMES(layout, key) ARRAY(int64_t, layout, key, times_at)
#define VALUES(layout, key) ARRAY(int64_t, layout, key, values_at)
#define LEAST(layout, key) ARRAY(int64_t, layout, key, least_at)
#define GREATEST(layout, key) ARRAY(int64_t, layout, key, greatest_at)
#define COUNTS(layout, key) ARRAY(uint64_t, layout, key, counts_at)
/* Of panes, whose sums have no bound: what of a prefix goes beyond it. */
#define TOPS(layout, key) ARRAY(int64_t, layout, key, tops_at)
#define DECAYED(layout, key, d) (ARRAY(double, layout, key, decayed_at) + (size_t)(key)->room * (d))
#define BEFORE(layout, key) ARRAY(uint32_t, layout, key, before_at)
#define AFTER(layout, key) ARRAY(uint32_t, layout, key, after_at)
#define CURSORS(layout, key) ((uint32_t *)((char *)(key) + (layout)->cursors_at))
#define RUNS(layout, key) ((Running *)((char *)(key) + (layout)->runs_at))
#define DECAYS(layout, key) ((double *)((char *)(key) + (layout)->decays_at))
/* Extremes of blocks of entries: of the least, then of the greatest. */
#define TREES(layout, key) ARRAY(int64_t, layout, key, entry)

/* -- exact.c -- */
/* A sum with more digits than one has: `top` is what goes beyond `low`. */
typedef struct {
    UWide low;
    int64_t top;
} Sum;

/* Prefixes may go round: their differences are right nevertheless. */
static inline Wide together(Wide one, Wide other) { return (Wide)((UWide)one + (UWide)other); }

static inline Wide between(Wide from, Wide to) { return (Wide)((UWide)to - (UWide)from); }

static inline Sum sum_as(Wide value) { return (Sum){(UWide)value, value < 0 ? -1 : 0}; }

static inline Sum plus(Sum one, Sum other) {
    UWide low = one.low + other.low;
    return (Sum){low, (int64_t)((uint64_t)one.top + (uint64_t)other.top + (low < one.low))};
}

static inline Sum minus(Sum one, Sum other) {
    uint64_t top = (uint64_t)one.top - (uint64_t)other.top - (one.low < other.low);
    return (Sum){one.low - other.low, (int64_t)top};
}

#define POINT 64 /* a float is kept in units of 2**-64 */
Wide fixed_of(int kind, int64_t value);
double real_of(Sum sum, int kind, uint64_t count);
double halved(double value, uint64_t age, int64_t half_life);

static inline int64_t bits_of(double value) {
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double double_of(int64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A float's bits in an order that is that of integers; twice gives the bits again. */
static inline int64_t in_order(int64_t bits) {
    return bits ^ (int64_t)((uint64_t)(bits >> 63) >> 1);
}

static inline int64_t less(int64_t time, int64_t length) {
    int64_t found;
    return __builtin_sub_overflow(time, length, &found) ? INT64_MIN + 1 : found;
}

static inline uint64_t span(int64_t from, int64_t to) { return (uint64_t)to - (uint64_t)from; }

/* -- key.c -- */
/* The sum of the observations of entries [low, high). */
Sum sum_between(const Layout *layout, const Key *key, uint32_t low, uint32_t high);
Key *make_key(const Layout *layout, const uint64_t hash[2], uint32_t room);
void free_key(Key *key);
/* 1: taken, 0: late, -1: no memory; the key may move. */
int tell(const Layout *layout, Key **key, int64_t time, int64_t value);
void fill_derived(const Layout *layout, Key *key);
void forget_old(const Layout *layout, Key *key);
/* A copy of what a key keeps, of which nothing lies before position 0; NULL: no memory. */
Key *compacted(const Layout *layout, const Key *key);

/* -- tree.c -- */
void tree_add(const Layout *layout, Key *key, uint32_t from);
int64_t extreme(const Layout *layout, const Key *key, int greatest, uint32_t low, uint32_t high);

/* -- distinct.c -- */
void link_last(const Layout *layout, Key *key);
void link_all(const Layout *layout, Key *key);
uint32_t distinct(const Layout *layout, Key *key, int run, uint32_t low, uint32_t high);

/* -- ask.c -- */
/* Write what every window gives at `time`, one behind the other; no key, or no time: nothing. */
void ask(const Layout *layout, Key *key, int64_t time, int64_t *given);

/* -- table.c -- */
extern uint64_t secret;
Key **find(Shard *shard, const uint64_t hash[2]);
Key **find_or_make(const Layout *layout, Shard *shard, const uint64_t hash[2]);
int put_key(const Layout *layout, Shard *shard, Key *key);
void remove_at(const Layout *layout, Shard *shard, uint64_t at);
uint64_t slot_of(const Shard *shard, const uint64_t hash[2]);
uint64_t likely_slot_of(const Shard *shard, const uint64_t hash[2]);
void bring_slot_near(const Shard *shard, const uint64_t hash[2]);
void shrink(Shard *shard);
void clear(Shard *shard);

/* -- hash.c -- */
void siphash(const void *data, size_t size, int tag, uint64_t out[2]);
PyObject *hash_objects(PyObject *module, PyObject *arguments);
PyObject *hash_integers(PyObject *module, PyObject *arguments);
PyObject *hash_together(PyObject *module, PyObject *arguments);
PyObject *siphash_of(PyObject *module, PyObject *value);
int hash_value(PyObject *value, uint64_t out[2]);
void hash_several(const uint64_t *hashes, size_t number, uint64_t out[2]);

/* -- run.c -- */
/* 1: taken, 0: late, 2: missing, -1: no memory. Whoever calls it holds the lock. */
Key *key_of(Track *track, const uint64_t hash[2]);
void ask_one(Track *track, const uint64_t hash[2], int64_t time, int64_t *given);
int tell_one(Track *track, const uint64_t hash[2], int64_t time, int64_t value);
int encoded(int kind, int64_t given, int64_t *value);
int64_t rounded_up(int64_t time, int64_t resolution);
/* -- rows.c -- */
PyObject *run(PyObject *self, PyObject *arguments);

/* -- blob.c -- */
size_t size_of_key(const Layout *layout, const Key *key);
int write_key(const Track *track, const Key *key, char *out);
Key *read_key(const Track *track, const uint64_t hash[2], const char *data, size_t size,
              const char **wrong);
/* -- dump.c -- */
PyObject *dump(PyObject *self, PyObject *nothing);
PyObject *load(PyObject *self, PyObject *data);
PyObject *dump_key(PyObject *self, PyObject *arguments);
PyObject *load_key(PyObject *self, PyObject *arguments);

/* -- track.c -- */
extern PyType_Spec track_spec, row_spec;
void lock(Track *track);
void unlock(Track *track);

#endif
