/* Shared by the files of the network side. */
#ifndef VSTOR_CS_CONN_H
#define VSTOR_CS_CONN_H
#include "cs_internal.h"
#include "vstor/frame.h"
#include "vstor/session.h"

#define CS_TAG_MAX 16u
#define CS_SCRATCH_BYTES (128u << 10)
#define CS_READ_BUDGET (1u << 20) /* bytes of one connection in one turn, then the others have theirs */

struct cs_handle {
	struct cs_chunk *c; /* one reference; NULL: not open */
	uint32_t version, key_id; /* key_id: of its ticket */
	uint8_t mode;
	int status; /* why OPEN failed, for requests that were sent right behind it */
};

struct cs_out { /* a reply on its way: head (frame, table, tag), then data */
	struct cs_out *next;
	struct cs_buf *buf;
	const uint8_t *data;
	uint32_t data_len, head_len, sent;
	uint8_t head[];
};

enum cs_conn_state { CS_CONN_NEW, CS_CONN_HELLO, CS_CONN_OPEN };
enum cs_stage { CS_STAGE_HEADER, CS_STAGE_GATE, CS_STAGE_HEAD, CS_STAGE_DATA };

struct cs_conn {
	struct cs_watch watch; /* first: a watch is cast to it */
	struct cs *cs;
	struct cs_conn *next, *prev, *ready_next, *flush_next, *starved_next;
	uint8_t in_ready, in_flush, in_starved, dead, gone, blocked, over; /* over: the peer sends nothing more */
	uint8_t state, stage;
	uint32_t inflight;
	uint64_t began_ms, frame_ms; /* frame_ms: when the frame at hand began, 0 none */
	/* frame being received */
	struct vst_frame hdr;
	uint8_t head[VST_TABLE_BYTES_MAX + CS_TAG_MAX]; /* table, tag */
	uint32_t hdr_got, head_got, head_need, data_got;
	struct cs_buf *rbuf;
	uint8_t *rdata;
	uint8_t *stash; /* received, not yet looked at */
	uint32_t stash_len, stash_at;
	/* replies */
	struct cs_out *out, *out_tail;
	uint64_t out_bytes;
	/* session */
	struct vst_hello hello;
	struct vst_hello_ack ack;
	uint8_t key[32];
	vst_seal *seal_in, *seal_out;
	struct cs_handle *handles[256]; /* of 256 each */
};

void cs_conn_new(struct cs *cs, int fd);
void cs_conn_close(struct cs_conn *conn);
void cs_conn_try_free(struct cs_conn *conn);
void cs_conn_want_read(struct cs_conn *conn);
void cs_conn_read(struct cs_conn *conn);
void cs_conn_send(struct cs_conn *conn);
int cs_conn_gate(struct cs_conn *conn); /* 1: the next request must wait */
/* Queue a reply to req. buf: a reference that is taken over, data lies in it (or NULL and data is copied). */
void cs_conn_reply(struct cs_conn *conn, const struct vst_frame *req, int status, uint16_t flags, const uint32_t *table,
		   uint32_t pieces, struct cs_buf *buf, const void *data, uint32_t data_len, uint32_t version);
void cs_proto_frame(struct cs_conn *conn); /* a complete frame is in hdr, head, rdata; rbuf may be taken */
void cs_conn_status(struct cs_conn *conn, const struct vst_frame *req, int status,
		    uint32_t version); /* a reply without data */
/* cs_handshake.c */
void cs_proto_hello(struct cs_conn *conn);
void cs_proto_prove(struct cs_conn *conn);
void cs_proto_open_chunk(struct cs_conn *conn);
int cs_serving(const struct cs *cs);
int cs_chunk_status(const struct cs_chunk *c, uint32_t version); /* may a request of this version be served? status */
struct cs_handle *cs_conn_handle(struct cs_conn *conn, uint32_t slot, int make);
void cs_handle_clear(struct cs *cs, struct cs_handle *h);
#endif
