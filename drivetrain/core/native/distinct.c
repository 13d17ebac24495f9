/* How many different values a range of entries holds: those whose value did not occur before. */

#include "windows.h"

static uint32_t *table_of(const Layout *layout, const Key *key) {
    int trees = layout->lows + layout->highs;
    return (uint32_t *)(TREES(layout, key) + trees * tree_size(key->room));
}

static size_t mixed(int64_t value) {
    uint64_t found = ((uint64_t)value ^ secret) * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(found ^ found >> 32);
}

/* The place in the table that holds a value's last position (plus 1), or the free one for it. */
static uint32_t *place_of(uint32_t *table, size_t size, const int64_t *values, int64_t value) {
    size_t at = mixed(value) & (size - 1);
    while (table[at] && values[table[at] - 1] != value) {
        at = (at + 1) & (size - 1);
    }
    return &table[at];
}

static void join(uint32_t *before, uint32_t *after, uint32_t one, uint32_t other) {
    before[other] = after[one] = other - one;
}

/* The last entry is new. */
void link_last(const Layout *layout, Key *key) {
    const int64_t *values = VALUES(layout, key);
    uint32_t *before = BEFORE(layout, key), *after = AFTER(layout, key), at = key->end - 1;
    before[at] = after[at] = 0;
    size_t size = table_size(key->room);
    if (size) {
        uint32_t *place = place_of(table_of(layout, key), size, values, values[at]);
        if (*place) {
            join(before, after, *place - 1, at);
        }
        *place = at + 1;
        return;
    }
    for (uint32_t i = at; i-- > key->head;) {
        if (values[i] == values[at]) {
            join(before, after, i, at);
            return;
        }
    }
}

/* The entries have moved. */
void link_all(const Layout *layout, Key *key) {
    uint32_t end = key->end;
    memset(table_of(layout, key), 0, table_size(key->room) * sizeof(uint32_t));
    for (key->end = 0; key->end < end;) {
        key->end++;
        link_last(layout, key);
    }
    memset(RUNS(layout, key), 0, sizeof(Running) * layout->runs);
}

/* How many different values [low, high) has. What an entry changes depends on whether its value
   occurs again in the range, so a number that is known for one range is brought to another. */
uint32_t distinct(const Layout *layout, Key *key, int run, uint32_t low, uint32_t high) {
    const uint32_t *before = BEFORE(layout, key), *after = AFTER(layout, key);
    Running at = RUNS(layout, key)[run];
    uint64_t steps = (at.low > low ? at.low - low : low - at.low) +
                     (uint64_t)(at.high > high ? at.high - high : high - at.high);
    if (steps > high - low) {
        at = (Running){low, low, 0};
    }
#define FIRST(i) (before[i] == 0 || before[i] > (i) - at.low)
#define FINAL(i) (after[i] == 0 || after[i] >= at.high - (i))
    while (at.low > low) {
        at.low--;
        at.count += FINAL(at.low);
    }
    for (; at.high < high; at.high++) {
        at.count += FIRST(at.high);
    }
    for (; at.low < low; at.low++) {
        at.count -= FINAL(at.low);
    }
    while (at.high > high) {
        at.high--;
        at.count -= FIRST(at.high);
    }
#undef FIRST
#undef FINAL
    RUNS(layout, key)[run] = at;
    return at.count;
}
