/* The least and greatest of a range of entries, by those of blocks of 16, of 256, and so on. */

#include "windows.h"

#define FEW 32

static int64_t better(int greatest, int64_t one, int64_t other) {
    return (one > other) == (greatest != 0) ? one : other;
}

static const int64_t *leaves(const Layout *layout, const Key *key, int greatest) {
    return greatest ? GREATEST(layout, key) : LEAST(layout, key);
}

static int64_t *blocks(const Layout *layout, const Key *key, int greatest) {
    return TREES(layout, key) + (greatest && layout->lows ? tree_size(key->room) : 0);
}

static int64_t scan(const int64_t *values, int greatest, uint32_t low, uint32_t high) {
    int64_t found = values[low];
    if (greatest) {
        for (uint32_t i = low + 1; i < high; i++) {
            found = values[i] > found ? values[i] : found;
        }
    } else {
        for (uint32_t i = low + 1; i < high; i++) {
            found = values[i] < found ? values[i] : found;
        }
    }
    return found;
}

/* Blocks whose entries from `from` on are new: each is worked out from the ones below. */
static void rise(const Layout *layout, Key *key, int greatest, uint32_t from) {
    const int64_t *below = leaves(layout, key, greatest);
    int64_t *level = blocks(layout, key, greatest);
    uint32_t end = key->end;
    for (uint64_t room = key->room; room > FEW;) {
        room = (room + 15) >> 4;
        from >>= 4;
        uint32_t blocks_end = (end + 15) >> 4;
        for (uint32_t i = from; i < blocks_end; i++) {
            uint32_t last = (i + 1) << 4;
            level[i] = scan(below, greatest, i << 4, last < end ? last : end);
        }
        end = blocks_end;
        below = level;
        level += room;
    }
}

/* One entry came to the end: its blocks need no look at the others. */
static void append(const Layout *layout, Key *key, int greatest) {
    uint32_t at = key->end - 1;
    int64_t value = leaves(layout, key, greatest)[at];
    int64_t *level = blocks(layout, key, greatest);
    int first = 1; /* of its block */
    for (uint64_t room = key->room; room > FEW;) {
        room = (room + 15) >> 4;
        first = first && (at & 15) == 0;
        at >>= 4;
        level[at] = first ? value : better(greatest, value, level[at]);
        level += room;
    }
}

/* Entries from `from` on are new or have changed. */
void tree_add(const Layout *layout, Key *key, uint32_t from) {
    if (key->room <= FEW) {
        return;
    }
    for (int greatest = 0; greatest < 2; greatest++) {
        if (!(greatest ? layout->highs : layout->lows)) {
            continue;
        }
        if (from + 1 == key->end) {
            append(layout, key, greatest);
        } else {
            rise(layout, key, greatest, from);
        }
    }
}

/* The least or greatest of the entries [low, high), of which there is one at least. */
int64_t extreme(const Layout *layout, const Key *key, int greatest, uint32_t low, uint32_t high) {
    const int64_t *values = leaves(layout, key, greatest);
    if (high - low <= FEW) {
        return scan(values, greatest, low, high);
    }
    int64_t *level = blocks(layout, key, greatest);
    int64_t found = greatest ? INT64_MIN : INT64_MAX;
    uint64_t room = key->room;
    while (high - low > FEW && room > FEW) {
        for (; low & 15; low++) {
            found = better(greatest, found, values[low]);
        }
        for (; high & 15; high--) {
            found = better(greatest, found, values[high - 1]);
        }
        low >>= 4;
        high >>= 4;
        room = (room + 15) >> 4;
        values = level;
        level += room;
    }
    return low < high ? better(greatest, found, scan(values, greatest, low, high)) : found;
}
