/* The engine: opening and closing, the loop, control calls from other threads, events and counters. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#include "cs_internal.h"

#define TURN_MS 200 /* timers are looked at this often */
#define STATFS_MS 1000u

uint64_t cs_now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

uint64_t cs_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

int cs_errno_status(int error)
{
	switch (-error) {
	case 0:
		return 0;
	case ENOSPC:
	case EDQUOT:
		return VST_ERR_NO_SPACE;
	case ENOMEM:
	case EMFILE:
	case ENFILE:
		return VST_ERR_BUSY;
	case EUCLEAN:
		return VST_ERR_CORRUPT;
	default:
		return VST_ERR_IO_ERROR;
	}
}

/* --- events: a bounded ring that any thread may read; when it is full the oldest stay and losses are counted */

void cs_report(struct cs *cs, uint32_t kind, uint64_t chunk_id, uint64_t offset, int error)
{
	uint64_t one = 1;

	pthread_mutex_lock(&cs->ev_mu);
	/* The same again (a full disk under load): counted in the last one. */
	struct vst_cs_event *last = cs->ev_count ? &cs->ev[(cs->ev_head + cs->ev_count - 1) % CS_EVENTS_MAX] : NULL;
	if (last && last->kind == kind && last->chunk_id == chunk_id && last->offset == offset &&
	    last->error == error) {
		last->count++;
	} else if (cs->ev_count == CS_EVENTS_MAX) {
		cs->n.events_lost++;
	} else {
		cs->ev[(cs->ev_head + cs->ev_count++) % CS_EVENTS_MAX] = (struct vst_cs_event){
			.kind = kind, .error = error, .chunk_id = chunk_id, .offset = offset, .count = 1};
	}
	pthread_mutex_unlock(&cs->ev_mu);
	ssize_t n = write(cs->evfd, &one, sizeof one);
	(void)n; /* fails only when the counter is full, and then it is readable */
}

int vst_cs_event_fd(const vst_cs *cs)
{
	return ((const struct cs *)cs)->evfd;
}

int vst_cs_direct(const vst_cs *cs)
{
	return ((const struct cs *)cs)->direct && ((const struct cs *)cs)->j.direct;
}

int vst_cs_next_event(vst_cs *handle, struct vst_cs_event *ev)
{
	struct cs *cs = (struct cs *)handle;
	int got = 0;

	pthread_mutex_lock(&cs->ev_mu);
	if (cs->ev_count) {
		*ev = cs->ev[cs->ev_head];
		cs->ev_head = (cs->ev_head + 1) % CS_EVENTS_MAX;
		cs->ev_count--;
		got = 1;
	}
	if (!cs->ev_count) {
		uint64_t n;
		ssize_t r = read(cs->evfd, &n, sizeof n);
		(void)r; /* empty already */
	}
	pthread_mutex_unlock(&cs->ev_mu);
	return got;
}

void vst_cs_get_counters(vst_cs *handle, struct vst_cs_counters *out)
{
	struct cs *cs = (struct cs *)handle;

	/* Single words written by the engine thread: each is whole, the set is not one moment's. */
	*out = cs->n;
	out->journal_used = cs_journal_used(&cs->j);
	out->inflight = cs->inflight;
	out->read_ns_max = __atomic_exchange_n(&cs->n.read_ns_max, 0, __ATOMIC_RELAXED);
	out->write_ns_max = __atomic_exchange_n(&cs->n.write_ns_max, 0, __ATOMIC_RELAXED);
	out->sync_ns_max = __atomic_exchange_n(&cs->n.sync_ns_max, 0, __ATOMIC_RELAXED);
}

/* --- one turn of the loop */

void cs_look_at_space(struct cs *cs, uint64_t now, uint64_t max_age_ms)
{
	struct statvfs sv;

	if (cs->statfs_ms && now - cs->statfs_ms < max_age_ms)
		return;
	cs->statfs_ms = now;
	if (fstatvfs(cs->dirfd, &sv) < 0)
		return;
	cs->free_bytes = (uint64_t)sv.f_bavail * sv.f_frsize;
	if (cs->free_bytes >= cs->cfg.reserve_bytes + cs->index_bytes)
		cs->no_space_told = 0;
}

static void take_commands(struct cs *cs)
{
	pthread_mutex_lock(&cs->mu);
	struct cs_cmd *cmd = cs->cmds;
	cs->cmds = cs->cmds_tail = NULL;
	pthread_mutex_unlock(&cs->mu);
	while (cmd) {
		struct cs_cmd *next = cmd->next;
		cmd->start(cs, cmd);
		cmd = next;
	}
}

void cs_turn(struct cs *cs, int timeout_ms)
{
	uint64_t now = cs_now_ms();

	cs_look_at_space(cs, now, STATFS_MS);
	cs_journal_kick(cs);
	cs_sync_kick(cs);
	cs_ckpt_kick(cs);
	cs_net_flush(cs);
	cs_ring_turn(cs->ring, cs->ready ? 0 : timeout_ms);
	cs_net_ready(cs);
	cs_net_timer(cs, now);
	take_commands(cs);
}

int cs_idle(const struct cs *cs)
{
	return !cs->inflight && !cs->j.busy && !cs->j.q_head && !cs->sy.active && !cs->sy.waiting && !cs->cmds;
}

/* --- control calls */

void cs_cmd_done(struct cs *cs, struct cs_cmd *cmd, int result)
{
	pthread_mutex_lock(&cs->mu);
	cmd->result = result;
	cmd->done = 1;
	pthread_cond_broadcast(&cs->cv);
	pthread_mutex_unlock(&cs->mu);
}

static void wake(struct cs *cs)
{
	uint64_t one = 1;
	ssize_t n = write(cs->wakefd, &one, sizeof one);
	(void)n;
}

int cs_call(struct cs *cs, struct cs_cmd *cmd)
{
	cmd->done = 0;
	cmd->next = NULL;
	pthread_mutex_lock(&cs->mu);
	while (cs->acting && cs->state == CS_IDLE)
		pthread_cond_wait(&cs->cv, &cs->mu); /* another caller acts as the engine */
	if (cs->state == CS_IDLE) {
		cs->acting = 1;
		pthread_mutex_unlock(&cs->mu);
		cmd->start(cs, cmd);
		while (!cmd->done)
			cs_turn(cs, 10);
		pthread_mutex_lock(&cs->mu);
		cs->acting = 0;
		pthread_cond_broadcast(&cs->cv);
	} else {
		if (cs->cmds_tail)
			cs->cmds_tail->next = cmd;
		else
			cs->cmds = cmd;
		cs->cmds_tail = cmd;
		wake(cs);
		while (!cmd->done)
			pthread_cond_wait(&cs->cv, &cs->mu);
	}
	pthread_mutex_unlock(&cs->mu);
	return cmd->result;
}

static void woken(struct cs_watch *w, unsigned events)
{
	uint64_t n;
	ssize_t r = read(w->fd, &n, sizeof n);
	(void)r;
	(void)events;
}

static void wake_gone(struct cs_watch *w)
{
	w->closing = 2;
}

/* --- running */

static int switch_ring(struct cs *cs, enum cs_ring_mode mode)
{
	int err = 0;

	while (cs_ring_inflight(cs->ring))
		cs_ring_turn(cs->ring, 10);
	struct cs_ring *r = cs_ring_new(mode, &err);
	if (!r && mode == CS_RING_URING) /* forbidden by seccomp or sysctl, or an old kernel */
		r = cs_ring_new(CS_RING_POOL, &err);
	if (!r)
		return err;
	cs_ring_free(cs->ring);
	cs->ring = r;
	return 0;
}

static void stop_serving(struct cs *cs)
{
	cs->state = CS_STOPPING;
	cs->stop_ms = cs_now_ms();
	cs_server_stop(cs);
	while (!(cs_idle(cs) && cs_server_quiet(cs)) && cs_now_ms() - cs->stop_ms < CS_STOP_MS)
		cs_turn(cs, 10);
	cs_server_close(cs);
	while (!cs_idle(cs) || !cs_server_gone(cs))
		cs_turn(cs, 10);
}

int vst_cs_run(vst_cs *handle)
{
	struct cs *cs = (struct cs *)handle;
	int rc;

	pthread_mutex_lock(&cs->mu);
	while (cs->acting && cs->state == CS_IDLE)
		pthread_cond_wait(&cs->cv, &cs->mu);
	if (cs->state != CS_IDLE) {
		pthread_mutex_unlock(&cs->mu);
		return -EBUSY;
	}
	cs->acting = 1;
	cs->state = CS_RUNNING;
	pthread_mutex_unlock(&cs->mu);

	rc = switch_ring(cs, cs->cfg.flags & VST_CS_NO_URING ? CS_RING_POOL : CS_RING_URING);
	if (rc == 0) {
		cs->wake = (struct cs_watch){.fd = cs->wakefd, .ready = woken, .gone = wake_gone};
		rc = cs_watch_add(cs->ring, &cs->wake);
	}
	if (rc == 0)
		rc = cs_server_start(cs);
	while (rc == 0 && !__atomic_load_n(&cs->stop, __ATOMIC_ACQUIRE))
		cs_turn(cs, TURN_MS);
	if (cs_ring_mode_of(cs->ring) != CS_RING_SYNC) {
		stop_serving(cs);
		int drained = cs_drain_all(cs);
		if (rc == 0)
			rc = drained;
		cs_watch_del(cs->ring, &cs->wake);
		while (cs->wake.closing != 2)
			cs_turn(cs, 10);
	}
	pthread_mutex_lock(&cs->mu);
	while (cs->cmds || !cs_idle(cs)) { /* who called while it stopped is still answered */
		pthread_mutex_unlock(&cs->mu);
		cs_turn(cs, 1);
		pthread_mutex_lock(&cs->mu);
	}
	int back = switch_ring(cs, CS_RING_SYNC);
	cs->state = CS_IDLE;
	cs->acting = 0;
	cs->stop = 0;
	pthread_cond_broadcast(&cs->cv);
	pthread_mutex_unlock(&cs->mu);
	return rc ? rc : back;
}

void vst_cs_stop(vst_cs *handle)
{
	struct cs *cs = (struct cs *)handle;
	__atomic_store_n(&cs->stop, 1, __ATOMIC_RELEASE);
	wake(cs);
}

/* --- open, close */

static void release(struct cs *cs)
{
	cs_server_free(cs);
	cs_store_close(cs);
	cs_ring_free(cs->ring);
	if (cs->evfd >= 0)
		close(cs->evfd);
	if (cs->wakefd >= 0)
		close(cs->wakefd);
	pthread_mutex_destroy(&cs->mu);
	pthread_mutex_destroy(&cs->ev_mu);
	pthread_cond_destroy(&cs->cv);
	free(cs->dir);
	free(cs->journal_path);
	free(cs->ck.list); /* a checkpoint that a crash cut off */
	free(cs->scratch);
	free(cs);
}

static char *journal_path(const struct vst_cs_config *cfg)
{
	if (cfg->journal)
		return strdup(cfg->journal);
	size_t len = strlen(cfg->dir) + sizeof "/journal";
	char *p = malloc(len);
	if (p)
		snprintf(p, len, "%s/journal", cfg->dir);
	return p;
}

int vst_cs_open(const struct vst_cs_config *cfg, vst_cs **out, char *err, size_t err_len)
{
	struct cs *cs = calloc(1, sizeof *cs);
	int rc = 0;

	*out = NULL;
	if (!cs) {
		snprintf(err, err_len, "%s", strerror(ENOMEM));
		return -ENOMEM;
	}
	cs->cfg = *cfg;
	cs->dirfd = cs->chunksfd = cs->quarantinefd = cs->trashfd = cs->lockfd = cs->j.fd = -1;
	for (int i = 0; i < 256; i++)
		cs->shardfd[i] = -1;
	pthread_mutex_init(&cs->mu, NULL);
	pthread_mutex_init(&cs->ev_mu, NULL);
	pthread_cond_init(&cs->cv, NULL);
	cs->evfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cs->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cs->dir = strdup(cfg->dir);
	cs->journal_path = journal_path(cfg);
	cs->ring = cs_ring_new(CS_RING_SYNC, &rc);
	if (rc == 0 && (cs->evfd < 0 || cs->wakefd < 0 || !cs->dir || !cs->journal_path))
		rc = -ENOMEM;
	if (rc < 0)
		snprintf(err, err_len, "%s: %s", cfg->dir, strerror(-rc));
	if (rc == 0)
		rc = cs_store_open(cs, err, err_len);
	if (rc < 0) {
		release(cs);
		return rc;
	}
	*out = (vst_cs *)cs;
	return 0;
}

void cs_crash(struct cs *cs)
{
	release(cs);
}

void vst_cs_close(vst_cs *handle)
{
	struct cs *cs = (struct cs *)handle;

	if (!cs)
		return;
	/* An error here is what a crash would leave too: the journal keeps what is not in its place. */
	int rc = cs_drain_all(cs);
	(void)rc;
	release(cs);
}
