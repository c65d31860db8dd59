/* See cs_ring.h.
 * io_uring: DEFER_TASKRUN keeps completions on this thread's own terms; older kernels get a plain ring.  Multishot poll
 * is edge triggered, as is the epoll variant, so callers are the same for both. */
#include "cs_ring.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>
#include "vstor/dio.h"

#define RING_ENTRIES 256u
#define CQ_ENTRIES 8192u
#define POOL_THREADS 8
#define BATCH 64u
/* Tags in the low bits of user_data. */
#define TAG_IO 0u
#define TAG_IN 1u
#define TAG_OUT 2u
#define TAG_NONE 3u

struct queue {
	struct cs_io *head, *tail;
};

struct cs_ring {
	enum cs_ring_mode mode;
	unsigned inflight;
	struct queue done; /* SYNC: executed; POOL: under mu */
	struct queue backlog; /* URING: no entry was free */
	struct cs_watch *gone;
	struct io_uring uring;
	pthread_mutex_t mu;
	pthread_cond_t cv;
	pthread_t threads[POOL_THREADS];
	int nthreads, stop, epfd, evfd;
	struct queue work;
};

static void push(struct queue *q, struct cs_io *io)
{
	io->next = NULL;
	if (q->tail)
		q->tail->next = io;
	else
		q->head = io;
	q->tail = io;
}

static struct cs_io *pop(struct queue *q)
{
	struct cs_io *io = q->head;
	if (io) {
		q->head = io->next;
		if (!q->head)
			q->tail = NULL;
	}
	return io;
}

/* A transfer ended with n >= 0 bytes. 1: finished, io->res says how; 0: go on with the rest. */
static int moved(struct cs_io *io, uint64_t n)
{
	io->moved += n;
	io->res = 0;
	if (io->moved >= io->len)
		return 1;
	if (io->op == CS_IO_WRITE) {
		if (n == 0)
			io->res = -EIO;
		return n == 0;
	}
	/* Transfers begin at whole blocks, whatever the sectors of the device are.  One that ends inside a block is
	 * taken up from that block's begin; when not even a block came, the file ends here: what follows is zeros. */
	if (n < VST_ALIGN) {
		memset(io->buf + io->moved, 0, io->len - io->moved);
		return 1;
	}
	io->moved -= io->moved % VST_ALIGN;
	return 0;
}

static void execute(struct cs_io *io)
{
	int rc = 0;
	switch ((enum cs_io_op)io->op) {
	case CS_IO_READ:
	case CS_IO_WRITE:
		for (;;) {
			struct iovec v = {io->buf + io->moved, io->len - io->moved};
			off_t at = (off_t)(io->off + io->moved);
			ssize_t n = io->op == CS_IO_READ ? preadv2(io->fd, &v, 1, at, 0)
							 : pwritev2(io->fd, &v, 1, at, io->dsync ? RWF_DSYNC : 0);
			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0) {
				io->res = -errno;
				return;
			}
			if (moved(io, (uint64_t)n))
				return;
		}
	case CS_IO_FDATASYNC:
		rc = fdatasync(io->fd);
		break;
	case CS_IO_FSYNC:
		rc = fsync(io->fd);
		break;
	case CS_IO_PUNCH:
		rc = fallocate(io->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->off, (off_t)io->len);
		break;
	case CS_IO_UNLINK:
		rc = unlinkat(io->fd, io->path, 0);
		break;
	}
	io->res = rc < 0 ? -errno : 0;
}

static void *pool_thread(void *arg)
{
	struct cs_ring *r = arg;

	pthread_mutex_lock(&r->mu);
	for (;;) {
		struct cs_io *io = pop(&r->work);
		if (!io) {
			if (r->stop)
				break;
			pthread_cond_wait(&r->cv, &r->mu);
			continue;
		}
		pthread_mutex_unlock(&r->mu);
		execute(io);
		pthread_mutex_lock(&r->mu);
		int first = r->done.head == NULL;
		push(&r->done, io);
		if (first) {
			uint64_t one = 1;
			/* An eventfd write of 1 fails only when the counter is full, and then it is readable anyway. */
			ssize_t n = write(r->evfd, &one, sizeof one);
			(void)n;
		}
	}
	pthread_mutex_unlock(&r->mu);
	return NULL;
}

static int uring_init(struct cs_ring *r)
{
	static const unsigned tries[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0};
	int rc = -EINVAL;
	for (size_t i = 0; i < sizeof tries / sizeof *tries && rc < 0; i++) {
		struct io_uring_params p;
		memset(&p, 0, sizeof p);
		p.flags = tries[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
		p.cq_entries = CQ_ENTRIES;
		rc = io_uring_queue_init_params(RING_ENTRIES, &r->uring, &p);
	}
	return rc;
}

static int pool_init(struct cs_ring *r)
{
	r->epfd = epoll_create1(EPOLL_CLOEXEC);
	r->evfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->epfd < 0 || r->evfd < 0)
		return -errno;
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
	if (epoll_ctl(r->epfd, EPOLL_CTL_ADD, r->evfd, &ev) < 0)
		return -errno;
	while (r->nthreads < POOL_THREADS) {
		int rc = pthread_create(&r->threads[r->nthreads], NULL, pool_thread, r);
		if (rc)
			return -rc;
		r->nthreads++;
	}
	return 0;
}

struct cs_ring *cs_ring_new(enum cs_ring_mode mode, int *err)
{
	struct cs_ring *r = calloc(1, sizeof *r);
	int rc = 0;

	if (!r) {
		*err = -ENOMEM;
		return NULL;
	}
	r->mode = mode;
	r->epfd = r->evfd = -1;
	pthread_mutex_init(&r->mu, NULL);
	pthread_cond_init(&r->cv, NULL);
	if (mode == CS_RING_URING) {
		rc = uring_init(r);
		if (rc < 0)
			r->mode = CS_RING_SYNC; /* nothing to tear down */
	} else if (mode == CS_RING_POOL) {
		rc = pool_init(r);
	}
	if (rc < 0) {
		cs_ring_free(r);
		*err = rc;
		return NULL;
	}
	return r;
}

void cs_ring_free(struct cs_ring *r)
{
	if (!r)
		return;
	if (r->mode == CS_RING_URING)
		io_uring_queue_exit(&r->uring);
	pthread_mutex_lock(&r->mu);
	r->stop = 1;
	pthread_cond_broadcast(&r->cv);
	pthread_mutex_unlock(&r->mu);
	for (int i = 0; i < r->nthreads; i++)
		pthread_join(r->threads[i], NULL);
	if (r->epfd >= 0)
		close(r->epfd);
	if (r->evfd >= 0)
		close(r->evfd);
	pthread_cond_destroy(&r->cv);
	pthread_mutex_destroy(&r->mu);
	free(r);
}

enum cs_ring_mode cs_ring_mode_of(const struct cs_ring *r)
{
	return r->mode;
}

unsigned cs_ring_inflight(const struct cs_ring *r)
{
	return r->inflight;
}

static struct io_uring_sqe *get_sqe(struct cs_ring *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);
	if (!sqe) {
		io_uring_submit(&r->uring);
		sqe = io_uring_get_sqe(&r->uring);
	}
	return sqe;
}

static void set_data(struct io_uring_sqe *sqe, const void *p, unsigned tag)
{
	sqe->user_data = (uint64_t)(uintptr_t)p | tag;
}

static int uring_prep(struct cs_ring *r, struct cs_io *io)
{
	struct io_uring_sqe *sqe = get_sqe(r);
	if (!sqe)
		return 0;
	uint8_t *at = io->buf ? io->buf + io->moved : NULL; /* a sync has none */
	unsigned n = (unsigned)(io->len - io->moved);
	switch ((enum cs_io_op)io->op) {
	case CS_IO_READ:
		io_uring_prep_read(sqe, io->fd, at, n, io->off + io->moved);
		break;
	case CS_IO_WRITE:
		io_uring_prep_write(sqe, io->fd, at, n, io->off + io->moved);
		sqe->rw_flags = io->dsync ? RWF_DSYNC : 0;
		break;
	case CS_IO_FDATASYNC:
		io_uring_prep_fsync(sqe, io->fd, IORING_FSYNC_DATASYNC);
		break;
	case CS_IO_FSYNC:
		io_uring_prep_fsync(sqe, io->fd, 0);
		break;
	case CS_IO_PUNCH:
		io_uring_prep_fallocate(sqe, io->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->off,
					(off_t)io->len);
		break;
	case CS_IO_UNLINK:
		io_uring_prep_unlinkat(sqe, io->fd, io->path, 0);
		break;
	}
	set_data(sqe, io, TAG_IO);
	return 1;
}

void cs_ring_submit(struct cs_ring *r, struct cs_io *io)
{
	io->moved = 0;
	io->res = 0;
	r->inflight++;
	if (r->mode == CS_RING_SYNC) {
		execute(io);
		push(&r->done, io);
	} else if (r->mode == CS_RING_URING) {
		if (r->backlog.head || !uring_prep(r, io))
			push(&r->backlog, io);
	} else {
		pthread_mutex_lock(&r->mu);
		push(&r->work, io);
		pthread_cond_signal(&r->cv);
		pthread_mutex_unlock(&r->mu);
	}
}

static int arm(struct cs_ring *r, struct cs_watch *w, unsigned tag)
{
	struct io_uring_sqe *sqe = get_sqe(r);
	if (!sqe)
		return -EAGAIN;
	if (tag == TAG_IN)
		io_uring_prep_poll_multishot(sqe, w->fd, POLLIN | POLLRDHUP);
	else
		io_uring_prep_poll_add(sqe, w->fd, POLLOUT);
	set_data(sqe, w, tag);
	w->pending++;
	w->in_armed |= tag == TAG_IN;
	return 0;
}

int cs_watch_add(struct cs_ring *r, struct cs_watch *w)
{
	w->pending = w->closing = w->in_armed = w->out_armed = 0;
	if (r->mode == CS_RING_URING)
		return arm(r, w, TAG_IN);
	if (r->mode != CS_RING_POOL)
		return -ENOTSUP;
	struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = w};
	return epoll_ctl(r->epfd, EPOLL_CTL_ADD, w->fd, &ev) < 0 ? -errno : 0;
}

void cs_watch_want_out(struct cs_ring *r, struct cs_watch *w)
{
	/* epoll reports output edges by itself. */
	if (r->mode == CS_RING_URING && !w->out_armed && !w->closing && arm(r, w, TAG_OUT) == 0)
		w->out_armed = 1;
}

/* The removal is answered too (TAG_NONE) and counts as pending: it can fail with EALREADY while the poll is just
 * firing. */
static void cancel(struct cs_ring *r, struct cs_watch *w, unsigned tag)
{
	struct io_uring_sqe *sqe = get_sqe(r);
	if (!sqe)
		return; /* cannot be: getting one submits those that wait */
	io_uring_prep_poll_remove(sqe, (uint64_t)(uintptr_t)w | tag);
	set_data(sqe, w, TAG_NONE);
	w->pending++;
}

static void cancel_armed(struct cs_ring *r, struct cs_watch *w)
{
	if (w->in_armed)
		cancel(r, w, TAG_IN);
	if (w->out_armed)
		cancel(r, w, TAG_OUT);
}

void cs_watch_del(struct cs_ring *r, struct cs_watch *w)
{
	if (w->closing)
		return;
	w->closing = 1;
	if (r->mode == CS_RING_URING && w->pending) {
		cancel_armed(r, w);
		return;
	}
	if (r->mode == CS_RING_POOL)
		epoll_ctl(r->epfd, EPOLL_CTL_DEL, w->fd, NULL);
	w->next = r->gone;
	r->gone = w;
}

/* Watches that ended: told at the end of a turn, since events of this turn may still name them. */
static void tell_gone(struct cs_ring *r)
{
	struct cs_watch *w;
	while ((w = r->gone)) {
		r->gone = w->next;
		w->gone(w);
	}
}

static void finish(struct cs_ring *r, struct cs_io *io)
{
	r->inflight--;
	io->done(io, io->res);
}

static void uring_io(struct cs_ring *r, struct cs_io *io, int res)
{
	int transfer = io->op == CS_IO_READ || io->op == CS_IO_WRITE;
	int again = res == -EINTR || res == -EAGAIN;

	if (!again && res < 0)
		io->res = res;
	else if (!again && transfer)
		again = !moved(io, (uint64_t)res);
	else if (!again)
		io->res = 0;
	if (!again)
		finish(r, io);
	else if (r->backlog.head || !uring_prep(r, io))
		push(&r->backlog, io);
}

static void uring_watch(struct cs_ring *r, struct cs_watch *w, unsigned tag, int res, unsigned flags)
{
	int ended = !(flags & IORING_CQE_F_MORE);

	w->pending = (uint8_t)(w->pending - ended);
	if (tag == TAG_OUT)
		w->out_armed = 0;
	if (tag == TAG_IN && ended)
		w->in_armed = 0;
	if (w->closing) {
		if (tag == TAG_NONE && res == -EALREADY)
			cancel_armed(r, w);
		if (!w->pending) {
			w->next = r->gone;
			r->gone = w;
		}
		return;
	}
	if (tag == TAG_IN && ended)
		arm(r, w, TAG_IN);
	unsigned over = res < 0 || res & (POLLRDHUP | POLLHUP | POLLERR) ? CS_EV_END : 0;
	w->ready(w, tag == TAG_OUT ? CS_EV_OUT : CS_EV_IN | over);
}

static void uring_turn(struct cs_ring *r, int timeout_ms)
{
	struct io_uring_cqe *cqes[BATCH];
	unsigned n;

	while (r->backlog.head && uring_prep(r, r->backlog.head))
		pop(&r->backlog);
	if (timeout_ms > 0 && !r->backlog.head) {
		struct __kernel_timespec ts = {.tv_sec = timeout_ms / 1000, .tv_nsec = (timeout_ms % 1000) * 1000000L};
		struct io_uring_cqe *one;
		io_uring_submit_and_wait_timeout(&r->uring, &one, 1, &ts, NULL);
	} else {
		io_uring_submit_and_get_events(&r->uring);
	}
	while ((n = io_uring_peek_batch_cqe(&r->uring, cqes, BATCH))) {
		struct io_uring_cqe copy[BATCH];
		for (unsigned i = 0; i < n; i++)
			copy[i] = *cqes[i];
		io_uring_cq_advance(&r->uring, n);
		for (unsigned i = 0; i < n; i++) {
			unsigned tag = (unsigned)(copy[i].user_data & 3);
			void *p = (void *)(uintptr_t)(copy[i].user_data & ~(uint64_t)3);
			if (tag == TAG_IO && p)
				uring_io(r, p, copy[i].res);
			else if (p)
				uring_watch(r, p, tag, copy[i].res, copy[i].flags);
		}
		if (n < BATCH)
			break;
	}
}

static void pool_turn(struct cs_ring *r, int timeout_ms)
{
	struct epoll_event events[BATCH];
	int n = epoll_wait(r->epfd, events, BATCH, timeout_ms);

	for (int i = 0; i < n; i++) {
		struct cs_watch *w = events[i].data.ptr;
		if (!w) {
			uint64_t count;
			ssize_t got = read(r->evfd, &count, sizeof count);
			(void)got; /* empty when another turn has taken it */
			continue;
		}
		if (w->closing)
			continue;
		unsigned ev = events[i].events;
		unsigned out = ev & EPOLLOUT ? CS_EV_OUT : 0,
			 over = ev & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) ? CS_EV_END : 0;
		w->ready(w, out | over | (ev & ~(unsigned)EPOLLOUT ? CS_EV_IN : 0));
	}
	pthread_mutex_lock(&r->mu);
	struct queue done = r->done;
	r->done.head = r->done.tail = NULL;
	pthread_mutex_unlock(&r->mu);
	for (struct cs_io *io; (io = pop(&done));)
		finish(r, io);
}

void cs_ring_turn(struct cs_ring *r, int timeout_ms)
{
	if (r->mode == CS_RING_URING) {
		uring_turn(r, timeout_ms);
	} else if (r->mode == CS_RING_POOL) {
		pool_turn(r, timeout_ms);
	} else {
		struct queue done = r->done;
		r->done.head = r->done.tail = NULL;
		for (struct cs_io *io; (io = pop(&done));)
			finish(r, io);
	}
	tell_gone(r);
}
