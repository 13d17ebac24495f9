/* The observations of one key: taking one in, in its place, and leaving out what none can ask. */

#include "windows.h"

#define FIRST_ROOM 4
#define MOST_ROOM (UINT32_C(1) << 31)
/* Fewer than 2**33 values of this size cannot overflow a prefix. */
#define LARGE ((Wide)1 << (30 + POINT))

Key *make_key(const Layout *layout, const uint64_t hash[2], uint32_t room) {
    room = room < FIRST_ROOM ? FIRST_ROOM : room;
    size_t bytes = bytes_of(layout, room);
    Key *key = bytes ? malloc(bytes) : NULL;
    if (key == NULL) {
        return NULL;
    }
    memset(key, 0, layout->start);
    key->hash[0] = hash[0];
    key->hash[1] = hash[1];
    key->room = room;
    key->time = MISSING;
    if (layout->links) {
        link_all(layout, key);
    }
    return key;
}

void free_key(Key *key) { free(key); }

/* The sum of the observations of entries [low, high). */
Sum sum_between(const Layout *layout, const Key *key, uint32_t low, uint32_t high) {
    const Wide *prefix = PREFIX(layout, key);
    if (!key->wide) {
        return sum_as(between(low ? prefix[low - 1] : key->prefix, high ? prefix[high - 1] : key->prefix));
    }
    if (layout->tops) {
        const int64_t *tops = TOPS(layout, key);
        Sum base = {(UWide)key->prefix, key->high};
        return minus(high ? (Sum){(UWide)prefix[high - 1], tops[high - 1]} : base,
                     low ? (Sum){(UWide)prefix[low - 1], tops[low - 1]} : base);
    }
    Sum sum = {0, 0}; /* values are so large that a difference of prefixes may not hold it */
    for (uint32_t i = low; i < high; i++) {
        sum = plus(sum, sum_as(between(i ? prefix[i - 1] : key->prefix, prefix[i])));
    }
    return sum;
}

/* Entry `at` leaves the front: what lies before the entries is now that and all before it. */
static void fold(const Layout *layout, Key *key, uint32_t at) {
    if (layout->prefixes) {
        Sum before = {(UWide)key->prefix, key->high};
        Sum sum = plus(before, sum_between(layout, key, 0, at + 1));
        key->prefix = (Wide)sum.low;
        key->high = sum.top;
    }
    key->count = layout->panes ? COUNTS(layout, key)[at] : key->count + at + 1;
    key->time = TIMES(layout, key)[at];
    for (int d = 0; d < layout->decays; d++) {
        DECAYS(layout, key)[d] = DECAYED(layout, key, d)[at];
    }
}

/* Move entries [from, from + number) of one key to place `to` of another, or of itself. */
static void move(const Layout *layout, Key *target, uint32_t to, const Key *source, uint32_t from,
                 uint32_t number) {
#define MOVE(array) memmove(array(layout, target) + to, array(layout, source) + from, \
                            (size_t)number * sizeof *array(layout, target))
    if (layout->prefixes) {
        MOVE(PREFIX);
    }
    MOVE(TIMES);
    if (layout->values) {
        MOVE(VALUES);
    }
    if (layout->panes) {
        MOVE(COUNTS);
        if (layout->tops) {
            MOVE(TOPS);
        }
        if (layout->lows) {
            MOVE(LEAST);
        }
        if (layout->highs) {
            MOVE(GREATEST);
        }
    }
#undef MOVE
    for (int d = 0; d < layout->decays; d++) {
        memmove(DECAYED(layout, target, d) + to, DECAYED(layout, source, d) + from,
                (size_t)number * sizeof(double));
    }
}

/* Where searches begin moves with the entries; that it is near is all that matters. */
static void shift_cursors(const Layout *layout, Key *key, uint32_t by) {
    uint32_t *cursors = CURSORS(layout, key);
    for (int i = 0; i < layout->overs; i++) {
        cursors[i] = cursors[i] > by ? cursors[i] - by : 0;
    }
}

/* Make room for one entry more: leave out what lies before `head`, and move where that is little. */
static int make_room(const Layout *layout, Key **held) {
    Key *key = *held;
    uint32_t head = key->head, live = key->end - head;
    if (live >= MOST_ROOM / 2) {
        return -1;
    }
    uint32_t wanted = live + live / 2 + FIRST_ROOM / 2;
    if (head) {
        fold(layout, key, head - 1);
    }
    Key *target = key;
    if (wanted > key->room || wanted < key->room / 3) {
        target = make_key(layout, key->hash, wanted);
        if (target == NULL) {
            return -1;
        }
        uint32_t room = target->room;
        memcpy(target, key, layout->start);
        target->room = room;
    }
    move(layout, target, 0, key, head, live);
    target->head = 0;
    target->end = live;
    target->fresh -= head;
    shift_cursors(layout, target, head);
    if (target != key) {
        free_key(key);
        *held = target;
    }
    fill_derived(layout, target);
    return 0;
}

Key *compacted(const Layout *layout, const Key *key) {
    size_t bytes = bytes_of(layout, key->room);
    Key *copy = malloc(bytes);
    if (copy == NULL) {
        return NULL;
    }
    memcpy(copy, key, bytes);
    uint32_t head = key->head;
    if (head) {
        fold(layout, copy, head - 1);
        move(layout, copy, 0, copy, head, key->end - head);
        copy->end -= head;
        copy->fresh -= head;
        copy->head = 0;
    }
    return copy;
}

/* What follows from the entries but for decayed values: extremes of blocks, and links. */
void fill_derived(const Layout *layout, Key *key) {
    if (key->end) {
        tree_add(layout, key, 0);
    }
    if (layout->links) {
        link_all(layout, key);
    }
}

/* The number of observations and their sum, up to and with entry `at` - 1. */
static uint64_t count_to(const Layout *layout, const Key *key, uint32_t at) {
    if (!layout->panes) {
        return key->count + at;
    }
    return at ? COUNTS(layout, key)[at - 1] : key->count;
}

static Wide sum_to(const Layout *layout, const Key *key, uint32_t at) {
    return at ? PREFIX(layout, key)[at - 1] : key->prefix;
}

/* The first entry of the moment of entry `at`. */
static uint32_t moment_of(const int64_t *times, uint32_t at) {
    uint32_t step = 1, low = at, time_at = at;
    while (low && times[low - 1] == times[time_at]) {
        uint32_t next = low > step ? low - step : 0;
        if (times[next] != times[time_at]) {
            uint32_t high = low; /* times[next] is earlier and times[high] is not */
            while (high - next > 1) {
                uint32_t middle = next + (high - next) / 2;
                if (times[middle] == times[time_at]) {
                    high = middle;
                } else {
                    next = middle;
                }
            }
            return high;
        }
        low = next;
        step *= 2;
    }
    return low;
}

/* Work out decayed values from entry `from` on. All observations of one moment come in by their
   exact sum, so that the order in which they came does not tell; the last one's value is read. */
static void decay_from(const Layout *layout, Key *key, uint32_t from) {
    const int64_t *times = TIMES(layout, key);
    uint32_t first = moment_of(times, from);
    for (uint32_t at = from; at < key->end; at++) {
        first = at && times[at] == times[at - 1] ? first : at;
        int64_t earlier = first ? times[first - 1] : key->time;
        for (int d = 0; d < layout->decays; d++) {
            Decay decay = layout->decay[d];
            double *values = DECAYED(layout, key, d), value = 0.0;
            uint64_t age = span(earlier, times[at]);
            if (earlier != MISSING && age / (uint64_t)decay.half_life < (uint64_t)layout->forgotten) {
                value = halved(first ? values[first - 1] : DECAYS(layout, key)[d], age,
                               decay.half_life);
            }
            if (decay.sums) {
                value += real_of(sum_between(layout, key, first, at + 1), layout->kind, 1);
            } else {
                value += (double)(at + 1 - first);
            }
            values[at] = value;
        }
    }
}

/* The order of observations of one moment: by value, so that it is the same whoever came first. */
static int before_entry(const Layout *layout, const Key *key, uint32_t at, int64_t value, Wide sum) {
    if (layout->values) {
        return value < VALUES(layout, key)[at];
    }
    return layout->prefixes && sum < between(sum_to(layout, key, at), sum_to(layout, key, at + 1));
}

/* The place of a new observation, or of the pane that it comes into. */
static uint32_t place_for(const Layout *layout, const Key *key, int64_t time, int64_t value,
                          Wide sum) {
    const int64_t *times = TIMES(layout, key);
    uint32_t low = key->head, high = key->end;
    if (low == high || time > times[high - 1]) {
        return high;
    }
    int exact = layout->panes; /* panes: the first not before; else behind those of its moment */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int behind = times[middle] < time || (!exact && times[middle] == time &&
                                              !(layout->ordered &&
                                                before_entry(layout, key, middle, value, sum)));
        if (behind) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Add to the prefixes from `from` on. */
static void add_to_prefixes(const Layout *layout, Key *key, uint32_t from, Wide sum) {
    Wide *prefix = PREFIX(layout, key);
    if (!layout->tops) {
        for (uint32_t i = from; i < key->end; i++) {
            prefix[i] = together(prefix[i], sum);
        }
        return;
    }
    int64_t *tops = TOPS(layout, key);
    for (uint32_t i = from; i < key->end; i++) {
        Sum more = plus((Sum){(UWide)prefix[i], tops[i]}, sum_as(sum));
        prefix[i] = (Wide)more.low;
        tops[i] = more.top;
    }
}

/* One observation more in the pane `at`. */
static void add_to_pane(const Layout *layout, Key *key, uint32_t at, int64_t value, Wide sum) {
    for (uint32_t i = at; i < key->end; i++) {
        COUNTS(layout, key)[i]++;
    }
    if (layout->prefixes) {
        add_to_prefixes(layout, key, at, sum);
    }
    int changed = 0;
    if (layout->lows && value < LEAST(layout, key)[at]) {
        LEAST(layout, key)[at] = value;
        changed = 1;
    }
    if (layout->highs && value > GREATEST(layout, key)[at]) {
        GREATEST(layout, key)[at] = value;
        changed = 1;
    }
    if (changed) {
        tree_add(layout, key, at);
    }
}

static void put_entry(const Layout *layout, Key *key, uint32_t at, int64_t time, int64_t value,
                      Wide sum) {
    uint32_t end = key->end;
    if (at < end) {
        move(layout, key, at + 1, key, at, end - at);
    }
    key->end = end + 1;
    TIMES(layout, key)[at] = time;
    if (layout->values) {
        VALUES(layout, key)[at] = value;
    }
    if (layout->panes) {
        COUNTS(layout, key)[at] = count_to(layout, key, at) + 1;
        for (uint32_t i = at + 1; i <= end; i++) {
            COUNTS(layout, key)[i]++;
        }
        if (layout->lows) {
            LEAST(layout, key)[at] = value;
        }
        if (layout->highs) {
            GREATEST(layout, key)[at] = value;
        }
    }
    if (layout->prefixes) {
        PREFIX(layout, key)[at] = sum_to(layout, key, at);
        if (layout->tops) {
            TOPS(layout, key)[at] = at ? TOPS(layout, key)[at - 1] : key->high;
        }
        add_to_prefixes(layout, key, at, sum);
    }
    if (layout->decays) {
        decay_from(layout, key, at);
    }
    if (layout->lows || layout->highs) {
        tree_add(layout, key, at);
    }
    if (layout->links) {
        if (at == end) {
            link_last(layout, key);
        } else {
            link_all(layout, key);
        }
    }
}

/* The earliest time that a key may still be asked at, or told of. */
static int64_t oldest_of(const Layout *layout, const Key *key) {
    int64_t oldest = less(TIMES(layout, key)[key->end - 1], layout->lateness);
    /* A time was rounded up, so the latest is earlier than it seems. */
    return layout->resolution ? less(oldest, layout->resolution) : oldest;
}

/* Leave out what no question that is still allowed can see. */
void forget_old(const Layout *layout, Key *key) {
    const int64_t *times = TIMES(layout, key);
    int64_t oldest = oldest_of(layout, key);
    uint32_t fresh = key->fresh, head = key->head;
    while (times[fresh] < oldest) {
        fresh++;
    }
    key->fresh = fresh;
    for (uint32_t least = fresh; head < least;) {
        int64_t time = times[head];
        for (int i = 0; i < layout->needs; i++) {
            Need need = layout->need[i];
            int near = !need.over || time >= less(oldest, need.over);
            if (near && (!need.rows || (uint64_t)head + need.rows >= fresh)) {
                least = head;
                break;
            }
        }
        head += head < least;
    }
    key->head = head;
}

int tell(const Layout *layout, Key **held, int64_t time, int64_t value) {
    Key *key = *held;
    Wide sum = layout->prefixes ? fixed_of(layout->kind, value) : 0;
    if (key->end && time < oldest_of(layout, key)) { /* for a key that was brought from elsewhere */
        return 0;
    }
    uint32_t at = place_for(layout, key, time, value, sum);
    if (layout->kind == REAL && (sum >= LARGE || sum <= -LARGE)) {
        key->wide = 1;
    }
    if (layout->panes && at < key->end && TIMES(layout, key)[at] == time) {
        add_to_pane(layout, key, at, value, sum);
        return 1;
    }
    if (key->end == key->room) {
        uint32_t head = key->head;
        if (make_room(layout, held) < 0) {
            return -1;
        }
        key = *held;
        at -= head;
    }
    put_entry(layout, key, at, time, value, sum);
    forget_old(layout, key);
    return 1;
}
