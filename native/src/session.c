/* Keys, tickets and frame protection: see include/vstor/session.h and wire/protocol.toml. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include "vstor/session.h"

#define TAG_BYTES 16u
#define KEY_BYTES 16u
#define NONCE_BYTES 12u
#define ACK_SIGNED_BYTES offsetof(struct vst_hello_ack, mac)
#define TICKET_SIGNED_BYTES offsetof(struct vst_ticket, mac)
_Static_assert(ACK_SIGNED_BYTES == 48 && TICKET_SIGNED_BYTES == 48, "protocol.toml says 48");

struct vst_seal {
	EVP_CIPHER_CTX *ctx; /* key set once; NULL in mode CRC */
	uint64_t counter; /* frames so far: never used twice with one key */
	int mode;
};

int vst_hmac_sha256(const uint8_t *key, size_t key_len, const void *data, size_t len, uint8_t out[32])
{
	unsigned out_len = 32;
	if (key_len > INT32_MAX)
		return -EINVAL;
	return HMAC(EVP_sha256(), key, (int)key_len, data, len, out, &out_len) ? 0 : -EIO;
}

/* An HMAC that cannot be computed leaves zeros, which no peer can have asked for: it must never pass as a valid mac. */
static void hmac_or_abort(const uint8_t *key, const void *data, size_t len, uint8_t out[32])
{
	if (vst_hmac_sha256(key, 32, data, len, out) != 0)
		abort(); /* OpenSSL without SHA-256 or memory: going on would be insecure */
}

void vst_session_key(const uint8_t cs_key[32], uint64_t session_id, uint64_t expiry_ms, uint8_t out[32])
{
	static const char label[] = "vstor-session";
	uint8_t text[sizeof label - 1 + 16];

	memcpy(text, label, sizeof label - 1);
	memcpy(text + sizeof label - 1, &session_id, 8);
	memcpy(text + sizeof label - 1 + 8, &expiry_ms, 8);
	hmac_or_abort(cs_key, text, sizeof text, out);
}

static void handshake_mac(const uint8_t k[32], const char *label, const struct vst_hello *h,
			  const struct vst_hello_ack *a, uint8_t out[32])
{
	uint8_t text[32 + sizeof *h + ACK_SIGNED_BYTES];
	size_t n = strlen(label);

	memcpy(text, label, n);
	memcpy(text + n, h, sizeof *h);
	memcpy(text + n + sizeof *h, a, ACK_SIGNED_BYTES);
	hmac_or_abort(k, text, n + sizeof *h + ACK_SIGNED_BYTES, out);
}

void vst_hello_ack_mac(const uint8_t k[32], const struct vst_hello *h, const struct vst_hello_ack *a, uint8_t out[32])
{
	handshake_mac(k, "vstor-server", h, a, out);
}

void vst_prove_mac(const uint8_t k[32], const struct vst_hello *h, const struct vst_hello_ack *a, uint8_t out[32])
{
	handshake_mac(k, "vstor-client", h, a, out);
}

void vst_ticket_mac(const uint8_t ticket_key[32], const struct vst_ticket *t, uint8_t out[16])
{
	uint8_t mac[32];
	hmac_or_abort(ticket_key, t, TICKET_SIGNED_BYTES, mac);
	memcpy(out, mac, 16);
}

int vst_mac_equal(const uint8_t *a, const uint8_t *b, size_t len)
{
	return CRYPTO_memcmp(a, b, len) == 0;
}

static void traffic_key(const uint8_t k[32], const struct vst_hello *h, const struct vst_hello_ack *a, int to_server,
			uint8_t out[32])
{
	uint8_t text[9 + sizeof h->nonce + sizeof a->nonce];

	memcpy(text, to_server ? "vstor-c2s" : "vstor-s2c", 9);
	memcpy(text + 9, h->nonce, sizeof h->nonce);
	memcpy(text + 9 + sizeof h->nonce, a->nonce, sizeof a->nonce);
	hmac_or_abort(k, text, sizeof text, out);
}

vst_seal *vst_seal_new(const uint8_t k[32], const struct vst_hello *h, const struct vst_hello_ack *a, int to_server,
		       int mode)
{
	uint8_t key[32];
	vst_seal *s;

	if (mode != VST_AUTH_MODE_CRC && mode != VST_AUTH_MODE_SIGN && mode != VST_AUTH_MODE_SECURE) {
		errno = EINVAL;
		return NULL;
	}
	s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	s->mode = mode;
	if (mode == VST_AUTH_MODE_CRC)
		return s;
	traffic_key(k, h, a, to_server, key);
	s->ctx = EVP_CIPHER_CTX_new();
	/* Both directions of the cipher use the same key schedule; which one is said with each frame's nonce. */
	int ok = s->ctx && EVP_CipherInit_ex(s->ctx, EVP_aes_128_gcm(), NULL, key, NULL, 1) == 1;
	OPENSSL_cleanse(key, sizeof key);
	if (!ok) {
		vst_seal_free(s);
		errno = ENOMEM;
		return NULL;
	}
	return s;
}

void vst_seal_free(vst_seal *s)
{
	if (!s)
		return;
	EVP_CIPHER_CTX_free(s->ctx);
	free(s);
}

size_t vst_seal_tag_len(const vst_seal *s)
{
	return s->mode == VST_AUTH_MODE_CRC ? 0 : TAG_BYTES;
}

static int update(EVP_CIPHER_CTX *ctx, void *out, const void *in, size_t len)
{
	int n;
	if (len == 0)
		return 1;
	return len <= INT32_MAX && EVP_CipherUpdate(ctx, out, &n, in, (int)len) == 1;
}

/* Nonce, additional data, data: everything but the tag. 1 fine. */
static int feed(vst_seal *s, int encrypt, const struct vst_frame *hdr, const void *table, struct vst_seg *data,
		size_t ndata)
{
	uint8_t nonce[NONCE_BYTES] = {0};

	memcpy(nonce + 4, &s->counter, 8);
	s->counter++;
	if (EVP_CipherInit_ex(s->ctx, NULL, NULL, NULL, nonce, encrypt) != 1)
		return 0;
	if (!update(s->ctx, NULL, hdr, sizeof *hdr) || !update(s->ctx, NULL, table, hdr->table_len))
		return 0;
	for (size_t i = 0; i < ndata; i++) {
		void *out = s->mode == VST_AUTH_MODE_SECURE ? data[i].base : NULL;
		if (!update(s->ctx, out, data[i].base, data[i].len))
			return 0;
	}
	return 1;
}

int vst_seal_frame(vst_seal *s, const struct vst_frame *hdr, const void *table, struct vst_seg *data, size_t ndata,
		   uint8_t tag[16])
{
	uint8_t none[TAG_BYTES];
	int n;

	if (s->mode == VST_AUTH_MODE_CRC)
		return 0;
	if (s->counter == UINT64_MAX)
		return -EOVERFLOW;
	if (!feed(s, 1, hdr, table, data, ndata) || EVP_CipherFinal_ex(s->ctx, none, &n) != 1 ||
	    EVP_CIPHER_CTX_ctrl(s->ctx, EVP_CTRL_AEAD_GET_TAG, (int)TAG_BYTES, tag) != 1)
		return -EIO;
	return 0;
}

int vst_open_frame(vst_seal *s, const struct vst_frame *hdr, const void *table, struct vst_seg *data, size_t ndata,
		   const uint8_t tag[16])
{
	uint8_t none[TAG_BYTES], expected[TAG_BYTES];
	int n;

	if (s->mode == VST_AUTH_MODE_CRC)
		return 0;
	if (s->counter == UINT64_MAX)
		return -EBADMSG;
	memcpy(expected, tag, TAG_BYTES);
	if (!feed(s, 0, hdr, table, data, ndata) ||
	    EVP_CIPHER_CTX_ctrl(s->ctx, EVP_CTRL_AEAD_SET_TAG, (int)TAG_BYTES, expected) != 1 ||
	    EVP_CipherFinal_ex(s->ctx, none, &n) != 1)
		return -EBADMSG;
	return 0;
}
