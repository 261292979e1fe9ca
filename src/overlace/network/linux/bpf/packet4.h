/* SPDX-License-Identifier: Apache-2.0 */
/* IPv4 inside the overlay: reading and rewriting its headers (RFC 791, 792). packet6.h is the same for IPv6. */
#pragma once

typedef struct ip head_t;

INLINE int is_plain(const head_t *h)
{
	return h->version_ihl == 0x45 && !(h->frag & bpf_htons(0x3fff));
}

/* Bytes of the whole packet. */
INLINE __u32 length_of(const head_t *h)
{
	return bpf_ntohs(h->length);
}

INLINE __u8 proto_of(const head_t *h)
{
	return h->proto;
}

INLINE __u8 tos_of(const head_t *h)
{
	return h->tos;
}

/* Whether it may not be fragmented. */
INLINE int is_whole(const head_t *h)
{
	return (h->frag & bpf_htons(0x4000)) != 0;
}

INLINE void write_head(head_t *h, __u8 proto, __u32 payload, addr_t from, addr_t to, int whole)
{
	h->version_ihl = 0x45;
	h->length = bpf_htons(sizeof(*h) + payload);
	h->frag = whole ? bpf_htons(0x4000) : 0;
	h->ttl = 64;
	h->proto = proto;
	h->saddr = from;
	h->daddr = to;
	seal_ip(h);
}

/* What the transport checksum counts of the header, unfolded: RFC 9293 section 3.1. */
INLINE __u32 pseudo_sum(const head_t *h, __u8 proto, __u32 payload)
{
	struct {
		__be32 saddr, daddr;
		__be16 proto, length;
	} pseudo = { .saddr = h->saddr, .daddr = h->daddr, .proto = bpf_htons(proto), .length = bpf_htons(payload) };

	return bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
}

/* The header at `l3`: addresses, protocol, where the transport header is. 0 or a reason. `id`: of the whole packet a
 * fragment belongs to. `mark`: what a traced packet bears. */
INLINE int read_head(struct __sk_buff *ctx, __u32 l3, struct pkt *p, frag_id_t *id, __u32 *mark)
{
	struct ip ip;
	__u16 frag;

	if (bpf_skb_load_bytes(ctx, l3, &ip, sizeof(ip)))
		return R_DROP_GARBAGE;
	p->ihl = (ip.version_ihl & 15) * 4;
	p->length = bpf_ntohs(ip.length);
	if ((ip.version_ihl >> 4) != 4 || p->ihl < IP_LEN || p->length < p->ihl || ctx->len < l3 + p->length)
		return R_DROP_GARBAGE;
	*id = ip.id;
	*mark = bpf_ntohs(ip.id);
	p->saddr = ip.saddr;
	p->daddr = ip.daddr;
	p->proto = ip.proto;
	p->tos = ip.tos;
	p->l3 = l3;
	p->l4 = l3 + p->ihl;
	frag = bpf_ntohs(ip.frag);
	p->df = (frag & 0x4000) != 0;
	p->later = (frag & 0x1fff) != 0;
	p->fragment = (frag & 0x3fff) != 0;
	return 0;
}

/* RFC 792: the error quotes the IP header and 8 bytes of the packet it is about. A quote too short to tell is none. */
INLINE int is_error(__u8 type)
{
	return type == 3 || type == 11 || type == 12;
}

INLINE void parse_error(struct __sk_buff *ctx, struct pkt *p)
{
	struct {
		struct ip ip;
		__be16 sport, dport;
	} quote;

	if (bpf_skb_load_bytes(ctx, p->l4 + 8, &quote, sizeof(quote)) || quote.ip.version_ihl != 0x45 ||
	    quote.ip.saddr != p->daddr || (quote.ip.frag & bpf_htons(0x1fff)) ||
	    (quote.ip.proto != PROTO_TCP && quote.ip.proto != PROTO_UDP && quote.ip.proto != PROTO_SCTP))
		return;
	p->error = 1;
	p->error_proto = quote.ip.proto;
	p->error_saddr = quote.ip.daddr;
	p->error_daddr = quote.ip.saddr;
	p->sport = quote.dport;
	p->dport = quote.sport;
}

INLINE __u32 sum_offset(const struct pkt *p)
{
	return p->l4 + (p->proto == PROTO_TCP ? 16 : 6);
}

#define SOURCE_AT 12
#define TARGET_AT 16

INLINE int set_addr(struct __sk_buff *ctx, const struct pkt *p, __u32 at, __be32 from, __be32 to)
{
	if (from == to)
		return 0;
	if (!p->later && (p->proto == PROTO_TCP || p->proto == PROTO_UDP)) {
		__u64 flags = BPF_F_PSEUDO_HDR | 4 | (p->proto == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);

		if (bpf_l4_csum_replace(ctx, sum_offset(p), from, to, flags))
			return -1;
	}
	if (bpf_l3_csum_replace(ctx, p->l3 + 10, from, to, 4))
		return -1;
	return bpf_skb_store_bytes(ctx, p->l3 + at, &to, 4, 0);
}

/* Change an address inside the packet an ICMP error quotes. The quoted header's own checksum changes with it, so the
 * checksum of the whole stays. */
INLINE int set_quoted_addr(struct __sk_buff *ctx, const struct pkt *p, __u32 at, __be32 from, __be32 to)
{
	__u32 quote = p->l4 + 8;

	if (from == to)
		return 0;
	if (bpf_l3_csum_replace(ctx, quote + 10, from, to, 4))
		return -1;
	return bpf_skb_store_bytes(ctx, quote + at, &to, 4, 0);
}
