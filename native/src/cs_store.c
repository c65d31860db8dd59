/* The directory of a chunk server: opening, checking, the list of chunks, closing. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cs_internal.h"
#include "vstor/dio.h"

struct ids {
	uint64_t *id;
	uint32_t count, max;
};

static int add_id(struct ids *s, uint64_t id)
{
	if (s->count == s->max) {
		uint32_t max = s->max ? s->max * 2 : 64;
		uint64_t *p = realloc(s->id, max * sizeof *p);
		if (!p)
			return -ENOMEM;
		s->id = p;
		s->max = max;
	}
	s->id[s->count++] = id;
	return 0;
}

static int fail(char *err, size_t err_len, const char *dir, const char *name, int rc)
{
	snprintf(err, err_len, "%s/%s: %s", dir, name, strerror(-rc));
	return rc;
}

static int sub_dir(struct cs *cs, const char *name)
{
	if (mkdirat(cs->dirfd, name, 0700) < 0 && errno != EEXIST)
		return -errno;
	int fd = openat(cs->dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int take_lock(struct cs *cs)
{
	cs->lockfd = openat(cs->dirfd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (cs->lockfd < 0)
		return -errno;
	if (flock(cs->lockfd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? -EBUSY : -errno;
	return 0;
}

/* name: 16 lower-case hex digits, in the directory of its last two. */
static int parse_name(const char *name, unsigned shard, uint64_t *id)
{
	if (strlen(name) != 16 || strspn(name, "0123456789abcdef") != 16)
		return 0;
	*id = strtoull(name, NULL, 16);
	return (*id & 0xff) == shard;
}

static int zero_block(const uint8_t *p)
{
	return p[0] == 0 && memcmp(p, p + 1, CS_BLOCK - 1) == 0;
}

/* 0; -EUCLEAN damaged; -EAGAIN no header yet; else the whole store cannot be opened. */
static int add_chunk(struct cs *cs, int dir, const char *name, uint64_t id, uint8_t *block)
{
	const struct vst_chunk_header *h = (const void *)block;
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == EIO ? -EUCLEAN : -errno;
	int rc = vst_pread_full(fd, block, CS_BLOCK, 0);
	close(fd);
	if (rc < 0)
		return rc == -EIO ? -EUCLEAN : rc;
	if (zero_block(block))
		return -EAGAIN;
	rc = cs_chunk_header_check(cs, block, id);
	if (rc < 0)
		return rc;
	struct cs_chunk *c = cs_chunk_new(cs, id, h->chunk_bytes, h->chunk_version, h->flags);
	if (!c)
		return -ENOMEM;
	c->file_id = h->file_id;
	c->file_made = 1;
	c->written = h->written_blocks;
	c->bad = h->bad_blocks;
	memcpy(c->present, h->pages, sizeof c->present);
	cs->n.chunks++;
	cs->n.written_blocks += c->written;
	return 0;
}

static int scan_shard(struct cs *cs, unsigned shard, struct ids *blank, struct ids *damaged, char *err, size_t err_len)
{
	char name[12];
	uint8_t block[CS_BLOCK];
	int rc = 0;

	snprintf(name, sizeof name, "%02x", shard);
	int fd = openat(cs->chunksfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	DIR *d = fdopendir(fd);
	if (!d) {
		rc = -errno;
		close(fd);
		return rc;
	}
	for (struct dirent *e; rc == 0 && (e = readdir(d));) {
		uint64_t id;
		if (!parse_name(e->d_name, shard, &id))
			continue;
		rc = add_chunk(cs, fd, e->d_name, id, block);
		if (rc == -EAGAIN)
			rc = add_id(blank, id);
		else if (rc == -EUCLEAN)
			rc = add_id(damaged, id);
		else if (rc < 0)
			snprintf(err, err_len, "%s/chunks/%s/%s: %s", cs->dir, name, e->d_name,
				 rc == -EPROTO   ? "written by a newer version"
				 : rc == -EINVAL ? "belongs to another cluster"
						 : strerror(-rc));
	}
	closedir(d);
	return rc;
}

static int has_chunk_files(struct cs *cs)
{
	for (unsigned i = 0; i < 256; i++) {
		char name[12];
		snprintf(name, sizeof name, "%02x", i);
		int fd = openat(cs->chunksfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = 0;
		DIR *d = fd < 0 ? NULL : fdopendir(fd);
		if (!d) {
			if (fd >= 0)
				close(fd);
			continue;
		}
		uint64_t id;
		for (struct dirent *e; !found && (e = readdir(d));)
			found = parse_name(e->d_name, i, &id);
		closedir(d);
		if (found)
			return 1;
	}
	return 0;
}

/* Files whose header is damaged, or that no record of the journal knows. */
static void sort_out(struct cs *cs, const struct ids *blank, const struct ids *damaged)
{
	for (uint32_t i = 0; i < damaged->count; i++) {
		struct cs_chunk *c = cs_chunk_find(cs, damaged->id[i]);
		if (!c)
			c = cs_chunk_new(cs, damaged->id[i], VST_CHUNK_BYTES_MIN, 0, 0);
		else
			cs->n.chunks--;
		if (c)
			cs_chunk_quarantine(cs, c, -EUCLEAN);
	}
	for (uint32_t i = 0; i < blank->count; i++)
		if (!cs_chunk_find(cs, blank->id[i]))
			cs_chunk_trash(cs, blank->id[i]);
}

static void empty_trash(struct cs *cs)
{
	int fd = dup(cs->trashfd);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	if (!d) {
		if (fd >= 0)
			close(fd);
		return;
	}
	for (struct dirent *e; (e = readdir(d));)
		if (e->d_name[0] != '.')
			unlinkat(cs->trashfd, e->d_name, 0);
	closedir(d);
}

static void raise_file_limit(struct cs *cs)
{
	struct rlimit rl;

	cs->files_max = 256;
	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return;
	if (rl.rlim_cur < rl.rlim_max && rl.rlim_cur < 65536) {
		rl.rlim_cur = rl.rlim_max < 65536 ? rl.rlim_max : 65536;
		setrlimit(RLIMIT_NOFILE, &rl);
		getrlimit(RLIMIT_NOFILE, &rl);
	}
	cs->files_max = rl.rlim_cur / 4 < CS_FILES_MAX ? (uint32_t)(rl.rlim_cur / 4) : CS_FILES_MAX;
}

static int open_dirs(struct cs *cs, char *err, size_t err_len)
{
	static const char *const names[] = {"chunks", "quarantine", "trash"};
	int *fds[] = {&cs->chunksfd, &cs->quarantinefd, &cs->trashfd};

	cs->dirfd = open(cs->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (cs->dirfd < 0)
		return fail(err, err_len, cs->dir, "", -errno);
	int rc = take_lock(cs);
	if (rc == -EBUSY) {
		snprintf(err, err_len, "%s: in use by another process", cs->dir);
		return rc;
	}
	if (rc < 0)
		return fail(err, err_len, cs->dir, "lock", rc);
	for (size_t i = 0; i < 3; i++) {
		*fds[i] = sub_dir(cs, names[i]);
		if (*fds[i] < 0)
			return fail(err, err_len, cs->dir, names[i], *fds[i]);
	}
	if (fsync(cs->dirfd) < 0)
		return fail(err, err_len, cs->dir, "", -errno);
	return 0;
}

/* Everything here is done in whole blocks from page-aligned memory: which is what the device must be content with. */
static int check_alignment(const char *path, int fd, char *err, size_t err_len)
{
	int align = vst_dio_align(fd);

	if (align < 0) {
		snprintf(err, err_len, "%s: direct I/O: %s", path, strerror(-align));
		return align;
	}
	if (align > (int)CS_BLOCK || (int)CS_BLOCK % align) {
		snprintf(err, err_len,
			 "%s: the device takes direct I/O only in units of %d bytes; use one with sectors of 512 to %u "
			 "bytes",
			 path, align, CS_BLOCK);
		return -EOPNOTSUPP;
	}
	return 0;
}

/* Of the file system of the chunk files, asked by means of the lock file; and of the journal, maybe on another. */
static int check_devices(struct cs *cs, char *err, size_t err_len)
{
	int fd = vst_open_direct(cs->dirfd, "lock", O_RDONLY, 0, &cs->direct);

	if (fd < 0)
		return fail(err, err_len, cs->dir, "lock", fd);
	int rc = cs->direct ? check_alignment(cs->dir, fd, err, err_len) : 0;
	close(fd);
	if (rc == 0 && cs->j.direct)
		rc = check_alignment(cs->journal_path, cs->j.fd, err, err_len);
	return rc;
}

int cs_drain_all(struct cs *cs)
{
	enum cs_state state = cs->state;

	cs->state = CS_STOPPING; /* a checkpoint begins at once */
	while (!cs->j.error && (cs_ckpt_needed(cs) || cs_ckpt_active(cs)) && !(cs->ck.failed && !cs_ckpt_active(cs)))
		cs_turn(cs, 10);
	while (cs_ring_inflight(cs->ring))
		cs_turn(cs, 10);
	cs->state = state;
	return cs->j.error ? -cs->j.error : cs_ckpt_needed(cs) ? cs->ck.failed : 0;
}

static void epoch_written(struct cs *cs, int res)
{
	cs->j.epoch_done = 1;
	cs->j.epoch_res = res;
}

/* Groups of an earlier run that still stand in the ring can never be taken for ones of this run. */
static int new_epoch(struct cs *cs)
{
	struct cs_journal *j = &cs->j;

	if (getrandom(&j->epoch, sizeof j->epoch, 0) != sizeof j->epoch)
		return -EIO;
	j->epoch_done = 0;
	cs_journal_write_header(cs, j->tail, j->next_seq, epoch_written);
	while (!j->epoch_done)
		cs_turn(cs, 0);
	j->tail_seq = j->next_seq;
	return j->epoch_res;
}

/* The files have no space for what the journal holds. The server must come up all the same, or nothing could ever be
 * deleted: the log goes on in its old epoch, and what stands in its free part is wiped, so that it cannot be taken for
 * a continuation. */
static int wipe_free(struct cs *cs)
{
	struct cs_journal *j = &cs->j;
	uint64_t left = j->log_bytes - cs_journal_used(j), step = (uint64_t)CS_GROUP_BLOCKS * CS_BLOCK, pos = j->head;
	int rc = 0;

	memset(j->gbuf->data, 0, step);
	while (rc == 0 && left) {
		uint64_t n = j->log_bytes - pos % j->log_bytes;
		n = n < step ? n : step;
		n = n < left ? n : left;
		rc = vst_pwrite_full(j->fd, j->gbuf->data, n, cs_journal_at(j, pos));
		pos += n;
		left -= n;
	}
	return rc == 0 && fdatasync(j->fd) < 0 ? -errno : rc;
}

int cs_store_open(struct cs *cs, char *err, size_t err_len)
{
	struct ids blank = {0}, damaged = {0};
	int rc;

	raise_file_limit(cs);
	rc = open_dirs(cs, err, err_len);
	if (rc == 0)
		rc = cs_journal_open(cs, cs->journal_path, cs->cfg.journal_bytes, !has_chunk_files(cs), err, err_len);
	if (rc == 0)
		rc = check_devices(cs, err, err_len);
	if (rc == 0)
		rc = cs_copies_restore(cs, err, err_len);
	for (unsigned i = 0; rc == 0 && i < 256; i++)
		rc = scan_shard(cs, i, &blank, &damaged, err, err_len);
	if (rc == 0)
		rc = cs_replay(cs, err, err_len);
	if (rc == 0) {
		sort_out(cs, &blank, &damaged);
		rc = cs_drain_all(cs);
		rc = rc == 0 ? new_epoch(cs) : rc == -ENOSPC ? wipe_free(cs) : rc;
		if (rc < 0)
			snprintf(err, err_len, "%s: after replay: %s", cs->dir, strerror(-rc));
	}
	if (rc == 0)
		empty_trash(cs);
	free(blank.id);
	free(damaged.id);
	return rc;
}

void cs_store_close(struct cs *cs)
{
	for (uint32_t i = 0; i < cs->hash_size; i++)
		while (cs->hash[i]) {
			struct cs_chunk *c = cs->hash[i];
			cs->hash[i] = c->hash_next;
			cs_chunk_free(cs, c);
		}
	free(cs->hash);
	cs->hash = NULL;
	cs->hash_size = 0;
	cs_trash_free(cs);
	cs_journal_close(cs);
	for (int i = 0; i < 256; i++)
		if (cs->shardfd[i] >= 0)
			close(cs->shardfd[i]);
	int fds[] = {cs->chunksfd, cs->quarantinefd, cs->trashfd, cs->dirfd, cs->lockfd};
	for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	cs_buf_drop_pool(cs);
}
