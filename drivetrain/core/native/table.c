/* Where a key's observations lie: tables with open addressing, one for each part of the keys. */

#include "windows.h"

/* Drawn anew in each process, so that no one can choose keys that meet in one place. */
uint64_t secret;

static uint64_t tag_of(const uint64_t hash[2]) {
    return (hash[0] ^ secret) * UINT64_C(0x9e3779b97f4a7c15);
}

static uint64_t place_of(const Shard *shard, uint64_t tag) {
    return (tag ^ tag >> 32) & (shard->size - 1);
}

/* Where a key is, or where it would be put. There is a free place, always. */
uint64_t slot_of(const Shard *shard, const uint64_t hash[2]) {
    uint64_t tag = tag_of(hash), at = place_of(shard, tag);
    for (;; at = (at + 1) & (shard->size - 1)) {
        const Slot *slot = &shard->slots[at];
        if (slot->key == NULL ||
            (slot->tag == tag && slot->key->hash[0] == hash[0] && slot->key->hash[1] == hash[1])) {
            return at;
        }
    }
}

/* Where a key seems to be, by its tag alone: the memory of no key is looked at. */
uint64_t likely_slot_of(const Shard *shard, const uint64_t hash[2]) {
    uint64_t tag = tag_of(hash), at = place_of(shard, tag);
    while (shard->slots[at].key != NULL && shard->slots[at].tag != tag) {
        at = (at + 1) & (shard->size - 1);
    }
    return at;
}

/* Bring the place near where the search for a key begins. */
void bring_slot_near(const Shard *shard, const uint64_t hash[2]) {
    if (shard->size != 0) {
        __builtin_prefetch(&shard->slots[place_of(shard, tag_of(hash))]);
    }
}

Key **find(Shard *shard, const uint64_t hash[2]) {
    if (shard->size == 0) {
        return NULL;
    }
    Slot *slot = &shard->slots[slot_of(shard, hash)];
    return slot->key ? &slot->key : NULL;
}

static int resize(Shard *shard, uint64_t size) {
    Slot *slots = calloc(size, sizeof *slots);
    if (slots == NULL) {
        return -1;
    }
    Shard larger = {slots, size, shard->used, shard->bytes};
    for (uint64_t i = 0; i < shard->size; i++) {
        if (shard->slots[i].key) {
            slots[slot_of(&larger, shard->slots[i].key->hash)] = shard->slots[i];
        }
    }
    free(shard->slots);
    *shard = larger;
    return 0;
}

/* Put in a key that is not there; the table owns it then. */
int put_key(const Layout *layout, Shard *shard, Key *key) {
    if (shard->used + 1 > shard->size / 4 * 3 && resize(shard, shard->size ? shard->size * 2 : 4)) {
        return -1;
    }
    Slot *slot = &shard->slots[slot_of(shard, key->hash)];
    slot->tag = tag_of(key->hash);
    slot->key = key;
    shard->used++;
    shard->bytes += bytes_of(layout, key->room);
    return 0;
}

Key **find_or_make(const Layout *layout, Shard *shard, const uint64_t hash[2]) {
    Key **found = find(shard, hash);
    if (found) {
        return found;
    }
    Key *key = make_key(layout, hash, 0);
    if (key == NULL || put_key(layout, shard, key) < 0) {
        free_key(key);
        return NULL;
    }
    return find(shard, hash);
}

/* Free the key at a place, and close the gap: whoever was pushed on by it comes back. */
void remove_at(const Layout *layout, Shard *shard, uint64_t at) {
    uint64_t mask = shard->size - 1;
    shard->bytes -= bytes_of(layout, shard->slots[at].key->room);
    shard->used--;
    free_key(shard->slots[at].key);
    for (uint64_t next = (at + 1) & mask; shard->slots[next].key; next = (next + 1) & mask) {
        uint64_t home = place_of(shard, shard->slots[next].tag);
        if (((next - home) & mask) >= ((next - at) & mask)) {
            shard->slots[at] = shard->slots[next];
            at = next;
        }
    }
    shard->slots[at] = (Slot){0, NULL};
}

/* After keys were removed: a smaller table. Where memory lacks it stays as large as it is. */
void shrink(Shard *shard) {
    uint64_t size = shard->size;
    while (size > 16 && shard->used < size / 8) {
        size /= 4;
    }
    if (size < shard->size) {
        resize(shard, size);
    }
}

void clear(Shard *shard) {
    for (uint64_t i = 0; i < shard->size; i++) {
        free_key(shard->slots[i].key);
    }
    free(shard->slots);
    *shard = (Shard){NULL, 0, 0, 0};
}
