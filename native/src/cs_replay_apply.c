/* What each journal record means at replay, and what the blocks of INTENTs turned out to be. */
#include <errno.h>
#include <stdlib.h>
#include "cs_replay.h"
#include "vstor/crc32c.h"
#include "vstor/dio.h"

/* --- deletes: records before a chunk's last DELETE are void, and what they wrote may be gone from the disk */

int cs_replay_note_delete(struct cs_replay *r, const struct cs_replay_rec *rec)
{
	if (rec->h.type != VST_JOURNAL_TYPE_DELETE)
		return 0;
	int rc = cs_replay_grow_deletes(r);
	if (rc == 0)
		r->deletes[r->ndeletes++] = (struct cs_replay_delete){rec->h.chunk_id, rec->seq};
	return rc;
}

static int by_chunk(const void *a, const void *b)
{
	const struct cs_replay_delete *x = a, *y = b;
	if (x->chunk_id != y->chunk_id)
		return x->chunk_id < y->chunk_id ? -1 : 1;
	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

void cs_replay_sort_deletes(struct cs_replay *r)
{
	if (r->ndeletes)
		qsort(r->deletes, r->ndeletes, sizeof *r->deletes, by_chunk);
}

static uint64_t last_delete(const struct cs_replay *r, uint64_t chunk_id)
{
	uint32_t lo = 0, hi = r->ndeletes;
	while (lo < hi) { /* the first entry of a larger chunk id */
		uint32_t mid = (lo + hi) / 2;
		if (r->deletes[mid].chunk_id <= chunk_id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo && r->deletes[lo - 1].chunk_id == chunk_id ? r->deletes[lo - 1].seq : 0;
}

static void replay_delete(struct cs *cs, const struct cs_replay_rec *rec)
{
	struct cs_chunk *c = cs_chunk_find(cs, rec->h.chunk_id);

	/* A later file of the same chunk has a later file_id, or (never checkpointed) no header, and is not in the
	 * table. */
	if (!c || c->file_id > rec->seq)
		return;
	int rc = cs_chunk_trash(cs, c->id);
	if (rc < 0)
		cs_report(cs, VST_CS_EV_IO_ERROR, c->id, 0, -rc);
	cs->n.chunks--;
	cs_chunk_gone(cs, c);
}

static int replay_create(struct cs *cs, const struct cs_replay_rec *rec)
{
	struct cs_chunk *c = cs_chunk_find(cs, rec->h.chunk_id);

	if (c && c->file_id == rec->seq)
		return 0; /* a checkpoint has been here */
	if (c) {
		cs->n.chunks--;
		cs_chunk_gone(cs, c);
	}
	c = cs_chunk_new(cs, rec->h.chunk_id, rec->h.chunk_bytes, rec->h.chunk_version, rec->h.flags);
	if (!c)
		return -ENOMEM;
	cs->n.chunks++;
	c->file_id = rec->seq;
	int rc = cs_chunk_blank(cs, c);
	if (rc == 0)
		rc = cs_chunk_open_file(cs, c, 1);
	if (rc < 0)
		return rc;
	/* The file may hold what another one left, or pages of a checkpoint that did not end: all of it is void. */
	for (uint32_t i = 0; i < c->npages; i++)
		c->dirty_pages[i / 64] |= 1ull << i % 64;
	c->hole0 = 0;
	c->hole1 = c->nblocks;
	cs_chunk_header_dirty(cs, c);
	return 0;
}

static void cleared(struct cs_chunk *c, const struct cs_replay_rec *rec)
{
	for (uint32_t i = 0; i < rec->n; i++)
		c->clear_seq[rec->b0 + i] = rec->seq;
}

static int replay_data(struct cs *cs, struct cs_chunk *c, const struct cs_replay_rec *rec)
{
	struct cs_buf *b = cs_buf_get(cs, (uint64_t)rec->n * CS_BLOCK);
	int rc = b ? 0 : -ENOMEM;

	if (b)
		memcpy(b->data, rec->data, (size_t)rec->n * CS_BLOCK);
	for (uint32_t i = 0; rc == 0 && i < rec->n; i++) {
		uint32_t crc = cs_replay_u32(rec->extra, i);
		rc = cs_index_put(cs, c, rec->b0 + i, b, b->data + (size_t)i * CS_BLOCK, crc, rec->seq);
		if (rc == 0)
			cs_tab_write(cs, c, rec->b0 + i, crc);
	}
	cs_buf_put(cs, b);
	cleared(c, rec);
	return rc;
}

static void replay_punch(struct cs *cs, struct cs_chunk *c, const struct cs_replay_rec *rec)
{
	for (uint32_t i = 0; i < rec->n; i++) {
		cs_index_drop(cs, c, rec->b0 + i);
		cs_tab_clear(cs, c, rec->b0 + i);
	}
	cleared(c, rec);
	if (rec->b0 < c->hole0)
		c->hole0 = rec->b0;
	if (rec->b0 + rec->n > c->hole1)
		c->hole1 = rec->b0 + rec->n;
	cs_chunk_dirty(cs, c);
}

static int replay_intent(struct cs_replay *r, const struct cs_replay_rec *rec)
{
	const uint8_t *written = rec->extra + 8 * (size_t)rec->n, *bad = written + (rec->n + 7) / 8;

	for (uint32_t i = 0; i < rec->n; i++) {
		int rc = cs_replay_grow_items(r);
		if (rc < 0)
			return rc;
		int is_written = written[i / 8] >> i % 8 & 1, is_bad = bad[i / 8] >> i % 8 & 1;
		r->items[r->nitems++] = (struct cs_replay_item){
			.chunk_id = rec->h.chunk_id,
			.seq = rec->seq,
			.block = rec->b0 + i,
			.old_crc = cs_replay_u32(rec->extra, 2 * (uint64_t)i),
			.new_crc = cs_replay_u32(rec->extra, 2 * (uint64_t)i + 1),
			.old_state = is_bad       ? CS_BAD
				     : is_written ? CS_WRITTEN
						  : CS_UNWRITTEN,
		};
	}
	return 0;
}

/* A change of content: the table is needed. 1 go on, 0 the chunk is out, negative errno. */
static int load(struct cs *cs, struct cs_chunk *c)
{
	int rc = cs_chunk_load_sync(cs, c);

	if (rc == -EUCLEAN || rc == -EIO) {
		cs_chunk_quarantine(cs, c, rc);
		return 0;
	}
	if (rc == 0 && !c->clear_seq)
		c->clear_seq = calloc(c->nblocks, sizeof *c->clear_seq);
	return rc < 0 ? rc : c->clear_seq ? 1 : -ENOMEM;
}

/* 1: the record was about version and flags only. */
static int replay_state(struct cs *cs, struct cs_chunk *c, const struct cs_replay_rec *rec)
{
	uint32_t type = rec->h.type;

	if (type != VST_JOURNAL_TYPE_SET_VERSION && type != VST_JOURNAL_TYPE_FINISH_SYNC &&
	    type != VST_JOURNAL_TYPE_BEGIN_SYNC)
		return 0;
	if (rec->h.chunk_version > c->version)
		c->version = rec->h.chunk_version;
	if (type == VST_JOURNAL_TYPE_FINISH_SYNC)
		c->flags &= ~(uint32_t)VST_CHUNK_FLAG_SYNCING;
	else if (type == VST_JOURNAL_TYPE_BEGIN_SYNC)
		c->flags |= VST_CHUNK_FLAG_SYNCING;
	cs_chunk_header_dirty(cs, c);
	return 1;
}

int cs_replay_record(struct cs_replay *r, const struct cs_replay_rec *rec)
{
	struct cs *cs = r->cs;
	uint64_t deleted = last_delete(r, rec->h.chunk_id);

	if (rec->seq < deleted)
		return 0;
	if (rec->h.type == VST_JOURNAL_TYPE_DELETE) {
		replay_delete(cs, rec);
		return 0;
	}
	if (rec->h.type == VST_JOURNAL_TYPE_CREATE)
		return replay_create(cs, rec);
	struct cs_chunk *c = cs_chunk_find(cs, rec->h.chunk_id);
	if (!c ||
	    c->chunk_bytes != rec->h.chunk_bytes) { /* its file is gone or was quarantined: it is no replica any more */
		if (r->missing != rec->h.chunk_id + 1)
			cs_report(cs, VST_CS_EV_CORRUPT, rec->h.chunk_id, CS_WHOLE_CHUNK, ENOENT);
		r->missing = rec->h.chunk_id + 1;
		return 0;
	}
	if (replay_state(cs, c, rec))
		return 0;
	int rc = load(cs, c);
	if (rc <= 0)
		return rc;
	if (rec->h.type == VST_JOURNAL_TYPE_DATA)
		rc = replay_data(cs, c, rec);
	else if (rec->h.type == VST_JOURNAL_TYPE_INTENT)
		rc = replay_intent(r, rec);
	else
		replay_punch(cs, c, rec);
	cs_tab_touch(cs, c, rec->b0, rec->b0 + rec->n, rec->h.chunk_version);
	return rc < 0 ? rc : 0;
}

/* --- INTENTs */

int cs_resolve(struct cs *cs, struct cs_chunk *c, uint32_t block, const uint8_t *content, uint32_t new_crc,
	       int old_state, uint32_t old_crc)
{
	uint32_t crc = vst_crc32c(0, content, CS_BLOCK);
	const struct cs_ent *e = cs_index_get(c, block);

	if (crc == new_crc) {
		cs_index_drop(cs, c, block);
		cs_tab_write(cs, c, block, crc);
	} else if (e) { /* the older data is in the journal: a torn block does not matter */
		cs_tab_write(cs, c, block, e->crc);
	} else if (old_state == CS_WRITTEN && crc == old_crc) {
		cs_tab_write(cs, c, block, crc);
	} else if (old_state == CS_UNWRITTEN) {
		cs_tab_clear(cs, c, block);
	} else {
		cs_tab_write(cs, c, block, new_crc);
		cs_tab_bad(cs, c, block);
		return 0;
	}
	return 1;
}

static int by_place(const void *a, const void *b)
{
	const struct cs_replay_item *x = a, *y = b;
	if (x->chunk_id != y->chunk_id)
		return x->chunk_id < y->chunk_id ? -1 : 1;
	if (x->block != y->block)
		return x->block < y->block ? -1 : 1;
	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static void bad_block(struct cs *cs, struct cs_chunk *c, const struct cs_replay_item *last)
{
	cs_tab_write(cs, c, last->block, last->new_crc);
	cs_tab_bad(cs, c, last->block);
	cs->n.corrupt_blocks++;
	cs_report(cs, VST_CS_EV_CORRUPT, c->id, (uint64_t)last->block * CS_BLOCK, 0);
}

/* All INTENTs of one block that no DATA or PUNCH came after, oldest first. */
static void resolve_block(struct cs_replay *r, struct cs_chunk *c, const struct cs_replay_item *it, uint32_t n,
			  const uint8_t *content)
{
	struct cs *cs = r->cs;

	while (n && it->seq <= c->clear_seq[it->block]) {
		it++;
		n--;
	}
	if (!n)
		return;
	const struct cs_replay_item *last = &it[n - 1];
	if (!content) {
		bad_block(cs, c, last);
		return;
	}
	uint32_t crc = vst_crc32c(0, content, CS_BLOCK);
	/* What a SYNC promised must be there: an older state is damage, not a crash. */
	if (last->seq <= r->data_flushed && crc != last->new_crc) {
		bad_block(cs, c, last);
		return;
	}
	for (uint32_t k = n - 1; k > 0; k--)
		if (crc == it[k - 1].new_crc && crc != last->new_crc) {
			cs_index_drop(cs, c, last->block);
			cs_tab_write(cs, c, last->block, crc);
			return;
		}
	int old_state = it->old_state;
	if (n > 1) {
		/* A second write was begun when the first was complete, and that may have been flushed: older data in
		 * the journal is no state to go back to (see put_intent), "unwritten" only when the file was never
		 * written there. */
		cs_index_drop(cs, c, last->block);
		if (old_state == CS_UNWRITTEN && crc != vst_crc32c_zero_block())
			old_state = CS_BAD;
	}
	if (!cs_resolve(cs, c, last->block, content, last->new_crc, old_state, it->old_crc))
		bad_block(cs, c, last);
}

/* A run of neighbouring blocks: items [i, end). Reads them at once. */
static int resolve_run(struct cs_replay *r, struct cs_chunk *c, uint32_t i, uint32_t end)
{
	uint32_t b0 = r->items[i].block, n = r->items[end - 1].block - b0 + 1;
	struct cs_buf *b = cs_buf_get(r->cs, (uint64_t)n * CS_BLOCK);

	if (!b)
		return -ENOMEM;
	int rc = vst_pread_full(c->fd, b->data, (size_t)n * CS_BLOCK, cs_chunk_data_off(c) + (uint64_t)b0 * CS_BLOCK);
	while (i < end) {
		uint32_t first = i, block = r->items[i].block;
		while (i < end && r->items[i].block == block)
			i++;
		resolve_block(r, c, &r->items[first], i - first,
			      rc < 0 ? NULL : b->data + (size_t)(block - b0) * CS_BLOCK);
	}
	cs_buf_put(r->cs, b);
	return 0;
}

int cs_replay_resolve(struct cs_replay *r)
{
	int rc = 0;

	if (r->nitems)
		qsort(r->items, r->nitems, sizeof *r->items, by_place);
	for (uint32_t i = 0; rc == 0 && i < r->nitems;) {
		const struct cs_replay_item *it = r->items;
		uint32_t end = i + 1;
		while (end < r->nitems && it[end].chunk_id == it[i].chunk_id &&
		       it[end].block <= it[end - 1].block + 1 && it[end].block - it[i].block < CS_GRANULE_BLOCKS)
			end++;
		struct cs_chunk *c = cs_chunk_find(r->cs, it[i].chunk_id);
		if (c && c->loaded && c->fd >= 0 && c->clear_seq)
			rc = resolve_run(r, c, i, end);
		i = end;
	}
	return rc;
}
