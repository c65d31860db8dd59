/* The journal file: its headers, creation, flushes.  Groups of records are built in cs_group.c. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cs_internal.h"
#include "vstor/crc32c.h"
#include "vstor/dio.h"

#define LOG_START (4ull << 20) /* two headers and the page copies fit before it */
_Static_assert((3 + CS_COPIES_MAX) * CS_BLOCK <= LOG_START, "room for page copies");

uint32_t cs_block_crc_zeroed(const void *block, size_t len, size_t crc_at)
{
	static const uint32_t zero = 0;
	uint32_t crc = vst_crc32c(0, block, crc_at);
	crc = vst_crc32c(crc, &zero, sizeof zero);
	return vst_crc32c(crc, (const uint8_t *)block + crc_at + sizeof zero, len - crc_at - sizeof zero);
}

static void header_image(struct cs *cs, uint64_t tail, uint64_t tail_seq, uint8_t *block)
{
	struct cs_journal *j = &cs->j;
	struct vst_journal_header h = {
		.magic = CS_MAGIC_JOURNAL,
		.format = VST_DISK_FORMAT,
		.cs_id = cs->cfg.cs_id,
		.generation = ++j->generation,
		.epoch = j->epoch,
		.journal_bytes = j->bytes,
		.log_start = j->log_start,
		.tail = tail,
		.tail_seq = tail_seq,
	};
	memcpy(h.cluster_id, cs->cfg.cluster_id, sizeof h.cluster_id);
	memset(block, 0, CS_BLOCK);
	memcpy(block, &h, sizeof h);
	h.crc = vst_crc32c(0, block, CS_BLOCK);
	memcpy(block, &h, sizeof h);
}

/* Fill with zeros: written extents make durable appends several times cheaper than unwritten ones. */
static int prewrite(int fd, uint64_t bytes)
{
	const uint64_t step = 1 << 20;
	void *zero = vst_buf_alloc(step);
	int rc = zero ? 0 : -ENOMEM;

	for (uint64_t at = 0; rc == 0 && at < bytes; at += step)
		rc = vst_pwrite_full(fd, zero, step, at);
	vst_buf_free(zero, step);
	return rc;
}

static int sync_parent(const char *path)
{
	char *copy = strdup(path);
	if (!copy)
		return -ENOMEM;
	int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
	free(copy);
	if (fd < 0)
		return -errno;
	if (fsync(fd) < 0)
		rc = -errno;
	close(fd);
	return rc;
}

/* Made under another name, so that a half-made journal is never taken for one. */
static int create(struct cs *cs, const char *path, uint64_t bytes)
{
	char temp[4096];
	uint8_t *block = NULL;
	int direct, rc;

	if (snprintf(temp, sizeof temp, "%s.new", path) >= (int)sizeof temp)
		return -ENAMETOOLONG;
	int fd = vst_open_direct(AT_FDCWD, temp, O_RDWR | O_CREAT | O_TRUNC, 0600, &direct);
	if (fd < 0)
		return fd;
	rc = prewrite(fd, bytes);
	cs->j.bytes = bytes;
	cs->j.log_start = LOG_START;
	cs->j.epoch = 1;
	if (rc == 0 && !(block = vst_buf_alloc(CS_BLOCK)))
		rc = -ENOMEM;
	if (rc == 0) {
		header_image(cs, 0, 1, block);
		rc = vst_pwrite_full(fd, block, CS_BLOCK, (cs->j.generation % 2) * CS_BLOCK);
	}
	if (rc == 0 && fsync(fd) < 0)
		rc = -errno;
	if (rc == 0 && rename(temp, path) < 0)
		rc = -errno;
	if (rc == 0)
		rc = sync_parent(path);
	vst_buf_free(block, CS_BLOCK);
	close(fd);
	return rc;
}

static int check_header(const struct cs *cs, const struct vst_journal_header *h, uint64_t file_bytes)
{
	if (h->magic != CS_MAGIC_JOURNAL ||
	    cs_block_crc_zeroed(h, CS_BLOCK, offsetof(struct vst_journal_header, crc)) != h->crc)
		return -EUCLEAN;
	if (h->format > VST_DISK_FORMAT)
		return -EPROTO;
	if (memcmp(h->cluster_id, cs->cfg.cluster_id, sizeof h->cluster_id) != 0 || h->cs_id != cs->cfg.cs_id)
		return -EINVAL;
	if (h->journal_bytes > file_bytes || h->log_start < 2 * CS_BLOCK || h->log_start >= h->journal_bytes ||
	    h->log_start % CS_BLOCK || h->journal_bytes % CS_BLOCK || h->tail % CS_BLOCK)
		return -EUCLEAN;
	return 0;
}

static int read_headers(struct cs *cs, const char *path, char *err, size_t err_len)
{
	struct cs_journal *j = &cs->j;
	struct stat st;
	uint8_t *two = vst_buf_alloc(2 * CS_BLOCK);
	int rc = two ? vst_pread_full(j->fd, two, 2 * CS_BLOCK, 0) : -ENOMEM, worst = -EUCLEAN, found = 0;

	if (rc == 0 && fstat(j->fd, &st) < 0)
		rc = -errno;
	for (int i = 0; rc == 0 && i < 2; i++) {
		const struct vst_journal_header *h = (const void *)(two + (size_t)i * CS_BLOCK);
		int bad = check_header(cs, h, (uint64_t)st.st_size);
		if (bad) {
			if (bad != -EUCLEAN)
				worst = bad;
			continue;
		}
		if (found && h->generation < j->generation)
			continue;
		found = 1;
		j->generation = h->generation;
		j->epoch = h->epoch;
		j->bytes = h->journal_bytes;
		j->log_start = h->log_start;
		j->tail = h->tail;
		j->tail_seq = h->tail_seq;
	}
	if (rc == 0 && !found)
		rc = worst;
	if (rc < 0)
		snprintf(err, err_len, "%s: %s", path,
			 rc == -EUCLEAN  ? "neither journal header is valid"
			 : rc == -EPROTO ? "written by a newer version"
			 : rc == -EINVAL ? "belongs to another cluster or chunk server"
					 : strerror(-rc));
	j->log_bytes = j->bytes - j->log_start;
	vst_buf_free(two, 2 * CS_BLOCK);
	return rc;
}

int cs_journal_open(struct cs *cs, const char *path, uint64_t bytes, int may_create, char *err, size_t err_len)
{
	struct cs_journal *j = &cs->j;
	int rc = 0;

	j->fd = vst_open_direct(AT_FDCWD, path, O_RDWR, 0, &j->direct);
	if (j->fd == -ENOENT) {
		if (!may_create) {
			snprintf(err, err_len, "%s: the journal is missing, but the directory holds chunks", path);
			return -EUCLEAN;
		}
		if (bytes == 0 || bytes % CS_JOURNAL_UNIT) {
			snprintf(err, err_len, "%s: size must be a multiple of 64 MiB", path);
			return -EINVAL;
		}
		rc = create(cs, path, bytes);
		if (rc == 0)
			j->fd = vst_open_direct(AT_FDCWD, path, O_RDWR, 0, &j->direct);
	}
	if (rc == 0 && j->fd < 0)
		rc = j->fd;
	if (rc < 0) {
		j->fd = -1;
		snprintf(err, err_len, "%s: %s", path, strerror(-rc));
		return rc;
	}
	rc = read_headers(cs, path, err, err_len);
	if (rc < 0)
		return rc;
	j->gbuf = cs_buf_get(cs, (uint64_t)CS_GROUP_BLOCKS * CS_BLOCK);
	j->hbuf = cs_buf_get(cs, CS_BLOCK);
	j->cbuf = cs_buf_get(cs, (uint64_t)(CS_COPIES_MAX + 1) * CS_BLOCK);
	cs->n.journal_bytes = j->bytes;
	return j->gbuf && j->hbuf && j->cbuf ? 0 : -ENOMEM;
}

void cs_journal_close(struct cs *cs)
{
	struct cs_journal *j = &cs->j;

	cs_buf_put(cs, j->gbuf);
	cs_buf_put(cs, j->hbuf);
	cs_buf_put(cs, j->cbuf);
	j->gbuf = j->hbuf = j->cbuf = NULL;
	if (j->fd >= 0)
		close(j->fd);
	j->fd = -1;
}

uint64_t cs_journal_used(const struct cs_journal *j)
{
	return j->head - j->tail;
}

/* --- flushes: one fdatasync at a time; who comes while it runs is served by the next */

static void flush_start(struct cs *cs);

static void flush_done(struct cs_io *io, int res)
{
	struct cs *cs = (struct cs *)((char *)io - offsetof(struct cs, j.fio));
	struct cs_journal *j = &cs->j;
	struct cs_flush_wait *w = j->flush_now;

	j->flush_now = NULL;
	j->flush_busy = 0;
	cs->n.journal_flushes++;
	/* After a failed fdatasync nobody knows what is on the disk, and a second one would say success: the journal is
	 * over. */
	if (res < 0)
		cs_journal_fail(cs, -res);
	else if (j->flush_target > j->flushed_seq)
		j->flushed_seq = j->flush_target;
	while (w) {
		struct cs_flush_wait *next = w->next;
		w->done(w, res);
		w = next;
	}
	if (j->flush_next && !j->flush_busy)
		flush_start(cs);
}

static void flush_start(struct cs *cs)
{
	struct cs_journal *j = &cs->j;

	j->flush_busy = 1;
	j->flush_now = j->flush_next;
	j->flush_next = NULL;
	j->flush_target = j->written_seq;
	j->fio = (struct cs_io){.done = flush_done, .op = CS_IO_FDATASYNC, .fd = j->fd};
	cs_ring_submit(cs->ring, &j->fio);
}

void cs_journal_flush(struct cs *cs, struct cs_flush_wait *w)
{
	struct cs_journal *j = &cs->j;

	w->next = j->flush_next;
	j->flush_next = w;
	if (!j->flush_busy)
		flush_start(cs);
}

/* --- header */

static void header_flushed(struct cs_flush_wait *w, int res)
{
	struct cs *cs = w->arg;
	void (*done)(struct cs *, int) = cs->j.header_done;
	free(w);
	cs->j.header_busy = 0;
	done(cs, res);
}

static void header_written(struct cs_io *io, int res)
{
	struct cs *cs = (struct cs *)((char *)io - offsetof(struct cs, j.hio));
	struct cs_flush_wait *w = res < 0 ? NULL : calloc(1, sizeof *w);

	if (!w) {
		cs->j.header_busy = 0;
		cs->j.header_done(cs, res < 0 ? res : -ENOMEM);
		return;
	}
	w->done = header_flushed;
	w->arg = cs;
	cs_journal_flush(cs, w);
}

void cs_journal_write_header(struct cs *cs, uint64_t tail, uint64_t tail_seq, void (*done)(struct cs *cs, int res))
{
	struct cs_journal *j = &cs->j;

	j->header_busy = 1;
	j->header_done = done;
	header_image(cs, tail, tail_seq, j->hbuf->data);
	j->hio = (struct cs_io){.done = header_written,
				.op = CS_IO_WRITE,
				.fd = j->fd,
				.buf = j->hbuf->data,
				.len = CS_BLOCK,
				.off = (j->generation % 2) * CS_BLOCK};
	cs_ring_submit(cs->ring, &j->hio);
}
