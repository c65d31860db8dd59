/* /dev/fuse: reading requests, buffers, answers.  The engine thread reads; answers are written by whoever has them. */
#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "fuse_internal.h"

/* --- buffers ----------------------------------------------------------------------------------------------- */

static void *pop(void **head, uint32_t *n)
{
	void *buf = *head;
	if (buf) {
		memcpy(head, buf, sizeof(*head));
		(*n)--;
	}
	return buf;
}

static void push(void **head, uint32_t *n, void *buf)
{
	memcpy(buf, head, sizeof(*head));
	*head = buf;
	(*n)++;
}

void *fuse_buf_get(struct fuse *fu, enum buf_class class)
{
	void *buf;

	if (class == BUF_SMALL) {
		buf = pop(&fu->free_small, &fu->nfree_small);
		return buf ? buf : malloc(FUSE_SMALL_BYTES);
	}
	buf = pop(&fu->free_big, &fu->nfree_big);
	if (!buf)
		buf = aligned_alloc(4096, fu->big_bytes);
	if (buf)
		fu->nbig_used++;
	return buf;
}

static void poll_device(struct fuse *fu, bool on)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &fu->poll};

	if (fu->polling == on || fu->closed)
		return;
	if (epoll_ctl(fu->cl->epfd, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, fu->fd, &ev) == 0)
		fu->polling = on;
}

void fuse_buf_put(struct fuse *fu, void *buf, enum buf_class class)
{
	if (!buf)
		return;
	if (class == BUF_SMALL) {
		if (fu->nfree_small < FUSE_SMALL_FREE_MAX)
			push(&fu->free_small, &fu->nfree_small, buf);
		else
			free(buf);
		return;
	}
	fu->nbig_used--;
	if (fu->nfree_big < FUSE_BIG_FREE_MAX)
		push(&fu->free_big, &fu->nfree_big, buf);
	else
		free(buf);
	poll_device(fu, true); /* in case reading waited for a buffer */
}

/* --- answers ----------------------------------------------------------------------------------------------- */

/* 0 or -errno. -ENOENT: the request was interrupted and nobody waits any more, which is no error. Any thread. */
int fuse_answer(struct fuse *fu, uint64_t unique, int error, struct iovec *body, int n)
{
	struct fuse_out_header out = {.error = -error, .unique = unique};
	struct iovec iov[2] = {{&out, sizeof out}, {NULL, 0}};
	size_t len = sizeof out;

	if (n && !error) {
		iov[1] = *body;
		len += body->iov_len;
	}
	out.len = (uint32_t)len;
	for (;;) {
		if (writev(fu->fd, iov, iov[1].iov_len ? 2 : 1) >= 0)
			return 0;
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	}
}

int vst_fuse_reply(vst_cl *cl, uint64_t unique, int error, const void *data, size_t len)
{
	struct iovec body = {(void *)(uintptr_t)data, len};

	if (!cl->fuse || error < 0)
		return -EINVAL;
	return fuse_answer(cl->fuse, unique, error, &body, len ? 1 : 0);
}

int vst_fuse_notify(vst_cl *cl, int code, const void *data, size_t len)
{
	struct fuse_out_header out = {.len = (uint32_t)(sizeof out + len), .error = code, .unique = 0};
	struct iovec iov[2] = {{&out, sizeof out}, {(void *)(uintptr_t)data, len}};

	if (!cl->fuse)
		return -EINVAL;
	while (writev(cl->fuse->fd, iov, 2) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* --- requests ---------------------------------------------------------------------------------------------- */

static void closed(struct fuse *fu)
{
	struct vst_cl_event ev = {.kind = VST_EV_FUSE_CLOSED};

	poll_device(fu, false);
	fu->closed = true;
	event_push(fu->cl, NULL, &ev);
}

static void dispatch(struct fuse *fu, const struct fuse_in_header *in)
{
	COUNT(fu->cl, fuse_requests, 1);
	switch (in->opcode) {
	case FUSE_INIT:
		fuse_init(fu, in);
		return;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		fuse_forget(fu, in);
		return;
	case FUSE_DESTROY:
		fuse_answer(fu, in->unique, 0, NULL, 0);
		return;
	default:
		break;
	}
	if (!fuse_names(fu, in) && !fuse_data(fu, in))
		fuse_slow(fu, in);
}

void fuse_readable(struct vst_cl *cl)
{
	struct fuse *fu = cl->fuse;

	/* A lone requester sends its next message after our answer: to read again at once finds nothing. That is looked
	 * at now and then. */
	uint32_t most = fu->lone ? 1 : FUSE_MESSAGES_PER_TURN, got = 0;

	fu->lone -= fu->lone > 0;
	for (; got < most && !fu->closed; got++) {
		if (!fu->reading) {
			if (fu->nbig_used < FUSE_BIG_MAX)
				fu->reading = fuse_buf_get(fu, BUF_BIG);
			if (!fu->reading) { /* fuse_buf_put goes on */
				poll_device(fu, false);
				return;
			}
		}
		ssize_t n = read(fu->fd, fu->reading, fu->big_bytes);
		if (n < 0 && (errno == EINTR || errno == ENOENT))
			continue;
		if (n < 0 && errno == EAGAIN) {
			fu->lone = got == 1 ? FUSE_LONE_TURNS : 0;
			return;
		}
		const struct fuse_in_header *in = (const struct fuse_in_header *)(void *)fu->reading;
		if (n < (ssize_t)sizeof *in ||
		    in->len != (uint32_t)n) { /* ENODEV: unmounted; anything else would be no FUSE */
			closed(fu);
			return;
		}
		/* What Python did before it let the kernel send this (bind, set_size, set_lease) counts already. */
		cl_run_cmds(cl);
		dispatch(fu, in);
	}
}

/* --- start and end ----------------------------------------------------------------------------------------- */

static void run_start(struct vst_cl *cl, struct cmd *c)
{
	if (cl->fuse) {
		cl_cmd_done(c, -EALREADY);
		return;
	}
	cl->fuse = c->q;
	poll_device(cl->fuse, true);
	cl_cmd_done(c, cl->fuse->polling ? 0 : -EBADF);
}

int vst_fuse_start(vst_cl *cl, int fd, const struct vst_fuse_config *cfg)
{
	struct fuse *fu = calloc(1, sizeof *fu);
	int flags = fcntl(fd, F_GETFL);

	if (!fu || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		free(fu);
		return fu ? -errno : -ENOMEM;
	}
	fu->poll.kind = POLL_FUSE;
	fu->cl = cl;
	fu->fd = fd;
	fu->cfg = *cfg;
	if (!fu->cfg.max_write || fu->cfg.max_write > FUSE_WRITE_MAX)
		fu->cfg.max_write = FUSE_WRITE_MAX;
	if (fu->cfg.max_write < 4096)
		fu->cfg.max_write = 4096;
	if (!fu->cfg.max_background)
		fu->cfg.max_background = FUSE_BACKGROUND_DEFAULT;
	if (fu->cfg.max_background > UINT16_MAX)
		fu->cfg.max_background = UINT16_MAX;
	/* READs of a kernel that ignores max_write may be as large as io_bytes_max; whole pages for aligned_alloc */
	fu->big_bytes = FUSE_WRITE_MAX + FUSE_HEAD_BYTES;
	int err = fuse_names_init(fu);
	if (err) {
		free(fu);
		return err;
	}
	pthread_mutex_init(&fu->mu, NULL);
	list_init(&fu->slow);
	struct cmd c = {.run = run_start, .q = fu};
	err = (int)cl_call(cl, &c);
	if (err && cl->fuse != fu) {
		fuse_names_free(fu);
		pthread_mutex_destroy(&fu->mu);
		free(fu);
	}
	return err;
}

void fuse_stop(struct vst_cl *cl)
{
	if (cl->fuse)
		poll_device(cl->fuse, false);
}

static void free_chain(void **head)
{
	uint32_t n = 0;
	void *buf;
	while ((buf = pop(head, &n)) != NULL)
		free(buf);
}

void fuse_free(struct vst_cl *cl)
{
	struct fuse *fu = cl->fuse;

	if (!fu)
		return;
	cl->fuse = NULL;
	fuse_binds_free(fu);
	fuse_queue_free(fu);
	fuse_names_free(fu);
	free(fu->reading);
	free_chain(&fu->free_small);
	free_chain(&fu->free_big);
	pthread_mutex_destroy(&fu->mu);
	free(fu);
}
