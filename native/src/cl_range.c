/* Order among the requests of a file: overlapping ranges of which one writes run in order of arrival, the rest in
 * parallel. A SYNC or FLUSH waits for the writes before it and holds up nobody.  A list is enough: a file has tens of
 * requests at a time. */
#include "cl_internal.h"

static bool waits_for(const struct req *later, const struct req *earlier)
{
	if (!earlier->writes)
		return later->writes && later->lo < earlier->hi && earlier->lo < later->hi;
	if (later->op == VST_IO_SYNC || later->op == VST_IO_FLUSH)
		return true;
	return later->lo < earlier->hi && earlier->lo < later->hi;
}

/* Take its place; it is run at once when nothing is in its way. */
void range_add(struct req *r)
{
	struct vst_file *f = r->f;

	r->blockers = 0;
	list_each(l, &f->ranges) if (waits_for(r, cl_container(l, struct req, order))) r->blockers++;
	list_add(&f->ranges, &r->order);
	if (!r->blockers)
		req_queue(r);
}

void range_remove(struct req *r)
{
	struct link *l = r->order.next, *end = &r->f->ranges;

	if (list_empty(&r->order))
		return;
	for (; l != end; l = l->next) {
		struct req *later = cl_container(l, struct req, order);
		if (waits_for(later, r) && --later->blockers == 0)
			req_queue(later);
	}
	list_del(&r->order);
}
