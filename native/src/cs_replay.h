/* Shared by cs_replay.c (the log) and cs_replay_apply.c (what its records mean). */
#ifndef VSTOR_CS_REPLAY_H
#define VSTOR_CS_REPLAY_H
#include <string.h>
#include "cs_internal.h"

struct cs_replay_rec {
	struct vst_journal_record h;
	uint64_t seq;
	uint32_t b0, n;
	const uint8_t *extra, *data;
};
struct cs_replay_group {
	uint64_t pos, seq;
};
struct cs_replay_item { /* a block of an INTENT */
	uint64_t chunk_id, seq;
	uint32_t block, old_crc, new_crc;
	int old_state;
};
struct cs_replay_delete {
	uint64_t chunk_id, seq;
};
struct cs_replay {
	struct cs *cs;
	struct cs_buf *buf;
	struct cs_replay_group *groups;
	struct cs_replay_item *items;
	struct cs_replay_delete *deletes;
	uint32_t ngroups, groups_max, nitems, items_max, ndeletes, deletes_max;
	uint64_t end, next_seq, data_flushed, missing;
};
static inline uint32_t cs_replay_u32(const uint8_t *p, uint64_t i)
{
	uint32_t v;
	memcpy(&v, p + 4 * i, sizeof v);
	return v;
}
int cs_replay_grow_items(struct cs_replay *r);
int cs_replay_grow_deletes(struct cs_replay *r);
int cs_replay_note_delete(struct cs_replay *r, const struct cs_replay_rec *rec);
void cs_replay_sort_deletes(struct cs_replay *r);
int cs_replay_record(struct cs_replay *r, const struct cs_replay_rec *rec);
int cs_replay_resolve(struct cs_replay *r);
#endif
