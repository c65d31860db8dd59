/* The client engine: its thread, its loop, and commands from other threads. */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "cl_internal.h"

#define EPOLL_BATCH 64
#define IO_TIMEOUT_DEFAULT_MS 2000u

uint64_t cl_clock_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

uint64_t cl_clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

vst_cl *vst_cl_new(const struct vst_cl_config *cfg)
{
	struct vst_cl *cl = calloc(1, sizeof *cl);
	struct epoll_event ev = {.events = EPOLLIN};

	if (!cl)
		return NULL;
	cl->cfg = *cfg;
	if (!cl->cfg.io_timeout_ms)
		cl->cfg.io_timeout_ms = IO_TIMEOUT_DEFAULT_MS;
	if (!cl->cfg.connect_timeout_ms)
		cl->cfg.connect_timeout_ms = IO_TIMEOUT_DEFAULT_MS;
	pthread_mutex_init(&cl->mu, NULL);
	pthread_mutex_init(&cl->event_mu, NULL);
	list_init(&cl->events);
	list_init(&cl->free_events);
	list_init(&cl->files);
	list_init(&cl->dirty);
	list_init(&cl->failed);
	list_init(&cl->run_parts);
	list_init(&cl->run_reqs);
	list_init(&cl->idle);
	list_init(&cl->free_parts);
	list_init(&cl->free_reqs);
	cl->next_commit = 1;
	cl->now_ms = cl_clock_ms();
	cl->epfd = epoll_create1(EPOLL_CLOEXEC);
	cl->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cl->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cl->wake.kind = POLL_WAKE;
	ev.data.ptr = &cl->wake;
	if (cl->epfd < 0 || cl->wake_fd < 0 || cl->event_fd < 0 ||
	    epoll_ctl(cl->epfd, EPOLL_CTL_ADD, cl->wake_fd, &ev) < 0) {
		int err = errno;
		vst_cl_free(cl);
		errno = err;
		return NULL;
	}
	return cl;
}

/* --- commands ---------------------------------------------------------------------------------------------- */

static void wake_engine(struct vst_cl *cl)
{
	uint64_t one = 1;
	ssize_t n = write(cl->wake_fd, &one, sizeof one);
	(void)n; /* fails only when the counter is full: then it is awake */
}

/* Hand a command to the engine thread; without one (not started, or stopped) it is run here, under the same mutex. */
static void submit(struct vst_cl *cl, struct cmd *c)
{
	bool wake = false;

	pthread_mutex_lock(&cl->mu);
	if (cl->state == ENGINE_RUNNING) {
		c->next = NULL;
		if (cl->cmd_tail)
			cl->cmd_tail->next = c;
		else
			cl->cmd_head = c;
		cl->cmd_tail = c;
		wake = !atomic_exchange(&cl->cmds_waiting, true);
	} else {
		cl->now_ms = cl_clock_ms();
		c->run(cl, c);
		if (cl->state == ENGINE_NEW)
			cl_run(cl);
		event_signal(cl);
	}
	pthread_mutex_unlock(&cl->mu);
	if (wake)
		wake_engine(cl);
}

int cl_post(struct vst_cl *cl, struct cmd *c)
{
	if (!c)
		return -ENOMEM;
	c->sem = NULL;
	submit(cl, c);
	return 0;
}

int64_t cl_call(struct vst_cl *cl, struct cmd *c)
{
	sem_t sem;

	sem_init(&sem, 0, 0);
	c->sem = &sem;
	submit(cl, c);
	while (sem_wait(&sem) < 0)
		;
	sem_destroy(&sem);
	return c->result;
}

/* End of a command: after it the caller's memory is gone. */
void cl_cmd_done(struct cmd *c, int64_t result)
{
	c->result = result;
	if (c->sem)
		sem_post(c->sem);
	else
		free(c);
}

void cl_run_cmds(struct vst_cl *cl)
{
	struct cmd *c;

	if (!atomic_load_explicit(&cl->cmds_waiting, memory_order_acquire))
		return;
	pthread_mutex_lock(&cl->mu);
	atomic_store(&cl->cmds_waiting, false);
	c = cl->cmd_head;
	cl->cmd_head = cl->cmd_tail = NULL;
	pthread_mutex_unlock(&cl->mu);
	while (c) {
		struct cmd *next = c->next;
		c->run(cl, c);
		c = next;
	}
}

/* --- the loop ---------------------------------------------------------------------------------------------- */

/* Everything that became runnable, until nothing is. Order: failures first, so that parts see where they stand. */
void cl_run(struct vst_cl *cl)
{
	for (;;) {
		if (!list_empty(&cl->failed)) {
			struct xfer *x = list_first(&cl->failed, struct xfer, link);
			list_del(&x->link);
			xfer_end(x, x->status, NULL, NULL);
		} else if (!list_empty(&cl->run_parts)) {
			struct part *p = list_first(&cl->run_parts, struct part, link);
			list_del(&p->link);
			part_run(p);
		} else if (!list_empty(&cl->run_reqs)) {
			struct req *r = list_first(&cl->run_reqs, struct req, link);
			list_del(&r->link);
			r->queued = false;
			req_run(r);
		} else if (!list_empty(&cl->dirty)) {
			struct cs *cs = list_first(&cl->dirty, struct cs, dirty_link);
			list_del(&cs->dirty_link);
			cs->dirty = false;
			conn_flush(cs);
		} else if (!list_empty(&cl->idle)) {
			struct vst_file *f = list_first(&cl->idle, struct vst_file, idle);
			list_del(&f->idle);
			file_idle(f);
		} else {
			return;
		}
	}
}

static void run_timers(struct vst_cl *cl)
{
	struct timer *t;

	while ((t = timer_pop(cl, cl->now_ms)) != NULL) {
		if (t->kind == TIMER_PART)
			part_timer(cl_container(t, struct part, timer));
		else if (t->kind == TIMER_GATHER)
			behind_close(cl_container(t, struct vst_file, gather_timer));
		else
			cs_timer(cl_container(t, struct cs, timer));
	}
}

static int loop_timeout_ms(struct vst_cl *cl)
{
	if (!cl->nheap)
		return -1;
	uint64_t at = cl->heap[0]->at_ms, now = cl_clock_ms();
	if (at <= now)
		return 0;
	return at - now > 60000u ? 60000 : (int)(at - now);
}

static void dispatch(struct vst_cl *cl, struct epoll_event *ev)
{
	struct pollee *p = ev->data.ptr;
	uint64_t count;
	ssize_t n;

	switch (p->kind) {
	case POLL_WAKE:
		n = read(cl->wake_fd, &count, sizeof count);
		(void)n;
		break;
	case POLL_CS:
		cs_event(cl_container(p, struct cs, poll), ev->events);
		break;
	case POLL_FUSE:
		fuse_readable(cl);
		break;
	}
}

static void *engine_main(void *arg)
{
	struct vst_cl *cl = arg;
	struct epoll_event ev[EPOLL_BATCH];

	while (!atomic_load_explicit(&cl->stopping, memory_order_acquire)) {
		int n = epoll_wait(cl->epfd, ev, EPOLL_BATCH, loop_timeout_ms(cl));
		cl->now_ms = cl_clock_ms();
		cl_run_cmds(cl);
		for (int i = 0; i < n; i++)
			dispatch(cl, &ev[i]);
		cl_run_cmds(cl);
		run_timers(cl);
		cl_run(cl);
		event_signal(cl);
	}
	return NULL;
}

int vst_cl_start(vst_cl *cl)
{
	int err = 0;

	pthread_mutex_lock(&cl->mu);
	if (cl->state != ENGINE_NEW) {
		pthread_mutex_unlock(&cl->mu);
		return -EALREADY;
	}
	cl->state = ENGINE_RUNNING;
	err = pthread_create(&cl->thread, NULL, engine_main, cl);
	if (err)
		cl->state = ENGINE_NEW;
	pthread_mutex_unlock(&cl->mu);
	return -err;
}

/* End of everything in flight, with the thread gone: nothing runs beside this. */
static void fail_everything(struct vst_cl *cl)
{
	fuse_stop(cl);
	list_each(l, &cl->files)
	{
		struct vst_file *f = cl_container(l, struct vst_file, link);
		struct link reqs;
		behind_close(f);
		list_move_all(&f->lease_reqs, &reqs);
		while (!list_empty(&reqs)) {
			struct req *r = list_first(&reqs, struct req, link);
			list_del(&r->link);
			req_end_early(r, ESHUTDOWN);
		}
		while (!list_empty(&f->commits))
			req_committed(list_first(&f->commits, struct req, link), ESHUTDOWN);
		while (!list_empty(&f->lease_parts)) {
			struct part *p = list_first(&f->lease_parts, struct part, link);
			list_del(&p->link);
			part_queue(p);
		}
		for (uint32_t i = 0; i < f->table_size; i++)
			for (struct chunk *c = f->table[i]; c; c = c->hash_next)
				part_wake_chunk(c);
	}
	for (uint32_t i = 0; i < CS_HASH; i++)
		for (struct cs *cs = cl->cs[i]; cs; cs = cs->hash_next) {
			cs_fail(cs, VST_ERR_SHUTTING_DOWN);
			cs_fail_waiting(cs, VST_ERR_SHUTTING_DOWN);
		}
	cl_run(cl); /* parts see cl->stopping and end with ESHUTDOWN */
}

void vst_cl_stop(vst_cl *cl)
{
	bool running;

	pthread_mutex_lock(&cl->mu);
	running = cl->state == ENGINE_RUNNING && !atomic_exchange(&cl->stopping, true);
	pthread_mutex_unlock(&cl->mu);
	if (running) {
		wake_engine(cl);
		pthread_join(cl->thread, NULL);
	}
	pthread_mutex_lock(&cl->mu);
	atomic_store(&cl->stopping, true);
	if (cl->state != ENGINE_STOPPED) {
		cl->state = ENGINE_STOPPED;
		struct cmd *c = cl->cmd_head;
		cl->cmd_head = cl->cmd_tail = NULL;
		while (c) {
			struct cmd *next = c->next;
			c->run(cl, c);
			c = next;
		}
		fail_everything(cl);
		event_signal(cl);
	}
	pthread_mutex_unlock(&cl->mu);
}

static void free_list(struct link *head, size_t offset)
{
	while (!list_empty(head)) {
		struct link *l = head->next;
		list_del(l);
		free((char *)l - offset);
	}
}

void vst_cl_free(vst_cl *cl)
{
	if (!cl)
		return;
	if (cl->wake_fd >= 0 && cl->epfd >= 0)
		vst_cl_stop(cl);
	fuse_free(cl);
	while (!list_empty(&cl->files))
		file_free_now(list_first(&cl->files, struct vst_file, link));
	for (uint32_t i = 0; i < CS_HASH; i++)
		while (cl->cs[i]) {
			struct cs *cs = cl->cs[i];
			cl->cs[i] = cs->hash_next;
			cs_free(cs);
		}
	free_list(&cl->free_parts, offsetof(struct part, link));
	free_list(&cl->free_reqs, offsetof(struct req, link));
	free_list(&cl->events, offsetof(struct event_node, link));
	free_list(&cl->free_events, offsetof(struct event_node, link));
	for (uint32_t i = 0; i < cl->nxfers; i++)
		free(cl->xfers[i]);
	free(cl->xfers);
	free(cl->xfers_free);
	free(cl->heap);
	if (cl->epfd >= 0)
		close(cl->epfd);
	if (cl->wake_fd >= 0)
		close(cl->wake_fd);
	if (cl->event_fd >= 0)
		close(cl->event_fd);
	pthread_mutex_destroy(&cl->mu);
	pthread_mutex_destroy(&cl->event_mu);
	free(cl);
}

static void run_until(struct vst_cl *cl, struct cmd *c)
{
	lease_wake_all(cl);
	cl_cmd_done(c, 0);
}

void vst_cl_set_lease_until(vst_cl *cl, uint64_t until_boottime_ms)
{
	struct cmd *c = calloc(1, sizeof *c);

	atomic_store(&cl->lease_until, until_boottime_ms);
	if (!c)
		return; /* parked requests then wait for the next renewal */
	c->run = run_until;
	cl_post(cl, c);
}

void vst_cl_get_counters(vst_cl *cl, struct vst_cl_counters *out)
{
	const uint64_t *from = (const uint64_t *)&cl->n;
	uint64_t *to = (uint64_t *)out;

	for (size_t i = 0; i < sizeof(*out) / sizeof(uint64_t); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
	out->read_ns_max = __atomic_exchange_n(&cl->n.read_ns_max, 0, __ATOMIC_RELAXED);
	out->write_ns_max = __atomic_exchange_n(&cl->n.write_ns_max, 0, __ATOMIC_RELAXED);
	out->sync_ns_max = __atomic_exchange_n(&cl->n.sync_ns_max, 0, __ATOMIC_RELAXED);
}
