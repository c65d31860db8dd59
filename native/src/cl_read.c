/* Reading a part: replicas in order of nearness until one gives it with the right checksums. */
#include "cl_internal.h"

enum { NEAR = 0, FAR = 1, SLOW = 2, SOON = 3, KEYLESS = 4, USELESS = 5 };

#define SLOW_MS 50u /* reads that take less are never called slow */
#define SLOW_TIMES 4u /* slower than the fastest replica of the chunk */
#define SLOW_TRY_MS 10000u /* a slow one gets one read so often, to see whether it still is */
#define LAT_UNIT 16u

/* Has a disk gone slow? Measured here, so that it needs nobody's word. */
static bool is_slow(const struct cs *cs, uint32_t best)
{
	return cs->read_lat > SLOW_MS * LAT_UNIT && cs->read_lat / SLOW_TIMES > best &&
	       cs->cl->now_ms - cs->read_lat_ms < SLOW_TRY_MS;
}

static void measured(struct cs *cs, uint64_t ms)
{
	uint32_t now = (uint32_t)(ms < 60000 ? ms : 60000) * LAT_UNIT;

	cs->read_lat = cs->read_lat_ms ? cs->read_lat - cs->read_lat / 8 + now / 8 : now;
	cs->read_lat_ms = cs->cl->now_ms;
}

/* The fastest of the map. */
static uint32_t best_lat(const struct cmap *m)
{
	uint32_t best = UINT32_MAX;

	for (uint32_t k = 0; k < m->n; k++)
		if (m->rep[k].cs->read_lat_ms && m->rep[k].cs->read_lat < best)
			best = m->rep[k].cs->read_lat;
	return best;
}

static int rank(const struct cs *cs)
{
	switch (cs->state) {
	case CS_READY:
	case CS_IDLE:
		return cs->local ? NEAR : FAR;
	case CS_CONNECTING:
	case CS_HELLO:
	case CS_PROVE:
		return SOON;
	case CS_NOKEY:
		return cs->have_key ? USELESS : KEYLESS; /* a key but no address: not reachable */
	case CS_BACKOFF:
		break;
	}
	return USELESS;
}

/* The best replica not tried in this pass, or -1. Equal ones take turns. */
static int choose(struct part *p)
{
	struct cmap *m = p->map;
	int best = -1, best_rank = USELESS;
	bool useless = false;
	uint32_t fastest = best_lat(m);

	for (uint32_t k = 0; k < m->n; k++) {
		uint32_t i = (m->rotor + k) % m->n;
		int r = rank(m->rep[i].cs);
		if (r <= FAR && is_slow(m->rep[i].cs, fastest))
			r = SLOW;
		if (p->tried & (1u << i))
			continue;
		if (r == USELESS) {
			cs_want(m->rep[i].cs);
			useless = true;
		} else if (r < best_rank) {
			best = (int)i;
			best_rank = r;
		}
	}
	m->rotor++;
	/* A key may take long to come; a server in back-off is soon tried again. */
	return best_rank == KEYLESS && useless ? -1 : best;
}

/* No replica gave it. */
static void pass_failed(struct part *p)
{
	struct chunk *c = p->chunk;
	uint32_t all = (1u << p->map->n) - 1;
	bool badmap = p->badmap != 0;

	if (p->corrupt == all || p->fatal) {
		part_done(p, p->fatal ? p->fatal : EIO); /* it is really gone */
		return;
	}
	if (p->absent == all && p->map->flags & CMAP_VOID && c->first_chunk_id != p->map->chunk_id) {
		memset(p->buf, 0, p->len); /* given to us for writing, but nobody ever wrote it */
		part_done(p, 0);
		return;
	}
	p->tried = p->corrupt = p->badmap = p->absent = 0;
	chunk_need_map(c, 0, badmap ? VST_ERR_STALE : VST_ERR_DISCONNECTED);
	if (badmap) {
		chunk_drop_map(c, p->map);
		part_backoff(p);
	} else {
		part_retry(p); /* a short outage is not an error */
	}
}

void read_start(struct part *p)
{
	struct chunk *c = p->chunk;
	struct vst_cl *cl = c->f->cl;
	struct xfer *x;
	int i;

	if (c->hole) {
		memset(p->buf, 0, p->len);
		part_done(p, 0);
		return;
	}
	if (!c->map) {
		chunk_need_map(c, 0, 0);
		part_park_for_map(p);
		return;
	}
	if (p->map != c->map) {
		part_take_map(p);
		p->tried = p->corrupt = p->badmap = p->absent = 0;
	}
	i = choose(p);
	if (i < 0) {
		pass_failed(p);
		return;
	}
	x = xfer_new(cl, p->map->rep[i].cs, X_PART, VST_FRAME_TYPE_READ);
	if (!x) {
		part_retry(p);
		return;
	}
	x->part = p;
	x->replica = (uint32_t)i;
	x->hdr.offset = p->off;
	x->hdr.length = p->len;
	x->dest = p->buf;
	p->outstanding = 1;
	p->asked_ms = cl->now_ms;
	if (x->cs->read_lat_ms && x->cs->read_lat > SLOW_MS * LAT_UNIT)
		x->cs->read_lat_ms = cl->now_ms; /* this read is the try: the next ones wait for what it shows */
	cs_submit(x->cs, x);
}

static void bad_block(struct part *p, uint32_t replica, int piece, int status)
{
	struct vst_cl *cl = p->chunk->f->cl;
	uint64_t block = p->off / VST_BLOCK_BYTES + (uint64_t)(piece > 0 ? piece : 0);
	struct vst_cl_event ev = {.kind = VST_EV_BAD_BLOCK,
				  .index = p->chunk->index,
				  .chunk_id = p->map->chunk_id,
				  .version = p->map->version,
				  .cs_id = p->map->rep[replica].cs->id,
				  .offset = block * VST_BLOCK_BYTES,
				  .error = status};

	COUNT(cl, bad_blocks, 1);
	event_push(cl, p->chunk->f, &ev);
}

/* bad_piece >= 0: the data came, but this piece of it does not match its checksum. */
void read_done(struct part *p, uint32_t replica, int status, const struct vst_frame *hdr, int bad_piece)
{
	uint32_t bit = 1u << replica;

	(void)hdr;
	p->outstanding = 0;
	if (status == 0 && bad_piece < 0) {
		measured(p->map->rep[replica].cs, p->chunk->f->cl->now_ms - p->asked_ms);
		if (lease_valid(p->chunk->f->cl))
			part_done(p, 0);
		else
			part_queue(p); /* it may have been read after the lease had ended: not to be shown */
		return;
	}
	COUNT(p->chunk->f->cl, retries, 1);
	p->tried |= bit;
	if (status == 0 || status == VST_ERR_CORRUPT) {
		p->corrupt |= status ? bit : 0;
		bad_block(p, replica, bad_piece, status ? status : VST_ERR_CRC_MISMATCH);
	} else if (status == VST_ERR_STALE || status == VST_ERR_NO_CHUNK || status == VST_ERR_EXPIRED ||
		   status == VST_ERR_DENIED) {
		p->badmap |= bit;
		p->absent |= status == VST_ERR_NO_CHUNK ? bit : 0;
		if (status == VST_ERR_EXPIRED)
			cs_suspect_key(p->map->rep[replica].cs);
	} else if (status == VST_ERR_BAD_REQUEST || status == VST_ERR_UNSUPPORTED) {
		p->fatal = EIO;
	}
	part_queue(p);
}
