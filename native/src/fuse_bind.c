/* Which file an open handle of the kernel means. */
#include "fuse_internal.h"

struct bind *fuse_bind_find(struct fuse *fu, uint64_t fh)
{
	if (!fu->binds_size)
		return NULL;
	for (struct bind *b = fu->binds[fh & (fu->binds_size - 1)]; b; b = b->next)
		if (b->fh == fh)
			return b;
	return NULL;
}

static int grow(struct fuse *fu)
{
	uint32_t size = fu->binds_size ? fu->binds_size * 2 : FUSE_BINDS_MIN;
	struct bind **table = calloc(size, sizeof(*table));

	if (!table)
		return -ENOMEM;
	for (uint32_t i = 0; i < fu->binds_size; i++)
		while (fu->binds[i]) {
			struct bind *b = fu->binds[i];
			fu->binds[i] = b->next;
			b->next = table[b->fh & (size - 1)];
			table[b->fh & (size - 1)] = b;
		}
	free(fu->binds);
	fu->binds = table;
	fu->binds_size = size;
	return 0;
}

static void run_bind(struct vst_cl *cl, struct cmd *c)
{
	struct fuse *fu = cl->fuse;
	struct bind *b = fuse_bind_find(fu, c->a);

	if (!b) {
		if (fu->nbinds >= fu->binds_size && grow(fu) < 0 && !fu->binds_size) {
			cl_cmd_done(c, -ENOMEM);
			return;
		}
		b = calloc(1, sizeof *b);
		if (!b) {
			cl_cmd_done(c, -ENOMEM);
			return;
		}
		b->fh = c->a;
		b->next = fu->binds[b->fh & (fu->binds_size - 1)];
		fu->binds[b->fh & (fu->binds_size - 1)] = b;
		fu->nbinds++;
	}
	if (b->f)
		b->f->nbinds--;
	b->f = c->f;
	b->f->nbinds++;
	b->flags = c->n;
	if (b->flags & BIND_LOCKS)
		b->f->flush_slow = true;
	cl_cmd_done(c, 0);
}

int vst_fuse_bind(vst_cl *cl, uint64_t fh, vst_file *f, uint32_t flags)
{
	struct cmd c = {.run = run_bind, .f = f, .a = fh, .n = flags};

	if (!cl->fuse || !f)
		return -EINVAL;
	return (int)cl_call(cl, &c);
}

static void run_unbind(struct vst_cl *cl, struct cmd *c)
{
	struct fuse *fu = cl->fuse;

	if (fu->binds_size)
		for (struct bind **at = &fu->binds[c->a & (fu->binds_size - 1)]; *at; at = &(*at)->next)
			if ((*at)->fh == c->a) {
				struct bind *b = *at;
				*at = b->next;
				b->f->nbinds--;
				free(b);
				fu->nbinds--;
				break;
			}
	cl_cmd_done(c, 0);
}

int vst_fuse_unbind(vst_cl *cl, uint64_t fh)
{
	struct cmd *c;

	if (!cl->fuse)
		return -EINVAL;
	c = calloc(1, sizeof *c);
	if (!c)
		return -ENOMEM;
	c->run = run_unbind;
	c->a = fh;
	return cl_post(cl, c);
}

/* The file ends: its handles, if Python forgot any, are unknown from now on. */
void fuse_unbind_file(struct vst_file *f)
{
	struct fuse *fu = f->cl->fuse;

	for (uint32_t i = 0; i < fu->binds_size; i++)
		for (struct bind **at = &fu->binds[i]; *at;) {
			struct bind *b = *at;
			if (b->f != f) {
				at = &b->next;
				continue;
			}
			*at = b->next;
			free(b);
			fu->nbinds--;
		}
	f->nbinds = 0;
}

void fuse_binds_free(struct fuse *fu)
{
	for (uint32_t i = 0; i < fu->binds_size; i++)
		while (fu->binds[i]) {
			struct bind *b = fu->binds[i];
			fu->binds[i] = b->next;
			b->f->nbinds--;
			free(b);
		}
	free(fu->binds);
}
