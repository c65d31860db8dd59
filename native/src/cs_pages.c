/* Table pages and chunk headers to the disk.  A page torn by a power cut would lose states that the journal no longer
 * holds, so each batch is first written as copies to the journal file and flushed, then in place, then the files are
 * flushed; only then may the next batch overwrite the copies.  That flush also makes durable every record whose effect
 * a page shows. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "cs_internal.h"
#include "vstor/crc32c.h"
#include "vstor/dio.h"

#define COPIES_AT (2ull * CS_BLOCK)

static void write_next(struct cs *cs);
static void sync_next(struct cs *cs);

static uint8_t *copy_at(struct cs *cs, uint32_t i)
{
	return cs->j.cbuf->data + (size_t)(i + 1) * CS_BLOCK;
}

static void page_image(struct cs_chunk *c, uint32_t page, uint8_t *out)
{
	struct vst_table_page *p = &c->pages[page];
	p->magic = CS_MAGIC_PAGE;
	p->chunk_id = c->id;
	p->file_id = c->file_id;
	p->page = page;
	p->crc = 0;
	memcpy(out, p, CS_BLOCK);
	uint32_t crc = vst_crc32c(0, out, CS_BLOCK);
	memcpy(out + offsetof(struct vst_table_page, crc), &crc, sizeof crc);
}

static int is_dirty(const struct cs_chunk *c, uint32_t page)
{
	return c->dirty_pages[page / 64] >> page % 64 & 1;
}

/* Fill the batch from where the last one ended. Headers after their pages: they say which pages exist. */
static void fill(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;

	ck->copies = 0;
	ck->first_at = ck->page_at;
	for (; ck->page_at < ck->count; ck->page_at++, ck->page = 0) {
		struct cs_chunk *c = ck->list[ck->page_at];
		for (; !c->gone && ck->page <= c->npages; ck->page++) {
			int header = ck->page == c->npages;
			if (header ? !c->header_dirty : !is_dirty(c, ck->page))
				continue;
			if (ck->copies == CS_COPIES_MAX)
				return;
			ck->refs[ck->copies] = (struct cs_page_ref){c, header ? 0 : ck->page + 1};
			if (header) {
				c->header_dirty = 0;
				cs_chunk_header_image(cs, c, copy_at(cs, ck->copies));
			} else {
				c->dirty_pages[ck->page / 64] &= ~(1ull << ck->page % 64);
				c->present[ck->page / 8] = (uint8_t)(c->present[ck->page / 8] | 1u << ck->page % 8);
				page_image(c, ck->page, copy_at(cs, ck->copies));
			}
			ck->copies++;
		}
	}
}

/* The batch did not make it: its pages are dirty again. */
static void undo(struct cs *cs)
{
	for (uint32_t i = 0; i < cs->ck.copies; i++) {
		struct cs_chunk *c = cs->ck.refs[i].c;
		uint32_t block = cs->ck.refs[i].block;
		if (block)
			c->dirty_pages[(block - 1) / 64] |= 1ull << (block - 1) % 64;
		else
			c->header_dirty = 1;
		cs_chunk_dirty(cs, c);
	}
}

static void phase_end(struct cs *cs)
{
	if (cs->ck.failed)
		undo(cs);
	cs_ckpt_pages_done(cs);
}

static struct cs_page_io *free_io(struct cs_ckpt *ck)
{
	struct cs_page_io *p = ck->ios;
	while (p->busy)
		p++;
	p->busy = 1;
	ck->busy++;
	return p;
}

/* --- 3. flush the files of the batch, at the end of all batches all files and directories */

static void synced(struct cs_io *io, int res)
{
	struct cs_page_io *p = (struct cs_page_io *)((char *)io - offsetof(struct cs_page_io, io));
	struct cs *cs = p->cs;

	p->busy = 0;
	cs->ck.busy--;
	if (res < 0) {
		if (p->c)
			p->c->sick = 1;
		cs_ckpt_failed(cs, p->c, res);
	} else if (p->c && p->gen > p->c->flushed_gen) {
		p->c->flushed_gen = p->gen;
	} else if (!p->c && p->gen > cs->shard_flushed[p->shard]) {
		cs->shard_flushed[p->shard] = p->gen;
	}
	sync_next(cs);
}

static void sync_submit(struct cs *cs, struct cs_chunk *c, uint32_t shard)
{
	struct cs_page_io *p = free_io(&cs->ck);
	p->cs = cs;
	p->c = c;
	p->shard = shard;
	p->gen = c ? c->write_gen : cs->shard_gen[shard];
	p->io = (struct cs_io){
		.done = synced, .op = c ? CS_IO_FDATASYNC : CS_IO_FSYNC, .fd = c ? c->fd : cs->shardfd[shard]};
	cs_ring_submit(cs->ring, &p->io);
}

static void sync_next(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;

	while (!ck->failed && ck->busy < CS_APPLY_RUNS && ck->sync_at < ck->sync_end) {
		struct cs_chunk *c = ck->list[ck->sync_at++];
		if (!c->gone && cs_chunk_unflushed(c) && c->fd >= 0)
			sync_submit(cs, c, 0);
	}
	/* Deletes and new files of the records that the tail will pass. */
	while (!ck->failed && ck->copies == 0 && ck->busy < CS_APPLY_RUNS && ck->shard_at < 256) {
		uint32_t shard = ck->shard_at++;
		if (cs_shard_dirty(cs, shard) && cs->shardfd[shard] >= 0)
			sync_submit(cs, NULL, shard);
	}
	if (ck->busy)
		return;
	if (ck->failed || ck->copies == 0)
		phase_end(cs);
	else
		cs_ckpt_pages(cs);
}

/* --- 2. in place */

static void written(struct cs_io *io, int res)
{
	struct cs_page_io *p = (struct cs_page_io *)((char *)io - offsetof(struct cs_page_io, io));
	struct cs *cs = p->cs;

	p->busy = 0;
	p->c->write_gen++;
	cs->ck.busy--;
	if (res < 0)
		cs_ckpt_failed(cs, p->c, res);
	write_next(cs);
}

static void write_next(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;

	while (!ck->failed && ck->busy < CS_APPLY_RUNS && ck->written < ck->copies) {
		struct cs_page_ref *r = &ck->refs[ck->written];
		uint32_t n = 1;
		while (ck->written + n < ck->copies && r[n].c == r->c && r[n].block == r->block + n)
			n++;
		uint8_t *from = copy_at(cs, ck->written);
		ck->written += n;
		if (r->c->gone)
			continue;
		struct cs_page_io *p = free_io(ck);
		p->cs = cs;
		p->c = r->c;
		p->io = (struct cs_io){.done = written,
				       .op = CS_IO_WRITE,
				       .fd = r->c->fd,
				       .buf = from,
				       .len = (uint64_t)n * CS_BLOCK,
				       .off = (uint64_t)r->block * CS_BLOCK};
		cs_ring_submit(cs->ring, &p->io);
	}
	if (ck->busy)
		return;
	if (ck->failed) {
		phase_end(cs);
		return;
	}
	ck->sync_at = ck->first_at;
	ck->sync_end = ck->page_at < ck->count ? ck->page_at + 1 : ck->count;
	sync_next(cs);
}

/* --- 1. copies */

static void copies_flushed(struct cs_flush_wait *w, int res)
{
	struct cs *cs = w->arg;

	if (res < 0) {
		cs->ck.failed = res;
		phase_end(cs);
		return;
	}
	cs->ck.written = 0;
	write_next(cs);
}

static void copies_written(struct cs_io *io, int res)
{
	struct cs *cs = (struct cs *)((char *)io - offsetof(struct cs, ck.copy_io));

	if (res < 0) {
		cs_ckpt_failed(cs, NULL, res);
		phase_end(cs);
		return;
	}
	cs->ck.wait = (struct cs_flush_wait){.done = copies_flushed, .arg = cs};
	cs_journal_flush(cs, &cs->ck.wait);
}

/* One batch; called again until nothing is left, then all files of the list and the directories are flushed. */
void cs_ckpt_pages(struct cs *cs)
{
	struct cs_ckpt *ck = &cs->ck;
	struct cs_journal *j = &cs->j;

	if (ck->state == CS_CK_PAGES && !ck->pages_begun) {
		ck->pages_begun = 1;
		ck->page_at = ck->page = ck->shard_at = 0;
	}
	fill(cs);
	if (ck->copies == 0) {
		ck->sync_at = 0;
		ck->sync_end = ck->count;
		sync_next(cs);
		return;
	}
	struct vst_page_copies h = {
		.magic = CS_MAGIC_COPIES, .generation = ++j->copies_generation, .count = ck->copies};
	uint8_t *block = j->cbuf->data;
	memset(block, 0, CS_BLOCK);
	memcpy(block, &h, sizeof h);
	h.crc = vst_crc32c(0, block, CS_BLOCK);
	memcpy(block, &h, sizeof h);
	ck->copy_io = (struct cs_io){.done = copies_written,
				     .op = CS_IO_WRITE,
				     .fd = j->fd,
				     .buf = block,
				     .off = COPIES_AT,
				     .len = (uint64_t)(ck->copies + 1) * CS_BLOCK};
	cs_ring_submit(cs->ring, &ck->copy_io);
}

/* --- after a crash */

static int zero_block(const uint8_t *p)
{
	return p[0] == 0 && memcmp(p, p + 1, CS_BLOCK - 1) == 0;
}

static int open_chunk(struct cs *cs, uint64_t id)
{
	char path[40];
	int direct;

	cs_chunk_path(path, id);
	return vst_open_direct(cs->chunksfd, path, O_RDWR, 0, &direct);
}

/* A header that was torn. All zeros is no torn header but that of a file never checkpointed: its CREATE is in the
 * journal. */
static int restore_header(struct cs *cs, const uint8_t *copy, uint8_t *block)
{
	const struct vst_chunk_header *h = (const void *)copy;
	int fd = open_chunk(cs, h->chunk_id), rc;

	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	rc = vst_pread_full(fd, block, CS_BLOCK, 0);
	if (rc == 0 && !zero_block(block) && cs_chunk_header_check(cs, block, h->chunk_id) == -EUCLEAN) {
		rc = vst_pwrite_full(fd, copy, CS_BLOCK, 0);
		if (rc == 0 && fdatasync(fd) < 0)
			rc = -errno;
	}
	close(fd);
	return rc;
}

static int restore_page(struct cs *cs, const uint8_t *copy, uint8_t *block)
{
	const struct vst_table_page *p = (const void *)copy, *old = (const void *)block;
	int fd = open_chunk(cs, p->chunk_id), rc;

	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	rc = vst_pread_full(fd, block, CS_BLOCK, 0);
	const struct vst_chunk_header *h = (const void *)block;
	/* Of an earlier file of this chunk id: not for this one. */
	int same = rc == 0 && cs_chunk_header_check(cs, block, p->chunk_id) == 0 && h->file_id == p->file_id;
	if (same)
		rc = vst_pread_full(fd, block, CS_BLOCK, (uint64_t)(1 + p->page) * CS_BLOCK);
	if (rc == 0 && same &&
	    (old->magic != CS_MAGIC_PAGE ||
	     cs_block_crc_zeroed(block, CS_BLOCK, offsetof(struct vst_table_page, crc)) != old->crc)) {
		rc = vst_pwrite_full(fd, copy, CS_BLOCK, (uint64_t)(1 + p->page) * CS_BLOCK);
		if (rc == 0 && fdatasync(fd) < 0)
			rc = -errno;
	}
	close(fd);
	return rc;
}

int cs_copies_restore(struct cs *cs, char *err, size_t err_len)
{
	struct cs_journal *j = &cs->j;
	struct cs_buf *b = cs_buf_get(cs, CS_BLOCK);
	uint8_t *block = j->cbuf->data;
	int rc = b ? vst_pread_full(j->fd, block, (size_t)(CS_COPIES_MAX + 1) * CS_BLOCK, COPIES_AT) : -ENOMEM;
	const struct vst_page_copies *h = (const void *)block;

	int valid = rc == 0 && h->magic == CS_MAGIC_COPIES && h->count <= CS_COPIES_MAX &&
		    cs_block_crc_zeroed(block, CS_BLOCK, offsetof(struct vst_page_copies, crc)) == h->crc;
	j->copies_generation = valid ? h->generation : 0;
	/* Headers first: whether a page belongs to the file is read from them. */
	for (uint32_t i = 0; valid && rc == 0 && i < h->count; i++) {
		const struct vst_chunk_header *ch = (const void *)copy_at(cs, i);
		if (ch->magic == CS_MAGIC_CHUNK && cs_chunk_header_check(cs, ch, ch->chunk_id) == 0)
			rc = restore_header(cs, copy_at(cs, i), b->data);
	}
	for (uint32_t i = 0; valid && rc == 0 && i < h->count; i++) {
		const struct vst_table_page *p = (const void *)copy_at(cs, i);
		if (p->magic == CS_MAGIC_PAGE && p->page < CS_PAGES_MAX &&
		    cs_block_crc_zeroed(p, CS_BLOCK, offsetof(struct vst_table_page, crc)) == p->crc)
			rc = restore_page(cs, copy_at(cs, i), b->data);
	}
	cs_buf_put(cs, b);
	if (rc < 0)
		snprintf(err, err_len, "%s: page copies: %s", cs->journal_path, strerror(-rc));
	return rc;
}
