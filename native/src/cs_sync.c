/* SYNC: one round at a time flushes the journal and the files written in place, all in parallel; who comes while a
 * round runs is served by the next.  What an fdatasync covers is known by counting: writes that end while it runs are
 * not covered. */
#include <errno.h>
#include <stdlib.h>
#include "cs_internal.h"

void cs_sync_add(struct cs_req *req)
{
	struct cs_sync *s = &req->cs->sy;

	req->cs->inflight++;
	req->next = s->waiting;
	s->waiting = req;
}

static void round_end(struct cs *cs)
{
	struct cs_sync *s = &cs->sy;
	struct cs_req *r = s->round;

	if (s->journal_busy || s->busy || s->at < s->count)
		return;
	if (s->all && !s->status && s->intent_mark > cs->j.data_flushed_seq)
		cs->j.data_flushed_seq = s->intent_mark;
	for (uint32_t i = 0; i < s->count; i++)
		if (s->ios[i].c)
			cs_chunk_unref(cs, s->ios[i].c);
	free(s->ios);
	s->ios = NULL;
	s->round = NULL;
	s->active = 0;
	while (r) {
		struct cs_req *next = r->next;
		cs->inflight--;
		r->status = s->status;
		r->done(r);
		r = next;
	}
}

static void next_ios(struct cs *cs);

static void io_done(struct cs_io *io, int res)
{
	struct cs_sync_io *si = (struct cs_sync_io *)((char *)io - offsetof(struct cs_sync_io, io));
	struct cs *cs = si->cs;

	cs->sy.busy--;
	if (res < 0) {
		cs->sy.status = VST_ERR_IO_ERROR;
		cs->n.io_errors++;
		/* The kernel reports a failed write-back once: nothing more can be promised for this file. */
		if (si->c)
			si->c->sick = 1;
		cs_report(cs, VST_CS_EV_IO_ERROR, si->c ? si->c->id : 0, 0, -res);
	} else if (si->c) {
		if (si->gen > si->c->flushed_gen)
			si->c->flushed_gen = si->gen;
	} else if (si->gen > cs->shard_flushed[si->shard]) {
		cs->shard_flushed[si->shard] = si->gen;
	}
	next_ios(cs);
	round_end(cs);
}

static void next_ios(struct cs *cs)
{
	struct cs_sync *s = &cs->sy;

	while (s->busy < CS_APPLY_RUNS && s->at < s->count) {
		struct cs_sync_io *si = &s->ios[s->at++];
		si->io = (struct cs_io){.done = io_done};
		if (si->c) {
			si->io.op = CS_IO_FDATASYNC;
			si->io.fd = si->c->fd;
		} else {
			si->io.op = CS_IO_FSYNC;
			si->io.fd = cs->shardfd[si->shard];
		}
		s->busy++;
		cs_ring_submit(cs->ring, &si->io);
	}
}

static void journal_flushed(struct cs_flush_wait *w, int res)
{
	struct cs *cs = w->arg;
	cs->sy.journal_busy = 0;
	if (res < 0)
		cs->sy.status = VST_ERR_IO_ERROR;
	round_end(cs);
}

/* Does the round include the chunk? */
static int wanted(const struct cs_sync *s, const struct cs_chunk *c)
{
	if (s->all)
		return 1;
	for (const struct cs_req *r = s->round; r; r = r->next)
		for (uint32_t i = 0; i < r->sync_count; i++)
			if (r->sync_set[i] == c)
				return 1;
	return 0;
}

static void add_io(struct cs *cs, struct cs_chunk *c, uint32_t shard)
{
	struct cs_sync_io *si = &cs->sy.ios[cs->sy.count++];
	*si = (struct cs_sync_io){.cs = cs, .c = c, .shard = shard, .gen = c ? c->write_gen : cs->shard_gen[shard]};
	if (c)
		c->refs++;
}

static int collect(struct cs *cs)
{
	struct cs_sync *s = &cs->sy;
	uint32_t max = 256;

	for (struct cs_chunk *c = cs->lru_head; c; c = c->lru_next)
		max += (uint32_t)cs_chunk_unflushed(c);
	s->ios = calloc(max, sizeof *s->ios);
	if (!s->ios)
		return -ENOMEM;
	for (struct cs_chunk *c = cs->lru_head; c; c = c->lru_next) {
		if (!wanted(s, c))
			continue;
		if (c->sick)
			s->status = VST_ERR_IO_ERROR;
		else if (cs_chunk_unflushed(c) && c->fd >= 0)
			add_io(cs, c, 0);
	}
	/* A new file is only found after a power cut when its directory was flushed too. */
	for (uint32_t i = 0; i < 256; i++)
		if (cs_shard_dirty(cs, i) && cs->shardfd[i] >= 0)
			add_io(cs, NULL, i);
	return 0;
}

void cs_sync_kick(struct cs *cs)
{
	struct cs_sync *s = &cs->sy;
	struct cs_journal *j = &cs->j;

	if (s->active || !s->waiting)
		return;
	s->active = 1;
	s->round = s->waiting;
	s->waiting = NULL;
	s->all = 0;
	s->status = j->error ? VST_ERR_IO_ERROR : 0;
	s->count = s->at = s->busy = 0;
	for (struct cs_req *r = s->round; r; r = r->next)
		s->all |= !r->sync_set;
	s->intent_mark = (j->intents ? j->intents->intent_seq : j->busy ? j->group_seq : j->next_seq) - 1;
	if (collect(cs) < 0)
		s->status = VST_ERR_IO_ERROR;
	if (!j->error && j->written_seq > j->flushed_seq) {
		s->journal_busy = 1;
		s->wait = (struct cs_flush_wait){.done = journal_flushed, .arg = cs};
		cs_journal_flush(cs, &s->wait);
	}
	next_ios(cs);
	round_end(cs);
}
