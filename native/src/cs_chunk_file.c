/* The file of a chunk: making, loading its table, checking, quarantine and removal. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cs_internal.h"
#include "vstor/crc32c.h"
#include "vstor/dio.h"

void cs_chunk_path(char out[40], uint64_t id)
{
	snprintf(out, 40, "%02x/%016llx", (unsigned)(id & 0xff), (unsigned long long)id);
}

int cs_shard_fd(struct cs *cs, uint64_t id)
{
	unsigned n = (unsigned)(id & 0xff);
	char name[12];

	if (cs->shardfd[n] >= 0)
		return cs->shardfd[n];
	snprintf(name, sizeof name, "%02x", n);
	if (mkdirat(cs->chunksfd, name, 0700) < 0 && errno != EEXIST)
		return -errno;
	int fd = openat(cs->chunksfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* A new directory must outlive a power cut before anything in it is promised. */
	if (fsync(cs->chunksfd) < 0) {
		int e = -errno;
		close(fd);
		return e;
	}
	cs->shardfd[n] = fd;
	return fd;
}

void cs_shard_set_dirty(struct cs *cs, uint64_t id)
{
	cs->shard_gen[id & 0xff]++;
}

uint64_t cs_chunk_data_off(const struct cs_chunk *c)
{
	return (1 + (uint64_t)c->npages) * CS_BLOCK;
}

uint64_t cs_chunk_file_bytes(const struct cs_chunk *c)
{
	return cs_chunk_data_off(c) + c->chunk_bytes;
}

/* Space for header and table is taken now, so that a checkpoint cannot fail for want of it; the data part stays sparse.
 */
static int size_file(const struct cs_chunk *c, int fd)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	if ((uint64_t)st.st_size != cs_chunk_file_bytes(c) && ftruncate(fd, (off_t)cs_chunk_file_bytes(c)) < 0)
		return -errno;
	if (fallocate(fd, 0, 0, (off_t)cs_chunk_data_off(c)) < 0 && errno != EOPNOTSUPP)
		return -errno;
	return 0;
}

int cs_chunk_open_file(struct cs *cs, struct cs_chunk *c, int create)
{
	char name[20];
	int direct;

	if (c->fd >= 0)
		return 0;
	int dir = cs_shard_fd(cs, c->id);
	if (dir < 0)
		return dir;
	snprintf(name, sizeof name, "%016llx", (unsigned long long)c->id);
	int fd = vst_open_direct(dir, name, O_RDWR | (create ? O_CREAT : 0), 0600, &direct);
	if (fd < 0)
		return fd;
	if (create) {
		int rc = size_file(c, fd);
		if (rc < 0) {
			close(fd);
			return rc;
		}
		cs_shard_set_dirty(cs, c->id);
	}
	c->fd = fd;
	c->file_made = 1;
	cs->nfiles++;
	return 0;
}

int cs_chunk_blank(struct cs *cs, struct cs_chunk *c)
{
	if (!c->pages) {
		void *p;
		if (posix_memalign(&p, CS_BLOCK, (size_t)c->npages * CS_BLOCK))
			return -ENOMEM;
		c->pages = p;
		cs->table_bytes += (uint64_t)c->npages * CS_BLOCK;
	}
	memset(c->pages, 0, (size_t)c->npages * CS_BLOCK);
	c->loaded = 1;
	cs_chunk_used(cs, c);
	return 0;
}

void cs_chunk_header_image(const struct cs *cs, const struct cs_chunk *c, void *block)
{
	struct vst_chunk_header h = {
		.magic = CS_MAGIC_CHUNK,
		.format = VST_DISK_FORMAT,
		.chunk_version = c->version,
		.chunk_id = c->id,
		.file_id = c->file_id,
		.chunk_bytes = c->chunk_bytes,
		.flags = c->flags,
		.written_blocks = c->written,
		.bad_blocks = c->bad,
	};
	memcpy(h.cluster_id, cs->cfg.cluster_id, sizeof h.cluster_id);
	memcpy(h.pages, c->present, sizeof h.pages);
	memset(block, 0, CS_BLOCK);
	memcpy(block, &h, sizeof h);
	h.crc = vst_crc32c(0, block, CS_BLOCK);
	memcpy(block, &h, sizeof h);
}

int cs_chunk_header_check(const struct cs *cs, const void *block, uint64_t id)
{
	const struct vst_chunk_header *h = block;
	if (h->magic != CS_MAGIC_CHUNK ||
	    cs_block_crc_zeroed(block, CS_BLOCK, offsetof(struct vst_chunk_header, crc)) != h->crc)
		return -EUCLEAN;
	if (h->format > VST_DISK_FORMAT)
		return -EPROTO;
	if (memcmp(h->cluster_id, cs->cfg.cluster_id, sizeof h->cluster_id) != 0)
		return -EINVAL;
	return h->chunk_id == id && cs_chunk_bytes_ok(h->chunk_bytes) && !h->reserved && !h->reserved2 ? 0 : -EUCLEAN;
}

static int all_zero(const void *p, size_t len)
{
	const uint64_t *w = p;
	for (size_t i = 0; i < len / 8; i++)
		if (w[i])
			return 0;
	return 1;
}

int cs_page_check(const struct vst_table_page *p, const struct cs_chunk *c, uint32_t page)
{
	int present = c->present[page / 8] >> page % 8 & 1;
	if (all_zero(p, sizeof *p))
		return !present;
	return p->magic == CS_MAGIC_PAGE && p->chunk_id == c->id && p->file_id == c->file_id && p->page == page &&
	       cs_block_crc_zeroed(p, sizeof *p, offsetof(struct vst_table_page, crc)) == p->crc;
}

/* The table as read from the file becomes the one in memory. */
static int adopt(struct cs *cs, struct cs_chunk *c, const uint8_t *data)
{
	for (uint32_t i = 0; i < c->npages; i++)
		if (!cs_page_check((const struct vst_table_page *)(data + (size_t)i * CS_BLOCK), c, i))
			return -EUCLEAN;
	int rc = cs_chunk_blank(cs, c);
	if (rc == 0)
		memcpy(c->pages, data, (size_t)c->npages * CS_BLOCK);
	return rc;
}

int cs_chunk_load_sync(struct cs *cs, struct cs_chunk *c)
{
	if (c->loaded)
		return 0;
	int rc = cs_chunk_open_file(cs, c, 0);
	if (rc < 0)
		return rc;
	struct cs_buf *b = cs_buf_get(cs, (uint64_t)c->npages * CS_BLOCK);
	if (!b)
		return -ENOMEM;
	rc = vst_pread_full(c->fd, b->data, (size_t)c->npages * CS_BLOCK, CS_BLOCK);
	if (rc == 0)
		rc = adopt(cs, c, b->data);
	cs_buf_put(cs, b);
	return rc;
}

static void wake_waiters(struct cs_chunk *c, int status)
{
	struct cs_req *r = c->load_waiters;
	c->load_waiters = NULL;
	/* They were put in front: serve them in the order they came. */
	struct cs_req *in_order = NULL;
	while (r) {
		struct cs_req *next = r->next;
		r->next = in_order;
		in_order = r;
		r = next;
	}
	while (in_order) {
		r = in_order;
		in_order = r->next;
		if (status)
			cs_req_finish(r, status);
		else
			r->ready(r);
	}
}

/* The file cannot be made, opened or read: say so once here, whatever becomes of the requests. A status. */
static int file_failed(struct cs_chunk *c, int rc)
{
	c->cs->n.io_errors += rc != -ENOSPC;
	cs_report(c->cs, rc == -ENOSPC ? VST_CS_EV_NO_SPACE : VST_CS_EV_IO_ERROR, c->id, 0, -rc);
	return cs_errno_status(rc);
}

static void load_done(struct cs_io *io, int res)
{
	struct cs_chunk *c = (struct cs_chunk *)((char *)io - offsetof(struct cs_chunk, load_io));
	struct cs *cs = c->cs;
	int status = 0;

	c->loading = 0;
	if (res == 0)
		res = adopt(cs, c, c->load_buf->data);
	cs_buf_put(cs, c->load_buf);
	c->load_buf = NULL;
	c->refs++; /* the waiters may be its last requests */
	if (res == -EUCLEAN) {
		cs_chunk_quarantine(cs, c, res);
		status = VST_ERR_CORRUPT;
	} else if (res < 0) {
		status = file_failed(c, res);
	}
	wake_waiters(c, status);
	cs_chunk_unref(cs, c);
	cs_chunk_evict(cs);
}

void cs_chunk_ready(struct cs_req *req, void (*ready)(struct cs_req *req))
{
	struct cs_chunk *c = req->c;
	struct cs *cs = req->cs;

	if (c->loaded && c->fd >= 0) {
		cs_chunk_used(cs, c);
		ready(req);
		return;
	}
	if (c->unborn && !c->loaded && cs_chunk_blank(cs, c) < 0) {
		cs_req_finish(req, VST_ERR_IO_ERROR);
		return;
	}
	if (c->loaded) { /* a new one without a file, or the file was closed */
		int rc = cs_chunk_open_file(cs, c, !c->file_made);
		if (rc < 0)
			cs_req_finish(req, file_failed(c, rc));
		else
			ready(req);
		return;
	}
	req->ready = ready;
	req->next = c->load_waiters;
	c->load_waiters = req;
	if (c->loading)
		return;
	c->loading = 1;
	int rc = cs_chunk_open_file(cs, c, 0);
	if (rc == 0 && !(c->load_buf = cs_buf_get(cs, (uint64_t)c->npages * CS_BLOCK)))
		rc = -ENOMEM;
	if (rc < 0) {
		c->loading = 0;
		c->refs++;
		wake_waiters(c, file_failed(c, rc));
		cs_chunk_unref(cs, c);
		return;
	}
	c->load_io = (struct cs_io){.done = load_done,
				    .op = CS_IO_READ,
				    .fd = c->fd,
				    .buf = c->load_buf->data,
				    .off = CS_BLOCK,
				    .len = (uint64_t)c->npages * CS_BLOCK};
	cs_ring_submit(cs->ring, &c->load_io);
}

void cs_chunk_quarantine(struct cs *cs, struct cs_chunk *c, int error)
{
	char to[40], from[40];

	if (c->gone)
		return;
	cs_chunk_path(from, c->id);
	snprintf(to, sizeof to, "%016llx.%llu", (unsigned long long)c->id, (unsigned long long)cs->cfg.incarnation);
	if (renameat(cs->chunksfd, from, cs->quarantinefd, to) < 0)
		cs_report(cs, VST_CS_EV_IO_ERROR, c->id, 0, errno);
	cs_shard_set_dirty(cs, c->id);
	cs->n.corrupt_blocks++;
	cs_report(cs, VST_CS_EV_CORRUPT, c->id, CS_WHOLE_CHUNK, -error);
	cs_chunk_gone(cs, c);
}

struct cs_trash { /* a file on its way out */
	struct cs_io io;
	struct cs *cs;
	struct cs_trash *next;
	char name[24];
};

static void trashed(struct cs_io *io, int res)
{
	struct cs_trash *t = (struct cs_trash *)((char *)io - offsetof(struct cs_trash, io)), **p = &t->cs->trash;

	(void)res; /* what stays is removed at the next start */
	while (*p != t)
		p = &(*p)->next;
	*p = t->next;
	free(t);
}

void cs_trash_free(struct cs *cs)
{
	for (struct cs_trash *t; (t = cs->trash);) {
		cs->trash = t->next;
		free(t);
	}
}

int cs_chunk_trash(struct cs *cs, uint64_t id)
{
	char from[40];
	struct cs_trash *t = calloc(1, sizeof *t);

	if (!t)
		return -ENOMEM;
	cs_chunk_path(from, id);
	snprintf(t->name, sizeof t->name, "%llu", (unsigned long long)cs->trash_serial++);
	if (renameat(cs->chunksfd, from, cs->trashfd, t->name) < 0) {
		int e = errno;
		free(t);
		return e == ENOENT ? 0 : -e;
	}
	cs_shard_set_dirty(cs, id);
	t->io = (struct cs_io){.done = trashed, .op = CS_IO_UNLINK, .fd = cs->trashfd, .path = t->name};
	t->cs = cs;
	t->next = cs->trash;
	cs->trash = t;
	cs_ring_submit(cs->ring, &t->io);
	return 0;
}
