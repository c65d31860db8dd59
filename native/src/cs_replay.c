/* Replay of the journal at start: read the groups from the tail to the first invalid one, then do what the records say,
 * in order. Small data becomes unapplied data in memory, as it was before; INTENTs are resolved at the end by what the
 * blocks hold. */
#include "cs_replay.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "vstor/crc32c.h"
#include "vstor/dio.h"

#define GROUP_BYTES ((uint64_t)CS_GROUP_BLOCKS * CS_BLOCK)

static int grow(void **array, uint32_t count, uint32_t *max, size_t each)
{
	if (count < *max)
		return 0;
	uint32_t more = *max ? *max * 2 : 256;
	void *p = realloc(*array, (size_t)more * each);
	if (!p)
		return -ENOMEM;
	*array = p;
	*max = more;
	return 0;
}

/* Structure of a record that is inside a group with a valid checksum: still checked, a newer or broken writer is no
 * reason to crash. */
static int record_ok(const struct vst_journal_record *h)
{
	uint64_t n = h->length / CS_BLOCK, extra = 0;

	if (h->offset % CS_BLOCK || h->length % CS_BLOCK || !cs_chunk_bytes_ok(h->chunk_bytes) ||
	    h->offset > h->chunk_bytes || h->length > h->chunk_bytes - h->offset)
		return 0;
	if (h->type == VST_JOURNAL_TYPE_DATA)
		extra = 4 * n;
	else if (h->type == VST_JOURNAL_TYPE_INTENT)
		extra = 8 * n + 2 * ((n + 7) / 8);
	else if (h->type == 0 || h->type > VST_JOURNAL_TYPE_BEGIN_SYNC)
		return 0;
	return h->extra_len == (extra + 7) / 8 * 8;
}

/* Go through the records of the group in r->buf. visit NULL: only check structure and data checksums. */
static int each_record(struct cs_replay *r, int (*visit)(struct cs_replay *r, const struct cs_replay_rec *rec))
{
	const struct vst_journal_group *g = (const void *)r->buf->data;
	const uint8_t *at = r->buf->data + sizeof *g, *end = r->buf->data + g->header_bytes;
	const uint8_t *data = r->buf->data + (size_t)g->header_blocks * CS_BLOCK;
	uint32_t blocks = 0;

	for (uint32_t i = 0; i < g->records; i++) {
		struct cs_replay_rec rec = {
			.seq = g->seq + i, .extra = at + sizeof rec.h, .data = data + (size_t)blocks * CS_BLOCK};
		if ((size_t)(end - at) < sizeof rec.h)
			return -EUCLEAN;
		memcpy(&rec.h, at, sizeof rec.h);
		at += sizeof rec.h;
		if (!record_ok(&rec.h) || (size_t)(end - at) < rec.h.extra_len)
			return -EUCLEAN;
		at += rec.h.extra_len;
		rec.b0 = (uint32_t)(rec.h.offset / CS_BLOCK);
		rec.n = (uint32_t)(rec.h.length / CS_BLOCK);
		if (rec.h.type == VST_JOURNAL_TYPE_DATA) {
			blocks += rec.n;
			if (blocks > g->data_blocks)
				return -EUCLEAN;
			for (uint32_t b = 0; b < rec.n && !visit; b++)
				if (vst_crc32c(0, rec.data + (size_t)b * CS_BLOCK, CS_BLOCK) !=
				    cs_replay_u32(rec.extra, b))
					return -EUCLEAN;
		}
		int rc = visit ? visit(r, &rec) : 0;
		if (rc < 0)
			return rc;
	}
	return at == end && blocks == g->data_blocks ? 0 : -EUCLEAN;
}

static int header_ok(const struct cs_journal *j, const struct vst_journal_group *g, uint64_t room)
{
	uint64_t total = (uint64_t)g->header_blocks + g->data_blocks;
	if (g->magic != CS_MAGIC_GROUP || g->epoch != j->epoch || g->header_blocks == 0 ||
	    g->header_blocks > CS_GROUP_HEADER_BLOCKS || total > CS_GROUP_BLOCKS || total * CS_BLOCK > room ||
	    g->header_bytes < sizeof *g || g->header_bytes > g->header_blocks * CS_BLOCK)
		return 0;
	return cs_block_crc_zeroed(g, (size_t)g->header_blocks * CS_BLOCK, offsetof(struct vst_journal_group, crc)) ==
	       g->crc;
}

/* Read the group that should be at pos. 1: it is there and whole; 0: not; negative errno: cannot be read. */
static int read_group(struct cs_replay *r, uint64_t pos, uint64_t seq)
{
	struct cs_journal *j = &r->cs->j;
	const struct vst_journal_group *g = (const void *)r->buf->data;
	uint64_t room = j->log_bytes - pos % j->log_bytes;

	if (room > GROUP_BYTES)
		room = GROUP_BYTES;
	if (pos + room > j->tail + j->log_bytes)
		room = j->tail + j->log_bytes - pos;
	if (room < CS_BLOCK)
		return 0;
	int rc = vst_pread_full(j->fd, r->buf->data, CS_BLOCK, cs_journal_at(j, pos));
	if (rc < 0)
		return rc;
	if (g->magic != CS_MAGIC_GROUP || g->epoch != j->epoch || g->seq != seq || g->position != pos)
		return 0;
	uint64_t total = ((uint64_t)g->header_blocks + g->data_blocks) * CS_BLOCK;
	if (total > room || total < CS_BLOCK)
		return 0;
	rc = vst_pread_full(j->fd, r->buf->data, total, cs_journal_at(j, pos));
	if (rc < 0)
		return rc;
	if (!header_ok(j, g, room) || g->seq != seq || g->position != pos)
		return 0;
	return each_record(r, NULL) == 0;
}

/* Find the end; remember the groups and the deletes. */
static int scan(struct cs_replay *r)
{
	struct cs_journal *j = &r->cs->j;
	uint64_t pos = j->tail, seq = j->tail_seq;
	const struct vst_journal_group *g = (const void *)r->buf->data;

	for (;;) {
		int rc = read_group(r, pos, seq);
		if (rc == 0 &&
		    pos % j->log_bytes) { /* a group that did not fit before the end of the ring is at its beginning */
			uint64_t start = (pos / j->log_bytes + 1) * j->log_bytes;
			rc = start < j->tail + j->log_bytes ? read_group(r, start, seq) : 0;
			if (rc == 1)
				pos = start;
		}
		if (rc < 0)
			return rc;
		if (rc == 0)
			break;
		rc = grow((void **)&r->groups, r->ngroups, &r->groups_max, sizeof *r->groups);
		if (rc == 0)
			rc = each_record(r, cs_replay_note_delete);
		if (rc < 0)
			return rc;
		r->groups[r->ngroups++] = (struct cs_replay_group){pos, seq};
		seq += g->records;
		pos += ((uint64_t)g->header_blocks + g->data_blocks) * CS_BLOCK;
		r->data_flushed = g->data_flushed_seq;
	}
	r->end = pos;
	r->next_seq = seq;
	return 0;
}

/* A log ends where writing ended. When a later group of this epoch says that the missing one was already on stable
 * storage, it was damaged afterwards, and what it held was promised: this is no log to go on from. */
static int check_end(struct cs_replay *r)
{
	struct cs_journal *j = &r->cs->j;
	uint64_t step = GROUP_BYTES, header = (uint64_t)CS_GROUP_HEADER_BLOCKS * CS_BLOCK;
	struct cs_buf *b = cs_buf_get(r->cs, step + header);
	int rc = b ? 0 : -ENOMEM;

	for (uint64_t at = 0; rc == 0 && at < j->log_bytes; at += step) {
		uint64_t n = j->log_bytes - at < step + header ? j->log_bytes - at : step + header;
		rc = vst_pread_full(j->fd, b->data, n, j->log_start + at);
		for (uint64_t i = 0; rc == 0 && i < n && i < step; i += CS_BLOCK) {
			const struct vst_journal_group *g = (const void *)(b->data + i);
			if (g->magic == CS_MAGIC_GROUP && g->epoch == j->epoch && g->seq > r->next_seq &&
			    g->flushed_seq >= r->next_seq && header_ok(j, g, GROUP_BYTES) &&
			    (uint64_t)g->header_blocks * CS_BLOCK <= n - i)
				rc = -EUCLEAN;
		}
	}
	cs_buf_put(r->cs, b);
	return rc;
}

int cs_replay_grow_items(struct cs_replay *r)
{
	return grow((void **)&r->items, r->nitems, &r->items_max, sizeof *r->items);
}

int cs_replay_grow_deletes(struct cs_replay *r)
{
	return grow((void **)&r->deletes, r->ndeletes, &r->deletes_max, sizeof *r->deletes);
}

static void finish(struct cs_replay *r)
{
	struct cs *cs = r->cs;

	for (uint32_t i = 0; i < cs->hash_size; i++)
		for (struct cs_chunk *c = cs->hash[i]; c; c = c->hash_next) {
			free(c->clear_seq);
			c->clear_seq = NULL;
			if (c->in_dirty && c->loaded)
				cs_tab_recount(cs, c);
		}
}

int cs_replay(struct cs *cs, char *err, size_t err_len)
{
	struct cs_journal *j = &cs->j;
	struct cs_replay r = {.cs = cs, .buf = cs_buf_get(cs, GROUP_BYTES)};
	int rc = r.buf ? scan(&r) : -ENOMEM;

	if (rc == 0)
		rc = check_end(&r);
	if (rc == -EUCLEAN)
		snprintf(err, err_len, "%s: damaged after record %llu, which had been on stable storage",
			 cs->journal_path, (unsigned long long)r.next_seq);
	else if (rc < 0)
		snprintf(err, err_len, "%s: %s", cs->journal_path, strerror(-rc));
	cs->replaying = 1;
	if (rc == 0) {
		cs_replay_sort_deletes(&r);
		for (uint32_t i = 0; rc == 0 && i < r.ngroups; i++) {
			rc = read_group(&r, r.groups[i].pos, r.groups[i].seq);
			rc = rc == 1 ? each_record(&r, cs_replay_record) : rc == 0 ? -EIO : rc;
		}
		if (rc == 0)
			rc = cs_replay_resolve(&r);
		if (rc < 0)
			snprintf(err, err_len, "%s: replay: %s", cs->journal_path, strerror(-rc));
	}
	cs->replaying = 0;
	finish(&r);
	j->head = j->done_head = r.end;
	j->next_seq = r.next_seq;
	j->written_seq = j->flushed_seq = r.next_seq - 1;
	cs->n.replayed_records = r.next_seq - j->tail_seq;
	cs_buf_put(cs, r.buf);
	free(r.groups);
	free(r.items);
	free(r.deletes);
	return rc;
}
