/* One key's observations as bytes, and back. Equal observations give equal bytes.

   A check of the track's declaration (8 bytes), the number of entries and whether sums are wide (4
   each), what lies before them, then one array after another, then a check of it all (8 bytes).
   What is read may come from anywhere: nothing in it is believed. */

#include "windows.h"

typedef struct {
    char *at;
} Cursor;

/* The arrays of a key, in the order in which they are written, and how wide their values are. */
#define MOST_ARRAYS 7

static int arrays_of(const Layout *layout, const Key *key, char **found, size_t *widths) {
    int number = 0;
#define WITH(there, array) \
    if (there) { \
        found[number] = (char *)array(layout, key); \
        widths[number++] = sizeof *array(layout, key); \
    }
    WITH(1, TIMES)
    WITH(layout->prefixes, PREFIX)
    WITH(layout->values, VALUES)
    WITH(layout->panes, COUNTS)
    WITH(layout->tops, TOPS)
    WITH(layout->panes && layout->lows, LEAST)
    WITH(layout->panes && layout->highs, GREATEST)
#undef WITH
    return number;
}

/* Links are no part of it: they follow from the values. */
static size_t entry_size(const Layout *layout) { return layout->before_at; }

static size_t head_size(const Layout *layout) {
    return 8 + 4 + 4 + 8 + 8 + 8 + sizeof(Wide) + (size_t)8 * layout->decays;
}

size_t size_of_key(const Layout *layout, const Key *key) {
    return head_size(layout) + (size_t)(key->end - key->head) * entry_size(layout) + 8;
}

static void put(Cursor *cursor, const void *data, size_t size) {
    memcpy(cursor->at, data, size);
    cursor->at += size;
}

static void take(Cursor *cursor, void *data, size_t size) {
    memcpy(data, cursor->at, size);
    cursor->at += size;
}

static int by_value(const void *one, const void *other) {
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

static int by_sum(const void *one, const void *other) {
    Wide a = *(const Wide *)one, b = *(const Wide *)other;
    return (a > b) - (a < b);
}

/* Observations [low, high) are of one moment: put them in the order of their values. */
static void sort_moment(const Layout *layout, Key *key, uint32_t low, uint32_t high) {
    Wide *prefix = PREFIX(layout, key);
    if (layout->values) {
        qsort(VALUES(layout, key) + low, high - low, sizeof(int64_t), by_value);
    }
    if (layout->prefixes) {
        Wide before = low ? prefix[low - 1] : key->prefix;
        for (uint32_t i = high; i-- > low;) {
            prefix[i] = between(i > low ? prefix[i - 1] : before, prefix[i]);
        }
        qsort(prefix + low, high - low, sizeof(Wide), by_sum);
        for (uint32_t i = low; i < high; i++) {
            prefix[i] = together(i > low ? prefix[i - 1] : before, prefix[i]);
        }
    }
    for (int d = 0; d < layout->decays; d++) { /* only the last one's is ever read */
        double *decayed = DECAYED(layout, key, d);
        for (uint32_t i = low; i < high; i++) {
            decayed[i] = decayed[high - 1];
        }
    }
}

static void sort_moments(const Layout *layout, Key *key) {
    const int64_t *times = TIMES(layout, key);
    for (uint32_t low = 0, high; low < key->end; low = high) {
        for (high = low + 1; high < key->end && times[high] == times[low];) {
            high++;
        }
        if (high - low > 1) {
            sort_moment(layout, key, low, high);
        }
    }
}

/* Write a key into `size_of_key` bytes; -1: no memory. */
int write_key(const Track *track, const Key *key, char *out) {
    const Layout *layout = &track->layout;
    Key *copy = compacted(layout, key);
    if (copy == NULL) {
        return -1;
    }
    sort_moments(layout, copy);
    Cursor cursor = {out};
    uint32_t wide = (uint32_t)copy->wide;
    put(&cursor, track->digest, 8);
    put(&cursor, &copy->end, 4);
    put(&cursor, &wide, 4);
    put(&cursor, &copy->count, 8);
    put(&cursor, &copy->time, 8);
    put(&cursor, &copy->high, 8);
    put(&cursor, &copy->prefix, sizeof(Wide));
    put(&cursor, DECAYS(layout, copy), (size_t)8 * layout->decays);
    char *arrays[MOST_ARRAYS];
    size_t widths[MOST_ARRAYS];
    int number = arrays_of(layout, copy, arrays, widths);
    for (int i = 0; i < number; i++) {
        put(&cursor, arrays[i], copy->end * widths[i]);
    }
    for (int d = 0; d < layout->decays; d++) {
        put(&cursor, DECAYED(layout, copy, d), copy->end * sizeof(double));
    }
    uint64_t check[2];
    siphash(out, (size_t)(cursor.at - out), -1, check);
    put(&cursor, check, 8);
    free_key(copy);
    return 0;
}

static int good_value(int kind, int64_t value) {
    int64_t kept;
    return encoded(kind, kind == REAL ? in_order(value) : value, &kept) && kept == value;
}

static int good_values(int kind, const int64_t *values, uint32_t number) {
    for (uint32_t i = 0; i < number; i++) {
        if (!good_value(kind, values[i])) {
            return 0;
        }
    }
    return 1;
}

static int good_reals(const double *values, uint32_t number) {
    for (uint32_t i = 0; i < number; i++) {
        if (!(values[i] >= -0x1p1000 && values[i] <= 0x1p1000)) {
            return 0;
        }
    }
    return 1;
}

/* Whether entries are in order and hold what can have been observed. */
static int good(const Layout *layout, const Key *key) {
    const int64_t *times = TIMES(layout, key);
    int64_t time = key->time;
    for (uint32_t i = 0; i < key->end; i++) {
        if (times[i] == MISSING || times[i] < time || (layout->panes && times[i] == time)) {
            return 0;
        }
        time = times[i];
    }
    uint64_t count = key->count;
    for (uint32_t i = 0; layout->panes && i < key->end; i++) {
        if (COUNTS(layout, key)[i] <= count) {
            return 0;
        }
        count = COUNTS(layout, key)[i];
    }
    if (count > (uint64_t)INT64_MAX - UINT32_MAX || !good_reals(DECAYS(layout, key), layout->decays)) {
        return 0;
    }
    for (int d = 0; d < layout->decays; d++) {
        if (!good_reals(DECAYED(layout, key, d), key->end)) {
            return 0;
        }
    }
    int low = layout->panes && layout->lows, high = layout->panes && layout->highs;
    return (!layout->values || good_values(layout->kind, VALUES(layout, key), key->end)) &&
           (!low || good_values(layout->kind, LEAST(layout, key), key->end)) &&
           (!high || good_values(layout->kind, GREATEST(layout, key), key->end));
}

static Key *fill(const Layout *layout, const uint64_t hash[2], uint32_t number, Cursor cursor) {
    Key *key = make_key(layout, hash, number);
    if (key == NULL) {
        return NULL;
    }
    uint32_t wide;
    take(&cursor, &wide, 4);
    key->wide = wide != 0;
    take(&cursor, &key->count, 8);
    take(&cursor, &key->time, 8);
    take(&cursor, &key->high, 8);
    take(&cursor, &key->prefix, sizeof(Wide));
    take(&cursor, DECAYS(layout, key), (size_t)8 * layout->decays);
    key->end = number;
    char *arrays[MOST_ARRAYS];
    size_t widths[MOST_ARRAYS];
    int all = arrays_of(layout, key, arrays, widths);
    for (int i = 0; i < all; i++) {
        take(&cursor, arrays[i], number * widths[i]);
    }
    for (int d = 0; d < layout->decays; d++) {
        take(&cursor, DECAYED(layout, key, d), number * sizeof(double));
    }
    return key;
}

/* A key out of bytes; NULL with `wrong` NULL: no memory. */
Key *read_key(const Track *track, const uint64_t hash[2], const char *data, size_t size,
              const char **wrong) {
    const Layout *layout = &track->layout;
    size_t head = head_size(layout), entry = entry_size(layout);
    *wrong = "found other bytes than were written";
    if (size < head + entry + 8 || (size - head - 8) % entry != 0) {
        return NULL;
    }
    if (memcmp(data, track->digest, 8) != 0) {
        *wrong = "found the state of other windows";
        return NULL;
    }
    uint64_t check[2];
    siphash(data, size - 8, -1, check);
    uint32_t number;
    memcpy(&number, data + 8, sizeof number);
    if (memcmp(check, data + size - 8, 8) != 0 || number != (size - head - 8) / entry) {
        return NULL;
    }
    Key *key = fill(layout, hash, number, (Cursor){(char *)data + 12});
    if (key == NULL) {
        *wrong = NULL;
        return NULL;
    }
    if (!good(layout, key)) {
        free_key(key);
        return NULL;
    }
    forget_old(layout, key);
    fill_derived(layout, key);
    return key;
}
