/* Checkpoint: what the journal holds is put in its place, so that the journal's tail can advance.
 *
 * 1. flush the journal (nothing may be changed in a file before the record that explains it is on stable storage);
 * 2. apply unapplied blocks to the files, neighbours merged, and punch holes;
 * 3. table pages and headers (cs_pages.c), then fdatasync the files;
 * 4. write the new tail.
 * The mark, up to which all of this holds, is the oldest group with an INTENT that is not in place yet, or the end of
 * the log. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cs_internal.h"

static void apply_next(struct cs *cs);

int cs_ckpt_active(const struct cs *cs)
{
	return cs->ck.state != CS_CK_IDLE;
}

int cs_ckpt_needed(const struct cs *cs)
{
	return cs->dirty_head || cs->j.tail != cs->j.done_head;
}

static void end(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;

	for (uint32_t i = 0; i < ck->count; i++) {
		struct cs_chunk *c = ck->list[i];
		if (c->ck_hole0 < c->ck_hole1) { /* not reached this time */
			if (c->ck_hole0 < c->hole0)
				c->hole0 = c->ck_hole0;
			if (c->ck_hole1 > c->hole1)
				c->hole1 = c->ck_hole1;
			c->ck_hole1 = c->ck_hole0 = 0;
		}
		if (!ck->failed)
			c->applying = 0;
		cs_chunk_clean(cs, c);
		cs_chunk_unref(cs, c);
	}
	free(ck->list);
	ck->list = NULL;
	ck->count = 0;
	ck->state = CS_CK_IDLE;
	ck->retry_ms = ck->failed ? cs_now_ms() + CS_RETRY_CHECKPOINT_MS : 0;
	cs_chunk_evict(cs);
}

void cs_ckpt_failed(struct cs *cs, struct cs_chunk *c, int error)
{
	cs->ck.failed = error;
	cs->n.io_errors++;
	cs_report(cs, error == -ENOSPC ? VST_CS_EV_NO_SPACE : VST_CS_EV_IO_ERROR, c ? c->id : 0, 0, -error);
	/* Full is not broken: deletes free space and the next try goes through. */
	if (c && !c->gone && error != -ENOSPC && ++c->apply_failures >= CS_APPLY_FAILURES_MAX)
		cs_chunk_quarantine(cs, c, error);
}

/* --- apply */

static void apply_end(struct cs_apply *a)
{
	cs_lock_put(&a->c->flocks, &a->flock);
	cs_buf_put(a->cs, a->buf);
	a->buf = NULL;
	a->busy = 0;
	a->cs->ck.busy--;
	apply_next(a->cs);
}

static struct cs_ent *eligible(const struct cs_apply *a, uint32_t block)
{
	struct cs_ent *e = a->c->gone ? NULL : cs_index_get(a->c, block);
	return e && e->seq <= a->cs->ck.limit ? e : NULL;
}

static void apply_step(struct cs_apply *a);

static void applied(struct cs_io *io, int res)
{
	struct cs_apply *a = (struct cs_apply *)((char *)io - offsetof(struct cs_apply, io));
	struct cs *cs = a->cs;
	struct cs_chunk *c = a->c;

	c->write_gen++;
	if (res < 0) {
		if (!a->hole || (res != -EOPNOTSUPP && res != -ENOSPC))
			cs_ckpt_failed(cs, c, res);
		apply_end(a);
		return;
	}
	if (a->hole) {
		apply_end(a);
		return;
	}
	for (uint32_t i = 0; i < a->wn && !c->gone; i++) {
		struct cs_ent *e = cs_index_get(c, a->w0 + i);
		if (e && e->seq == a->seq[i])
			cs_index_drop(cs, c, a->w0 + i);
	}
	apply_step(a);
}

/* A request that wrote in place while the run waited has taken its blocks out of the index: write what is left, piece
 * by piece. */
static void apply_step(struct cs_apply *a)
{
	struct cs_chunk *c = a->c;
	uint32_t end_block = a->b0 + a->n;
	struct cs_ent *e;

	while (a->at < end_block && !eligible(a, a->at))
		a->at++;
	if (a->at >= end_block || a->cs->ck.failed) {
		apply_end(a);
		return;
	}
	a->w0 = a->at;
	a->wn = 0;
	for (; a->at < end_block && (e = eligible(a, a->at)); a->at++) {
		memcpy(a->buf->data + (size_t)a->wn * CS_BLOCK, e->data, CS_BLOCK);
		a->seq[a->wn++] = e->seq;
	}
	a->io = (struct cs_io){.done = applied,
			       .op = CS_IO_WRITE,
			       .fd = c->fd,
			       .buf = a->buf->data,
			       .len = (uint64_t)a->wn * CS_BLOCK,
			       .off = cs_chunk_data_off(c) + (uint64_t)a->w0 * CS_BLOCK};
	cs_ring_submit(a->cs->ring, &a->io);
}

/* Unwritten, and not by a PUNCH that came after the flush (its record may be lost, and then the old data must still be
 * there). */
static int punchable(const struct cs_chunk *c, uint32_t block)
{
	return cs_tab_state(c, block) == CS_UNWRITTEN && !(block >= c->hole0 && block < c->hole1);
}

static void punch(struct cs_apply *a)
{
	struct cs_chunk *c = a->c;

	for (uint32_t i = 0; i < a->n; i++)
		if (c->gone || !punchable(c, a->b0 + i)) {
			apply_end(a);
			return;
		}
	a->io = (struct cs_io){.done = applied,
			       .op = CS_IO_PUNCH,
			       .fd = c->fd,
			       .len = (uint64_t)a->n * CS_BLOCK,
			       .off = cs_chunk_data_off(c) + (uint64_t)a->b0 * CS_BLOCK};
	cs_ring_submit(a->cs->ring, &a->io);
}

static void file_held(struct cs_lock *lk)
{
	struct cs_apply *a = (struct cs_apply *)((char *)lk - offsetof(struct cs_apply, flock));
	if (a->hole)
		punch(a);
	else
		apply_step(a);
}

static void apply_start(struct cs *cs, struct cs_chunk *c, uint32_t b0, uint32_t n, int hole)
{
	struct cs_apply *a = cs->ck.runs;

	while (a->busy)
		a++;
	a->cs = cs;
	a->c = c;
	a->b0 = a->at = b0;
	a->n = n;
	a->hole = (uint8_t)hole;
	a->buf = hole ? NULL : cs_buf_get(cs, (uint64_t)n * CS_BLOCK);
	if (!hole && !a->buf) {
		cs->ck.failed = -ENOMEM;
		return;
	}
	a->busy = 1;
	c->applying = 1;
	cs->ck.busy++;
	a->flock = (struct cs_lock){.b0 = b0, .b1 = b0 + n, .exclusive = 1, .granted = file_held};
	if (cs_lock_get(&c->flocks, &a->flock))
		file_held(&a->flock);
}

/* The next run of blocks to apply in the chunk at hand, or of holes. 0: the chunk is done. */
static int next_run(struct cs *cs, struct cs_chunk *c)
{
	struct cs_ckpt *ck = &cs->ck;
	uint32_t b, n = 0;

	if (!ck->holes) {
		for (b = cs_index_next(c, ck->block); b < c->nblocks; b = cs_index_next(c, b + 1))
			if (cs_index_get(c, b)->seq <= ck->limit)
				break;
		if (b < c->nblocks) {
			struct cs_ent *e;
			while (n < CS_APPLY_BLOCKS && b + n < c->nblocks && (e = cs_index_get(c, b + n)) &&
			       e->seq <= ck->limit)
				n++;
			ck->block = b + n;
			apply_start(cs, c, b, n, 0);
			return 1;
		}
		ck->holes = 1;
		ck->block = c->ck_hole0;
	}
	for (b = ck->block; b < c->ck_hole1 && !punchable(c, b);)
		b++;
	while (b + n < c->ck_hole1 && punchable(c, b + n))
		n++;
	ck->block = b + n;
	if (n == 0) {
		c->ck_hole0 = c->ck_hole1 = 0;
		return 0;
	}
	apply_start(cs, c, b, n, 1);
	return 1;
}

static void apply_next(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;

	while (ck->state == CS_CK_APPLY && ck->busy < CS_APPLY_RUNS && !ck->failed && ck->at < ck->count) {
		struct cs_chunk *c = ck->list[ck->at];
		int rc = c->gone ? 0 : cs_chunk_open_file(cs, c, !c->file_made);
		if (rc < 0)
			cs_ckpt_failed(cs, c, rc);
		else if (!c->gone && next_run(cs, c))
			continue;
		ck->at++;
		ck->block = 0;
		ck->holes = 0;
	}
	if (ck->state != CS_CK_APPLY || ck->busy)
		return;
	if (ck->failed) {
		end(cs);
	} else if (ck->at == ck->count) {
		ck->state = CS_CK_PAGES;
		cs_ckpt_pages(cs);
	}
}

static void flushed(struct cs_flush_wait *w, int res)
{
	struct cs *cs = w->arg;

	if (res < 0) {
		cs->ck.failed = res;
		end(cs);
		return;
	}
	cs->ck.state = CS_CK_APPLY;
	cs->ck.limit = cs->j.flushed_seq;
	apply_next(cs);
}

/* --- tail */

static void header_written(struct cs *cs, int res)
{
	struct cs_ckpt *ck = &cs->ck;

	if (res < 0) {
		ck->failed = res;
		cs_journal_fail(cs, -res);
	} else {
		cs->j.tail = ck->mark;
		cs->j.tail_seq = ck->mark_seq;
		cs->n.checkpoints++;
	}
	end(cs);
}

void cs_ckpt_pages_done(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;

	if (ck->failed || ck->mark == cs->j.tail) {
		end(cs);
		return;
	}
	ck->state = CS_CK_HEADER;
	cs_journal_write_header(cs, ck->mark, ck->mark_seq, header_written);
}

static int start(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;
	struct cs_journal *j = &cs->j;
	uint32_t count = 0;

	for (struct cs_chunk *c = cs->dirty_head, *next; c; c = next) {
		next = c->dirty_next;
		if (c->sick) /* a flush of it failed: what its file holds is not known any more */
			cs_chunk_quarantine(cs, c, -EIO);
		else
			count++;
	}
	ck->list = calloc(count + 1, sizeof(struct cs_chunk *));
	if (!ck->list)
		return -ENOMEM;
	ck->mark = j->intents ? j->intents->intent_pos : j->done_head;
	ck->mark_seq = j->intents ? j->intents->intent_seq : j->busy ? j->group_seq : j->next_seq;
	for (struct cs_chunk *c = cs->dirty_head; c; c = c->dirty_next) {
		c->refs++;
		ck->list[ck->count++] = c;
		c->ck_hole0 = c->hole0 < c->hole1 ? c->hole0 : 0;
		c->ck_hole1 = c->hole0 < c->hole1 ? c->hole1 : 0;
		c->hole0 = c->nblocks;
		c->hole1 = 0;
	}
	ck->at = ck->block = ck->busy = 0;
	ck->holes = ck->pages_begun = 0;
	ck->failed = 0;
	ck->wanted = 0;
	ck->state = CS_CK_FLUSH;
	ck->wait = (struct cs_flush_wait){.done = flushed, .arg = cs};
	cs_journal_flush(cs, &ck->wait);
	return 0;
}

void cs_ckpt_kick(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;
	uint64_t now = cs_now_ms();

	if (ck->state != CS_CK_IDLE || cs->j.error || cs->replaying || !cs_ckpt_needed(cs) || now < ck->retry_ms)
		return;
	int full =
		ck->wanted || cs_journal_used(&cs->j) > cs->j.log_bytes / 2 || cs->index_bytes > CS_INDEX_BYTES_MAX / 2;
	int idle = cs->state == CS_STOPPING || now - cs->last_write_ms >= CS_IDLE_CHECKPOINT_MS;
	/* While an INTENT of the oldest group is under way there is nothing to gain for the tail. */
	if (!full && !idle)
		return;
	if (start(cs) < 0)
		ck->retry_ms = now + CS_RETRY_CHECKPOINT_MS;
}
