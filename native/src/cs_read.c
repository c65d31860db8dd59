/* Verified reads of whole blocks: from memory what is not applied yet, from disk what is, zeros for the rest; and READ,
 * HASH, SCRUB. */
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include "cs_internal.h"
#include "vstor/crc32c.h"

static void damaged(struct cs_rd *rd, uint32_t block)
{
	struct cs *cs = rd->c->cs;

	rd->bad++;
	rd->status = VST_ERR_CORRUPT;
	if (rd->c->gone || cs_tab_state(rd->c, block) == CS_BAD)
		return;
	cs->n.corrupt_blocks++;
	cs_tab_bad(cs, rd->c, block);
	cs_report(cs, VST_CS_EV_CORRUPT, rd->c->id, (uint64_t)block * CS_BLOCK, 0);
}

static void rd_end(struct cs_rd *rd)
{
	if (rd->runs != &rd->one)
		free(rd->runs);
	rd->runs = NULL;
	rd->done(rd);
}

static void run_done(struct cs_io *io, int res)
{
	struct cs_run *run = (struct cs_run *)((char *)io - offsetof(struct cs_run, io));
	struct cs_rd *rd = run->rd;
	struct cs_chunk *c = rd->c;

	if (res < 0) {
		c->cs->n.io_errors++;
		cs_report(c->cs, VST_CS_EV_IO_ERROR, c->id, (uint64_t)run->b0 * CS_BLOCK, -res);
		if (!rd->status)
			rd->status = VST_ERR_IO_ERROR;
	} else {
		for (uint32_t i = 0; i < io->len / CS_BLOCK; i++)
			if (vst_crc32c(0, io->buf + (size_t)i * CS_BLOCK, CS_BLOCK) != cs_tab_crc(c, run->b0 + i))
				damaged(rd, run->b0 + i);
	}
	if (--rd->left == 0)
		rd_end(rd);
}

/* Does the block come from disk? If not it is put into dst here. */
static int from_disk(struct cs_rd *rd, uint32_t block)
{
	struct cs_chunk *c = rd->c;
	uint8_t *dst = rd->dst + (size_t)(block - rd->b0) * CS_BLOCK;
	struct cs_ent *e = cs_index_get(c, block);
	int state = cs_tab_state(c, block);

	if (state == CS_WRITTEN && !e) {
		rd->hole = 0;
		return 1;
	}
	if (state == CS_BAD) {
		rd->hole = 0;
		rd->bad++;
		rd->status = VST_ERR_CORRUPT;
		/* A scrub tells again what was known: when it was first found there may have been nothing to repair it
		 * from. Once for each row of blocks in a granule, which is what a repair mends. */
		if (rd->from_disk && (block % CS_GRANULE_BLOCKS == 0 || cs_tab_state(c, block - 1) != CS_BAD))
			cs_report(c->cs, VST_CS_EV_CORRUPT, c->id, (uint64_t)block * CS_BLOCK, 0);
		return 0;
	}
	if (e && !rd->from_disk) {
		rd->hole = 0;
		if (vst_crc32c_copy(dst, e->data, CS_BLOCK) != e->crc) /* memory went bad: the journal still has it */
			rd->status = VST_ERR_IO_ERROR;
	} else if (!e) {
		memset(dst, 0, CS_BLOCK);
	}
	return 0;
}

void cs_read_blocks(struct cs_rd *rd)
{
	struct cs_chunk *c = rd->c;
	uint32_t n = rd->b1 - rd->b0, runs = 0, alloc = 1;

	rd->status = 0;
	rd->hole = 1;
	rd->bad = 0;
	rd->left = 1; /* this function */
	rd->disk_bytes = 0;
	rd->runs = &rd->one;
	for (uint32_t i = 0; i < n;) {
		if (!from_disk(rd, rd->b0 + i)) {
			i++;
			continue;
		}
		uint32_t start = i++;
		while (i < n && from_disk(rd, rd->b0 + i))
			i++;
		if (runs == alloc) { /* nothing is submitted before all runs are known, so they may move */
			alloc = n;
			struct cs_run *more = calloc(alloc, sizeof *more);
			if (!more) {
				rd->status = VST_ERR_IO_ERROR;
				break;
			}
			more[0] = rd->one;
			rd->runs = more;
		}
		struct cs_run *run = &rd->runs[runs++];
		run->rd = rd;
		run->b0 = rd->b0 + start;
		run->io = (struct cs_io){.done = run_done,
					 .op = CS_IO_READ,
					 .fd = c->fd,
					 .buf = rd->dst + (size_t)start * CS_BLOCK,
					 .len = (uint64_t)(i - start) * CS_BLOCK,
					 .off = cs_chunk_data_off(c) + (uint64_t)run->b0 * CS_BLOCK};
		rd->disk_bytes += run->io.len;
		/* The block that ended the run was looked at and placed already. */
		i += i < n;
	}
	/* A damaged block makes the whole range fail: no need to read the rest, unless all damage is to be found. */
	if (rd->status && !rd->from_disk)
		runs = 0;
	rd->left += runs;
	for (uint32_t i = 0; i < runs; i++)
		cs_ring_submit(c->cs->ring, &rd->runs[i].io);
	if (--rd->left == 0)
		rd_end(rd);
}

static void read_finished(struct cs_rd *rd)
{
	struct cs_req *req = rd->req;
	struct cs *cs = req->cs;

	req->hole = rd->hole;
	if (rd->status == 0 && req->op == CS_HASH)
		SHA256(req->buf->data + req->off % CS_BLOCK, req->len, req->hash);
	if (rd->status == 0)
		cs->n.bytes_read += req->len;
	cs_req_finish(req, rd->status);
}

static void scrub_step(struct cs_req *req);

static void scrubbed(struct cs_rd *rd)
{
	struct cs_req *req = rd->req;
	struct cs_chunk *c = req->c;

	req->bad += rd->bad;
	req->bytes += rd->disk_bytes;
	cs_lock_put(&c->locks, &req->lock);
	req->locked = 0;
	if (rd->status && rd->status != VST_ERR_CORRUPT) {
		cs_req_finish(req, rd->status);
		return;
	}
	req->b0 = req->b1;
	scrub_step(req);
}

static void range_held(struct cs_lock *lk)
{
	struct cs_req *req = (struct cs_req *)((char *)lk - offsetof(struct cs_req, lock));

	req->locked = 1;
	if (req->c->gone) {
		cs_req_finish(req, VST_ERR_NO_CHUNK);
		return;
	}
	req->rd = (struct cs_rd){.req = req,
				 .c = req->c,
				 .b0 = req->b0,
				 .b1 = req->b1,
				 .dst = req->buf->data,
				 .done = req->op == CS_SCRUB ? scrubbed : read_finished,
				 .from_disk = req->op == CS_SCRUB};
	cs_read_blocks(&req->rd);
}

static void take_range(struct cs_req *req)
{
	req->lock = (struct cs_lock){.b0 = req->b0, .b1 = req->b1, .granted = range_held};
	if (cs_lock_get(&req->c->locks, &req->lock))
		range_held(&req->lock);
}

static void scrub_step(struct cs_req *req)
{
	if (req->b0 >= req->c->nblocks) {
		cs_req_finish(req, 0);
		return;
	}
	req->b1 = req->b0 + VST_IO_BYTES_MAX / CS_BLOCK;
	if (req->b1 > req->c->nblocks)
		req->b1 = req->c->nblocks;
	take_range(req);
}

static void read_ready(struct cs_req *req)
{
	if (req->op == CS_SCRUB) {
		scrub_step(req);
		return;
	}
	req->b0 = (uint32_t)(req->off / CS_BLOCK);
	req->b1 = (uint32_t)((req->off + req->len + CS_BLOCK - 1) / CS_BLOCK);
	take_range(req);
}

/* READ, HASH, SCRUB, WRITE, PUNCH. buf: given by the caller for WRITE, and for a local READ; else made here. */
void cs_req_start(struct cs_req *req)
{
	struct cs *cs = req->cs;

	cs_req_begin(req);
	if (req->op == CS_WRITE || req->op == CS_PUNCH) {
		cs_write_start(req);
		return;
	}
	uint64_t span = req->op == CS_SCRUB ? VST_IO_BYTES_MAX : req->off % CS_BLOCK + req->len;
	if (!req->buf && !(req->buf = cs_buf_get(cs, span))) {
		cs_req_finish(req, VST_ERR_BUSY);
		return;
	}
	cs_chunk_ready(req, read_ready);
}
