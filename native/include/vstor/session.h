/* Keys, tickets and per-connection frame protection of the data plane (protocol.toml says how each is derived).  Sans-I/O. */
#ifndef VSTOR_SESSION_H
#define VSTOR_SESSION_H
#include <stddef.h>
#include <stdint.h>
#include "vstor/wire.h"

typedef struct vst_seal vst_seal; /* one direction of one connection: AES-128-GCM context and frame counter */

int vst_hmac_sha256(const uint8_t *key, size_t key_len, const void *data, size_t len, uint8_t out[32]);
/* K for (session, expiry) from a chunk server's key. */
void vst_session_key(const uint8_t cs_key[32], uint64_t session_id, uint64_t expiry_ms, uint8_t out[32]);
void vst_hello_ack_mac(const uint8_t k[32], const struct vst_hello *h, const struct vst_hello_ack *a, uint8_t out[32]);
void vst_prove_mac(const uint8_t k[32], const struct vst_hello *h, const struct vst_hello_ack *a, uint8_t out[32]);
void vst_ticket_mac(const uint8_t ticket_key[32], const struct vst_ticket *t, uint8_t out[16]);
int vst_mac_equal(const uint8_t *a, const uint8_t *b, size_t len); /* constant time; 1 equal */

/* to_server: 1 for the key of client -> server. mode is vst_auth_mode; CRC mode gives a seal that does nothing with tag length 0. */
vst_seal *vst_seal_new(const uint8_t k[32], const struct vst_hello *h, const struct vst_hello_ack *a, int to_server, int mode);
void vst_seal_free(vst_seal *s);
size_t vst_seal_tag_len(const vst_seal *s); /* 0 or 16 */
/* Make the tag of the next frame; in mode SECURE also encrypts data in place (segments of it, in order). 0 or -errno. */
struct vst_seg { void *base; size_t len; };
int vst_seal_frame(vst_seal *s, const struct vst_frame *hdr, const void *table, struct vst_seg *data, size_t ndata, uint8_t tag[16]);
/* Check (and decrypt in place) the next frame. 0, or -EBADMSG: the connection must be dropped. */
int vst_open_frame(vst_seal *s, const struct vst_frame *hdr, const void *table, struct vst_seg *data, size_t ndata, const uint8_t tag[16]);
#endif
